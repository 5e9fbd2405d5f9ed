"""The shop under measurement: reservations of one unit each, over a hundred products."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import redis

from benchmarks.servers import Server
from expirer.contract.keys import ShardKeys

KEYS = ShardKeys.of("inventory")
PRODUCTS = [f"p{n}" for n in range(100)]
SHELF, SHELF_UNITS = "shelf", 1_000_000_000
"""What the foreground client reserves from."""

_RETENTION_MS = 24 * 60 * 60 * 1000
_EVENTS_MAXLEN = 100_000
_CHUNK = 5_000


@dataclass(frozen=True, slots=True)
class Hold:
    """One unit of one product, held until `expires_at` (Unix ms)."""

    id: str
    order_id: str
    product_id: str
    expires_at: int


def holds(due: Iterable[int], prefix: str = "o") -> Iterator[Hold]:
    """Make one hold per time; products come at random, and the same in every run."""
    for n, expires_at in enumerate(due):
        order_id = f"{prefix}{n}"
        product_id = PRODUCTS[zlib.crc32(order_id.encode()) % len(PRODUCTS)]
        yield Hold(f"{order_id}:{product_id}", order_id, product_id, expires_at)


def write_rows(server: Server, made: Iterable[Hold]) -> None:
    """Write stock and Active reservations without the index: what every system has in common."""
    server.pipe(_inline(made, indexed=False))


def write_contract(server: Server, made: Iterable[Hold]) -> None:
    """Write stock, Active reservations and the index."""
    server.pipe(_inline(made, indexed=True))


def _inline(made: Iterable[Hold], *, indexed: bool) -> Iterator[bytes]:
    stock: Counter[str] = Counter()
    source = iter(made)
    while chunk := list(islice(source, _CHUNK)):
        stock.update(hold.product_id for hold in chunk)
        lines = [
            f"HSET {KEYS.reservation_prefix}{hold.id} order_id {hold.order_id} product_id {hold.product_id} quantity 1"
            f" status Active reserved_at {hold.expires_at - 900_000} expires_at {hold.expires_at}\r\n"
            for hold in chunk
        ]
        if indexed:
            lines += [f"ZADD {KEYS.index} {hold.expires_at} {hold.id}\r\n" for hold in chunk]
        yield "".join(lines).encode()
    yield "".join(
        f"HINCRBY {KEYS.stock_prefix}{product} available 0\r\nHINCRBY {KEYS.stock_prefix}{product} reserved {units}\r\n"
        for product, units in stock.items()
    ).encode()


def raw_commands(made: Iterable[Hold], now_ms: int) -> Iterator[bytes]:
    """Return what an expiry reads and writes, as plain commands that decide nothing and check nothing."""
    source = iter(made)
    while chunk := list(islice(source, _CHUNK)):
        yield b"".join(
            _resp(*words)
            for hold in chunk
            for words in _raw(hold, KEYS.reservation_prefix + hold.id, KEYS.stock_prefix + hold.product_id, str(now_ms))
        )


def _raw(hold: Hold, key: str, stock: str, now: str) -> Sequence[tuple[str, ...]]:
    return (
        ("HMGET", key, "product_id", "quantity", "status", "order_id", "expires_at"),
        ("ZREM", KEYS.index, hold.id),
        ("HSET", key, "status", "Expired", "expired_at", now),
        ("PEXPIRE", key, str(_RETENTION_MS)),
        ("HINCRBY", stock, "available", "1"),
        ("HINCRBY", stock, "reserved", "-1"),
        (
            "XADD", KEYS.events, "MAXLEN", "~", str(_EVENTS_MAXLEN), "*", "reservation_id", hold.id,
            "order_id", hold.order_id, "product_id", hold.product_id, "quantity", "1",
            "expires_at", str(hold.expires_at), "expired_at", now,
        ),
    )  # fmt: skip


def _resp(*words: str) -> bytes:
    body = "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
    return f"*{len(words)}\r\n{body}".encode()


@dataclass(frozen=True, slots=True)
class Ledger:
    """What must be true of the counters, whatever a system did."""

    stocked: Counter[str]

    @classmethod
    def of(cls, made: Iterable[Hold]) -> Ledger:
        """Count the units that were stocked for the holds."""
        return cls(Counter(hold.product_id for hold in made))

    def check(self, client: redis.Redis, ids: Iterable[str] = ()) -> str:
        """Return `exact`, or what is wrong with counters and reservations.

        Where ids are given, the available units must be those of the Expired reservations among them.
        """
        problems = []
        available = broken = 0
        for product, stocked in self.stocked.items():
            row = client.hmget(KEYS.stock_prefix + product, ["available", "reserved"])
            free, held = (int(value or 0) for value in row)
            available += free
            broken += free + held != stocked or held < 0
        if broken:
            problems.append(f"{broken} products not conserved")
        expired, asked = 0, False
        source = iter(ids)
        while chunk := list(islice(source, _CHUNK)):
            asked = True
            with client.pipeline(transaction=False) as pipe:
                for id_ in chunk:
                    pipe.hget(KEYS.reservation_prefix + id_, "status")
                expired += sum(status == b"Expired" for status in pipe.execute())
        if asked and expired != available:
            problems.append(f"{expired} reservations expired, {available} units came back")
        return "; ".join(problems) or "exact"
