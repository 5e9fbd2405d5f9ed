"""The results of the parts: also written as JSON, so that report and charts can be made again without measuring."""

from __future__ import annotations

import json
import os
import platform
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import hiredis
import redis

import expirer
from benchmarks.figures import Round
from benchmarks.servers import running
from benchmarks.systems import System


@dataclass(slots=True)
class PartResult:
    """What one part measured, when, and on what."""

    measured_at: str
    machine: dict[str, str]
    rounds: list[Round]


@dataclass(slots=True)
class Results:
    """What was measured; `systems` and `missing` are empty if no part compared other systems."""

    systems: dict[str, dict[str, str]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    parts: dict[str, PartResult] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read a file of results; empty without one."""
        if not path.exists():
            return cls()
        kept = json.loads(path.read_text(encoding="utf-8"))
        parts = {name: PartResult(**part) for name, part in kept.pop("parts").items()}
        return cls(**kept, parts=parts)

    def update(self, other: Results) -> None:
        """Take over what the other has."""
        self.parts |= other.parts
        if other.systems:
            self.systems, self.missing = other.systems, other.missing

    def write(self, path: Path) -> None:
        """Write the file."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    def describe(self, systems: dict[str, System], missing: dict[str, str]) -> None:
        """Note versions and settings."""
        self.systems = {name: {"version": one.version, "settings": one.settings} for name, one in systems.items()}
        self.missing = missing


def machine() -> dict[str, str]:
    """Describe this machine, and what runs on it."""
    with running() as server, server.client() as client:
        redis_version = str(client.info("server")["redis_version"])
    return {
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GB",
        "redis-server": f"{redis_version}, on a unix socket, without persistence",
        "Python": f"{platform.python_version()}, redis-py {redis.__version__}, hiredis {hiredis.__version__}",
        "expirer": expirer.__version__,
    }


def now() -> str:
    """Return the time of a measurement."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
