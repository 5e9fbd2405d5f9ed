"""A reservation of our own, of one unit of a product of our own, in the layout of the settings."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any, Self

from redis.client import Pipeline

from expirer.contract.keys import shard_of
from expirer.contract.shard import Shard


@dataclass(frozen=True, slots=True)
class Scratch:
    """A reservation, its product, and the shard whose keys have both."""

    reservation_id: str
    product_id: str
    shard: Shard

    @classmethod
    def of(cls, name: str, shard: Shard) -> Self:
        """Name them so that nothing else is called so, and that the product lives on the shard."""
        while True:
            unique = f"expirer-{name}-{secrets.token_hex(4)}"
            if shard_of(unique, shard.settings.shards) == shard.number:
                return cls(f"{unique}:{unique}", unique, shard)

    @property
    def reservation(self) -> str:
        """Name its key."""
        return self.shard.keys.reservation_prefix + self.reservation_id

    @property
    def stock(self) -> str:
        """Name the key of its product."""
        return self.shard.keys.stock_prefix + self.product_id

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
        if is_plain:
            pipe.incrby(self.stock, 0)
        else:
            pipe.hset(self.stock, mapping={name: value for name, value in counters.items() if name})
        pipe.hset(self.reservation, mapping={name: value for name, value in fields.items() if name})
        pipe.zadd(self.shard.keys.index, {self.reservation_id: score})

    def remove(self, pipe: Pipeline) -> None:
        """Remove both keys, by a command for which the sidecar has the right."""
        pipe.pexpire(self.reservation, 0)
        pipe.pexpire(self.stock, 0)
