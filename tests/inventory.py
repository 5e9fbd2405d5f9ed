"""A shop's stock as its owner would write it, with plain commands, and the law that it must obey."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import redis

from expirer.contract.keys import ShardKeys

NOW = 1_800_000_000_000
"""The tests' present, Unix ms, where the worker's clock decides."""


def contents(client: redis.Redis) -> dict[bytes, Any]:
    """Return every key with its bytes, and whether it has a time to live."""
    return {key: (client.dump(key), client.ttl(key) > 0) for key in client.scan_iter()}


class Inventory:
    """The keys of one shard in the project's own contract."""

    def __init__(self, client: redis.Redis, keys: ShardKeys | None = None) -> None:
        self.client = client
        self.keys = keys or ShardKeys.of("inventory")

    def stock(self, product_id: str, available: object, reserved: object = 0) -> None:
        """Write the counters of a product."""
        self.client.hset(
            self.keys.stock_prefix + product_id,
            mapping={"available": available, "reserved": reserved},  # type: ignore[dict-item]
        )

    def hold(
        self,
        product_id: str,
        quantity: object = 1,
        expires_at: int = NOW - 1000,
        id_: str = "",
        **fields: object,
    ) -> str:
        """Write an Active reservation and its index entry, counters untouched; a field of None is left out."""
        id_ = id_ or f"o{self.client.zcard(self.keys.index)}:{product_id}"
        row = {
            "order_id": id_.partition(":")[0],
            "product_id": product_id,
            "quantity": quantity,
            "status": "Active",
            "expires_at": expires_at,
            **fields,
        }
        self.client.hset(
            self.keys.reservation_prefix + id_,
            mapping={name: value for name, value in row.items() if value is not None},  # type: ignore[misc]
        )
        self.client.zadd(self.keys.index, {id_: expires_at})
        return id_

    def overdue(self, product_id: str, count: int) -> None:
        """Write a product whose units are all reserved, each by an overdue reservation of its own."""
        self.stock(product_id, 0, count)
        for _ in range(count):
            self.hold(product_id)

    def counters(self, product_id: str) -> tuple[int, int]:
        """Return (available, reserved)."""
        row = self.client.hmget(self.keys.stock_prefix + product_id, ["available", "reserved"])
        return int(row[0]), int(row[1])  # type: ignore[arg-type]

    def status(self, id_: str) -> str | None:
        """Return the status of a reservation, None where it is gone."""
        status = self.client.hget(self.keys.reservation_prefix + id_, "status")
        return None if status is None else status.decode()  # type: ignore[union-attr]

    def index(self) -> dict[bytes, float]:
        """Return the whole index."""
        return dict(self.client.zrange(self.keys.index, 0, -1, withscores=True))  # type: ignore[arg-type]

    def quarantine(self) -> dict[str, str]:
        """Return reservation id -> reason."""
        rows: dict[bytes, bytes] = self.client.hgetall(self.keys.quarantine)  # type: ignore[assignment]
        return {id_.decode(): value.decode().partition("reason=")[2].partition(" ")[0] for id_, value in rows.items()}

    def assert_conserved(self, stocked: Mapping[str, int], sold: Mapping[str, int] | None = None) -> None:
        """Assert the conservation law for every product.

        `sold` overrides the sum over Confirmed reservations, where those are deleted.
        """
        held: Counter[str] = Counter()
        confirmed: Counter[str] = Counter()
        for key in self.client.scan_iter(match=f"{self.keys.reservation_prefix}*", count=1000):
            row = self.client.hmget(key, ["product_id", "quantity", "status"])
            product_id, quantity, status = (value.decode() for value in row)  # type: ignore[union-attr]
            if status in ("Active", "Confirmed"):
                (held if status == "Active" else confirmed)[product_id] += int(quantity)
        sold = confirmed if sold is None else sold
        expected = {
            product: (units - held[product] - sold.get(product, 0), held[product]) for product, units in stocked.items()
        }

        assert expected == {product: self.counters(product) for product in stocked}
