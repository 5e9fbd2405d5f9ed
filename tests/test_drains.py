"""The last drains, as a worker leaves them in memory for another process to take."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import fakeredis
import pytest
import redis

from expirer.config.settings import Settings
from expirer.contract.control import pausing
from expirer.worker.batch import Tick
from expirer.worker.tally import DRAINS, Drain, Tally
from expirer.worker.worker import Worker
from tests.conftest import Log
from tests.inventory import NOW, Inventory

KEPT = DRAINS - 1


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[int]:
    """Return the descriptor of a file for the figures of two shards."""
    with (tmp_path / "tally").open("w+b") as file:
        file.truncate(Tally.size(2))
        yield file.fileno()


def numbered(number: int) -> Tick:
    """Return what a drain did: so many of everything."""
    return Tick(number, number, number, number, number, number)


def numbers(drains: list[Drain]) -> list[int]:
    """Return their numbers; fail where one is not whole."""
    for drain in drains:
        counts = {drain.units, drain.skipped, drain.rescheduled, drain.quarantined, drain.overdue}
        assert {drain.expired} == counts
    return [drain.expired for drain in drains]


def test_a_drain_tells_what_it_did(client: redis.Redis, inventory: Inventory, log: Log) -> None:
    """Each outcome, the units, the shard and the moments are there; it began before it ended."""
    tally = Tally(1)
    inventory.stock("mug", 0, 5)
    inventory.hold("mug", 2, NOW - 1500)
    inventory.hold("mug", 3, NOW - 3)
    inventory.hold("gone", 1, NOW - 2)
    Worker(client, Settings(batch_size=1), log.logger(), lambda: NOW, tally=tally).tick()
    (drain,), lost = tally.take_drains()

    assert Drain(0, drain.began_at, drain.ended_at, 2, 5, 0, 0, 1, 0, "") == drain
    assert 1e9 < drain.began_at < drain.ended_at
    assert 0 == lost
    inventory.assert_conserved({"mug": 5}, {})


def test_what_did_nothing_leaves_nothing(client: redis.Redis, inventory: Inventory, log: Log) -> None:
    """An idle tick, and one that a pause kept from its work, are counted and not kept."""
    tally = Tally(1)
    worker = Worker(client, Settings(), log.logger(), lambda: NOW, tally=tally)
    worker.tick()
    inventory.overdue("mug", 3)
    client.hset(inventory.keys.control, mapping=pausing("ann", "outage", NOW))  # type: ignore[arg-type]
    worker.tick()

    assert ([], 0) == tally.take_drains()
    assert [2] == [shard.ticks for shard in tally.shards()]


def test_what_failed_is_kept(fake_server: fakeredis.FakeServer, log: Log) -> None:
    """A failed drain is kept with the class of its error."""
    tally = Tally(1)
    fake_server.connected = False
    Worker(fakeredis.FakeRedis(server=fake_server), Settings(), log.logger(), lambda: NOW, tally=tally).tick()
    drains, _ = tally.take_drains()

    assert ["ConnectionError"] == [drain.error for drain in drains]


def test_a_conflict_is_kept(client: redis.Redis, inventory: Inventory, log: Log) -> None:
    """A drain that gave way to an operator's hand is kept, with what it had done."""
    tally = Tally(1)
    tally.count_drain(0, Tick(conflicts=1), 0.5, redis.WatchError())
    inventory.overdue("mug", 3)
    Worker(client, Settings(), log.logger(), lambda: NOW, tally=tally).tick()
    drains, _ = tally.take_drains()

    assert [("WatchError", 0), ("", 3)] == [(drain.error, drain.expired) for drain in drains]
    assert 0.5 == pytest.approx(drains[0].ended_at - drains[0].began_at, abs=1e-6)


@pytest.mark.parametrize("behind", [1, KEPT, DRAINS, 3 * DRAINS + 7])
def test_who_falls_behind_knows_by_how_much(memory: int, behind: int) -> None:
    """A reader gets the last drains in their order, each once, and is told how many were overwritten."""
    writer, reader = Tally(2, memory), Tally(2, memory)
    writer.count_drain(0, numbered(1), 0)
    reader.take_drains()
    for number in range(2, 2 + behind):
        writer.count_drain(1, numbered(number), 0)
    drains, lost = reader.take_drains()

    assert list(range(2, 2 + behind))[-KEPT:] == numbers(drains)
    assert max(0, behind - KEPT) == lost
    assert ([], 0) == reader.take_drains()


def test_the_next_reader_goes_on_where_one_ended(memory: int) -> None:
    """A reader that comes after another takes no drain twice, and none is left out between them."""
    writer = Tally(2, memory)
    writer.count_drain(0, numbered(1), 0)
    first, _ = Tally(2, memory).take_drains()
    writer.count_drain(0, numbered(2), 0)
    second, lost = Tally(2, memory).take_drains()

    assert ([1], [2], 0) == (numbers(first), numbers(second), lost)


def test_several_may_write_at_once(memory: int) -> None:
    """Of drains that several threads write while somebody reads, each is whole, and taken once or lost."""
    writer, reader = Tally(2, memory), Tally(2, memory)
    each, writers = 4000, 3

    def write(first: int) -> None:
        for number in range(first, first + each):
            writer.count_drain(0, numbered(number), 0)

    threads = [threading.Thread(target=write, args=(1 + each * number,)) for number in range(writers)]
    for thread in threads:
        thread.start()
    taken: list[int] = []
    lost = 0
    while True:
        is_last = not any(thread.is_alive() for thread in threads)
        drains, missed = reader.take_drains()
        taken += numbers(drains)
        lost += missed
        if is_last:
            break

    assert len(taken) == len(set(taken))
    assert each * writers == len(taken) + lost
