"""A right that is missing moves no unit, and is told: in the log, by the probe, and not as a Redis that is away."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict

import pytest
import redis

from expirer.config.settings import Settings
from expirer.connection.connect import connect
from expirer.connection.errors import GRANT
from expirer.contract import scripts
from expirer.worker.events import RightsJournal
from expirer.worker.worker import Worker
from tests.acl import PASSWORD, RULES
from tests.conftest import Log
from tests.inventory import Inventory
from tests.program import Backlog, wait_until
from tests.servers import RedisServer
from tests.test_web import Site

Open = Callable[[str], Site]

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
    request: pytest.FixtureRequest, shared_server: RedisServer, server_client: redis.Redis, log: Log
) -> Iterator[Clerk]:
    """Return a clerk that may not use one of the script's commands, or not write one of its keys."""
    right, has_tins = request.param
    lacks = [right]
    if right in KEYS:
        keys = asdict(Inventory(server_client).keys)
        lacks = ["resetkeys", *(f"{'%R' if name == right else ''}~{key}*" for name, key in keys.items())]
    settings = Settings(redis_url=f"unix://clerk:any@{shared_server.socket}")
    with connect(settings) as client:
        yield Clerk(server_client, Worker(client, settings, log.logger()), lacks, has_tins=has_tins)
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


@pytest.fixture
def admin(own_server: RedisServer) -> Iterator[redis.Redis]:
    """Connect to the test's own server as its owner, with something in quarantine."""
    with own_server.client() as client:
        client.hset(Inventory(client).keys.quarantine, "poison:mug", "reason=stock_missing at=1 score=1")
        yield client


@pytest.fixture
def open_site(own_server: RedisServer, admin: redis.Redis) -> Iterator[Open]:
    """Return a function that runs a worker with HTTP, whose user lacks a right."""
    with ExitStack() as stack:

        def run(lacks: str) -> Site:
            rules = [rule for rule in RULES["expirer"] if rule != lacks]
            admin.execute_command("ACL", "SETUSER", "expirer", *rules)  # type: ignore[no-untyped-call]
            return Site(f"{own_server.url}?username=expirer&password={PASSWORD}", stack)

        yield run


def grant(admin: redis.Redis) -> None:
    """Give the user all its rights."""
    admin.execute_command("ACL", "SETUSER", "expirer", *RULES["expirer"])  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("lacks", ["+hgetall", "+hscan"])
def test_what_only_the_figures_need_keeps_nobody_from_work(open_site: Open, admin: redis.Redis, lacks: str) -> None:
    """Units come back, and the probe says ok and which command is missing; log and probe say when it is there."""
    backlog = Backlog(admin)
    backlog.add(20)
    site = open_site(lacks)
    told = site.program.wait_for("right_missing")
    assert lacks[1:] in told["message"]
    assert GRANT in told["message"]
    wait_until(lambda: not backlog.left())
    wait_until(lambda: site.get("/readyz")[0] == 200)
    assert (200, f"ok, but the figures lack what this user may not read: {told['message']}\n") == site.get("/readyz")
    figures = site.figures()
    assert (1, lacks == "+hgetall") == (figures["expirer_redis_up"], figures["expirer_right_missing"])
    assert (lacks == "+hgetall") == ("expirer_shard_overdue_reservations" not in figures)

    grant(admin)
    site.program.wait_for("right_given")

    assert (200, "ok\n") == site.get("/readyz")
    wait_until(lambda: site.figures()["expirer_right_missing"] == 0)
    assert site.figures()["expirer_shard_overdue_reservations"] == 0
    assert 1 == len(site.program.of("right_missing"))
    assert [] == [line for line in site.program.lines if PASSWORD in line]
    backlog.assert_expired_once()


@pytest.mark.parametrize(
    ("lacks", "named"),
    [("+zadd", "zadd"), ("~{inventory}:stock:*", "{inventory}:stock:*"), ("~{inventory}:stats", "{inventory}:stats")],
)
def test_what_the_worker_needs_is_named_by_the_probe(
    open_site: Open, admin: redis.Redis, lacks: str, named: str
) -> None:
    """A worker that may not work is not ready, and the probe names the command or the keys, and the way out."""
    backlog = Backlog(admin)
    backlog.add(20)
    site = open_site(lacks)
    site.program.wait_for("processing_error")
    wait_until(lambda: site.get("/readyz")[0] == 503)
    _, body = site.get("/readyz")
    assert body.startswith("shard 0: the last ")
    assert named in body.lower()
    assert GRANT in body
    assert PASSWORD not in body
    assert 1 == site.figures()["expirer_redis_up"]

    grant(admin)
    wait_until(lambda: not backlog.left())

    wait_until(lambda: site.get("/readyz")[0] == 200)
    backlog.assert_expired_once()


def test_the_log_says_it_once(log: Log) -> None:
    """What lasts is said once, another right anew, and the end once: however often the page looks."""
    journal = RightsJournal(log.logger())
    for missing in ("", "one", "one", "another", "", ""):
        journal.tell(missing)

    told = [(entry["event"], entry.get("message")) for entry in log.entries]
    assert [("right_missing", "one"), ("right_missing", "another"), ("right_given", None)] == told
