"""Reads every reservation of an inventory in small slices, and misses none that is written meanwhile."""

from __future__ import annotations

import re
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from redis import Redis
from redis.exceptions import RedisError, ResponseError

from expirer.connection.connect import Servers
from expirer.connection.pipeline import Connection
from expirer.contract import scripts
from expirer.contract.keys import shard_of
from expirer.contract.numbers import integer
from expirer.operate.key_tracking import KeyTracking, TrackingLostError

_Result = TypeVar("_Result")

_SLICE = 10
"""Reservations that one script reads; it blocks the server for less than 0.1 ms."""
_URGENT_SLICE = 50
"""The same for reservations that were written meanwhile, without a rest: a recount must be faster than the writers."""
_COUNT = 50
"""Keys that one SCAN walks over."""
_REST = 1.0
"""Pause after each step, as a multiple of its own time: at least half of the server's time is left to others."""
_REPACK_ABOVE = 2**20
"""Bytes of packed ids of one product from which on duplicates are removed."""


@dataclass(frozen=True, slots=True)
class Row:
    """A reservation in one moment: its key, its place in the index and in the quarantine."""

    id: bytes
    type: str
    """Of its key: `hash`, `none` or another."""
    product_id: bytes
    """Empty: it has none."""
    quantity: int | None
    """None: not an integer from 1 to 2**53."""
    status: str
    """Empty if there is no hash."""
    expires_at: str
    reserved_at: str
    score: float | None
    """None: it is not in the index."""
    entry: bytes
    """In the quarantine; empty: none."""
    ttl_ms: int | None
    """-1: the hash has none; None: there is no hash."""


class InventoryScan:
    """The reservations of an inventory: a walk over all of them, and those that were written since.

    A product is known by the ids of its Active reservations, one after the other in a bytearray: some 25 bytes each.
    """

    def __init__(self, servers: Servers, product_id: bytes | None = None) -> None:
        """Begin to track what is written; raise RedisError if Redis fails."""
        self.shards = servers.shards
        self.reservations = 0
        """Active ones that the walk has met, maybe some of them twice."""
        self.tracking_error = ""
        """Why nobody knows what is written meanwhile; empty: it is tracked."""
        self._servers = servers
        self._settings = servers.shards[0].settings
        self._product_id = product_id
        self._known: defaultdict[tuple[int, bytes], bytearray] = defaultdict(bytearray)
        self._repack_above: dict[tuple[int, bytes], int] = {}
        self._examine = servers.shards[0].client.register_script(scripts.load("examine").text)
        self._prefixes = [shard.keys.reservation_prefix.encode() for shard in self.shards]
        self._stock_prefixes = [shard.keys.stock_prefix.encode() for shard in self.shards]
        self._trackings: list[KeyTracking] = []
        try:
            for client in servers.each().values():
                self._trackings.append(KeyTracking(client, _common(self._prefixes)[0]))
        except ResponseError as error:
            self.close()
            self.tracking_error = str(error)

    def close(self) -> None:
        """Stop tracking."""
        for tracking in self._trackings:
            tracking.close()
        self._trackings.clear()

    def require_tracked(self, connection: Connection) -> None:
        """Raise RedisError if the connection's server is not one of those whose writes are tracked."""
        if not any(tracking.covers(connection) for tracking in self._trackings):
            raise RedisError("a shard has moved to another server, where no write was tracked; repeat the audit")

    def size(self) -> int:
        """Return how many keys there are, of any kind."""
        return sum(client.dbsize() for client in self._servers.each().values())

    def walk(self, on_keys: Callable[[int], object]) -> Iterator[tuple[int, Row]]:
        """Yield (shard, row) for every reservation, and every index entry without one; maybe more than once.

        `on_keys` is called, all the time, with the number of keys walked over since its last call.
        """
        for number, row in self._walk(on_keys):
            if self._product_id in (None, row.product_id) and self._is_reservation(row):
                yield number, row

    def _walk(self, on_keys: Callable[[int], object]) -> Iterator[tuple[int, Row]]:
        if all(self._prefixes):
            for keys in self._scan(self._prefixes, on_keys):
                yield from self._read(_located(keys, self._prefixes), is_counted=True)
        for shard, prefix in zip(self.shards, self._prefixes, strict=True):
            entries: Any = shard.client.zscan_iter(shard.keys.index, count=_COUNT)
            for ids in sliced((id_ for id_, _ in entries), _SLICE):
                names: list[Any] = [prefix + id_ for id_ in ids]
                if not prefix or _paced(partial(shard.client.exists, *names)) < len(ids):
                    yield from self._read(((shard.number, id_) for id_ in ids), is_counted=not prefix)
                on_keys(0)
        for shard in self.shards:
            quarantined: Any = shard.client.hscan_iter(shard.keys.quarantine, count=_COUNT)
            for ids in sliced((id_ for id_, _ in quarantined), _SLICE):
                yield from self._read((shard.number, id_) for id_ in ids)
                on_keys(0)

    def changed(self) -> Iterator[tuple[int, Row]]:
        """Ask what was written since the last call; yield (shard, row) for every such reservation as it is now.

        Raises:
            TrackingLostError: that is not known any more.

        """
        written = [key for tracking in self._trackings for key in tracking.written()]
        return self._read(_located(written, self._prefixes), is_urgent=True)

    def follow(self) -> None:
        """Read what was written meanwhile, if that is much; `changed` raises the error if tracking was lost."""
        with suppress(TrackingLostError):
            if any(tracking.has_many for tracking in self._trackings):
                deque(self.changed(), maxlen=0)

    def examine(self, number: int, ids: Iterable[bytes], *, is_urgent: bool = False) -> Iterator[Row]:
        """Yield the rows of some reservations of one shard as they are now."""
        settings, shard = self._settings, self.shards[number]
        words = (
            shard.keys.reservation_prefix,
            settings.field_product_id,
            settings.field_quantity,
            settings.field_status,
            settings.field_expires_at,
            settings.status_active,
        )
        for some in sliced(ids, _URGENT_SLICE if is_urgent else _SLICE):
            names = [shard.keys.index, shard.keys.quarantine]
            read = partial(self._examine, names, [*words, *some], shard.client)
            fields: Any = read() if is_urgent else _paced(read)
            for id_, row in zip(some, zip(*[iter(fields)] * 9, strict=True), strict=True):
                yield _row(id_, *row)

    def known(self, number: int, product_id: bytes) -> Iterator[bytes]:
        """Yield the ids of the product's reservations that were Active when they were read, some of them twice."""
        return unpacked(self._known.get((number, product_id), bytearray()))

    def products(self, on_keys: Callable[[int], object]) -> Iterator[tuple[int, bytes]]:
        """Yield (shard, product id) for every product that has a stock key or a known reservation."""
        if self._product_id is not None:
            yield shard_of(self._product_id, len(self.shards)), self._product_id
            return
        seen = set(self._known)
        yield from list(seen)
        if not all(self._stock_prefixes):
            return
        fixed = {name.encode() for shard in self.shards for name in (shard.keys.index, shard.keys.events)}
        for keys in self._scan(self._stock_prefixes, on_keys):
            for number, product_id in _located(keys, self._stock_prefixes):
                key, prefix = self._stock_prefixes[number] + product_id, self._prefixes[number]
                is_other = key in fixed or (prefix and key.startswith(prefix))
                if not is_other and (number, product_id) not in seen:
                    yield number, product_id

    def _read(
        self, places: Iterable[tuple[int, bytes]], *, is_counted: bool = False, is_urgent: bool = False
    ) -> Iterator[tuple[int, Row]]:
        by_shard: defaultdict[int, list[bytes]] = defaultdict(list)
        for number, id_ in places:
            by_shard[number].append(id_)
        for number, ids in by_shard.items():
            for row in self.examine(number, ids, is_urgent=is_urgent):
                is_active = row.status == self._settings.status_active
                self.reservations += is_counted and is_active
                if is_active and row.product_id and self._product_id in (None, row.product_id):
                    self._remember((number, row.product_id), row.id)
                yield number, row

    def _remember(self, product: tuple[int, bytes], id_: bytes) -> None:
        ids = self._known[product]
        pack(ids, id_)
        if len(ids) > self._repack_above.get(product, _REPACK_ABOVE):
            self._known[product] = unique = bytearray()  # another one: `known` may be reading the old one
            for each in dict.fromkeys(unpacked(ids)):
                pack(unique, each)
            self._repack_above[product] = max(2 * len(unique), _REPACK_ABOVE)

    def _is_reservation(self, row: Row) -> bool:
        """Say whether it is more than a stranger's hash under the same prefix."""
        is_placed = row.score is not None or row.entry
        return bool(is_placed or row.status != self._settings.status_active or row.product_id or row.quantity)

    def _scan(self, prefixes: list[bytes], on_keys: Callable[[int], object]) -> Iterator[list[bytes]]:
        pattern = b"*".join(map(literal, (*_common(prefixes), b"")))
        for client in self._servers.each().values():
            yield from scan(client, pattern, on_keys)


def _common(prefixes: list[bytes]) -> list[bytes]:
    """Return what all prefixes begin with; of several shards also what follows the number of each."""
    return prefixes[0].split(b"0}") if len(prefixes) > 1 else prefixes


def _located(keys: Iterable[bytes], prefixes: list[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield (shard, rest of the name) for each key that has the prefix of a shard."""
    numbers = {prefix: number for number, prefix in enumerate(prefixes)}
    sizes = set(map(len, prefixes))
    for key in keys:
        for size in sizes:
            if key[:size] in numbers:
                yield numbers[key[:size]], key[size:]


def scan(client: Redis, pattern: bytes, on_keys: Callable[[int], object]) -> Iterator[list[bytes]]:
    """Yield the names of keys in small slices, maybe some twice; see `InventoryScan.walk` for `on_keys`."""
    reply: Any = (None, [])
    while reply[0] != 0:
        reply = _paced(partial(client.scan, reply[0] or 0, match=pattern, count=_COUNT))
        on_keys(_COUNT)
        yield reply[1]


def literal(text: bytes) -> bytes:
    """Return the pattern that only this text matches."""
    return re.sub(rb"([\\*?\[\]])", rb"\\\1", text)


def _row(id_: bytes, *fields: bytes) -> Row:
    type_, product_id, quantity, status, expires_at, reserved_at, score, entry, ttl_ms = fields
    return Row(
        id=id_,
        type=type_.decode(),
        product_id=product_id,
        quantity=integer(quantity, least=1),
        status=status.decode(errors="replace"),
        expires_at=expires_at.decode(errors="replace"),
        reserved_at=reserved_at.decode(errors="replace"),
        score=float(score) if score else None,
        entry=entry,
        ttl_ms=int(ttl_ms) if ttl_ms else None,
    )


def _paced(step: Callable[[], _Result]) -> _Result:
    began_at = time.perf_counter()
    result = step()
    time.sleep(_REST * (time.perf_counter() - began_at))
    return result


def sliced(items: Iterable[bytes], size: int) -> Iterator[list[bytes]]:
    """Yield the items in lists of at most `size`."""
    iterator = iter(items)
    while some := list(islice(iterator, size)):
        yield some


def pack(ids: bytearray, id_: bytes) -> None:
    """Add an id to packed ones: four bytes and the id itself."""
    ids += len(id_).to_bytes(4) + id_


def unpacked(ids: bytearray) -> Iterator[bytes]:
    """Yield the packed ids; not those that are added meanwhile."""
    at, end = 0, len(ids)
    while at < end:
        size = int.from_bytes(ids[at : at + 4])
        yield bytes(ids[at + 4 : at + 4 + size])
        at += 4 + size
