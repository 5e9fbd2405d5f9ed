"""What a worker counts for its metrics, and that counting holds when several threads do it."""

from __future__ import annotations

import threading
from pathlib import Path

import fakeredis
import pytest
import redis

from expirer.config.settings import Settings
from expirer.worker.batch import Tick
from expirer.worker.tally import BATCH_BOUNDS_S, LATENESS_BOUNDS_S, Tally
from expirer.worker.worker import Worker
from tests.conftest import Log, MakeWorker
from tests.inventory import NOW, Inventory


@pytest.fixture
def tally() -> Tally:
    """Return the figures of two shards."""
    return Tally(2)


def test_a_tick_is_counted(client: redis.Redis, inventory: Inventory, log: Log, tally: Tally) -> None:
    """Reservations, units, ticks and the moment of success are counted, and lateness by its bucket."""
    inventory.stock("mug", 0, 5)
    inventory.hold("mug", 2, NOW - 1500)
    inventory.hold("mug", 3, NOW - 3)
    Worker(client, Settings(grace="1ms"), log.logger(), lambda: NOW, tally=tally).tick()
    first, second = tally.shards()

    assert (1, 0, 2, 5, 0, {}) == (
        first.ticks,
        first.conflicts,
        first.expired,
        first.units,
        first.failures,
        first.errors,
    )
    assert first.succeeded_at > 1e9
    assert (0, 0.0) == (second.ticks, second.succeeded_at)
    lateness = dict(zip(tally.lateness.bounds, tally.lateness.counts, strict=True))
    assert {0.002: 1, 2.0: 1} == {bound: count for bound, count in lateness.items() if count}
    assert 1.501 == pytest.approx(tally.lateness.sum_s)
    assert 1 == sum(tally.batch_duration.counts)
    inventory.assert_conserved({"mug": 5})


def test_what_failed_is_counted_by_class(fake_server: fakeredis.FakeServer, log: Log, tally: Tally) -> None:
    """Each failed tick is counted under its error's class, and a success ends the row of failures."""
    worker = Worker(fakeredis.FakeRedis(server=fake_server), Settings(), log.logger(), lambda: NOW, tally=tally)
    fake_server.connected = False
    worker.tick()
    worker.tick()
    during, _ = tally.shards()
    fake_server.connected = True
    worker.tick()
    after, _ = tally.shards()

    assert ({"ConnectionError": 2}, 2, 2) == (during.errors, during.failures, during.ticks)
    assert ({"ConnectionError": 2}, 0, 3) == (after.errors, after.failures, after.ticks)


class _StrangeError(ConnectionRefusedError):
    """Has no row of its own."""


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (redis.exceptions.ReadOnlyError(), "ReadOnlyError"),
        (_StrangeError(), "ConnectionError"),
        (FileNotFoundError(), "OSError"),
        (LookupError(), "other"),
    ],
)
def test_an_unknown_class_counts_as_its_nearest(tally: Tally, error: Exception, name: str) -> None:
    """As many classes are told apart as there are rows; any other error counts as what it descends from."""
    tally.count_error(1, error, "it is so")
    _, second = tally.shards()

    assert ({name: 1}, "it is so") == (second.errors, second.why)


def test_a_long_error_is_cut(tally: Tally) -> None:
    """Of what an error said as much is kept as there is room for, nothing of the one before, and no half letter."""
    tally.count_error(1, OSError(), "ö" * 1000)
    _, second = tally.shards()
    assert "ö" * 256 == second.why

    tally.count_error(1, OSError(), "")
    first, second = tally.shards()
    assert ("", "OSError") == (first.why, second.why)


def test_another_process_may_read(tally: Tally, tmp_path: Path) -> None:
    """Who maps the same file reads what is written, at once."""
    with (tmp_path / "tally").open("w+b") as file:
        file.truncate(Tally.size(2))
        writer, reader = Tally(2, file.fileno()), Tally(2, file.fileno())
    writer.start()
    writer.count_drain(1, Tick(), 0)
    writer.stop()

    assert (writer.started_at, True) == (reader.started_at, reader.is_stopping)
    assert [0, 1] == [shard.ticks for shard in reader.shards()]
    assert tally.started_at == 0


def test_threads_lose_no_count(make_worker: MakeWorker, inventory: Inventory, tally: Tally) -> None:
    """Batches that several threads count at once are all there."""
    inventory.overdue("mug", 3)
    shard = make_worker()._shards[0]
    batch = shard.expiry.expire_batch()

    def count(number: int) -> None:
        for _ in range(2000):
            tally.count_batch(number, batch)

    threads = [threading.Thread(target=count, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [6000, 6000] == [shard.expired for shard in tally.shards()]
    assert (12_000, 4000) == (sum(tally.lateness.counts), sum(tally.batch_duration.counts))
    assert 12_000 == pytest.approx(tally.lateness.sum_s)


def test_the_bounds_reach_from_a_millisecond_to_an_hour() -> None:
    """Lateness is told apart from a millisecond to an hour, in growing steps."""
    assert (0.001, 3600) == (LATENESS_BOUNDS_S[0], LATENESS_BOUNDS_S[-1])
    assert list(LATENESS_BOUNDS_S) == sorted(set(LATENESS_BOUNDS_S))
    assert list(BATCH_BOUNDS_S) == sorted(set(BATCH_BOUNDS_S))
