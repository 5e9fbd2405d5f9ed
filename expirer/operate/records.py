"""Reads the entries of an index, the soonest first, with what their reservations say; and events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from expirer.contract.clock import unix_ms
from expirer.contract.numbers import integer
from expirer.contract.shard import Shard
from expirer.contract.text import decode

_SLICE = 100
_NUMBERS = (b"quantity", b"expires_at", b"expired_at")


class Record(NamedTuple):
    """An entry of an index; of a damaged reservation nothing but id and time is known."""

    shard: Shard
    id: bytes
    score: float
    product_id: bytes | None
    quantity: bytes | None
    status: bytes | None

    @property
    def expires_at(self) -> int:
        """Unix ms."""
        return unix_ms(self.score, self.shard.settings.unit_ms)

    @property
    def is_active(self) -> bool:
        """Whether it holds its units; a layout without a status has only such reservations."""
        settings = self.shard.settings
        return not settings.field_status or self.status == settings.status_active.encode()

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
                pipe.hmget(key, [settings.field_product_id, settings.field_quantity, settings.field_status])
            rows = pipe.execute(raise_on_error=False)
        for (id_, score), row in zip(entries, rows, strict=True):
            yield Record(shard, id_, score, *(row if isinstance(row, list) else (None, None, None)))
        if len(entries) < _SLICE:
            return


def read_event(entry: tuple[bytes, Mapping[bytes, bytes]]) -> tuple[str, dict[str, int | str]]:
    """Return the id and the fields, which may be anybody's, of an entry as XREAD and XRANGE return it."""
    id_, row = entry
    fields = {name: number_or_text(value) if name in _NUMBERS else decode(value) for name, value in row.items()}
    return decode(id_), {decode(name): value for name, value in fields.items()}


def number_or_text(value: bytes) -> int | str:
    """Return an integer as a number, anything else as its text."""
    number = integer(value)
    return decode(value) if number is None else number
