"""The Compose file: it is valid, and all that it mounts, names and connects is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import PurePosixPath

import pytest
import yaml

from tests.deployments import COMPOSE, DEPLOY
from tests.program import Program, wait_until
from tests.reader import ROOT
from tests.servers import RedisServer, free_port

pytestmark = pytest.mark.slow

SERVICES = COMPOSE["services"]
CONFIG = PurePosixPath("/etc/prometheus/prometheus.yaml")
PROMETHEUS = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yaml").read_text())


def mounted(name: str) -> set[str]:
    """Return the paths inside a service's container where something is mounted."""
    return {mount.split(":")[1] for mount in SERVICES[name]["volumes"]}


def test_it_is_valid() -> None:
    """The Compose Specification knows every word of it."""
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (0, "") == (done.returncode, done.stderr), done.stdout


def test_all_that_it_mounts_is_there() -> None:
    """Each mounted file exists, and each volume is declared."""
    mounts = [mount for service in SERVICES.values() for mount in service.get("volumes", [])]
    sources = {mount.partition(":")[0] for mount in mounts}
    files = {source for source in sources if source.startswith(".")}

    assert COMPOSE["volumes"].keys() == sources - files
    assert [] == [source for source in sorted(files) if not (DEPLOY / source).is_file()]
    assert [] == [mount for mount in mounts if mount.startswith(".") and not mount.endswith(":ro")]


def test_what_starts_after_is_there() -> None:
    """Each service that another waits for exists."""
    awaited = {name for service in SERVICES.values() for name in service.get("depends_on", [])}

    assert awaited <= SERVICES.keys()


def test_who_asks_whom() -> None:
    """Each address names a service, at the port where it listens."""
    targets = [f"{name}:{SERVICES[name]['environment']['EXPIRER_HTTP_PORT']}" for name in ("expirer", "web")]
    (job,) = PROMETHEUS["scrape_configs"]
    (source,) = yaml.safe_load((DEPLOY / "grafana" / "datasource.yaml").read_text())["datasources"]
    redis_urls = {service["environment"]["EXPIRER_REDIS_URL"] for service in SERVICES.values() if "build" in service}

    assert {"targets": targets} in job["static_configs"]
    assert "http://prometheus:9090" == source["url"]
    assert PROMETHEUS["global"]["scrape_interval"] == source["jsonData"]["timeInterval"]
    assert {"redis://redis:6379/0"} == {url.partition("?")[0] for url in redis_urls}
    assert {"expirer", "prometheus", "redis", "web"} <= SERVICES.keys()


def test_prometheus_finds_its_files() -> None:
    """Prometheus is told of a configuration that is mounted, and the rules are mounted beside it."""
    config = f"--config.file={CONFIG}"
    rules = {str(CONFIG.with_name(name)) for name in PROMETHEUS["rule_files"]}

    assert config in SERVICES["prometheus"]["command"]
    assert {str(CONFIG)} | rules <= mounted("prometheus")


def test_grafana_finds_its_dashboard() -> None:
    """The provider reads the folder where the dashboard is mounted, which is the page that opens first."""
    (provider,) = yaml.safe_load((DEPLOY / "grafana" / "dashboards.yaml").read_text())["providers"]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]

    assert home in mounted("grafana")
    assert home == f"{provider['options']['path']}/dashboard.json"


def test_nobody_else_reaches_it() -> None:
    """Each port is published to this machine alone."""
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]

    assert [] == [port for port in published if not re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port)]


def test_its_redis_is_one_that_is_tested() -> None:
    """The server is of an image that CI runs the tests on, keeps what it is told, and evicts nothing."""
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())

    assert SERVICES["redis"]["image"] in workflow["jobs"]["test"]["strategy"]["matrix"]["image"]
    assert "--appendonly yes --maxmemory-policy noeviction" in " ".join(SERVICES["redis"]["command"])


def test_our_services_give_up_every_right() -> None:
    """The services of this project write to nothing, and can gain no right."""
    ours = [service for service in SERVICES.values() if "build" in service]

    assert [(True, ["ALL"], ["no-new-privileges:true"])] * 3 == [
        (service["read_only"], service["cap_drop"], service["security_opt"]) for service in ours
    ]


@pytest.mark.parametrize(("name", "command"), [("expirer", "run"), ("web", "web")])
def test_its_health_check_tells(own_server: RedisServer, name: str, command: str) -> None:
    """The health check of a service succeeds while it works, and fails while its Redis is away."""
    _, program, *words = SERVICES[name]["healthcheck"]["test"]
    port = str(free_port())

    def check() -> int:
        arguments = [sys.executable, *(re.sub("987[78]", port, word) for word in words)]
        return subprocess.run(arguments, capture_output=True, check=False).returncode

    with Program(own_server.url, "--http-port", port, "--interval", "1s", command=command):
        wait_until(lambda: check() == 0)
        own_server.stop()
        wait_until(lambda: check() == 1)

    assert "python" == program
    assert SERVICES[name].get("command", ["run"]) == [command]
