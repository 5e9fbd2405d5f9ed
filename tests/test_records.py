"""What a batch records beside the units: events, the marks of an Expired reservation, totals and heartbeats."""

from __future__ import annotations

import pytest

from expirer.worker.worker import Worker
from tests.conftest import MakeWorker
from tests.inventory import NOW, Inventory


def test_an_event_tells_everything(inventory: Inventory, worker: Worker) -> None:
    """Each expired reservation leaves one event in the stream, and only those do."""
    inventory.stock("mug", 8, 2)
    inventory.hold("mug", 2, id_="o7:mug", order_id="o7")
    inventory.hold("mug", status="Confirmed", id_="o8:mug")

    worker.tick()

    ((_, event),) = inventory.client.xrange(inventory.keys.events)  # type: ignore[misc]
    assert event == {
        b"reservation_id": b"o7:mug",
        b"order_id": b"o7",
        b"product_id": b"mug",
        b"quantity": b"2",
        b"expires_at": str(NOW - 1000).encode(),
        b"expired_at": str(NOW).encode(),
    }


def test_no_events_where_none_are_wanted(inventory: Inventory, make_worker: MakeWorker) -> None:
    """With EXPIRER_EVENTS_MAXLEN=0 nothing is written to the stream."""
    inventory.stock("mug", 9, 1)
    inventory.hold("mug")

    make_worker(events_maxlen=0).tick()

    assert not inventory.client.exists(inventory.keys.events)
    inventory.assert_conserved({"mug": 10})


@pytest.mark.parametrize(("retention", "least", "most"), [("24h", 86_300_000, 86_400_000), ("forever", -1, -1)])
def test_retention_keeps_an_expired_reservation(
    inventory: Inventory, make_worker: MakeWorker, retention: str, least: int, most: int
) -> None:
    """An Expired reservation stays readable for the retention, then Redis removes it."""
    inventory.stock("mug", 9, 1)
    id_ = inventory.hold("mug")

    make_worker(retention=retention).tick()

    assert inventory.status(id_) == "Expired"
    assert least <= inventory.client.pttl(inventory.keys.reservation_prefix + id_) <= most


def test_retention_zero_deletes(inventory: Inventory, make_worker: MakeWorker) -> None:
    """With EXPIRER_RETENTION=0 an expired reservation is deleted instead of marked."""
    inventory.stock("mug", 9, 1)
    id_ = inventory.hold("mug")

    make_worker(retention="0").tick()

    assert not inventory.client.exists(inventory.keys.reservation_prefix + id_)
    inventory.assert_conserved({"mug": 10})


def test_totals_are_exact(inventory: Inventory, make_worker: MakeWorker) -> None:
    """The stats add up every outcome of every batch, and the quarantined also by reason."""
    inventory.stock("mug", 0, 7)
    for _ in range(3):
        inventory.hold("mug", 2)
    inventory.hold("mug", status="Released")
    inventory.hold("mug", quantity="x")
    inventory.hold("gone")
    inventory.hold("mug", status="odd")
    extended = inventory.hold("mug")
    inventory.client.hset(inventory.keys.reservation_prefix + extended, "expires_at", NOW + 5)

    make_worker(batch_size=5).tick()

    assert inventory.client.hgetall(inventory.keys.stats) == {
        b"expired": b"3",
        b"units": b"6",
        b"skipped": b"1",
        b"rescheduled": b"2",
        b"quarantined": b"2",
        b"quarantined:quantity_invalid": b"1",
        b"quarantined:status_unknown": b"1",
        b"batches": b"2",
    }


def test_an_idle_tick_writes_only_its_heartbeat(inventory: Inventory, worker: Worker) -> None:
    """A tick that finds nothing due leaves the worker's time, and nothing else."""
    inventory.stock("mug", 9, 1)
    inventory.hold("mug", expires_at=NOW + 1000)
    keys = set(inventory.client.keys())

    worker.tick()

    workers = inventory.keys.workers.encode()
    assert {workers, inventory.keys.about.encode()} == set(inventory.client.keys()) - keys
    assert [(worker.id.encode(), NOW)] == inventory.client.zrange(workers, 0, -1, withscores=True)


@pytest.mark.parametrize("total", ["a few", 2**53, 2**53 - 1])
def test_a_total_never_stops_a_batch(inventory: Inventory, worker: Worker, total: object) -> None:
    """A total that is damaged, or would pass 2**53, starts anew: it never keeps a unit from coming back."""
    inventory.stock("mug", 8, 2)
    inventory.hold("mug", 2)
    inventory.client.hset(inventory.keys.stats, "units", total)  # type: ignore[arg-type]

    assert 1 == worker.tick().expired
    assert b"2" == inventory.client.hget(inventory.keys.stats, "units")
    inventory.assert_conserved({"mug": 10})
