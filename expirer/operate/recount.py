"""Reads the counters of one product, and what its Active reservations hold, in one moment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from redis.exceptions import ResponseError

from expirer.connection.pipeline import Reply
from expirer.contract.shard import Shard
from expirer.operate.inventory_scan import InventoryScan, Row, sliced

_SLICE = 1000
"""Reservations of a product that are read before those that were written meanwhile."""


@dataclass(frozen=True, slots=True)
class Count:
    """The counters of a product and what its Active reservations hold, in one moment."""

    type: str
    """Of the stock key: `hash` (also if there is none), `string` or another."""
    available: bytes | None
    reserved: bytes | None
    held: int
    reservations: int
    is_certain: bool
    """Whether the quantity of each is known."""


class Recount:
    """Reads under WATCH of the stock key.

    Every beginning and end of a reservation writes its product's counters, so a transaction that commits saw them all.
    What an attempt has read is kept: the next one only reads what was written since.
    """

    def __init__(self, scan: InventoryScan, shard: Shard, product_id: bytes) -> None:
        """Begin with what is known of the product; raise TrackingLostError as `commit` does."""
        self._key: Any = shard.keys.stock_prefix.encode() + product_id
        self._scan = scan
        self._shard = shard
        self._product_id = product_id
        self._unread = sliced(scan.known(shard.number, product_id), _SLICE)
        self._held: dict[bytes, int | None] = {}

    def read(self) -> Count:
        """Return both as they were in one moment; raises as `commit` does."""
        with self.commit() as (_, count):
            return count

    @contextmanager
    def commit(self) -> Iterator[tuple[Any, Count]]:
        """Give a pipeline and the count; at the end of the block commit what it has queued, if the count still holds.

        Raises:
            WatchError: the counters were written meanwhile; nothing was done.
            TrackingLostError: it is not known which reservations were written meanwhile.

        """
        with self._shard.client.pipeline() as transaction:
            pipe: Any = transaction
            self._catch_up()  # most is read before the watch, so that little can happen under it
            pipe.watch(self._key)
            self._scan.require_tracked(pipe.connection)
            counters = self._read_counters(pipe)
            self._catch_up()
            quantities = [quantity for quantity in self._held.values() if quantity is not None]
            is_certain = len(quantities) == len(self._held)
            pipe.multi()
            yield pipe, Count(*counters, sum(quantities), len(self._held), is_certain)
            pipe.exists(self._key)  # commit even if nothing is queued: it proves the count
            pipe.execute()

    def _read_counters(self, pipe: Reply) -> tuple[str, bytes | None, bytes | None]:
        settings = self._shard.settings
        try:
            return "hash", *pipe.hmget(self._key, settings.field_available, settings.field_reserved)
        except ResponseError:
            type_ = pipe.type(self._key).decode()
            if type_ == "hash":
                raise
            return type_, pipe.get(self._key) if type_ == "string" else None, None

    def _catch_up(self) -> None:
        """Read what was written since the last time; the first time all that is known of the product."""
        for ids in self._unread:
            for row in self._scan.examine(self._shard.number, ids):
                self._take(row)
            self._take_changed()
        self._take_changed()

    def _take_changed(self) -> None:
        for row in self._scan.changed():
            if row.shard.number == self._shard.number and (row.id in self._held or row.product_id == self._product_id):
                self._take(row)

    def _take(self, row: Row) -> None:
        if row.is_active and row.product_id == self._product_id:
            self._held[row.id] = row.quantity
        else:
            self._held.pop(row.id, None)
