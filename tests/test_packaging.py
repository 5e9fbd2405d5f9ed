"""What is shipped: the wheel, the sdist and the image's files work away from the checkout."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

import expirer
from tests.inventory import Inventory
from tests.servers import RedisServer

ROOT = Path(__file__).parent.parent
SOURCES = ["expirer", "lua", "tests", "pyproject.toml", "README.md", "LICENSE", "Makefile"]
"""Enough for a build; CHANGELOG and the like are in the sdist, and nothing needs them."""


def run(
    arguments: Sequence[str | Path], cwd: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program that sees nothing of the checkout."""
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        arguments,
        cwd=cwd,
        env={**outside, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )


def build(folder: Path, *options: str) -> Path:
    """Build the project in a folder, in an isolated environment; return its dist folder."""
    done = run([sys.executable, "-m", "build", *options, "--outdir", folder / "dist", folder], cwd=folder)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return folder / "dist"


def copy_project(folder: Path, names: Sequence[str]) -> Path:
    """Copy some of the project's files; return the folder."""
    folder.mkdir()
    for name in names:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder)
    return folder


def files_of(wheel: Path) -> set[str]:
    """Return the names of the files in a wheel, its metadata aside."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def package_files() -> set[str]:
    """Return what a wheel must hold: the package, the page, the mark that it is typed, and every script."""
    modules = {f"expirer/{path.relative_to(ROOT / 'expirer')}" for path in (ROOT / "expirer").rglob("*.py")}
    page = {"expirer/observe/page.html", "expirer/observe/page.css"}
    return {*modules, *page, "expirer/py.typed", *(f"expirer/lua/{path.name}" for path in (ROOT / "lua").iterdir())}


def image_files() -> list[str]:
    """Return what the Dockerfile copies from the project."""
    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    return [name for names in copies for name in names.split()]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from the files that the image is built from."""
    folder = copy_project(tmp_path_factory.mktemp("image") / "src", image_files())
    return next(build(folder, "--wheel").glob("*.whl"))


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel in an empty environment; return the path of its program."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    for arguments in (
        [sys.executable, "-m", "venv", folder],
        [folder / "bin" / "pip", "install", "--quiet", wheel],
    ):
        done = run(arguments, cwd=folder.parent)  # type: ignore[arg-type]
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
    return folder / "bin" / "expirer"


def test_the_wheel_is_the_package(wheel: Path) -> None:
    """The wheel holds every module, every script and py.typed, and nothing else: no tests."""
    assert package_files() == files_of(wheel)


def test_the_sdist_builds_the_same_wheel(tmp_path: Path) -> None:
    """The wheel built from the sdist holds what the one built from the checkout does."""
    dist = build(copy_project(tmp_path / "src", SOURCES))

    assert package_files() == files_of(next(dist.glob("*.whl")))


def test_a_build_without_the_scripts_fails(tmp_path: Path) -> None:
    """No wheel is built that lacks the scripts."""
    folder = copy_project(tmp_path / "src", [name for name in image_files() if name != "lua"])

    with pytest.raises(RuntimeError, match="lua"):
        build(folder, "--wheel")
    assert list(folder.glob("dist/*.whl")) == []


def test_the_installed_program_says_its_version(installed: Path, tmp_path: Path) -> None:
    """The installed program runs, and is the one that was built."""
    done = run([installed, "--version"], cwd=tmp_path)

    assert (0, f"expirer {expirer.__version__}\n", "") == (done.returncode, done.stdout, done.stderr)


def test_the_installed_program_expires(installed: Path, own_server: RedisServer, tmp_path: Path) -> None:
    """`expirer once` of the installed wheel gives a due reservation's units back."""
    with own_server.client() as client:
        inventory = Inventory(client)
        inventory.stock("sku", available=7, reserved=3)
        id_ = inventory.hold("sku", quantity=3, expires_at=time.time_ns() // 1_000_000 - 1)
        done = run([installed, "once"], cwd=tmp_path, environment={"EXPIRER_REDIS_URL": own_server.url})

        assert done.returncode == 0, done.stderr
        assert inventory.status(id_) == "Expired"
        assert inventory.counters("sku") == (10, 0)
        inventory.assert_conserved({"sku": 10})


def test_the_installed_program_has_every_verb(installed: Path, own_server: RedisServer, tmp_path: Path) -> None:
    """Each verb of the installed wheel works with what it brought along, scripts included: text and JSON."""
    with own_server.client() as client:
        inventory = Inventory(client)
        inventory.stock("sku", available=7, reserved=3)
        inventory.hold("sku", "three", 1_800_000_000_000, "o1:sku")
        environment = {"EXPIRER_REDIS_URL": own_server.url}

        def works(command: str, code: int = 0) -> str:
            done = run([installed, *command.split()], cwd=tmp_path, environment=environment)
            assert (code, "") == (done.returncode, done.stderr), command
            return done.stdout

        assert '"kind": "quantity_invalid"' in works("audit --json", 1)
        works("pause --reason outage")
        assert json.loads(works("status --json", 1))["shards"][0]["paused"]["reason"] == "outage"
        works("resume")
        assert "rights: expire.lua works" in works("check", 1)
        assert json.loads(works("check --json", 1).splitlines()[0])["what"] == "connection"
        assert json.loads(works("pending --json"))["reservation_id"] == "o1:sku"
        client.zrem(inventory.keys.index, "o1:sku")
        client.hset(inventory.keys.quarantine, "o1:sku", "reason=quantity_invalid at=1 score=1800000000000")
        for verb in ("show o1:sku", "quarantine show o1:sku", "quarantine list"):
            assert json.loads(works(f"{verb} --json"))["shard"] == 0
            assert "o1:sku" in works(verb)
        run([installed, "quarantine", "release", "o1:sku", "--quantity", "3"], cwd=tmp_path, environment=environment)
        assert inventory.counters("sku") == (10, 0)


def test_the_image_gets_what_it_copies() -> None:
    """.dockerignore lets exactly those files through that the Dockerfile copies."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()

    assert "*" in lines
    assert {f"!{name}" for name in image_files()} == {line for line in lines if line.startswith("!")}
