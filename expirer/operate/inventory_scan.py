"""Reads every reservation of an inventory in small slices, and misses none that is written meanwhile."""

from __future__ import annotations

import re
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any, TypeVar

from redis.exceptions import RedisError, ResponseError
from tqdm import tqdm

from expirer.connection.connect import Servers
from expirer.connection.pipeline import Connection
from expirer.contract import scripts
from expirer.contract.keys import shard_of
from expirer.contract.numbers import integer
from expirer.contract.shard import Shard
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
"""Bytes of packed ids from which on duplicates are removed."""


@dataclass(frozen=True, slots=True)
class Row:
    """A reservation in one moment: its key, its place in the index and in the quarantine."""

    shard: Shard
    id: bytes
    type: str
    """Of its key: `hash`, `none` or another."""
    product_id: bytes
    """Empty, as the texts: it has none."""
    quantity: int | None
    """None: not an integer from 1 to 2**53."""
    status: str
    expires_at: str
    reserved_at: str
    score: float | None
    """None: it is not in the index."""
    entry: bytes
    """In the quarantine; empty: none."""
    ttl_ms: int | None
    """-1: the hash has none; None: there is no hash."""

    @property
    def is_active(self) -> bool:
        """Whether its status is Active."""
        return self.status == self.shard.settings.status_active

    @property
    def is_placed(self) -> bool:
        """Whether it is in the index or in the quarantine."""
        return self.score is not None or bool(self.entry)


class PackedIds:
    """Ids in the order in which they were added, some of them twice; each takes four bytes and its own."""

    __slots__ = ("_data", "_repack_above")

    def __init__(self) -> None:
        self._data = bytearray()
        self._repack_above = _REPACK_ABOVE

    def add(self, id_: bytes) -> None:
        """Add an id."""
        self._data += len(id_).to_bytes(4) + id_
        if len(self._data) > self._repack_above:
            unique = dict.fromkeys(self)
            self._data = bytearray().join(len(each).to_bytes(4) + each for each in unique)
            self._repack_above = max(2 * len(self._data), _REPACK_ABOVE)

    def __iter__(self) -> Iterator[bytes]:
        data, at, end = self._data, 0, len(self._data)
        while at < end:
            size = int.from_bytes(data[at : at + 4])
            yield bytes(data[at + 4 : at + 4 + size])
            at += 4 + size


class InventoryScan:
    """The reservations of an inventory: a walk over all of them, and those that were written since."""

    def __init__(self, servers: Servers, product_id: bytes | None = None) -> None:
        """Begin to track what is written; raise RedisError if Redis fails."""
        self.shards = servers.shards
        self.reservations = 0
        """Active ones that the walk has met, maybe some of them twice."""
        self.tracking_error = ""
        """Why nobody knows what is written meanwhile; empty: it is tracked."""
        self._servers = servers
        self._product_id = product_id
        self._known: defaultdict[tuple[int, bytes], PackedIds] = defaultdict(PackedIds)
        self._examine = servers.shards[0].client.register_script(scripts.load("examine").text)
        self._prefixes = [shard.keys.reservation_prefix.encode() for shard in self.shards]
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

    def walk(self) -> Iterator[Row]:
        """Yield every reservation, and every entry of index or quarantine without one; maybe more than once."""
        for row in self._walk():
            self.reservations += row.is_active
            is_reservation = row.is_placed or not row.is_active or row.product_id or row.quantity
            if self._product_id in (None, row.product_id) and is_reservation:  # else a stranger's hash
                yield row

    def _walk(self) -> Iterator[Row]:
        if all(self._prefixes):
            for places in self._scan("reservations", self._prefixes):
                yield from self._read(places)
        for shard, prefix in zip(self.shards, self._prefixes, strict=True):
            client: Any = shard.client
            in_index = client.zscan_iter(shard.keys.index, count=_COUNT)
            entries = chain(in_index, client.hscan_iter(shard.keys.quarantine, count=_COUNT))
            for ids in sliced((id_ for id_, _ in entries), _SLICE):
                names = [prefix + id_ for id_ in ids]
                if not prefix or _paced(partial(client.exists, *names)) < len(ids):
                    rows = self._read((shard.number, id_) for id_ in ids)
                    yield from (row for row in rows if not prefix or row.type != "hash")
                self.follow()

    def products(self) -> Iterator[tuple[int, bytes]]:
        """Yield (shard, product id) for every product that has a stock key or a known reservation."""
        if self._product_id is not None:
            yield shard_of(self._product_id, len(self.shards)), self._product_id
            return
        seen = set(self._known)
        yield from seen
        prefixes = [shard.keys.stock_prefix.encode() for shard in self.shards]
        if not all(prefixes):
            return
        fixed = {name.encode() for shard in self.shards for name in (shard.keys.index, shard.keys.events)}
        for places in self._scan("products", prefixes):
            for number, product_id in places:
                key, prefix = prefixes[number] + product_id, self._prefixes[number]
                is_other = key in fixed or (prefix and key.startswith(prefix))
                if not is_other and (number, product_id) not in seen:
                    yield number, product_id

    def known(self, number: int, product_id: bytes) -> Iterator[bytes]:
        """Return the ids of the product's Active reservations, some of them twice; raise TrackingLostError."""
        if self.tracking_error:
            raise TrackingLostError(self.tracking_error)
        return iter(self._known.get((number, product_id), ()))

    def changed(self) -> Iterator[Row]:
        """Return what was written since the last call, as it is now; raise TrackingLostError if nobody knows."""
        try:
            written = [key for tracking in self._trackings for key in tracking.written()]
        except TrackingLostError as error:
            self.tracking_error = str(error)
            raise
        return self._read(_located(written, self._prefixes), is_urgent=True)

    def follow(self) -> None:
        """Read what was written meanwhile, if that is much; the walk calls this all the time."""
        with suppress(TrackingLostError):
            if any(tracking.has_many for tracking in self._trackings):
                deque(self.changed(), maxlen=0)

    def examine(self, number: int, ids: Iterable[bytes], *, is_urgent: bool = False) -> Iterator[Row]:
        """Yield some reservations of one shard as they are now."""
        shard = self.shards[number]
        keys, settings = shard.keys, shard.settings
        fields = (settings.field_product_id, settings.field_quantity, settings.field_status, settings.field_expires_at)
        words = (keys.reservation_prefix, *fields, settings.status_active)
        for some in sliced(ids, _URGENT_SLICE if is_urgent else _SLICE):
            read = partial(self._examine, [keys.index, keys.quarantine], [*words, *some], shard.client)
            reply: Any = read() if is_urgent else _paced(read)
            for id_, row in zip(some, zip(*[iter(reply)] * 9, strict=True), strict=True):
                yield _row(shard, id_, row)

    def _read(self, places: Iterable[tuple[int, bytes]], *, is_urgent: bool = False) -> Iterator[Row]:
        by_shard: defaultdict[int, list[bytes]] = defaultdict(list)
        for number, id_ in places:
            by_shard[number].append(id_)
        for number, ids in by_shard.items():
            for row in self.examine(number, ids, is_urgent=is_urgent):
                if row.is_active and row.product_id and self._product_id in (None, row.product_id):
                    self._known[number, row.product_id].add(row.id)
                yield row

    def _scan(self, what: str, prefixes: list[bytes]) -> Iterator[Iterator[tuple[int, bytes]]]:
        for keys in scan(self._servers, what, b"*".join(map(literal, (*_common(prefixes), b"")))):
            yield _located(keys, prefixes)
            self.follow()


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


def scan(servers: Servers, what: str, pattern: bytes) -> Iterator[list[bytes]]:
    """Yield the names of keys in small slices, maybe some twice, and show a person how far it is with `what`."""
    clients: list[Any] = list(servers.each().values())
    keys = sum(client.dbsize() for client in clients)
    with tqdm(total=keys, desc=what, unit=" keys", unit_scale=True, disable=None, leave=False) as bar:
        for client in clients:
            cursor = None
            while cursor != 0:
                cursor, names = _paced(partial(client.scan, cursor or 0, match=pattern, count=_COUNT))
                bar.update(_COUNT)
                yield names


def literal(text: bytes) -> bytes:
    """Return the pattern that only this text matches."""
    return re.sub(rb"([\\*?\[\]])", rb"\\\1", text)


def _row(shard: Shard, id_: bytes, reply: tuple[bytes, ...]) -> Row:
    type_, product_id, quantity, *texts, score, entry, ttl_ms = reply
    status, expires_at, reserved_at = (text.decode(errors="replace") for text in texts)
    return Row(
        *(shard, id_, type_.decode(), product_id, integer(quantity, least=1), status, expires_at, reserved_at),
        *(float(score) if score else None, entry, int(ttl_ms) if ttl_ms else None),
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
