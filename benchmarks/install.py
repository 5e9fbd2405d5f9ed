"""Installs the peers into benchmarks/.peers from their registries, and says which could not be."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

PEERS = Path(__file__).parent / ".peers"
CELERY = PEERS / "celery" / "bin"
BULLMQ = PEERS / "bullmq" / "node_modules"


class MissingPeerError(Exception):
    """A peer cannot be installed here."""


def install_celery() -> str:
    """Install Celery where it is not yet; return its version."""
    python = CELERY / "python"
    version: list[str | Path] = [
        python,
        "-c",
        "from importlib.metadata import version as v; print(v('celery'), v('redis'))",
    ]
    if not python.exists():
        venv.create(python.parents[1], with_pip=True)
    try:
        celery, client = _output(version).split()
    except MissingPeerError:
        _output([python, "-m", "pip", "install", "--quiet", "celery[redis]", "redis[hiredis]"])
        celery, client = _output(version).split()
    return f"{celery}, redis-py {client}"


def install_bullmq() -> str:
    """Install BullMQ where it is not yet; return its version."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise MissingPeerError("needs node and npm on PATH")
    if not (BULLMQ / "bullmq").exists():
        BULLMQ.parent.mkdir(parents=True, exist_ok=True)
        _output([npm, "install", "--prefix", BULLMQ.parent, "--no-audit", "--no-fund", "bullmq", "ioredis"])
    versions = [json.loads((BULLMQ / name / "package.json").read_text())["version"] for name in ("bullmq", "ioredis")]
    return f"{versions[0]}, ioredis {versions[1]}, node {_output([node, '--version']).strip()}"


def _output(command: Sequence[str | Path]) -> str:
    try:
        return subprocess.run(
            command, check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""}, timeout=600
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", None) or str(error)
        raise MissingPeerError(f"{Path(command[0]).name}: {str(detail).strip().splitlines()[-1]}") from None


if __name__ == "__main__":
    sys.stdout.write(f"{install_celery()}\n{install_bullmq()}\n")
