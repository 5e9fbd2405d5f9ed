"""A redis-server of its own for every case, empty or from a snapshot."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests import servers

SNAPSHOT = "dump.rdb"


class Server:
    """A running server: its socket, and clients that wait for as long as it takes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "redis.sock"
        self.url = f"unix://{self.socket}"

    def client(self) -> redis.Redis:
        """Return a new client that never repeats a command."""
        return redis.Redis(
            unix_socket_path=str(self.socket), protocol=2, retry=Retry(NoBackoff(), 0), socket_timeout=None
        )

    def cli(self) -> list[str]:
        """Return the command line of a redis-cli for this server."""
        return [str(servers.find_cli()), "-s", str(self.socket)]

    def pipe(self, chunks: Iterable[bytes]) -> None:
        """Send commands through `redis-cli --pipe`; raise RuntimeError where one is refused."""
        with (self.folder / "commands").open("w+b") as commands:
            commands.writelines(chunks)
            commands.seek(0)
            answer = subprocess.run([*self.cli(), "--pipe"], stdin=commands, capture_output=True, check=True).stdout
        if b"errors: 0" not in answer:
            raise RuntimeError(answer.decode())

    def start_pipe(self, source: IO[bytes]) -> subprocess.Popen[bytes]:
        """Begin to replay a file through `redis-cli --pipe`."""
        return subprocess.Popen([*self.cli(), "--pipe"], stdin=source, stdout=subprocess.DEVNULL)

    def save(self, path: Path) -> None:
        """Copy everything into a snapshot."""
        with self.client() as client:
            client.save()
        shutil.copy(self.folder / SNAPSHOT, path)


@contextmanager
def running(*options: str, snapshot: Path | None = None) -> Iterator[Server]:
    """Run a server, and end it with the block."""
    binary = servers.find_server()
    if binary is None:
        raise FileNotFoundError(servers.MISSING)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        if snapshot is not None:
            shutil.copy(snapshot, folder / SNAPSHOT)
        # A script that pops everything must be waited for, not answered with BUSY.
        process = servers.RedisServer(binary, folder, "--lua-time-limit", "0", *options)
        process.start()
        try:
            yield Server(folder)
        finally:
            process.stop()
