"""What deploy/ says is true of the program: settings, ports, memory, user; and Kubernetes takes its files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import kubernetes_validate
import pytest
import yaml

import expirer
from expirer.commands import COMMANDS
from expirer.config.environment import variable
from expirer.config.settings import Settings, load
from tests.conftest import Tool
from tests.deployments import DEPLOY, KUBERNETES, Place, Pod, objects, places, pods
from tests.program import Backlog, Program, wait_until
from tests.reader import ROOT, blocks
from tests.servers import RedisServer, free_port

pytestmark = pytest.mark.slow

GUIDE = (ROOT / "docs" / "deployment.md").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text()
OLDEST_KUBERNETES = "1.27"
PASSWORD_FILE = variable("redis_password_file")
MIB = 2**20
AUDIT_BYTES = 81_000_000
"""Of a million reservations, as benchmarks/RESULTS.md has it."""

every_pod = pytest.mark.parametrize("pod", list(pods().values()), ids=list(pods()))
every_server = pytest.mark.parametrize("pod", [pod for pod in pods().values() if pod.probes], ids=lambda pod: pod.file)


def mib(quantity: str) -> int:
    """Return a quantity of memory of Kubernetes as bytes."""
    match = re.fullmatch(r"(\d+)Mi", quantity)
    assert match is not None
    return int(match[1]) * MIB


def peak_bytes(pid: int) -> int:
    """Return the most memory that a process has held."""
    (peak_kib,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return 1024 * int(peak_kib)


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Say whether a selector of Kubernetes picks a Pod with these labels."""
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        rule["operator"] == "In" and labels.get(rule["key"]) in rule["values"]
        for rule in selector.get("matchExpressions", [])
    )


@pytest.mark.parametrize("version", [OLDEST_KUBERNETES, kubernetes_validate.latest_version()])
@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.name)
def test_kubernetes_takes_each_file(path: Path, version: str) -> None:
    """Each object is valid in the oldest Kubernetes that the guide names and in the newest; no field is misspelt."""
    for described in objects(path):
        kubernetes_validate.validate(described, version, strict=True)

    assert f"Kubernetes {OLDEST_KUBERNETES}" in GUIDE


@pytest.mark.parametrize("place", places(), ids=lambda place: place.file)
def test_each_variable_is_a_setting(place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The program takes every variable with the value that stands there."""
    (tmp_path / "password").write_text("secret\n")
    for name, value in place.variables.items():
        monkeypatch.setenv(name, str(tmp_path / "password") if name == PASSWORD_FILE else value)

    assert place.variables.keys() <= {variable(name) for name in load().model_fields_set}


def test_no_file_names_another_variable() -> None:
    """Whatever is called EXPIRER_… in a deployed file or in the guide is a setting, comments included."""
    texts = [path.read_text() for path in DEPLOY.rglob("*") if path.suffix in (".yaml", ".service", ".env", ".py")]
    named = {name for text in (*texts, GUIDE) for name in re.findall(r"\bEXPIRER_[A-Z_]*[A-Z]\b", text)}

    assert set() == named - {variable(name) for name in Settings.model_fields}


def test_the_image_is_the_one_that_is_built() -> None:
    """Every place runs this version's image, and the guide builds it."""
    image = f"expirer:{expirer.__version__}"

    assert {image} == {place.image for place in places() if place.image}
    assert f"docker build --tag {image} ." in GUIDE


@every_pod
def test_a_container_has_no_right_that_it_does_not_need(pod: Pod) -> None:
    """Each container fulfils the restricted Pod Security Standard, as the image's user, with nothing to write to."""
    (user,) = re.findall(r"^USER (\d+):\1$", DOCKERFILE, re.MULTILINE)
    of_the_pod = {name: value for name, value in pod.spec.get("securityContext", {}).items() if name != "fsGroup"}

    assert {
        "runAsNonRoot": True,
        "runAsUser": int(user),
        "runAsGroup": int(user),
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    } == of_the_pod | pod.container["securityContext"]
    assert pod.spec["automountServiceAccountToken"] is False


@every_pod
def test_the_password_is_a_mounted_file(pod: Pod) -> None:
    """The password is a key of the secret that the guide creates, in a folder that is renewed (no subPath)."""
    (mount,) = pod.container["volumeMounts"]
    (volume,) = (volume for volume in pod.spec["volumes"] if volume["name"] == mount["name"])
    secret = volume["secret"]
    (item,) = secret["items"]

    assert {"name", "mountPath", "readOnly"} == mount.keys()
    assert pod.variables[PASSWORD_FILE] == f"{mount['mountPath']}/{item['path']}"
    assert f"kubectl create secret generic {secret['secretName']} --from-file={item['key']}=" in GUIDE
    # Others can read it, or the group may and the container is in it.
    assert secret.get("defaultMode", 0o644) & 0o004 or pod.spec["securityContext"]["fsGroup"] == 10001


@every_server
def test_one_port_throughout(pod: Pod) -> None:
    """The program listens where the probes ask, on an address that they reach."""
    (port,) = pod.container["ports"]

    assert {port["name"]} == {probe["httpGet"]["port"] for probe in pod.probes.values()}
    assert (str(port["containerPort"]), "0.0.0.0") == (  # noqa: S104  # in a Pod
        pod.variables["EXPIRER_HTTP_PORT"],
        pod.variables["EXPIRER_HTTP_HOST"],
    )


def test_an_outage_restarts_nothing() -> None:
    """A restart depends on /livez, and a sidecar that is not ready does not take its shop away."""
    paths = {
        pod.file: {name: probe["httpGet"]["path"] for name, probe in pod.probes.items()} for pod in pods().values()
    }

    assert {
        "cronjob.yaml": {},
        "sidecar.yaml": {"startupProbe": "/readyz", "livenessProbe": "/livez"},
        "standalone.yaml": {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"},
        "web.yaml": {"livenessProbe": "/livez", "readinessProbe": "/readyz"},
    } == paths


def test_each_selector_picks_its_pods() -> None:
    """Each selector in a file picks the Pod of that file; the network policy those that have no shop in them."""
    labels = {name: pod.labels for name, pod in pods().items()}
    found = {
        name: [described["spec"] for described in objects(DEPLOY / "kubernetes" / name)]
        for name in ("networkpolicy.yaml", "sidecar.yaml", "standalone.yaml", "web.yaml")
    }
    [policy], [sidecar], [deployment, budget], [web, service] = found.values()
    spread = deployment["template"]["spec"]["topologySpreadConstraints"]
    own = [deployment["selector"], budget["selector"], *(constraint["labelSelector"] for constraint in spread)]

    def picked(selector: dict[str, Any]) -> list[str]:
        return [name for name in labels if selects(selector, labels[name])]

    assert [["standalone.yaml"]] * 4 == [picked(selector) for selector in own]
    assert ["sidecar.yaml"] == picked(sidecar["selector"])
    assert ["web.yaml"] == picked(web["selector"]) == picked({"matchLabels": service["selector"]})
    assert ["cronjob.yaml", "standalone.yaml", "web.yaml"] == picked(policy["podSelector"])


def test_the_guide_names_what_is_there() -> None:
    """Each file and each command in the guide exists."""
    paths = re.findall(r"(?<=\]\()[^)#:]+(?=\))", GUIDE)
    paths += [f"../{path}" for path in re.findall(r"\bdeploy/[\w./-]+", GUIDE)]
    commands = re.findall(r"(?:-- |bin/|exec expirer |`)expirer (\w+)", GUIDE)

    assert [] == [path for path in paths if not (ROOT / "docs" / path).exists()]
    assert [] == [command for command in commands if command not in COMMANDS]


def test_the_guide_scrapes_who_serves(tool: Tool, tmp_path: Path) -> None:
    """The guide's job keeps the port that serves, and its PodMonitor finds the same Pods and port."""
    job, monitor = (block for _, block in blocks(GUIDE, "yaml"))
    # Debian's Prometheus is built without Kubernetes.
    (tmp_path / "prometheus.yaml").write_text(job.replace("kubernetes_sd_configs: [{role: pod}]", "static_configs: []"))
    checked = subprocess.run(
        [tool("promtool"), "check", "config", tmp_path / "prometheus.yaml"], capture_output=True, check=False
    )
    (kept,) = yaml.safe_load(job)["scrape_configs"][0]["relabel_configs"]
    spec = yaml.safe_load(monitor)["spec"]
    served = {(pod.file, pod.container["ports"][0]["name"]) for pod in pods().values() if pod.probes}

    assert 0 == checked.returncode, checked.stderr
    assert {kept["regex"]} == {port for _, port in served}
    assert served == {
        (pod.file, endpoint["port"])
        for pod in pods().values()
        for endpoint in spec["podMetricsEndpoints"]
        if selects(spec["selector"], pod.labels)
    }


def test_the_cronjob_expires(own_server: RedisServer) -> None:
    """What the CronJob runs gives units back and exits 0."""
    pod = pods()["cronjob.yaml"]
    variables = {name: value for name, value in pod.variables.items() if name != PASSWORD_FILE}
    with own_server.client() as client:
        backlog = Backlog(client)
        backlog.add(500)
        done = subprocess.run(
            [sys.executable, "-m", "expirer", *pod.container["args"]],
            env={**os.environ, **variables, "EXPIRER_REDIS_URL": own_server.url},
            capture_output=True,
            check=False,
        )

        assert 0 == done.returncode, done.stderr
        backlog.assert_expired_once()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc knows what a process took")
@every_server
def test_what_probes_ask_is_served_within_the_memory(pod: Pod, own_server: RedisServer) -> None:
    """Every probe is answered, by less memory than is requested, and an audit fits beside a worker."""
    port = free_port()
    [command] = pod.container.get("args", ["run"])
    paths = {probe["httpGet"]["path"] for probe in pod.probes.values()} | {"/metrics"}
    paths |= {"/"} if command == "web" else set()

    def answers(path: str) -> bool:
        with suppress(OSError), urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return bool(answer.status == HTTPStatus.OK)
        return False

    with Program(own_server.url, "--http-port", str(port), command=command) as program:
        for path in paths:
            wait_until(partial(answers, path))
        taken = peak_bytes(program.pid)
    memory = [mib(pod.container["resources"][kind]["memory"]) for kind in ("requests", "limits")]

    assert taken < memory[0]
    assert taken + AUDIT_BYTES < memory[1]
