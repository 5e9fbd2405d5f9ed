"""The operator's guide is true: its situations are made, and its commands typed."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis

from expirer.contract import control
from expirer.contract.clock import worker_clock
from expirer.contract.control import Control
from expirer.contract.keys import ShardKeys
from tests.inventory import Inventory
from tests.program import Backlog, Program, wait_until
from tests.reader import ROOT, Reader, blocks, commands, normal
from tests.servers import RedisServer

pytestmark = pytest.mark.slow

GUIDE = (ROOT / "docs" / "operations.md").read_text()
FUTURE = 4_102_444_800_000
MINUTE_MS = 60_000


def now() -> int:
    """Return the time, Unix ms."""
    return int(worker_clock())


def overdue(shop: Inventory) -> None:
    """Let three reservations be overdue."""
    shop.stock("mug", 7, 3)
    for number in range(3):
        shop.hold("mug", 1, 1_795_469_461_999 + number, f"order-{number}:mug")


def a_payment_outage(shop: Inventory) -> None:
    """Mugs are held for some minutes yet."""
    shop.stock("mug", 4, 6)
    for number in range(3):
        shop.hold("mug", 2, now() + 10 * MINUTE_MS, f"order-{number}:mug")


def a_backlog(shop: Inventory) -> None:
    """Five hundred are long overdue, and nobody works."""
    Backlog(shop.client).add(500)


def an_old_backup(shop: Inventory) -> None:
    """Three thousand are long overdue."""
    Backlog(shop.client).add(3000)


def a_poison_entry(shop: Inventory) -> None:
    """One reservation has no number for a quantity, another was gone from the start."""
    shop.stock("mug", 6, 3)
    entry = "reason=reservation_missing at=1795469462001 score=1795469461999"
    shop.client.hset(shop.keys.quarantine, "order-6:mug", entry)
    shop.hold("mug", "two", 1_795_469_461_999, "order-5:mug")


def a_leaked_hold(shop: Inventory) -> None:
    """A reservation is not in the index."""
    shop.stock("mug", 8, 2)
    shop.hold("mug", 2, FUTURE, "order-7:mug")
    shop.client.zrem(shop.keys.index, "order-7:mug")


def a_wrong_counter(shop: Inventory) -> None:
    """Two more are reserved than are held."""
    shop.stock("mug", 3, 4)
    shop.hold("mug", 2, FUTURE, "order-8:mug")


def a_dead_worker(shop: Inventory) -> None:
    """The last tick is an hour ago."""
    overdue(shop)
    shop.client.zadd(shop.keys.workers, {"shop-1:3822:00e4": now() - 60 * MINUTE_MS})
    shop.client.hset(shop.keys.about, "shop-1:3822:00e4", "version=0.1.0 skew_ms=0")


def a_forgotten_pause(shop: Inventory) -> None:
    """Ann paused two days ago."""
    overdue(shop)
    fields = control.pausing("ann@desk", "payment outage", now() - 2 * 24 * 60 * MINUTE_MS)
    shop.client.hset(shop.keys.control, mapping=fields)  # type: ignore[arg-type]


def a_full_redis(shop: Inventory) -> None:
    """There is no room."""
    overdue(shop)
    shop.client.config_set("maxmemory", 1)


def a_failover(shop: Inventory) -> None:
    """The server is a replica of nobody reachable."""
    overdue(shop)
    shop.client.replicaof("127.0.0.1", "1")


def a_clock_jump(shop: Inventory) -> None:
    """A worker has pulled the brake because of the clock."""
    shop.stock("mug", 8, 2)
    shop.hold("mug", 2, FUTURE, "order-9:mug")
    reason = "the server's clock jumped ahead by more than EXPIRER_MAX_CLOCK_JUMP (300s)"
    fields = control.braking("shop-1:3822:00e4", reason, now())
    shop.client.hset(shop.keys.control, mapping=fields)  # type: ignore[arg-type]
    shop.client.zadd(shop.keys.workers, {"shop-1:3822:00e4": now()})


def a_wrong_layout(shop: Inventory) -> None:
    """The stock has another prefix."""
    shop.hold("mug", 2, 1_795_469_461_999, "order-10:mug")
    shop.client.hset("shop:product:mug", mapping={"available": 8, "reserved": 2})


def a_power_cut(shop: Inventory) -> None:
    """The server has started again, with an append-only file."""
    shop.stock("mug", 8, 2)
    shop.hold("mug", 2, FUTURE, "order-11:mug")
    shop.client.config_set("appendonly", "yes")
    wait_until(lambda: shop.client.info("persistence")["aof_rewrite_in_progress"] == 0)


def a_wrong_number_of_shards(shop: Inventory) -> None:
    """The checkouts have sixteen shards, the sidecar has one."""
    for product_id, number in (("tea", 2), ("mug", 9)):
        one = Inventory(shop.client, ShardKeys.of("inventory", number, 16))
        one.stock(product_id, 7, 3)
        one.hold(product_id, 3, 1_795_469_461_999, f"order-12:{product_id}")


SITUATIONS: dict[str, tuple[Callable[[Inventory], None], bool]] = {
    "1. The payment provider is down": (a_payment_outage, True),
    "2. A backlog after downtime": (a_backlog, False),
    "3. An old backup was restored": (an_old_backup, False),
    "4. A poison entry": (a_poison_entry, True),
    "5. A leaked hold": (a_leaked_hold, True),
    "6. A wrong counter": (a_wrong_counter, True),
    "7. A dead worker": (a_dead_worker, False),
    "8. Paused and forgotten": (a_forgotten_pause, True),
    "9. Redis is full": (a_full_redis, False),
    "10. A failover": (a_failover, False),
    "11. A clock has jumped": (a_clock_jump, False),
    "12. A wrong layout": (a_wrong_layout, False),
    "13. A power cut": (a_power_cut, True),
    "14. Units do not come back, and all is healthy": (a_wrong_number_of_shards, True),
}
"""Heading -> how the situation comes about, and whether a sidecar runs."""
FLAGS = {
    "12. A wrong layout": "--stock-prefix=shop:product:",
    "14. Units do not come back, and all is healthy": "--shards=16",
}
"""Heading -> what an audit of it needs to know."""


def sections() -> dict[str, str]:
    """Return heading -> text."""
    _, *parts = re.split(r"^## ", GUIDE, flags=re.MULTILINE)
    return {heading: text for heading, _, text in (part.partition("\n") for part in parts)}


def test_every_situation_is_made() -> None:
    """The guide has the fourteen situations that the tests make, in their order."""
    assert list(SITUATIONS) == list(sections())


@pytest.mark.parametrize("heading", SITUATIONS)
def test_its_commands_print_what_it_shows(own_server: RedisServer, tmp_path: Path, heading: str) -> None:
    """In the situation each command, typed in order, prints what the guide shows, and at the end all adds up."""
    make, has_worker = SITUATIONS[heading]
    with own_server.client() as client, ExitStack() as stack:
        make(Inventory(client))
        if has_worker:
            stack.enter_context(Program(own_server.url, "--log-format", "json"))
        reader = Reader(own_server, tmp_path / "bin", stack)
        for _, block in blocks(sections()[heading], "console"):
            for command, expected in commands(block):
                settle(client, has_worker=has_worker)
                assert normal(expected) == normal(reader.types(command, expected.count("\n"))), command
                has_worker |= command.startswith("expirer run")

        settle(client, has_worker=has_worker)
        flag = FLAGS.get(heading, "")
        assert reader.types(f"expirer audit {flag}").startswith("0 found ")


def settle(client: redis.Redis, *, has_worker: bool) -> None:
    """Return once a worker that runs, and can, has done what is due, and knows its clock."""
    shop = Inventory(client)

    def is_settled() -> bool:
        memory: Any = client.info("memory")
        replication: Any = client.info("replication")
        if memory["maxmemory"] == 1 or replication["role"] != "master":
            return True
        about: Any = client.hvals(shop.keys.about)
        row: Any = client.hmget(shop.keys.control, control.FIELDS)
        is_halted = Control.read(row).halt(now()) is not None
        is_drained = is_halted or not client.zcount(shop.keys.index, 0, now() - 1)
        if is_drained and any(b"skew_ms" in text for text in about):
            return True
        client.publish(shop.keys.wake, "1")  # its first look cannot know its clock yet
        return False

    if has_worker:
        wait_until(is_settled)
