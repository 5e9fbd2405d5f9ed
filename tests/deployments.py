"""Every place where a file under deploy/ runs the program, and what it says of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.reader import ROOT

DEPLOY = ROOT / "deploy"
KUBERNETES = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
UNIT = (DEPLOY / "systemd" / "expirer.service").read_text()
WEB_UNIT = (DEPLOY / "systemd" / "expirer-web.service").read_text()


@dataclass(frozen=True, slots=True)
class Place:
    """One place: the file, the image (none with systemd), and the variables."""

    file: str
    image: str
    variables: dict[str, str]


@dataclass(frozen=True, slots=True)
class Pod:
    """The Pod of a Kubernetes object, and the container in it that runs the program."""

    file: str
    labels: dict[str, str]
    spec: dict[str, Any]

    @property
    def container(self) -> dict[str, Any]:
        """Return the container called expirer."""
        (container,) = (found for found in self.spec["containers"] if found["name"] == "expirer")
        return dict(container)

    @property
    def variables(self) -> dict[str, str]:
        """Return the container's variables."""
        return {variable["name"]: variable["value"] for variable in self.container["env"]}

    @property
    def probes(self) -> dict[str, dict[str, Any]]:
        """Return the container's probes."""
        return {name: probe for name, probe in self.container.items() if name.endswith("Probe")}


def objects(path: Path) -> list[dict[str, Any]]:
    """Return the Kubernetes objects of a file."""
    return list(yaml.safe_load_all(path.read_text()))


def pods() -> dict[str, Pod]:
    """Return each Pod by the name of its file."""
    found = {}
    for path in KUBERNETES:
        for described in objects(path):
            spec = described["spec"]
            template = spec.get("jobTemplate", described)["spec"].get("template")
            if template:
                found[path.name] = Pod(path.name, template["metadata"]["labels"], template["spec"])
    return found


def places() -> list[Place]:
    """Return each place where the program, or the shop beside it, runs."""
    assignments = re.findall(r"^Environment=(\w+)=(.*)$", UNIT, re.MULTILINE)
    assignments += re.findall(r"^(\w+)=(.*)$", (DEPLOY / "systemd" / "expirer.env").read_text(), re.MULTILINE)
    return [
        *(Place(f"kubernetes/{pod.file}", pod.container["image"], pod.variables) for pod in pods().values()),
        *(
            Place(f"compose.yaml, {name}", service["image"], service["environment"])
            for name, service in COMPOSE["services"].items()
            if "build" in service
        ),
        Place("systemd", "", dict(assignments)),
    ]
