"""A reservation of our own, of one unit of a product of our own, in the layout of the settings."""

from __future__ import annotations

import secrets
from typing import Any

from redis.client import Pipeline

from expirer.contract.keys import shard_of
from expirer.contract.shard import Shard


class Scratch:
    """A reservation and its product, called as nothing else is, on the shard given."""

    def __init__(self, name: str, shard: Shard) -> None:
        self.shard = shard
        self.product_id = f"expirer-{name}-{secrets.token_hex(4)}"
        while shard_of(self.product_id, shard.settings.shards) != shard.number:
            self.product_id = f"expirer-{name}-{secrets.token_hex(4)}"
        self.id = f"{self.product_id}:{self.product_id}"
        self.reservation = shard.keys.reservation_prefix + self.id
        self.stock = shard.keys.stock_prefix + self.product_id

    def write(self, pipe: Pipeline, score: int, *, is_plain: bool = False) -> None:
        """Write both and the index entry; `is_plain`: the stock is a plain counter, as in some inventories."""
        settings = self.shard.settings
        counters: dict[Any, Any] = {settings.field_available: 0, settings.field_reserved: 1}
        fields: dict[Any, Any] = {
            settings.field_order_id: self.product_id,
            settings.field_product_id: self.product_id,
            settings.field_quantity: 1,
            settings.field_status: settings.status_active,
            settings.field_expires_at: score,
        }
        for row in (counters, fields):
            row.pop("", None)  # of what the layout has not
        if is_plain:
            pipe.incrby(self.stock, 0)
        else:
            pipe.hset(self.stock, mapping=counters)
        pipe.hset(self.reservation, mapping=fields)
        pipe.zadd(self.shard.keys.index, {self.id: score})

    def remove(self, pipe: Pipeline) -> None:
        """Remove both keys, by a command for which the sidecar has the right."""
        pipe.pexpire(self.reservation, 0)
        pipe.pexpire(self.stock, 0)
