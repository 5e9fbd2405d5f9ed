"""Reads every reservation of an inventory in small slices, and misses none that is written meanwhile."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from redis import Redis
from redis.exceptions import RedisError, ResponseError

from expirer.connection.connect import Servers
from expirer.contract import scripts
from expirer.contract.keys import shard_keys, shard_of, shard_tag
from expirer.operate.key_tracking import KeyTracking

_SLICE = 10
"""Reservations that are looked at in one script; it holds the server for less than 0.1 ms."""
_URGENT_SLICE = 50
"""The same of those that are written meanwhile, without a rest: a recount must be faster than who writes."""
_COUNT = 50
"""Keys that one SCAN walks over."""
_REST = 1.0
"""Pause after each step, as a multiple of its own time: the server is left to others at least half of it."""
_MAX = 2**53


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
    """Empty where there is no hash."""
    expires_at: str
    reserved_at: str
    score: float | None
    """None: it is not in the index."""
    entry: bytes
    """In the quarantine; empty: none."""
    ttl_ms: int | None
    """Of one that has ended; -1: none."""


class InventoryScan:
    """The reservations of an inventory: a walk over all of them, and news of those written since.

    A product is known by the ids of its Active reservations, one after the other in a bytearray: some
    25 bytes each.
    """

    def __init__(self, servers: Servers, product_id: bytes | None = None) -> None:
        """Begin to listen to what is written; raise RedisError where Redis fails."""
        self.servers = servers
        self.settings = settings = servers.shards[0].settings
        self.shards = shard_keys(settings)
        self.reservations = 0
        """Active ones that the walk has met, maybe some of them twice."""
        self.tracking_error = ""
        """Why it hears of nothing that is written; empty: it does."""
        self._product_id = product_id
        self._known: defaultdict[tuple[int, bytes], bytearray] = defaultdict(bytearray)
        self._examine = servers.shards[0].client.register_script(scripts.load("examine").text)
        self._prefixes = [keys.reservation_prefix.encode() for keys in self.shards]
        begin, end = shard_tag(settings.namespace)
        self._tag = re.compile(b"%s(0|[1-9]\\d{0,3})%s:(?:reservation|stock):" % (re.escape(begin), re.escape(end)))
        common = [begin] if len(self.shards) > 1 else self._prefixes
        self._feeds: list[KeyTracking] = []
        try:
            for client in servers.each().values():
                self._feeds.append(KeyTracking(client, common))
        except ResponseError as error:
            self.close()
            self.tracking_error = str(error)

    def close(self) -> None:
        """Stop listening."""
        for feed in self._feeds:
            feed.close()
        self._feeds.clear()

    def require_heard(self, connection: Any) -> None:  # noqa: ANN401  # redis-py's kinds of connection share no type
        """Raise RedisError where a shard has another server than when the audit began to listen."""
        if not any(feed.hears(connection) for feed in self._feeds):
            raise RedisError("a shard has moved to another server, where nobody listened; repeat the audit")

    def size(self) -> int:
        """Return how many keys there are, of whatever kind."""
        return sum(client.dbsize() for client in self.servers.each().values())

    def walk(self, tell: Callable[[int], object]) -> Iterator[tuple[int, Row]]:
        """Yield (shard, row) for every reservation, and every index entry without one; maybe more than once.

        `tell` is called with the number of keys walked over.
        """
        for shard, row in self._walk(tell):
            if self._product_id in (None, row.product_id) and self._is_reservation(row):
                yield shard, row

    def _walk(self, tell: Callable[[int], object]) -> Iterator[tuple[int, Row]]:
        if all(self._prefixes):
            for found in self._scan("reservation", self._prefixes, tell):
                yield from self._counted(self._located(found))
        for shard, (keys, prefix) in enumerate(zip(self.shards, self._prefixes, strict=True)):
            client = self.servers.shards[shard].client
            entries: Any = client.zscan_iter(keys.index, count=_COUNT)
            for ids in sliced((id_ for id_, _ in entries), _SLICE):
                places = [(shard, id_) for id_ in ids]
                names: list[Any] = [prefix + id_ for id_ in ids]
                if not prefix:
                    yield from self._counted(places)
                elif _paced(partial(client.exists, *names)) < len(ids):
                    yield from self._look(places)
        for shard, keys in enumerate(self.shards):
            quarantined: Any = self.servers.shards[shard].client.hscan_iter(keys.quarantine, count=_COUNT)
            yield from self._look((shard, id_) for id_, _ in quarantined)

    def changed(self) -> list[tuple[int, Row]]:
        """Return (shard, row) for every reservation written since the last call."""
        written = (key for feed in self._feeds for key in feed.written())
        return list(self._look(self._located(written), is_urgent=True))

    def examine(self, number: int, ids: Iterable[bytes], *, is_urgent: bool = False) -> Iterator[Row]:
        """Yield the rows of some reservations of one shard as they are now."""
        settings, keys = self.settings, self.shards[number]
        words = (
            keys.reservation_prefix,
            settings.field_product_id,
            settings.field_quantity,
            settings.field_status,
            settings.field_expires_at,
            settings.status_active,
        )
        for some in sliced(ids, _URGENT_SLICE if is_urgent else _SLICE):
            look = partial(
                self._examine, [keys.index, keys.quarantine], [*words, *some], self.servers.shards[number].client
            )
            fields: Any = look() if is_urgent else _paced(look)
            for id_, row in zip(some, zip(*[iter(fields)] * 9, strict=True), strict=True):
                yield _row(id_, *row)

    def known(self, number: int, product_id: bytes) -> set[bytes]:
        """Return the ids of the product's reservations that were Active when they were looked at."""
        return set(unpacked(self._known.get((number, product_id), bytearray())))

    def products(self, tell: Callable[[int], object]) -> Iterator[tuple[int, bytes]]:
        """Yield (shard, product id) for every product that has a stock key or a known reservation."""
        if self._product_id is not None:
            yield shard_of(self._product_id, len(self.shards)), self._product_id
            return
        seen = set(self._known)
        yield from list(seen)
        prefixes = [keys.stock_prefix.encode() for keys in self.shards]
        if not all(prefixes):
            return
        fixed = {name.encode() for keys in self.shards for name in (keys.index, keys.events)}
        for keys in self._scan("stock", prefixes, tell):
            for key in keys:
                number = self._shard(key)
                if not 0 <= number < len(prefixes) or not key.startswith(prefixes[number]):
                    continue  # of an inventory with other shards, or a stranger's
                is_other = key in fixed or (self._prefixes[number] and key.startswith(self._prefixes[number]))
                product = (number, key[len(prefixes[number]) :])
                if not is_other and product not in seen:
                    yield product

    def _counted(self, places: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, Row]]:
        for shard, row in self._look(places):
            self.reservations += row.status == self.settings.status_active
            yield shard, row

    def _look(self, places: Iterable[tuple[int, bytes]], *, is_urgent: bool = False) -> Iterator[tuple[int, Row]]:
        by_shard: defaultdict[int, list[bytes]] = defaultdict(list)
        for number, id_ in places:
            by_shard[number].append(id_)
        for number, ids in by_shard.items():
            for row in self.examine(number, ids, is_urgent=is_urgent):
                is_wanted = bool(row.product_id) and self._product_id in (None, row.product_id)
                if is_wanted and row.status == self.settings.status_active:
                    pack(self._known[number, row.product_id], row.id)
                yield number, row

    def _is_reservation(self, row: Row) -> bool:
        """Say whether it is more than a stranger's hash under the same prefix."""
        is_placed = row.score is not None or row.entry
        return bool(is_placed or row.status != self.settings.status_active or row.product_id or row.quantity)

    def _scan(self, what: str, prefixes: list[bytes], tell: Callable[[int], object]) -> Iterator[list[bytes]]:
        begin, end = shard_tag(self.settings.namespace)
        every = b"%s*%s:%s:" % (literal(begin), literal(end), what.encode())
        pattern = literal(prefixes[0]) if len(prefixes) == 1 else every
        for client in self.servers.each().values():
            yield from scan(client, pattern + b"*", tell)

    def _located(self, keys: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
        for key in keys:
            number = self._shard(key)
            if 0 <= number < len(self._prefixes) and key.startswith(self._prefixes[number]):
                yield number, key[len(self._prefixes[number]) :]

    def _shard(self, key: bytes) -> int:
        if len(self.shards) == 1:
            return 0
        match = self._tag.match(key)
        return int(match[1]) if match else -1


def scan(client: Redis, pattern: bytes, tell: Callable[[int], object]) -> Iterator[list[bytes]]:
    """Yield the names of keys in small slices, maybe some twice; `tell` is called with the number walked over."""
    cursor = None
    while cursor != 0:
        step = partial(client.scan, cursor or 0, match=pattern, count=_COUNT)
        cursor, keys = _paced(step)
        tell(_COUNT)
        yield keys


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


def integer(value: bytes | None, least: int = -_MAX) -> int | None:
    """Read an integer as the scripts do: no sign but a minus, no leading zero, up to 2**53."""
    if value is None or not re.fullmatch(rb"0|-?[1-9]\d{0,15}", value):
        return None
    return int(value) if least <= int(value) <= _MAX else None


def _paced(step: Callable[[], Any]) -> Any:  # noqa: ANN401  # what the step returns
    began_at = time.perf_counter()
    result = step()
    time.sleep(_REST * (time.perf_counter() - began_at))
    return result


def sliced(items: Iterable[bytes], size: int) -> Iterator[list[bytes]]:
    """Yield the items, so many at once."""
    iterator = iter(items)
    while some := list(islice(iterator, size)):
        yield some


def pack(ids: bytearray, id_: bytes) -> None:
    """Add an id to many: four bytes and the id itself."""
    ids += len(id_).to_bytes(4) + id_


def unpacked(ids: bytearray) -> Iterator[bytes]:
    """Yield the ids that were packed."""
    at = 0
    while at < len(ids):
        size = int.from_bytes(ids[at : at + 4])
        yield bytes(ids[at + 4 : at + 4 + size])
        at += 4 + size
