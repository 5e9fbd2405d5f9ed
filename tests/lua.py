"""Calls the scripts as their headers document them, without a worker."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import redis

from expirer.contract import scripts
from expirer.contract.keys import ShardKeys
from tests.inventory import NOW, Inventory

MIB = 1024 * 1024

ARGUMENTS: dict[str, object] = {
    "batch": 100,
    "grace_ms": 0,
    "now_ms": NOW,
    "latest_ms": "",
    "brake": 0,
    "counted_from_ms": 0,
    "rate": 0,
    "dry_run": 0,
    "retention_ms": 86_400_000,
    "events_maxlen": 100_000,
    "worker": "ann",
    "unit_ms": 1,
    "reservation_prefix": "{inventory}:reservation:",
    "stock_prefix": "{inventory}:stock:",
    "order_id": "order_id",
    "product_id": "product_id",
    "quantity": "quantity",
    "status": "status",
    "expires_at": "expires_at",
    "available": "available",
    "reserved": "reserved",
    "active": "Active",
    "expired": "Expired",
    "ticks": "{inventory}:ticks",
    "about": "version=0",
    "token": "token1",
    "saved_ms": 1000,
    "ended": "confirmed",
}
"""The arguments of expire.lua in its order, and what the tests give."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What expire.lua returns; rows as tuples."""

    next: int | None
    overdue: int
    expired: list[tuple[bytes, ...]]
    skipped: list[tuple[bytes, ...]]
    rescheduled: list[tuple[bytes, ...]]
    quarantined: list[tuple[bytes, ...]]
    held: str
    mark: bytes

    @property
    def taken(self) -> int:
        """How many entries have an outcome."""
        return len(self.expired) + len(self.skipped) + len(self.rescheduled) + len(self.quarantined)


def expire(client: redis.Redis, **arguments: object) -> Reply:
    """Run expire.lua once."""
    keys = ShardKeys.of("inventory")
    unknown = arguments.keys() - ARGUMENTS.keys()
    if unknown:
        raise TypeError(f"expire.lua has no {unknown}")
    names = (keys.index, keys.events, keys.quarantine, keys.stats, keys.workers, keys.about)
    _, next_, overdue, expired, skipped, rescheduled, quarantined, held, mark = run(
        client, "expire", names, (ARGUMENTS | arguments).values()
    )
    return Reply(
        int(next_) if next_ else None,
        int(overdue),
        _rows(expired, 5),
        _rows(skipped, 2),
        _rows(rescheduled, 2),
        _rows(quarantined, 2),
        held.decode(),
        mark,
    )


def resolve(inventory: Inventory, id_: str, quantity: int, *, force: int = 0) -> str:
    """Run resolve.lua: release units of an entry of the product `mug`, or drop it; return the code."""
    keys = inventory.keys
    names = [keys.index, keys.reservation_prefix + id_, keys.stock_prefix + "mug"]
    names += [keys.quarantine, keys.events, keys.operations]
    fields = ["order_id", "product_id", "status", "available", "reserved", "Active", "Expired"]
    code: bytes = run(
        inventory.client, "resolve", names, [id_, "mug", quantity, "ann", NOW, 86_400_000, 1000, *fields, 1, force]
    )[0]
    return code.decode()


def reshard(inventory: Inventory, product_id: str, ids: Iterable[str]) -> list[Any]:
    """Run reshard.lua: move reservations of a product to keys under `new:`."""
    keys = inventory.keys
    names = [keys.index, keys.quarantine, keys.stock_prefix + product_id]
    names += ["new:index", "new:quarantine", f"new:stock:{product_id}"]
    words = [product_id, keys.reservation_prefix, "new:reservation:", "product_id"]
    return run(inventory.client, "reshard", names, [*words, *ids])


def run(client: redis.Redis, name: str, keys: Iterable[str], arguments: Iterable[object]) -> list[Any]:
    """Run a script; return its reply."""
    keys = list(keys)
    reply: Any = client.eval(scripts.load(name).text, len(keys), *keys, *arguments)  # type: ignore[arg-type]
    return list(reply)


def _rows(flat: list[bytes], width: int) -> list[tuple[bytes, ...]]:
    return list(zip(*[iter(flat)] * width, strict=True))
