"""Inventories that nobody here wrote: each seeded as its owner would, none changed for us."""

from __future__ import annotations

import pytest
import redis

from expirer.worker.batch import Tick
from tests.conftest import Log, MakeWorker
from tests.inventory import NOW

PLAIN_COUNTERS = {
    "index_key": "holds",
    "reservation_prefix": "hold:",
    "stock_prefix": "stock:",
    "field_order_id": "",
    "field_product_id": "sku",
    "field_quantity": "qty",
    "field_expires_at": "",
    "score_unit": "s",
}
TOTAL_AND_RESERVED = {
    "index_key": "holds:by-expiry",
    "reservation_prefix": "hold:",
    "stock_prefix": "stock:",
    "field_order_id": "",
    "field_product_id": "sku",
    "field_quantity": "qty",
    "field_status": "",
    "field_expires_at": "expiresAt",
    "field_available": "",
    "retention": "0",
}
OWN_WORDS = {
    "index_key": "shop:holds",
    "reservation_prefix": "shop:hold:",
    "stock_prefix": "shop:product:",
    "events_key": "shop:hold-events",
    "field_order_id": "orderNumber",
    "field_product_id": "articleNumber",
    "field_quantity": "pieces",
    "field_status": "state",
    "field_expires_at": "heldUntil",
    "field_available": "onHand",
    "field_reserved": "onHold",
    "status_active": "PENDING",
    "status_expired": "EXPIRED",
    "status_ended": "PAID,CANCELLED",
}


def flags(layout: dict[str, str]) -> list[str]:
    """Return a layout as flags of the command line."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in layout.items()]


def seed_plain_counters(client: redis.Redis) -> None:
    """Seed string counters, holds without status, an index in seconds."""
    client.set("stock:mug", 7)
    client.hset("hold:h1", mapping={"sku": "mug", "qty": 2})
    client.hset("hold:h2", mapping={"sku": "mug", "qty": 1})
    client.zadd("holds", {"h1": NOW // 1000 - 1, "h2": NOW // 1000})


@pytest.mark.parametrize("marking", [{}, {"field_status": "", "retention": "0"}])
def test_plain_string_counters(client: redis.Redis, make_worker: MakeWorker, marking: dict[str, str]) -> None:
    """A plain string counter is incremented; a hold without status is Active; the score is in seconds."""
    seed_plain_counters(client)
    worker = make_worker(**PLAIN_COUNTERS, **marking)

    assert Tick(expired=1, units=2) == worker.tick()
    assert client.get("stock:mug") == b"9"
    assert client.zrange("holds", 0, -1, withscores=True) == [(b"h2", NOW // 1000)]
    assert (None if marking else b"Expired") == client.hget("hold:h1", "status")
    assert Tick() == worker.tick()


def test_an_index_in_seconds_is_due_at_once(client: redis.Redis, make_worker: MakeWorker) -> None:
    """A score in seconds is due as soon as that second has passed, not a second later."""
    seed_plain_counters(client)

    assert make_worker(lambda: NOW + 1, **PLAIN_COUNTERS).tick().expired == 2
    assert client.get("stock:mug") == b"10"


def test_total_and_reserved(client: redis.Redis, make_worker: MakeWorker) -> None:
    """Where available is computed only reserved shrinks, and an ended hold is deleted."""
    client.hset("stock:tea:black", mapping={"total": 10, "reserved": 3})
    client.hset("hold:cart1:tea:black", mapping={"sku": "tea:black", "qty": 2, "expiresAt": NOW - 1})
    client.hset("hold:cart2:tea:black", mapping={"sku": "tea:black", "qty": 1, "expiresAt": NOW + 9})
    client.zadd("holds:by-expiry", {"cart1:tea:black": NOW - 1, "cart2:tea:black": NOW - 1})

    tick = make_worker(**TOTAL_AND_RESERVED).tick()

    assert Tick(expired=1, units=2, rescheduled=1) == tick
    assert client.hgetall("stock:tea:black") == {b"total": b"10", b"reserved": b"1"}
    assert not client.exists("hold:cart1:tea:black")
    assert client.zrange("holds:by-expiry", 0, -1, withscores=True) == [(b"cart2:tea:black", NOW + 9)]


def test_words_and_names_of_its_own(client: redis.Redis, make_worker: MakeWorker, log: Log) -> None:
    """Every name, field and status word can be the inventory's own."""
    client.hset("shop:product:A1", mapping={"onHand": 3, "onHold": 2, "title": "Mug"})
    for hold, state in (("1", "PENDING"), ("2", "PAID")):
        client.hset(
            f"shop:hold:{hold}",
            mapping={"orderNumber": f"N{hold}", "articleNumber": "A1", "pieces": 2, "state": state},
        )
        client.zadd("shop:holds", {hold: NOW - 1})

    assert Tick(expired=1, units=2, skipped=1) == make_worker(**OWN_WORDS).tick()
    assert client.hgetall("shop:product:A1") == {b"onHand": b"5", b"onHold": b"0", b"title": b"Mug"}
    assert [client.hget(f"shop:hold:{hold}", "state") for hold in "12"] == [b"EXPIRED", b"PAID"]
    assert client.xlen("shop:hold-events") == 1
    (entry,) = log.of("reservation_expired")
    assert (entry["order_id"], entry["product_id"], entry["quantity"]) == ("N1", "A1", 2)


def test_only_available(client: redis.Redis, make_worker: MakeWorker) -> None:
    """An inventory that keeps only available has only that one incremented."""
    client.hset("{inventory}:stock:mug", mapping={"available": 4})
    client.hset("{inventory}:reservation:r", mapping={"product_id": "mug", "quantity": 6})
    client.zadd("{inventory}:reservations", {"r": NOW - 1})

    assert make_worker(field_reserved="").tick().expired == 1
    assert client.hgetall("{inventory}:stock:mug") == {b"available": b"10"}


def test_members_that_are_keys(client: redis.Redis, make_worker: MakeWorker) -> None:
    """Where the index holds whole key names, the prefix is empty."""
    client.set("stock:mug", 4)
    client.hset("hold:r", mapping={"product_id": "mug", "quantity": 6})
    client.zadd("holds", {"hold:r": NOW - 1})

    assert make_worker(index_key="holds", reservation_prefix="", stock_prefix="stock:").tick().expired == 1
    assert client.get("stock:mug") == b"10"


@pytest.mark.parametrize(("value", "reason"), [("many", "available_invalid"), (str(2**53), "available_overflow")])
def test_a_damaged_plain_counter_is_left_alone(
    client: redis.Redis, make_worker: MakeWorker, value: str, reason: str
) -> None:
    """A string counter that is no integer, or would overflow, is quarantined like any other."""
    seed_plain_counters(client)
    client.set("stock:mug", value)

    assert Tick(quarantined=1) == make_worker(**PLAIN_COUNTERS).tick()
    assert value.encode() == client.get("stock:mug")
    assert reason.encode() in (client.hget("{inventory}:quarantine", "h1") or b"")


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"field_product_id": "product_id"}, b"product_id_missing"),
        ({"field_quantity": "quantity"}, b"quantity_invalid"),
        ({"field_available": "available"}, b"available_invalid"),
        ({"field_available": "available", "field_reserved": "reserved"}, b"stock_missing"),
        ({"stock_prefix": "stock:"}, b"stock_missing"),
        ({"reservation_prefix": "hold:"}, b"reservation_missing"),
        ({"status_active": "Active"}, b"status_unknown"),
        ({"field_expires_at": "createdOn"}, b"expires_at_invalid"),
        ({"score_unit": "s", "field_expires_at": "heldUntil"}, None),
    ],
)
def test_a_wrong_mapping_destroys_nothing(
    client: redis.Redis, make_worker: MakeWorker, wrong: dict[str, str], reason: bytes | None
) -> None:
    """With one name wrong nothing of the inventory changes: its entries wait in quarantine, or in the index."""
    product = {b"onHand": b"3", b"onHold": b"2"}
    hold = {
        b"articleNumber": b"A1",
        b"pieces": b"2",
        b"state": b"PENDING",
        b"heldUntil": str(NOW - 1).encode(),
        b"createdOn": b"2026-11-23",
    }
    client.hset("shop:product:A1", mapping=product)  # type: ignore[arg-type]
    client.hset("shop:hold:1", mapping=hold)  # type: ignore[arg-type]
    client.zadd("shop:holds", {"1": NOW - 1})

    tick = make_worker(**(OWN_WORDS | wrong)).tick()

    assert (1 if reason else 0) == tick.due == tick.quarantined + tick.rescheduled
    assert (product, hold) == (client.hgetall("shop:product:A1"), client.hgetall("shop:hold:1"))
    if reason:
        assert reason in (client.hget("{inventory}:quarantine", "1") or b"")
    else:
        assert client.zrange("shop:holds", 0, -1) == [b"1"]


def test_milliseconds_are_not_taken_for_seconds(client: redis.Redis, make_worker: MakeWorker) -> None:
    """A score in seconds read as milliseconds is recognised: the holds of a whole shop are not due at once."""
    seed_plain_counters(client)

    assert Tick(quarantined=2) == make_worker(**(PLAIN_COUNTERS | {"score_unit": "ms"})).tick()
    assert client.get("stock:mug") == b"7"


def test_expires_at_in_milliseconds_beside_a_score_in_seconds(client: redis.Redis, make_worker: MakeWorker) -> None:
    """An expires_at in another unit than the score is quarantined, not rescheduled for thousands of years."""
    seed_plain_counters(client)
    client.hset("hold:h1", "until", NOW - 1000)

    assert Tick(quarantined=1) == make_worker(**(PLAIN_COUNTERS | {"field_expires_at": "until"})).tick()
    assert client.get("stock:mug") == b"7"


@pytest.mark.parametrize("word", ["BESTÄTIGT", "bestÄtigt", "Écoulé"])
def test_status_words_of_any_language(client: redis.Redis, make_worker: MakeWorker, word: str) -> None:
    """A status word with letters beyond ASCII is known as it stands, ASCII letters in any case."""
    client.hset("{inventory}:reservation:r", mapping={"product_id": "mug", "quantity": 6, "status": word})
    client.zadd("{inventory}:reservations", {"r": NOW - 1})

    assert Tick(skipped=1) == make_worker(status_ended="BESTÄTIGT,Écoulé").tick()
