# Each target sets itself up; all it needs is Python 3.11 or later with venv.

PYTHON ?= python3 python3.14 python3.13 python3.12 python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: bench clean demo demo-monitoring lint lock test test-all test-slow torture
.NOTPARALLEL:

demo: $(VENV)/.demo
	$(BIN)/expirer demo

demo-monitoring: $(VENV)/.test
	$(BIN)/python tests/servers.py
	$(BIN)/python tests/tools.py prometheus prometheus-alertmanager
	$(BIN)/python -m deploy.monitoring

# What takes no more than about a second each: one Redis server, and no other tool.
test: $(VENV)/.test
	$(BIN)/python tests/servers.py
	$(BIN)/pytest --numprocesses auto --dist worksteal -m 'not slow'

# The rest: Sentinels, Clusters, faults, packages, documents, and real tools such as Prometheus and Chromium.
test-slow: $(VENV)/.test
	$(BIN)/python tests/servers.py
	$(BIN)/python tests/tools.py
	$(BIN)/pytest --numprocesses 6 --dist loadfile -m slow

test-all: test test-slow

# Some of it, again as it was: make torture ONLY=kills,soak SEED=7 MINUTES=5
torture: $(VENV)/.test
	$(BIN)/python tests/servers.py
	$(BIN)/python tests/tools.py cc
	$(BIN)/python -m tests.torture $(if $(ONLY),--only $(ONLY)) $(if $(SEED),--seed $(SEED)) \
	    $(if $(MINUTES),--minutes $(MINUTES))

# One part, fewer rounds: make bench ONLY=drain ROUNDS=2
bench: $(VENV)/.bench
	$(BIN)/python tests/servers.py
	$(BIN)/python -m benchmarks $(if $(ONLY),--only $(ONLY)) $(if $(ROUNDS),--rounds $(ROUNDS))

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile

# What the image is made of, each file by its hash: the program's dependencies, and what builds its wheel.
LOCK = $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.13 --generate-hashes --custom-compile-command 'make lock'
lock: $(VENV)/.lock
	$(LOCK) --extra http --output-file deploy/requirements.txt pyproject.toml
	echo hatchling | $(LOCK) --output-file deploy/build-requirements.txt -

clean:
	rm -rf $(VENV) dist benchmarks/.peers benchmarks/.quick benchmarks/.results.json tests/torture/.results.json

$(VENV)/.%: pyproject.toml $(VENV)/.made
	$(BIN)/pip install --quiet --editable '.[$*]'
	@touch $@

# Half a virtual environment, or one whose Python has gone or changed, is made anew.
ifneq ($(shell ($(BIN)/python -c 'import pip; print("whole")') 2>/dev/null),whole)
.PHONY: $(VENV)/.made
endif

$(VENV)/.made:
	@wanted='Python 3.11 or later: install one, or name one with make PYTHON=/path/to/python'; \
	for python in $(PYTHON); do \
	    $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	    wanted="the venv module of $$python: apt-get install python3-venv (the name on Debian)"; \
	    $$python -c 'import ensurepip, venv' 2>/dev/null || continue; \
	    echo "$$python -m venv $(VENV)"; \
	    $$python -m venv --clear $(VENV) && touch $@; exit; \
	done; \
	echo "This needs $$wanted" >&2; exit 1
