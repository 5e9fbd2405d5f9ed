"""Real tools for what goes with the sidecar: found on PATH, or installed from Debian, no service with them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

# Runs before anything is installed, and as root with the system's Python: it imports nothing but the standard library.

PACKAGES = {
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "prometheus-alertmanager": "prometheus-alertmanager",
    "amtool": "prometheus-alertmanager",
    "chromium": "chromium",
    "cc": "gcc libc6-dev",
    "chromedriver": "chromium-driver",
    "openssl": "openssl",
    "systemd-analyze": "systemd",
    "tmux": "tmux",
}
"""Tool -> the packages of Debian that have it."""

_SERVICES = {"prometheus", "prometheus-alertmanager"}
"""Packages that start a service of the same name, now and with the machine."""
_APT = ("apt-get", "-qq", "-y", "-o", "DPkg::Lock::Timeout=60")
_POLICY = Path("/usr/sbin/policy-rc.d")


def find_tool(name: str) -> Path | None:
    """Find a tool on PATH."""
    found = shutil.which(name)
    return Path(found) if found else None


def missing(name: str) -> str:
    """Return the line that says how to get a tool."""
    return f"no {name}: put one on PATH, or run `python tests/tools.py` as root to install Debian's {PACKAGES[name]}"


def _install(names: Collection[str]) -> None:
    """Install those that are not on PATH, where that is possible; say what stays missing."""
    wanted = sorted({PACKAGES[name] for name in names if not find_tool(name)})
    if wanted and os.geteuid() == 0 and shutil.which("apt-get"):
        sys.stderr.write(f"installing Debian's {', '.join(wanted)}\n")
        with _no_service_starts():
            _run(*_APT, "update")
            for package in wanted:  # one by one: a name that another distribution lacks must not keep the others away
                _run(*_APT, "install", "--no-install-recommends", *package.split())
        for package in _SERVICES.intersection(wanted):
            _run("update-rc.d", package, "disable")
    if gone := [name for name in names if not find_tool(name)]:
        sys.stderr.write(f"no {', '.join(gone)}; their tests are skipped, and fail where CI is set\n")


def _run(*words: str) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(words, env=environment, check=False, stdout=subprocess.DEVNULL)


@contextmanager
def _no_service_starts() -> Iterator[None]:
    """Let no package start its service meanwhile, as Debian provides for; a policy that is there stays."""
    if _POLICY.exists():
        yield
        return
    _POLICY.write_text("#!/bin/sh\nexit 101\n")
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        _POLICY.unlink()


if __name__ == "__main__":
    _install(sys.argv[1:] or PACKAGES)
