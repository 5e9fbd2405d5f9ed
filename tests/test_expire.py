"""What expire.lua promises: every due entry gets exactly one outcome, and counters stay exact."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import redis

from expirer.worker.batch import Tick
from expirer.worker.worker import Worker
from tests.conftest import Log, MakeWorker
from tests.inventory import NOW, Inventory

MAX = 2**53

Damage = Callable[[Inventory, str], object]


def reservation(**fields: object) -> Damage:
    """Write fields into the reservation; None deletes the field."""
    return lambda inventory, id_: write_fields(inventory, inventory.keys.reservation_prefix + id_, fields)


def stock(**fields: object) -> Damage:
    """Write fields into the stock of the product `odd`; None deletes the field."""
    return lambda inventory, _id: write_fields(inventory, inventory.keys.stock_prefix + "odd", fields)


def write_fields(inventory: Inventory, key: str, fields: Mapping[str, object]) -> None:
    """Write fields into a hash; None deletes the field."""
    for name, value in fields.items():
        if value is None:
            inventory.client.hdel(key, name)
        else:
            inventory.client.hset(key, name, value)  # type: ignore[arg-type]


def as_list(kind: str) -> Damage:
    """Replace the reservation, or the stock of `odd`, by a list."""

    def damage(inventory: Inventory, id_: str) -> None:
        keys = inventory.keys
        key = keys.reservation_prefix + id_ if kind == "reservation" else keys.stock_prefix + "odd"
        inventory.client.delete(key)
        inventory.client.rpush(key, "x")

    return damage


QUARANTINE = [
    ("reservation_wrong_type", as_list("reservation")),
    ("status_unknown", reservation(status="PENDING")),
    ("status_unknown", reservation(status="")),
    (
        "unit_mismatch",
        lambda inventory, id_: inventory.client.zadd(inventory.keys.index, {id_: 1_700_000_000}),
    ),
    ("unit_mismatch", reservation(expires_at=1_700_000_000)),
    ("expires_at_invalid", reservation(expires_at="tomorrow")),
    ("expires_at_invalid", reservation(expires_at="")),
    ("expires_at_invalid", reservation(expires_at="-5")),
    ("expires_at_invalid", reservation(expires_at="1e12")),
    ("product_id_missing", reservation(product_id=None)),
    ("quantity_invalid", reservation(quantity=None)),
    ("quantity_invalid", reservation(quantity="")),
    ("quantity_invalid", reservation(quantity="0")),
    ("quantity_invalid", reservation(quantity="-1")),
    ("quantity_invalid", reservation(quantity="1.0")),
    ("quantity_invalid", reservation(quantity="1.5")),
    ("quantity_invalid", reservation(quantity="1e3")),
    ("quantity_invalid", reservation(quantity="0x10")),
    ("quantity_invalid", reservation(quantity=" 1")),
    ("quantity_invalid", reservation(quantity="+1")),
    ("quantity_invalid", reservation(quantity="01")),
    ("quantity_invalid", reservation(quantity="nan")),
    ("quantity_invalid", reservation(quantity="inf")),
    ("quantity_invalid", reservation(quantity="1\n")),
    ("quantity_invalid", reservation(quantity=b"1\x00")),
    ("quantity_invalid", reservation(quantity=MAX + 1)),
    ("quantity_invalid", reservation(quantity="9" * 400)),
    ("stock_wrong_type", as_list("stock")),
    ("available_invalid", stock(available=None)),
    ("available_invalid", stock(available="many")),
    ("available_invalid", stock(available="1.5")),
    ("available_invalid", stock(available="-0")),
    ("available_invalid", stock(available=MAX + 1)),
    ("available_invalid", stock(available=-MAX - 1)),
    ("reserved_invalid", stock(reserved=None)),
    ("reserved_invalid", stock(reserved="")),
    ("reserved_invalid", stock(reserved=str(2**64))),
    ("reserved_too_small", stock(reserved=0)),
    ("reserved_too_small", stock(reserved=-5)),
    ("available_overflow", stock(available=MAX)),
]


def test_a_due_reservation_expires(inventory: Inventory, worker: Worker) -> None:
    """An Active reservation that is due gives its units back, is marked, and leaves the index."""
    inventory.stock("mug", 8, 2)
    id_ = inventory.hold("mug", 2)

    tick = worker.tick()

    assert Tick(expired=1, units=2) == tick
    assert inventory.index() == {}
    row = inventory.client.hgetall(inventory.keys.reservation_prefix + id_)
    assert (b"Expired", str(NOW).encode()) == (row[b"status"], row[b"expired_at"])
    inventory.assert_conserved({"mug": 10})


def test_due_is_strictly_before_now(inventory: Inventory, make_worker: MakeWorker) -> None:
    """A reservation is due as soon as its ExpiresAt has passed, not at it."""
    inventory.stock("mug", 9, 1)
    inventory.hold("mug", expires_at=NOW)

    assert make_worker(lambda: NOW).tick().expired == 0
    inventory.assert_conserved({"mug": 10})
    assert make_worker(lambda: NOW + 0.001).tick().expired == 1
    inventory.assert_conserved({"mug": 10})


def test_grace_is_waited_out(inventory: Inventory, make_worker: MakeWorker) -> None:
    """With a grace period a reservation is due only that much later."""
    inventory.stock("mug", 9, 1)
    inventory.hold("mug", expires_at=NOW)

    assert make_worker(lambda: NOW + 5000, grace="5s").tick().expired == 0
    assert make_worker(lambda: NOW + 5001, grace="5s").tick().expired == 1
    inventory.assert_conserved({"mug": 10})


@pytest.mark.parametrize("status", ["Confirmed", "Released", "Expired", "CONFIRMED"])
def test_an_ended_reservation_is_skipped(inventory: Inventory, worker: Worker, status: str) -> None:
    """A reservation that ended already leaves the index, and nothing else changes."""
    inventory.stock("mug", 10, 0)
    id_ = inventory.hold("mug", status=status)

    tick = worker.tick()

    assert Tick(skipped=1) == tick
    assert ({}, status) == (inventory.index(), inventory.status(id_))
    assert inventory.counters("mug") == (10, 0)


@pytest.mark.parametrize("later", [0, 1, 60_000])
def test_an_extended_reservation_is_rescheduled(inventory: Inventory, worker: Worker, later: int) -> None:
    """Where the reservation's own expires_at is not due, the index takes that time."""
    inventory.stock("mug", 9, 1)
    id_ = inventory.hold("mug")
    reservation(expires_at=NOW + later)(inventory, id_)

    tick = worker.tick()

    assert Tick(rescheduled=1) == tick
    assert {id_.encode(): NOW + later} == inventory.index()
    inventory.assert_conserved({"mug": 10})


@pytest.mark.parametrize(("reason", "damage"), QUARANTINE)
def test_what_cannot_expire_is_quarantined(inventory: Inventory, worker: Worker, reason: str, damage: Damage) -> None:
    """A damaged entry moves to quarantine with its reason; counters stay, and its neighbours expire."""
    inventory.stock("mug", 8, 2)
    inventory.stock("odd", 5, 1)
    before = inventory.hold("mug", expires_at=NOW - 2000)
    odd = inventory.hold("odd", expires_at=NOW - 1500)
    after = inventory.hold("mug", expires_at=NOW - 1000)
    damage(inventory, odd)
    odd_stock = inventory.keys.stock_prefix + "odd"
    stock_before = inventory.client.dump(odd_stock)

    tick = worker.tick()

    assert Tick(expired=2, units=2, quarantined=1) == tick
    assert {odd: reason} == inventory.quarantine()
    assert ({}, stock_before) == (inventory.index(), inventory.client.dump(odd_stock))
    assert (inventory.status(before), inventory.status(after)) == ("Expired", "Expired")
    assert inventory.counters("mug") == (10, 0)
    assert worker.tick() == Tick()


def test_what_cannot_expire_is_quarantined_alone(inventory: Inventory, worker: Worker) -> None:
    """A damaged entry that is alone in its batch goes to quarantine too, and its counters stay."""
    inventory.stock("odd", 5, 1)
    odd = inventory.hold("odd", quantity="two", expires_at=NOW - 1500)
    stock_before = inventory.client.dump(inventory.keys.stock_prefix + "odd")

    tick = worker.tick()

    assert Tick(quarantined=1) == tick
    assert {odd: "quantity_invalid"} == inventory.quarantine()
    assert inventory.index() == {}
    assert stock_before == inventory.client.dump(inventory.keys.stock_prefix + "odd")


def test_quarantine_keeps_what_a_requeue_needs(inventory: Inventory, worker: Worker) -> None:
    """The quarantine entry holds the reason, the time, and the score that the index held."""
    id_ = inventory.hold("mug", quantity="two")

    worker.tick()

    entry = inventory.client.hget(inventory.keys.quarantine, id_)
    assert f"reason=quantity_invalid at={NOW} score={NOW - 1000}".encode() == entry


def test_a_mended_entry_leaves_quarantine(inventory: Inventory, worker: Worker) -> None:
    """After the cause is mended and the id is put back into the index, it expires and quarantine forgets it."""
    inventory.stock("mug", 8, 2)
    id_ = inventory.hold("mug", quantity="two")
    worker.tick()
    reservation(quantity=2)(inventory, id_)
    inventory.client.zadd(inventory.keys.index, {id_: NOW - 1000})

    assert worker.tick().expired == 1
    assert inventory.quarantine() == {}
    inventory.assert_conserved({"mug": 10})


def test_the_largest_quantity_is_exact(inventory: Inventory, worker: Worker) -> None:
    """Quantities and counters up to 2**53 are exact to the unit."""
    inventory.stock("mug", 1, MAX - 1)
    inventory.hold("mug", MAX - 1)

    assert worker.tick().units == MAX - 1
    assert inventory.counters("mug") == (MAX, 0)


def test_backorders_are_given_back(inventory: Inventory, worker: Worker) -> None:
    """A negative available is an integer like any other: the units return to it."""
    inventory.stock("mug", -5, 2)
    inventory.hold("mug", 2)

    assert worker.tick().expired == 1
    assert inventory.counters("mug") == (-3, 0)


def test_reserved_is_never_overdrawn_within_a_batch(inventory: Inventory, worker: Worker) -> None:
    """Where reserved covers only the first of two reservations, the second is quarantined."""
    inventory.stock("mug", 0, 3)
    inventory.hold("mug", 2, NOW - 2000)
    second = inventory.hold("mug", 2, NOW - 1000)

    assert Tick(expired=1, units=2, quarantined=1) == worker.tick()
    assert {second: "reserved_too_small"} == inventory.quarantine()
    assert inventory.counters("mug") == (2, 1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "a b:c::d",
        "'\"\\{}[]*?",
        "größe-☃-\U0001f6d2",
        "line\nbreak\r\t",
        "nul\x00byte",
        "x" * 10_000,
        "%s%d%q",
        "-1",
    ],
)
def test_ids_are_any_text(inventory: Inventory, worker: Worker, log: Log, text: str) -> None:
    """Reservation, order and product ids may be empty, long, or hold any character."""
    inventory.stock(text, 7, 3)
    id_ = f"{text}:{text}"
    inventory.hold(text, 3, id_=id_, order_id=text)

    assert worker.tick().expired == 1
    assert inventory.status(id_) == "Expired"
    assert inventory.counters(text) == (10, 0)
    (entry,) = log.of("reservation_expired")
    assert (id_, text, text) == (entry["reservation_id"], entry["order_id"], entry["product_id"])


def test_ids_are_any_bytes(client: redis.Redis, inventory: Inventory, worker: Worker, log: Log) -> None:
    """Ids that are not UTF-8 work, and are logged as escapes."""
    raw = bytes(range(256))
    client.hset(inventory.keys.stock_prefix.encode() + raw, mapping={"available": 0, "reserved": 1})
    client.hset(
        inventory.keys.reservation_prefix.encode() + raw,
        mapping={"order_id": raw, "product_id": raw, "quantity": 1, "status": "Active"},
    )
    client.zadd(inventory.keys.index, {raw: NOW - 1})

    assert worker.tick().expired == 1
    assert client.hmget(inventory.keys.stock_prefix.encode() + raw, ["available", "reserved"]) == [b"1", b"0"]
    assert "\\xff" in log.of("reservation_expired")[0]["reservation_id"]


def test_an_order_id_is_not_needed(inventory: Inventory, worker: Worker) -> None:
    """A reservation without order id and expires_at expires by its score."""
    inventory.stock("mug", 9, 1)
    inventory.hold("mug", order_id=None, expires_at=NOW - 1)
    id_ = inventory.hold("mug", id_="bare", order_id=None, status=None)
    reservation(expires_at=None)(inventory, id_)
    inventory.stock("mug", 8, 2)

    assert worker.tick().expired == 2
    inventory.assert_conserved({"mug": 10})


@pytest.mark.parametrize("score", ["-inf", 0, 1, NOW - 0.5])
def test_any_past_score_is_due(inventory: Inventory, worker: Worker, score: float | str) -> None:
    """A score of minus infinity, zero or a fraction of a millisecond is as due as any other."""
    inventory.stock("mug", 9, 1)
    id_ = inventory.hold("mug", expires_at=NOW - 1000)
    reservation(expires_at=None)(inventory, id_)
    inventory.client.zadd(inventory.keys.index, {id_: score})

    assert worker.tick().expired == 1
    inventory.assert_conserved({"mug": 10})


def test_the_oldest_go_first(inventory: Inventory, make_worker: MakeWorker) -> None:
    """A batch takes the oldest due reservations, and the tick takes batch after batch until none is left."""
    inventory.stock("mug", 0, 25)
    ids = [inventory.hold("mug", expires_at=NOW - 1000 + i) for i in range(25)]

    tick = make_worker(batch_size=10).tick()

    assert Tick(expired=25, units=25) == tick
    events = inventory.client.xrange(inventory.keys.events)
    assert ids == [fields[b"reservation_id"].decode() for _, fields in events]  # type: ignore[index, union-attr]
    inventory.assert_conserved({"mug": 25})


@pytest.mark.parametrize("name", ["index", "events", "quarantine", "stats", "workers", "about", "control"])
def test_a_key_of_another_type_stops_the_batch(inventory: Inventory, worker: Worker, log: Log, name: str) -> None:
    """Where a key of the contract holds another type nothing changes, and the error names the key."""
    inventory.stock("mug", 9, 1)
    inventory.hold("mug")
    key = getattr(inventory.keys, name)
    if name == "index":
        inventory.client.delete(key)
    inventory.client.set(key, "not ours")

    tick = worker.tick()

    assert Tick(errors=1) == tick
    (entry,) = log.of("processing_error")
    assert "WRONGTYPE" in entry["message"]
    if name != "control":
        assert key in entry["message"]
    inventory.assert_conserved({"mug": 10})


@pytest.mark.slow
def test_a_thousand_in_one_batch(inventory: Inventory, make_worker: MakeWorker) -> None:
    """The largest batch, of as many products, stays within Lua's limits, whatever the outcomes."""
    for i in range(250):
        inventory.stock(f"p{i}", 0, 1)
        inventory.hold(f"p{i}")
        inventory.hold(f"p{i}", status="Released", id_=f"r{i}")
        inventory.hold(f"p{i}", quantity="x", id_=f"q{i}")
        reservation(expires_at=NOW + i)(inventory, inventory.hold(f"p{i}", id_=f"e{i}"))
    inventory.client.hset(inventory.keys.quarantine, "r0", "reason=status_unknown at=0 score=0")

    tick = make_worker(batch_size=1000).tick()

    assert Tick(expired=250, units=250, skipped=250, quarantined=250, rescheduled=250) == tick
    assert len(inventory.quarantine()) == 250
    assert [inventory.counters(f"p{i}") for i in range(250)] == [(1, 0)] * 250


def test_the_server_clock_decides(inventory: Inventory, make_worker: MakeWorker) -> None:
    """By default it is the server's TIME that makes a reservation due."""
    seconds, microseconds = inventory.client.time()
    now = seconds * 1000 + microseconds // 1000
    inventory.stock("mug", 8, 2)
    inventory.hold("mug", expires_at=now - 1)
    later = inventory.hold("mug", expires_at=now + 3_600_000)

    assert make_worker(None).tick().expired == 1
    assert inventory.status(later) == "Active"
    inventory.assert_conserved({"mug": 10})


def test_the_worker_clock_decides_where_it_must(inventory: Inventory, make_worker: MakeWorker) -> None:
    """With EXPIRER_CLOCK=worker the script never asks the server for the time."""
    inventory.stock("mug", 9, 1)
    inventory.hold("mug", expires_at=1000)

    assert make_worker(None, clock="worker").tick().expired == 1
    inventory.assert_conserved({"mug": 10})
