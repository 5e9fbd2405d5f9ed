"""A reservation of our own, of one unit of a product of our own, written as any layout has it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any, Self

from expirer.config.settings import Settings
from expirer.contract.keys import ShardKeys, shard_of


@dataclass(frozen=True, slots=True)
class Scratch:
    """A reservation, its product, and the keys that both are written to."""

    reservation_id: str
    product_id: str
    settings: Settings
    keys: ShardKeys

    @classmethod
    def of(cls, name: str, settings: Settings, number: int, keys: ShardKeys) -> Self:
        """Name them so that nothing else is called so, and that the product lives on the shard of that number."""
        while True:
            unique = f"expirer-{name}-{secrets.token_hex(4)}"
            if shard_of(unique, settings.shards) == number:
                return cls(f"{unique}:{unique}", unique, settings, keys)

    @property
    def reservation(self) -> str:
        """Name its key."""
        return self.keys.reservation_prefix + self.reservation_id

    @property
    def stock(self) -> str:
        """Name the key of its product."""
        return self.keys.stock_prefix + self.product_id

    def write(self, pipe: Any, score: int, *, is_plain: bool = False) -> None:  # noqa: ANN401  # a client, or a pipeline of it
        """Write both and the index entry; `is_plain`: the stock is a plain counter, as in some inventories."""
        settings = self.settings
        counters = {settings.field_available: 0, settings.field_reserved: 1}
        fields = {
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
        pipe.zadd(self.keys.index, {self.reservation_id: score})

    def remove(self, pipe: Any) -> None:  # noqa: ANN401  # a client, or a pipeline of it
        """Remove both keys, by a command for which the sidecar has the right."""
        pipe.pexpire(self.reservation, 0)
        pipe.pexpire(self.stock, 0)
