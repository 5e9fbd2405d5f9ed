"""The page for those who have redis-cli alone is true: its commands are typed."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from expirer.contract import control
from expirer.contract.clock import worker_clock
from tests.inventory import Inventory
from tests.reader import ROOT, Reader, blocks, commands, normal
from tests.servers import RedisServer

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs" / "redis-cli.md").read_text()
DUE = 1_795_469_461_999
FUTURE = 4_102_444_800_000


def seed(shop: Inventory) -> None:
    """Make a shop with one overdue, one due soon, two in quarantine, one leaked; paused by ann, with a worker."""
    shop.stock("mug", 4, 6)
    shop.stock("tee", 9, 1)
    shop.hold("mug", 2, DUE, "order-1:mug")
    shop.hold("mug", 1, int(worker_clock()) + 60_000, "order-5:mug")
    for id_, quantity in (("order-2:mug", "two"), ("order-3:mug", "one")):
        shop.hold("mug", quantity, DUE, id_)
        shop.client.zrem(shop.keys.index, id_)
        shop.client.hset(shop.keys.quarantine, id_, f"reason=quantity_invalid at={DUE + 2} score={DUE}")
    shop.hold("tee", 1, FUTURE, "order-4:tee")
    shop.client.zrem(shop.keys.index, "order-4:tee")
    event: dict[Any, Any] = {"reservation_id": "order-0:mug", "order_id": "order-0", "product_id": "mug", "quantity": 1}
    shop.client.xadd(shop.keys.events, {**event, "expires_at": DUE, "expired_at": DUE + 2}, id=f"{DUE + 2}-0")
    shop.client.zadd(shop.keys.workers, {"shop-1:3822:00e4": DUE + 2})
    shop.client.hset(shop.keys.about, "shop-1:3822:00e4", "version=0.1.0 skew_ms=0")
    totals = {"expired": 1, "units": 1, "skipped": 0, "rescheduled": 0, "quarantined": 2}
    shop.client.hset(shop.keys.stats, mapping=totals)  # type: ignore[arg-type]
    paused = control.pausing("ann@desk", "payment outage", DUE)
    shop.client.hset(shop.keys.control, mapping=paused)  # type: ignore[arg-type]


def test_its_commands_print_what_it_shows(own_server: RedisServer, tmp_path: Path) -> None:
    """Each command, typed in order, prints what the page shows, and what they mend is mended."""
    with own_server.client() as client, ExitStack() as stack:
        shop = Inventory(client)
        seed(shop)
        reader = Reader(own_server, tmp_path / "bin", stack)
        for _, block in blocks(PAGE, "console"):
            for command, expected in commands(block):
                assert normal(expected) == normal(reader.types(command)), command

        assert {b"order-1:mug", b"order-2:mug", b"order-4:tee", b"order-5:mug"} == shop.index().keys()
        assert {} == shop.quarantine()
        shop.assert_conserved({"mug": 10, "tee": 10})
