"""A hundred thousand due entries, one in ten of them hostile: all end in the right place."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import cast

import fakeredis
import pytest
import redis

from expirer.config.settings import Settings
from expirer.connection.connect import Servers
from expirer.contract import scripts
from expirer.worker.batch import Tick
from expirer.worker.worker import Worker
from tests.conftest import Log
from tests.inventory import NOW, Inventory

pytestmark = pytest.mark.slow

OVERDUE = 1_700_000_000_000
LATER = 4_000_000_000_000
MAX = 2**53

PRODUCTS = ("mug", "tea:black", "größe\n")
MUG_HELD = {"product_id": "mug", "quantity": 1}

STOCK: dict[str, dict[str, object]] = {
    "word": {"available": "many", "reserved": 9},
    "half": {"available": "1.5", "reserved": 9},
    "huge": {"available": MAX + 1, "reserved": 9},
    "nan": {"available": 0, "reserved": "nan"},
    "lone": {"available": 0},
    "short": {"available": 0, "reserved": 0},
    "brim": {"available": MAX, "reserved": 9},
}
"""Counters that no reservation can be given back to."""


@dataclass(frozen=True, slots=True)
class Hostile:
    """A due entry that must not expire: where it ends, and how it differs from a good one.

    Where it ends is a reason for quarantine, or the outcome `skipped` or `rescheduled`.
    """

    end: str
    fields: dict[str, object] = field(default_factory=dict)
    """None: the field is missing."""
    mugs: int = 0
    """Units of `mug` that it goes on to hold."""
    score: float | None = None
    damage: Callable[[redis.Redis, bytes], object] | None = None
    """Writes the reservation's key instead."""


HOSTILE = [
    Hostile("reservation_missing", damage=lambda _client, _key: None),
    Hostile("reservation_wrong_type", damage=lambda client, key: client.rpush(key, "x")),
    Hostile("reservation_wrong_type", damage=lambda client, key: client.set(key, "x")),
    Hostile("reservation_wrong_type", damage=lambda client, key: client.zadd(key, {"x": 1})),
    Hostile("status_unknown", {"status": "PENDING"}, mugs=1),
    Hostile("status_unknown", {"status": b"\xff\x00"}, mugs=1),
    Hostile("unit_mismatch", {"expires_at": OVERDUE // 1000}, mugs=1),
    Hostile("unit_mismatch", mugs=1, score=OVERDUE // 1000),
    Hostile("expires_at_invalid", {"expires_at": "tomorrow"}, mugs=1),
    Hostile("expires_at_invalid", {"expires_at": ""}, mugs=1),
    Hostile("expires_at_invalid", {"expires_at": "1e12"}, mugs=1),
    Hostile("expires_at_invalid", {"expires_at": "9" * 400}, mugs=1),
    Hostile("product_id_missing", {"product_id": None}),
    Hostile("quantity_invalid", {"quantity": None}),
    Hostile("quantity_invalid", {"quantity": 0}),
    Hostile("quantity_invalid", {"quantity": -1}),
    Hostile("quantity_invalid", {"quantity": "1.5"}),
    Hostile("quantity_invalid", {"quantity": b"1\x00"}),
    Hostile("quantity_invalid", {"quantity": MAX + 1}),
    Hostile("quantity_invalid", {"quantity": "9" * 400}),
    Hostile("stock_missing", {"product_id": "ghost"}),
    Hostile("stock_missing", {"product_id": b"\xff\x00\n"}),
    Hostile("stock_missing", {"product_id": "x" * 10_000}),
    Hostile("stock_wrong_type", {"product_id": "list"}),
    Hostile("available_invalid", {"product_id": "word"}),
    Hostile("available_invalid", {"product_id": "half"}),
    Hostile("available_invalid", {"product_id": "huge"}),
    Hostile("reserved_invalid", {"product_id": "nan"}),
    Hostile("reserved_invalid", {"product_id": "lone"}),
    Hostile("reserved_too_small", {"product_id": "short"}),
    Hostile("reserved_too_small", {"quantity": MAX}),
    Hostile("available_overflow", {"product_id": "brim"}),
    Hostile("skipped", {"status": "Confirmed"}),
    Hostile("skipped", {"status": "Released"}),
    Hostile("skipped", {"status": "Expired"}),
    Hostile("skipped", {"status": "CONFIRMED", "quantity": "9" * 400}),
    Hostile("rescheduled", {"expires_at": LATER}, mugs=1),
    Hostile("rescheduled", {"expires_at": "9" * 24}, mugs=1),
]


@dataclass(slots=True)
class Siege:
    """What was written, and where it must end."""

    client: redis.Redis
    now: int = NOW
    tick: Tick = field(default_factory=Tick)
    good: list[bytes] = field(default_factory=list)
    skipped: dict[bytes, bytes] = field(default_factory=dict)
    """Reservation id -> status."""
    rescheduled: dict[bytes, float] = field(default_factory=dict)
    quarantined: dict[bytes, str] = field(default_factory=dict)
    available: Counter[str] = field(default_factory=Counter)
    reserved: Counter[str] = field(default_factory=Counter)

    def write(self, count: int) -> None:
        """Write that many due entries, every tenth of them hostile, all kinds in turn."""
        shop = Inventory(self.client)
        for start in range(0, count, 5000):
            with self.client.pipeline(transaction=False) as pipe:
                for n in range(start, start + min(5000, count - start)):
                    if n % 10:
                        self._write_good(pipe, n)
                    else:
                        self._write_hostile(pipe, n, HOSTILE[n // 10 % len(HOSTILE)])
                pipe.execute()
        self.client.rpush(shop.keys.stock_prefix + "list", "x")
        for product, counters in STOCK.items():
            self.client.hset(shop.keys.stock_prefix + product, mapping=counters)  # type: ignore[arg-type]
        for product in PRODUCTS:
            shop.stock(product, 0, self.available[product] + self.reserved[product])

    def _write_good(self, pipe: redis.Redis, n: int) -> None:
        id_ = b"o%d" % n + {5: b"\xff\x00\r\n", 6: b" '\"{}:*", 7: b"x" * (10_000 if n % 1000 == 7 else 10)}.get(
            n % 10, b""
        )
        product, quantity = PRODUCTS[n % 3], 1 + n % 4
        fields = {"product_id": product, "quantity": quantity, "status": "Active", "expires_at": OVERDUE + n}
        self._write(pipe, id_, fields, OVERDUE + n)
        self.good.append(id_)
        self.available[product] += quantity

    def _write_hostile(self, pipe: redis.Redis, n: int, kind: Hostile) -> None:
        id_ = b"bad\xfe%d" % n
        if kind.damage:
            keys = Inventory(pipe).keys
            kind.damage(pipe, keys.reservation_prefix.encode() + id_)
            pipe.zadd(keys.index, {id_: OVERDUE + n})
        else:
            fields = {**MUG_HELD, "status": "Active", "expires_at": OVERDUE + n, **kind.fields}
            self._write(pipe, id_, fields, kind.score or OVERDUE + n)
        self.reserved["mug"] += kind.mugs
        if kind.end == "skipped":
            self.skipped[id_] = str(kind.fields["status"]).encode()
        elif kind.end == "rescheduled":
            self.rescheduled[id_] = float(str(kind.fields["expires_at"]))
        else:
            self.quarantined[id_] = kind.end

    def _write(self, pipe: redis.Redis, id_: bytes, fields: dict[str, object], score: float) -> None:
        keys = Inventory(pipe).keys
        present = {name: value for name, value in fields.items() if value is not None}
        pipe.hset(keys.reservation_prefix.encode() + id_, mapping=present)  # type: ignore[arg-type]
        pipe.zadd(keys.index, {id_: score})

    def statuses(self, ids: list[bytes]) -> list[bytes]:
        """Return the statuses of reservations."""
        prefix = Inventory(self.client).keys.reservation_prefix.encode()
        with self.client.pipeline(transaction=False) as pipe:
            for id_ in ids:
                pipe.hget(prefix + id_, "status")
            return cast("list[bytes]", pipe.execute())


@pytest.fixture(scope="module", params=[("fake", 2_000), ("server", 100_000)], ids=["fake", "server"])
def siege(request: pytest.FixtureRequest) -> Iterator[Siege]:
    """Let one tick work through all of it, and another through what is tried again a minute later."""
    kind, count = request.param
    client = (
        fakeredis.FakeRedis(server=fakeredis.FakeServer())
        if kind == "fake"
        else request.getfixturevalue("shared_server").client()
    )
    with client:
        client.flushall()
        siege = Siege(client)
        siege.write(count)
        shard = Servers.of(client, Settings()).shards[0]
        worker = Worker(shard, Log().logger(), lambda: siege.now)
        siege.tick = worker.tick()
        siege.now += 60_001
        siege.tick += worker.tick()
        yield siege


def test_every_reason_is_among_the_hostile() -> None:
    """The hostile entries cover every reason for quarantine that the script knows, but the one that needs a user."""
    text = scripts.load("expire").text
    reasons = re.findall(r"(?:return 'quarantined', |reason = |reason or )'(\w+)'", text)

    assert set(reasons) | {"skipped", "rescheduled"} == {kind.end for kind in HOSTILE} | {"key_forbidden"}


def test_one_tick_takes_all(siege: Siege) -> None:
    """Hostile entries stop no tick: it counts every entry, each under one outcome, and leaves none overdue."""
    tried_again = sum(reason in ("reservation_missing", "stock_missing") for reason in siege.quarantined.values())
    expected = Tick(
        expired=len(siege.good),
        units=siege.available.total(),
        skipped=len(siege.skipped),
        rescheduled=len(siege.rescheduled) + tried_again,
        quarantined=len(siege.quarantined),
    )

    assert expected == siege.tick


def test_the_good_expire(siege: Siege) -> None:
    """Every good reservation is Expired."""
    assert {b"Expired"} == set(siege.statuses(siege.good))


def test_each_good_one_has_its_event(siege: Siege) -> None:
    """The stream holds one event for each good reservation, and none for a hostile one."""
    events = cast("list[tuple[bytes, dict[bytes, bytes]]]", siege.client.xrange(Inventory(siege.client).keys.events))

    assert sorted(siege.good) == sorted(fields[b"reservation_id"] for _, fields in events)


def test_counters_are_exact_among_the_hostile(siege: Siege) -> None:
    """The units of good reservations are available again, those of quarantined and extended ones still held."""
    shop = Inventory(siege.client)

    expected = {product: (siege.available[product], siege.reserved[product]) for product in PRODUCTS}
    assert expected == {product: shop.counters(product) for product in PRODUCTS}


def test_the_index_keeps_only_the_extended(siege: Siege) -> None:
    """What remains in the index are the extended reservations, each at its own time."""
    assert siege.rescheduled == Inventory(siege.client).index()


def test_the_hostile_are_quarantined(siege: Siege) -> None:
    """Every hostile entry is in quarantine, with its own reason."""
    rows = cast("dict[bytes, bytes]", siege.client.hgetall(Inventory(siege.client).keys.quarantine))

    assert siege.quarantined == {
        id_: entry.decode().partition("reason=")[2].partition(" ")[0] for id_, entry in rows.items()
    }


def test_the_ended_are_left_alone(siege: Siege) -> None:
    """Reservations that had ended keep their status."""
    assert list(siege.skipped.values()) == siege.statuses(list(siege.skipped))


def test_damaged_counters_are_left_alone(siege: Siege) -> None:
    """Counters that cannot be understood stay as they were, to the byte."""
    prefix = Inventory(siege.client).keys.stock_prefix
    expected = {
        product: {name.encode(): str(value).encode() for name, value in counters.items()}
        for product, counters in STOCK.items()
    }

    assert expected == {product: siege.client.hgetall(prefix + product) for product in STOCK}
    assert siege.client.lrange(prefix + "list", 0, -1) == [b"x"]
