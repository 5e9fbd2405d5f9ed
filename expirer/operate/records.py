"""Reads the entries of an index, the soonest first, with what their reservations say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from expirer.contract.clock import unix_ms
from expirer.contract.numbers import integer
from expirer.contract.shard import Shard

_SLICE = 100


class Record(NamedTuple):
    """An entry of an index; of a damaged reservation nothing but id and time is known."""

    shard: Shard
    id: bytes
    score: float
    product_id: bytes | None
    quantity: bytes | None

    @property
    def expires_at(self) -> int:
        """Unix ms."""
        return unix_ms(self.score, self.shard.settings.unit_ms)

    @property
    def units(self) -> int:
        """The quantity; 0: it is none."""
        return integer(self.quantity, least=1) or 0


def read_records(shard: Shard, most: int) -> Iterator[Record]:
    """Yield the first `most` entries, read in small slices; RedisError if Redis fails."""
    settings, keys = shard.settings, shard.keys
    for start in range(0, most, _SLICE):
        entries: Any = shard.client.zrange(keys.index, start, min(start + _SLICE, most) - 1, withscores=True)
        with shard.client.pipeline(transaction=False) as pipe:
            for id_, _ in entries:
                key: Any = keys.reservation_prefix.encode() + id_
                pipe.hmget(key, [settings.field_product_id, settings.field_quantity])
            rows = pipe.execute(raise_on_error=False)
        for (id_, score), row in zip(entries, rows, strict=True):
            product_id, quantity = row if isinstance(row, list) else (None, None)
            yield Record(shard, id_, score, product_id, quantity)
        if len(entries) < _SLICE:
            return
