"""Fixtures: a fake server and a real one, a worker on either, and the lines that it logs."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import fakeredis
import pytest
import redis
import structlog
from structlog.testing import LogCapture
from structlog.typing import FilteringBoundLogger

from expirer import cli
from expirer.config.settings import Settings
from expirer.connection.connect import Servers
from expirer.worker.worker import Worker
from tests.cluster import Cluster
from tests.inventory import NOW, Inventory
from tests.program import DEADLINE_S, let_children_be_stopped
from tests.servers import MISSING, RedisServer, find_cli, find_server, free_port
from tests.tools import find_tool, missing
from tests.topology import Replicated

let_children_be_stopped()


_OF_SLOW_TESTS = {"tool", "shared_cluster", "own_cluster", "replicated"}
"""Fixtures that need more than one Redis server."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what needs a real tool or several servers, before any test is deselected."""
    for item in items:
        if isinstance(item, pytest.Function) and _OF_SLOW_TESTS.intersection(item.fixturenames):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("EXPIRER_", "OTEL_")) or name == "REDIS_URL":
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _signals_as_before() -> Iterator[None]:
    """Unblock the signals that a command run in this process has blocked: its children would inherit that."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.fixture(scope="session")
def server_binary() -> Path:
    """Find a real redis-server; without one skip, but fail where CI is set."""
    binary = find_server()
    if binary is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(MISSING)
    return binary


SlowMachine = Callable[..., None]


@pytest.fixture
def slow_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SlowMachine:
    """Return a function that gives programs as long for these constants of seconds as a busy machine may need."""

    def give(*constants: str) -> None:
        with (tmp_path / "sitecustomize.py").open("w") as code:
            for constant in constants:
                code.write(f"import expirer.{constant.rpartition('.')[0]}\nexpirer.{constant} = {DEADLINE_S}\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return give


Tool = Callable[[str], Path]


@pytest.fixture(scope="session")
def tool() -> Tool:
    """Return a function that finds a real tool, such as promtool; without it skip, but fail where CI is set."""

    def find(name: str) -> Path:
        found = find_tool(name)
        if found is None:
            (pytest.fail if os.environ.get("CI") else pytest.skip)(missing(name))
        return found

    return find


@pytest.fixture(scope="session")
def shared_server(server_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Run one real server for all tests that only read and write keys."""
    server = RedisServer(server_binary, tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def server_client(shared_server: RedisServer) -> Iterator[redis.Redis]:
    """Connect to the shared real server, emptied."""
    with shared_server.client() as client:
        client.flushall()
        yield client


@pytest.fixture
def own_server(server_binary: Path, tmp_path: Path) -> Iterator[RedisServer]:
    """Run a real server for a test that stops, fills or restarts it; it also listens on TCP."""
    server = RedisServer(server_binary, tmp_path, port=free_port())
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def shared_cluster(server_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Run one Cluster for all tests that only read and write keys."""
    with Cluster(server_binary, tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Cluster:
    """Return the shared Cluster, emptied."""
    with shared_cluster.client() as client:
        client.flushall(target_nodes=client.PRIMARIES)
    return shared_cluster


@pytest.fixture
def own_cluster(server_binary: Path, tmp_path: Path) -> Iterator[Cluster]:
    """Run a Cluster for a test that breaks it."""
    with Cluster(server_binary, tmp_path) as cluster:
        yield cluster


@pytest.fixture
def replicated(server_binary: Path, tmp_path: Path) -> Iterator[Replicated]:
    """Run a primary with two replicas and three Sentinels for a test that breaks them."""
    with Replicated(server_binary, tmp_path) as topology:
        yield topology


@pytest.fixture
def fake_server() -> fakeredis.FakeServer:
    """Return a fake server that can go away."""
    return fakeredis.FakeServer()


@pytest.fixture(params=["fake", "server"])
def client(request: pytest.FixtureRequest) -> redis.Redis:
    """Connect to a fresh fake server, then to an emptied real one."""
    if request.param == "fake":
        return fakeredis.FakeRedis(server=fakeredis.FakeServer())
    client: redis.Redis = request.getfixturevalue("server_client")
    return client


@pytest.fixture
def inventory(client: redis.Redis) -> Inventory:
    """Return the shop under test."""
    return Inventory(client)


class _QuietTracking:
    """Nobody writes; fakeredis has no CLIENT TRACKING."""

    has_many = False

    def __init__(self, *_: object) -> None:
        pass

    def written(self) -> set[bytes]:
        return set()

    def covers(self, _connection: object) -> bool:
        return True

    def close(self) -> None:
        pass


Operate = Callable[..., tuple[int, str, str]]


@pytest.fixture
def operate(client: redis.Redis, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Operate:
    """Return a function that runs a command of the operator: exit code, standard output, standard error."""
    monkeypatch.setattr("expirer.operate.terminal.connect_all", lambda settings: Servers.of(client, settings))
    if isinstance(client, fakeredis.FakeRedis):
        monkeypatch.setattr("expirer.operate.inventory_scan.KeyTracking", _QuietTracking)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(arguments)
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def shell(tmp_path: Path) -> Callable[[str], str]:
    """Return a function that types a command in a folder with the file, whose `redis-cli` knows the server there."""
    cli = find_cli()
    assert cli is not None
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "redis-cli").write_text(
        f'#!/bin/sh\nexec {shlex.quote(str(cli))} -s {tmp_path}/redis.sock "$@"\n'
    )
    (tmp_path / "bin" / "redis-cli").chmod(0o755)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"

    def run(command: str) -> str:
        bash = ["/bin/bash", "-c", f"exec 2>&1; {command}"]
        return subprocess.run(
            bash, cwd=tmp_path, env={"PATH": path}, stdout=subprocess.PIPE, text=True, check=False
        ).stdout

    return run


class Log(LogCapture):
    """Keeps what was logged."""

    def __call__(self, *arguments: Any) -> Any:  # noqa: ANN401
        """Keep one entry; raise nothing."""
        return super().__call__(*arguments)

    def of(self, event: str) -> list[dict[str, Any]]:
        """Return the entries of one event."""
        return [dict(entry) for entry in self.entries if entry["event"] == event]

    def logger(self) -> FilteringBoundLogger:
        """Return a logger that writes here."""
        logger: FilteringBoundLogger = structlog.wrap_logger(
            None, processors=[self], wrapper_class=structlog.make_filtering_bound_logger("debug")
        )
        return logger.bind()


@pytest.fixture
def log() -> Log:
    """Keep what the worker logs."""
    return Log()


MakeWorker = Callable[..., Worker]


@pytest.fixture
def make_worker(client: redis.Redis, log: Log) -> MakeWorker:
    """Build a worker at the tests' present; arguments are settings."""

    def make(now_ms: Callable[[], int] | None = lambda: NOW, shard: int = 0, **settings: Any) -> Worker:  # noqa: ANN401
        return Worker(Servers.of(client, Settings(**settings)).shards[shard], log.logger(), now_ms)

    return make


@pytest.fixture
def worker(make_worker: MakeWorker) -> Worker:
    """Return a worker with the default settings, at the tests' present."""
    return make_worker()


@pytest.fixture
def fake_reply() -> Iterator[Callable[..., int]]:
    """Return a function that serves the same replies, one for each request, to every client; it returns the port."""
    listener = socket.create_server(("127.0.0.1", 0))
    replies: list[bytes] = []

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, suppress(OSError):
                    for reply in replies:
                        connection.recv(1000)
                        connection.sendall(reply)
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(1000):
                        pass

    thread = threading.Thread(target=serve, daemon=True)

    def start(*given: bytes) -> int:
        replies.extend(given)
        thread.start()
        port: int = listener.getsockname()[1]
        return port

    yield start
    listener.shutdown(socket.SHUT_RDWR)
    thread.join(DEADLINE_S)
    listener.close()
