"""What the worker promises while Redis is away, full, slow or unwilling: it logs, waits, goes on, loses nothing."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from signal import SIGCONT, SIGSTOP, SIGTERM
from urllib.parse import quote

import pytest
import redis

from expirer.config.settings import Settings
from expirer.connection.connect import Servers, connect
from expirer.worker.batch import Tick
from expirer.worker.worker import Worker
from tests.conftest import Log
from tests.faults import busy, full, full_disk, linux_only, replica
from tests.inventory import contents
from tests.program import Backlog, Program, wait_until
from tests.proxy import Gate, Proxy, Way
from tests.servers import RedisServer

pytestmark = pytest.mark.slow

WorkerAt = Callable[[str], Worker]

PASSWORD = "pa:ss/w%rd"  # noqa: S105  # it is what must not be found


@pytest.fixture
def worker_at(log: Log) -> Iterator[WorkerAt]:
    """Build a worker for a URL, with the client that the program would use."""
    clients = []

    def make(url: str) -> Worker:
        settings = Settings(redis_url=url, batch_size=10)
        clients.append(connect(settings))
        return Worker(Servers.of(clients[-1], settings).shards[0], log.logger())

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def own_client(own_server: RedisServer) -> Iterator[redis.Redis]:
    """Connect to the test's own server."""
    with own_server.client() as client:
        yield client


@pytest.fixture
def backlog(own_client: redis.Redis) -> Backlog:
    """Return overdue reservations on the test's own server."""
    backlog = Backlog(own_client)
    backlog.add(25)
    return backlog


@contextmanager
def running(binary: Path, folder: Path, *options: str, wait: bool = True) -> Iterator[RedisServer]:
    """Run a server with options of its own until the block ends."""
    server = RedisServer(binary, folder, *options)
    try:
        server.start(wait=wait)
        yield server
    finally:
        server.stop()


def errors(log: Log) -> list[str]:
    """Return class and message of each error logged."""
    return [f"{entry['error']}: {entry['message']}" for entry in log.of("processing_error")]


def test_flushed_scripts_are_no_error(
    own_server: RedisServer, own_client: redis.Redis, backlog: Backlog, worker_at: WorkerAt, log: Log
) -> None:
    """After SCRIPT FLUSH the next tick expires at once, and no error is logged."""
    worker = worker_at(own_server.url)
    worker.tick()
    own_client.script_flush()
    backlog.add(25)

    assert worker.tick().expired == 25
    assert errors(log) == []
    backlog.assert_expired_once()


@pytest.mark.parametrize("fault", [full, pytest.param(full_disk, marks=linux_only), replica, busy])
def test_a_refusal_changes_nothing(
    own_server: RedisServer,
    own_client: redis.Redis,
    backlog: Backlog,
    worker_at: WorkerAt,
    log: Log,
    fault: Callable[[redis.Redis], AbstractContextManager[str]],
) -> None:
    """A server that is full, a replica or busy: each tick logs why, no key changes, and afterwards all expire."""
    worker = worker_at(own_server.url)
    before = contents(own_client)

    with fault(own_client) as reason:
        ticks = [worker.tick(), worker.tick()]

    assert [Tick(errors=1)] * 2 == ticks
    assert [True] * 2 == [reason in error for error in errors(log)]
    assert before == contents(own_client)
    assert worker.tick().expired == 25
    backlog.assert_expired_once()


@pytest.mark.parametrize("held", ["request", "reply"])
@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_a_lost_connection_doubles_nothing(
    own_server: RedisServer,
    backlog: Backlog,
    worker_at: WorkerAt,
    log: Log,
    nth: int,
    held: Way,
) -> None:
    """Cut before or after a batch has run, whichever: an error is logged, and each expires exactly once."""
    gate = Gate(nth, held)
    gate.cut()
    with Proxy(own_server.port, gate) as proxy:
        worker = worker_at(proxy.url)
        ticks = [worker.tick(), worker.tick()]

    # The first EXEC on a new server is answered with NOSCRIPT; ten are in each batch.
    done_unheard = 10 if held == "reply" and nth > 1 else 0
    assert [1, 0] == [tick.errors for tick in ticks]
    assert 25 - min(done_unheard, 25 - 10 * (nth - 2)) == sum(tick.expired for tick in ticks)
    assert len(errors(log)) == 1
    assert errors(log)[0].startswith("ConnectionError")
    backlog.assert_expired_once()


def test_a_restart_in_a_drain_loses_nothing(server_binary: Path, tmp_path: Path) -> None:
    """While the server restarts in the middle of a drain the program logs and waits, then drains what is left."""
    with running(server_binary, tmp_path, "--appendonly", "yes") as server, server.client() as client:
        backlog = Backlog(client)
        backlog.add(5000)

        with Program(server.url, "--batch-size", "10") as program:
            program.wait_for("reservation_expired")
            server.stop()
            program.wait_for("processing_error")
            server.start()
            wait_until(lambda: not backlog.left())

        assert program.of("concurrency_conflict") == []
        backlog.assert_expired_once()


def test_a_hang_in_a_drain_loses_nothing(own_server: RedisServer, backlog: Backlog) -> None:
    """While the server hangs the program logs a time-out and waits; when it moves again it drains what is left."""
    backlog.add(5000)

    with Program(f"{own_server.url}?socket_timeout=0.3", "--batch-size", "10") as program:
        program.wait_for("reservation_expired")
        own_server.signal(SIGSTOP)
        program.wait_for("processing_error", 2)
        own_server.signal(SIGCONT)
        wait_until(lambda: not backlog.left())

    assert {"TimeoutError"} == {entry["error"] for entry in program.of("processing_error")}
    assert program.of("concurrency_conflict") == []
    backlog.assert_expired_once()


def test_it_waits_for_a_server_that_loads(server_binary: Path, tmp_path: Path, worker_at: WorkerAt, log: Log) -> None:
    """While the server loads its data each tick logs it; then what was in it expires."""
    with running(server_binary, tmp_path) as server, server.client() as client:
        backlog = Backlog(client)
        backlog.add(25)
        # While it loads, the server answers once every 2 MB.
        client.mset({f"filler:{n}": random.Random(n).randbytes(2_200_000) for n in range(10)})
        client.save()
        server.stop()
        worker = worker_at(server.url)

        with running(server_binary, tmp_path, "--key-load-delay", "50000", wait=False):
            wait_until(lambda: worker.tick() and errors(log)[-1].startswith("BusyLoadingError"))
            wait_until(lambda: not worker.tick().errors)

            backlog.assert_expired_once()


def test_it_waits_for_a_server_that_is_not_there_yet(own_server: RedisServer) -> None:
    """Started before its server the program logs and waits; then it expires what is due."""
    own_server.stop()

    with Program(own_server.url) as program:
        assert program.wait_for("processing_error", 3)["error"] == "ConnectionError"
        own_server.start()
        with own_server.client() as client:
            backlog = Backlog(client)
            backlog.add(25)
            wait_until(lambda: not backlog.left())
            backlog.assert_expired_once()


def test_the_pause_after_an_error_grows_and_is_kept(own_server: RedisServer) -> None:
    """While the server is away each pause is longer than the one before, up to the interval, and is waited out."""
    own_server.stop()

    with Program(own_server.url, "--interval", "400ms") as program:
        program.wait_for("processing_error", 6)

    entries = program.of("processing_error")[:6]
    pauses = [entry["retry_in_ms"] for entry in entries]
    times = [datetime.fromisoformat(entry["time"]).timestamp() * 1000 for entry in entries]
    longest = [100, 200, 400, 400, 400, 400]  # less up to a half at random
    assert [True] * 6 == [most / 2 <= pause <= most for pause, most in zip(pauses, longest, strict=True)]
    assert [True] * 5 == [
        after - before >= pause - 1 for (before, after), pause in zip(pairwise(times), pauses, strict=False)
    ]


@pytest.mark.parametrize(
    ("user", "command", "error"),
    [
        ("", ["CONFIG", "SET", "requirepass", "another"], "AuthenticationError"),
        ("clerk", ["ACL", "SETUSER", "clerk", "on", f">{PASSWORD}", "~*", "+@all", "-evalsha"], "NoPermissionError"),
    ],
)
def test_a_password_is_never_logged(
    own_server: RedisServer, own_client: redis.Redis, user: str, command: list[str], error: str
) -> None:
    """Whether its password is wrong, or right and the server refuses otherwise: no line of the log shows it."""
    own_client.execute_command(*command)  # type: ignore[no-untyped-call]

    with Program(f"redis://{user}:{quote(PASSWORD, safe='')}@127.0.0.1:{own_server.port}/0") as program:
        assert error == program.wait_for("processing_error", 2)["error"]
        program.signal(SIGTERM)
        program.wait_for("job_stopped")

    assert [] == [line for line in program.lines if PASSWORD in line or quote(PASSWORD, safe="") in line]
