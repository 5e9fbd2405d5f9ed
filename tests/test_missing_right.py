"""A missing right moves no unit, and log and probe say which it is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import pytest
import redis

from expirer.config.settings import Settings
from expirer.connection.connect import connect_all
from expirer.connection.errors import GRANT
from expirer.contract import scripts
from expirer.contract.clock import worker_clock
from expirer.worker.worker import Worker
from tests.acl import PASSWORD, RULES
from tests.conftest import Log
from tests.inventory import Inventory
from tests.program import Backlog, wait_until
from tests.servers import RedisServer
from tests.test_web import Site

COMMANDS = sorted(
    set(re.findall(r"\b(?:redis\.p)?call\('(\w+)'", scripts.load("expire").text)) - {"PUBLISH"}
)  # without PUBLISH it does its work, and nobody is woken

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
        client.zadd(keys.workers, {"another": worker_clock()})  # only in company does a worker count the others
        if has_tins:
            # A plain counter, and an entry in quarantine that was repaired since.
            client.set(keys.stock_prefix + "tin", 8)
            self.ids.append(inventory.hold("tin", 2, OVERDUE, id_="o4:tin"))
            client.hset(keys.quarantine, "o1:mug", "repaired since")

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
    with connect_all(settings) as servers:
        yield Clerk(server_client, Worker(servers.shards[0], log.logger()), lacks, has_tins=has_tins)
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


def test_after_a_right_is_granted_everything_is_done_once(clerk: Clerk) -> None:
    """Once the right is granted every entry ends where it belongs: counters, events and totals count each once."""
    clerk.worker.tick()
    clerk.worker.tick()
    clerk.grant()
    clerk.worker.tick()

    clerk.assert_conserved()
    assert (9, 1) == clerk.inventory.counters("mug")
    assert {b"later:mug", b"lost:mug"} == clerk.inventory.index().keys()  # the second is tried again
    assert {"lost:mug": "reservation_missing"} == clerk.inventory.quarantine()
    events: Any = clerk.client.xrange(clerk.inventory.keys.events)
    assert clerk.ids == sorted(row[b"reservation_id"].decode() for _, row in events)
    stats: Any = clerk.client.hgetall(clerk.inventory.keys.stats)
    units = 8 if "o4:tin" in clerk.ids else 6
    expected = {b"expired": len(clerk.ids), b"units": units, b"skipped": 0, b"rescheduled": 2, b"quarantined": 0}
    assert expected == {name: int(stats[name]) for name in expected}


@pytest.mark.parametrize(
    ("lacks", "named"), [("+zadd", "zadd"), ("~{inventory}:stock:*", "can't access at least one of the keys")]
)
def test_what_a_worker_needs_is_named(own_server: RedisServer, lacks: str, named: str) -> None:
    """A worker that lacks a right is not ready, and says what Redis said and the remedy, until the right is granted."""
    rules = RULES["expirer"]
    with own_server.client() as admin, ExitStack() as stack:
        backlog = Backlog(admin)
        backlog.add(20)
        admin.execute_command("ACL", "SETUSER", "expirer", *(rule for rule in rules if rule != lacks))
        site = Site(f"{own_server.url}?username=expirer&password={PASSWORD}", stack, command="run")
        said = site.program.wait_for("processing_error")["message"]
        wait_until(lambda: site.get("/readyz")[0] == 503)
        body = site.get("/readyz")[1]
        assert body.startswith("shard 0: the last ")
        for text in (body, said):
            assert named.lower() in text.lower()
            assert GRANT in text
            assert PASSWORD not in text
        admin.execute_command("ACL", "SETUSER", "expirer", *rules)
        wait_until(lambda: not backlog.left())
        wait_until(lambda: site.get("/readyz")[0] == 200)

        backlog.assert_expired_once()
