"""A quarantine entry is a record of the past: units are released only while its reservation holds them."""

from __future__ import annotations

import pytest

from tests.inventory import NOW, Inventory
from tests.lua import expire, resolve

DUE = NOW - 1000


@pytest.fixture
def sold(inventory: Inventory) -> str:
    """Return the id of a quarantined reservation of two mugs of ten that plain commands have confirmed since."""
    inventory.stock("mug", 8, 2)
    id_ = inventory.hold("mug", "two", DUE, "o1:mug")
    assert 1 == len(expire(inventory.client).quarantined)
    inventory.client.hset(inventory.keys.reservation_prefix + id_, mapping={"status": "Confirmed", "quantity": 2})
    inventory.client.hincrby(inventory.keys.stock_prefix + "mug", "reserved", -2)
    inventory.stock("tea", 0, 5)
    return id_


@pytest.mark.parametrize("force", [0, 1])
def test_what_was_sold_is_not_released(inventory: Inventory, sold: str, force: int) -> None:
    """While its record says how it ended, release is refused with the status."""
    assert "ended" == resolve(inventory, sold, 2, force=force)
    assert {sold: "quantity_invalid"} == inventory.quarantine()
    inventory.assert_conserved({"mug": 10})


@pytest.mark.parametrize("force", [0, 1])
def test_what_was_sold_is_not_released_after_its_retention(inventory: Inventory, sold: str, force: int) -> None:
    """Once the record is gone nobody knows how it ended: release is refused, and force does not change that."""
    inventory.client.hincrby(inventory.keys.stock_prefix + "mug", "reserved", 2)  # another shopper's
    other = inventory.hold("mug", 2, NOW + 1000, "o2:mug")
    inventory.client.hincrby(inventory.keys.stock_prefix + "mug", "available", -2)
    inventory.client.delete(inventory.keys.reservation_prefix + sold)

    assert "record_gone" == resolve(inventory, sold, 2, force=force)
    assert {sold: "quantity_invalid"} == inventory.quarantine()
    assert "Active" == inventory.status(other)
    inventory.assert_conserved({"mug": 10}, {"mug": 2})
    assert "dropped" == resolve(inventory, sold, 0)
    inventory.assert_conserved({"mug": 10}, {"mug": 2})


@pytest.mark.parametrize("entry", [f"reason=reservation_missing at=1 score={DUE}", "a note"])
def test_what_never_was_is_released_by_force(inventory: Inventory, entry: str) -> None:
    """Units that a writer reserved before it died are released by force, if the entry says that no record was there."""
    inventory.stock("mug", 8, 2)
    if entry == "a note":
        inventory.client.zadd(inventory.keys.index, {"o1:mug": DUE})
        expire(inventory.client)
    else:
        inventory.client.hset(inventory.keys.quarantine, "o1:mug", entry)
    codes = [resolve(inventory, "o1:mug", 2, force=force) for force in (0, 1, 1)]

    assert ["record_gone", "released", "not_found"] == codes
    assert ((10, 0), {}) == (inventory.counters("mug"), inventory.index())
    inventory.assert_conserved({"mug": 10})


@pytest.mark.parametrize(
    "entry", ["", "by hand", "reason=stock_missing at=1 score=2", "x reason=reservation_missing at=1"]
)
def test_force_needs_the_reason(inventory: Inventory, entry: str) -> None:
    """An entry with any other reason had a record once: no force releases its units."""
    inventory.stock("mug", 8, 2)
    inventory.client.hset(inventory.keys.quarantine, "o1:mug", entry)

    assert "record_gone" == resolve(inventory, "o1:mug", 2, force=1)
    assert (8, 2) == inventory.counters("mug")


@pytest.mark.parametrize("status", ["Active", None])
def test_an_active_reservation_is_released_without_force(inventory: Inventory, status: str | None) -> None:
    """A record that is there and Active holds its units: they are released as ever."""
    inventory.stock("mug", 8, 2)
    id_ = inventory.hold("mug", "two", DUE, "o1:mug", status=status)
    expire(inventory.client)

    assert "released" == resolve(inventory, id_, 2)
    assert (10, 0) == inventory.counters("mug")
    inventory.assert_conserved({"mug": 10})
