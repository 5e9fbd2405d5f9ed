"""What the worker promises while Redis is away, full, slow or unwilling: it logs, waits, goes on, loses nothing."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from signal import SIGCONT, SIGSTOP, SIGTERM
from urllib.parse import quote

import pytest
import redis

from expirer import scripts
from expirer.batch import Tick
from expirer.connect import connect
from expirer.settings import Settings
from expirer.worker import Worker
from tests.conftest import Log
from tests.inventory import Inventory, contents
from tests.program import Backlog, Program, wait_until
from tests.proxy import Gate, Proxy, Way
from tests.servers import RedisServer
from tests.weather import busy, full, full_disk, linux_only, replica

MakeWorker = Callable[[str], Worker]

PASSWORD = "pa:ss/w%rd"  # noqa: S105  # it is what must not be found


@pytest.fixture
def worker_at(log: Log) -> Iterator[MakeWorker]:
    """Build a worker for a URL, with the client that the program would use."""
    clients = []

    def make(url: str) -> Worker:
        settings = Settings(redis_url=url, batch_size=10)
        clients.append(connect(settings))
        return Worker(clients[-1], settings, log.logger())

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
    own_server: RedisServer, own_client: redis.Redis, backlog: Backlog, worker_at: MakeWorker, log: Log
) -> None:
    """After SCRIPT FLUSH the next tick expires at once, and no error is logged."""
    worker = worker_at(own_server.url)
    worker.tick()
    own_client.script_flush()
    backlog.add(25)

    assert worker.tick().expired == 25
    assert errors(log) == []
    backlog.assert_expired_once()


@pytest.mark.parametrize("weather", [full, pytest.param(full_disk, marks=linux_only), replica, busy])
def test_a_refusal_changes_nothing(
    own_server: RedisServer,
    own_client: redis.Redis,
    backlog: Backlog,
    worker_at: MakeWorker,
    log: Log,
    weather: Callable[[redis.Redis], AbstractContextManager[str]],
) -> None:
    """A server that is full, a replica or busy: each tick logs why, no key changes, and afterwards all expire."""
    worker = worker_at(own_server.url)
    before = contents(own_client)

    with weather(own_client) as reason:
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
    worker_at: MakeWorker,
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


def test_it_waits_for_a_server_that_loads(server_binary: Path, tmp_path: Path, worker_at: MakeWorker, log: Log) -> None:
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


COMMANDS = sorted(
    set(re.findall(r"\b(?:redis\.p)?call\('(\w+)'", scripts.load("expire").text)) - {"PUBLISH"}
)  # without PUBLISH it does its work, and nobody hears

KEYS = ["index", "events", "quarantine", "stats", "workers", "about", "reservation_prefix", "stock_prefix"]

OVERDUE = 1_700_000_000_000
LATER = 4_000_000_000_000


class Clerk:
    """A worker whose user lacks one right until it is granted, and a shop where it needs every right."""

    def __init__(self, client: redis.Redis, worker: Worker, lacks: list[str], *, has_tins: bool) -> None:
        self.inventory = Inventory(client)
        self.client = client
        self.worker = worker
        self.ids = ["o1:mug", "o2:mug", "o3:mug"]
        self._stock(has_tins=has_tins)
        try:
            self._acl("SETUSER", "clerk", "reset", "on", "nopass", "~*", "&*", "+@all", *lacks)
        except redis.ResponseError:
            pytest.skip("this server knows no rights to read or write single keys")

    def grant(self) -> None:
        """Give it every right."""
        self._acl("SETUSER", "clerk", "~*", "+@all")

    def _acl(self, *arguments: str) -> None:
        self.client.execute_command("ACL", *arguments)  # type: ignore[no-untyped-call]

    def _stock(self, *, has_tins: bool) -> None:
        """Write 10 mugs: of five reservations three are overdue, one was extended and one lacks its hash."""
        client, inventory, keys = self.client, self.inventory, self.inventory.keys
        inventory.stock("mug", 3, 7)
        for quantity, id_ in enumerate(self.ids, 1):
            inventory.hold("mug", quantity, OVERDUE, id_=id_)
        inventory.hold("mug", 1, LATER, id_="later:mug")
        client.zadd(keys.index, {"later:mug": OVERDUE, "lost:mug": OVERDUE})
        if has_tins:
            # A plain counter, and an entry in quarantine that was mended since.
            client.set(keys.stock_prefix + "tin", 8)
            self.ids.append(inventory.hold("tin", 2, OVERDUE, id_="o4:tin"))
            client.hset(keys.quarantine, "o1:mug", "mended since")

    def assert_conserved(self) -> None:
        """Assert the conservation law; tins keep only what is available."""
        if "o4:tin" in self.ids:
            held = 2 if self.inventory.status("o4:tin") == "Active" else 0
            assert str(10 - held).encode() == self.client.get(self.inventory.keys.stock_prefix + "tin")
        self.inventory.assert_conserved({"mug": 10})


@pytest.fixture(
    params=[
        *(pytest.param((f"-{command.lower()}", True), id=command) for command in COMMANDS),
        *(pytest.param((key, True), id=f"{key}-tins") for key in KEYS),
        *(pytest.param((key, False), id=key) for key in KEYS),
    ]
)
def clerk(
    request: pytest.FixtureRequest, shared_server: RedisServer, server_client: redis.Redis, worker_at: MakeWorker
) -> Iterator[Clerk]:
    """Return a clerk that may not use one of the script's commands, or not write one of its keys."""
    right, has_tins = request.param
    lacks = [right]
    if right in KEYS:
        keys = asdict(Inventory(server_client).keys)
        lacks = ["resetkeys", *(f"{'%R' if name == right else ''}~{key}*" for name, key in keys.items())]
    worker = worker_at(f"unix://clerk:any@{shared_server.socket}")
    yield Clerk(server_client, worker, lacks, has_tins=has_tins)
    server_client.execute_command("ACL", "DELUSER", "clerk")  # type: ignore[no-untyped-call]


def test_a_missing_right_moves_no_unit(clerk: Clerk, log: Log) -> None:
    """While a right is missing each tick logs it, counters and reservations agree, and no entry is lost."""
    ticks = [clerk.worker.tick(), clerk.worker.tick()]

    assert [1, 1] == [tick.errors for tick in ticks]
    assert {"NoPermissionError", "ResponseError"} >= {entry["error"] for entry in log.of("processing_error")}
    clerk.assert_conserved()
    known = {id_.decode() for id_ in clerk.inventory.index()} | set(clerk.inventory.quarantine())
    for id_ in (*clerk.ids, "later:mug", "lost:mug"):
        assert id_ in known or clerk.inventory.status(id_) == "Expired"


def test_after_a_right_is_granted_each_unit_is_back_once(clerk: Clerk) -> None:
    """Once the missing right is granted every entry ends where it belongs, and counters are exact."""
    clerk.worker.tick()
    clerk.worker.tick()
    clerk.grant()
    clerk.worker.tick()

    clerk.assert_conserved()
    assert (9, 1) == clerk.inventory.counters("mug")
    assert {b"later:mug": LATER} == clerk.inventory.index()
    assert {"lost:mug": "reservation_missing"} == clerk.inventory.quarantine()


def test_after_a_right_is_granted_each_event_is_there_once(clerk: Clerk) -> None:
    """Once the missing right is granted the stream holds one event for each Expired reservation."""
    clerk.worker.tick()
    clerk.worker.tick()
    clerk.grant()
    clerk.worker.tick()

    events: list[tuple[bytes, dict[bytes, bytes]]] = clerk.client.xrange(clerk.inventory.keys.events)  # type: ignore[assignment]
    assert clerk.ids == sorted(row[b"reservation_id"].decode() for _, row in events)
    clerk.assert_conserved()


def test_after_a_right_is_granted_the_totals_are_exact(clerk: Clerk) -> None:
    """Once the missing right is granted the running totals count each outcome once."""
    clerk.worker.tick()
    clerk.worker.tick()
    clerk.grant()
    clerk.worker.tick()

    totals = {name: int(total) for name, total in clerk.client.hgetall(clerk.inventory.keys.stats).items()}
    units = 8 if "o4:tin" in clerk.ids else 6
    expected = {b"expired": len(clerk.ids), b"units": units, b"skipped": 0, b"rescheduled": 1, b"quarantined": 1}
    assert expected == {name: totals[name] for name in expected}
    clerk.assert_conserved()
