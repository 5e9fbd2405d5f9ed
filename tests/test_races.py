"""What any number of workers, checkouts and operators may do at the same time: each unit moves exactly once."""

from __future__ import annotations

import itertools
import random
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import pytest
import redis

from expirer.config.settings import Settings
from expirer.connection.connect import Servers
from expirer.worker.batch import Tick
from expirer.worker.expiry import Expiry
from expirer.worker.worker import Worker
from tests.checkouts import Answer, LuaCheckout, PlainCheckout
from tests.conftest import Log
from tests.inventory import Inventory, contents
from tests.program import Backlog, wait_until
from tests.servers import RedisServer

pytestmark = pytest.mark.slow

PRODUCTS = ("mug", "tea", "pot")
STOCKED = 3000
STEPS = 12_000
STEPS_PER_ORDER = 6
OPERATIONS = ("reserve", "reserve", "extend", "confirm", "release")


@dataclass(frozen=True, slots=True)
class Fight:
    """A fight that is over: what the checkouts were told, what the workers logged, and what Redis holds."""

    answers: list[Answer]
    log: Log
    reservations: dict[str, tuple[str, int, str]]
    """Reservation id -> product, quantity, status."""
    counters: dict[str, tuple[int, int]]
    index: dict[bytes, float]
    events: list[dict[bytes, bytes]]

    def told(self, *, is_done: bool) -> Iterator[Answer]:
        """Return what was done, or what was refused."""
        return (answer for answer in self.answers if answer.is_done == is_done)


@pytest.fixture(scope="module")
def fight(shared_server: RedisServer) -> Fight:
    """Let four workers and eight checkouts fight over the same reservations, which last 1 to 20 ms."""
    log = Log()
    answers: list[Answer] = []
    steps = itertools.count()
    is_over = threading.Event()

    def work() -> None:
        with shared_server.client() as client:
            worker = Worker(Servers.of(client, Settings(batch_size=5)).shards[0], log.logger())
            while not is_over.is_set():
                assert worker.tick().errors == 0

    def shop(checkout: type[LuaCheckout | PlainCheckout], seed: int) -> None:
        chance = random.Random(seed)
        with shared_server.client() as client:
            step = checkout(client).step
            while (n := next(steps)) < STEPS:
                order = max(0, n // STEPS_PER_ORDER - chance.randrange(6))
                product, quantity = PRODUCTS[order % 3], 1 + order % 2
                answer = step(chance.choice(OPERATIONS), f"o{order}", product, quantity, chance.randint(1, 20))
                if answer is not None:
                    answers.append(answer)

    with shared_server.client() as client, ThreadPoolExecutor(12) as threads:
        client.flushall()
        inventory = Inventory(client)
        for product in PRODUCTS:
            inventory.stock(product, STOCKED)
        workers = [threads.submit(work) for _ in range(4)]
        checkouts = [threads.submit(shop, (LuaCheckout, PlainCheckout)[n % 2], n) for n in range(8)]
        try:
            for checkout in checkouts:
                checkout.result()
            wait_until(lambda: not inventory.index())
        finally:
            is_over.set()
        for worker in workers:
            worker.result()
        return Fight(
            answers,
            log,
            reservations=_reservations(inventory),
            counters={product: inventory.counters(product) for product in PRODUCTS},
            index=inventory.index(),
            events=[fields for _, fields in client.xrange(inventory.keys.events)],
        )


def _reservations(inventory: Inventory) -> dict[str, tuple[str, int, str]]:
    prefix = inventory.keys.reservation_prefix
    found = {}
    for key in inventory.client.scan_iter(match=f"{prefix}*", count=1000):
        row = cast("list[bytes]", inventory.client.hmget(key, ["product_id", "quantity", "status"]))
        product, quantity, status = row
        found[key.decode().removeprefix(prefix)] = (product.decode(), int(quantity), status.decode())
    return found


def test_each_reservation_ends_in_one_state(fight: Fight) -> None:
    """After a fight each reservation is Confirmed, Released or Expired, and the index is empty."""
    states = {status for _, _, status in fight.reservations.values()}

    assert {"Confirmed", "Released", "Expired"} == states
    assert fight.index == {}


def test_counters_are_exact_after_a_fight(fight: Fight) -> None:
    """After a fight nothing is reserved, and what is not available was sold."""
    sold: Counter[str] = Counter()
    for product, quantity, status in fight.reservations.values():
        sold[product] += quantity if status == "Confirmed" else 0

    assert {product: (STOCKED - sold[product], 0) for product in PRODUCTS} == fight.counters


def test_each_reservation_was_made_once(fight: Fight) -> None:
    """Of all checkouts that reserve the same id exactly one is told that it did."""
    made = Counter(answer.reservation_id for answer in fight.told(is_done=True) if answer.operation == "reserve")

    assert dict.fromkeys(fight.reservations, 1) == dict(made)


def test_each_end_was_acknowledged_once(fight: Fight) -> None:
    """Each confirmed or released reservation was acknowledged to exactly one checkout, an expired one to none."""
    told = defaultdict(list)
    for answer in fight.told(is_done=True):
        if answer.operation in ("confirm", "release"):
            told[answer.reservation_id].append(answer.status)

    ended = {id_: [status] for id_, (_, _, status) in fight.reservations.items() if status != "Expired"}
    assert ended == told


def test_each_refusal_names_the_end(fight: Fight) -> None:
    """A checkout that lost the race is told the state in which the reservation stays."""
    refusals = [answer for answer in fight.told(is_done=False) if answer.status != "Active"]

    assert {"Confirmed", "Released", "Expired"} == {answer.status for answer in refusals}
    assert [] == [answer for answer in refusals if answer.status != fight.reservations[answer.reservation_id][2]]


def test_each_expiry_is_told_once(fight: Fight) -> None:
    """The stream and the logs of all workers hold each Expired reservation once, and no other."""
    expired = sorted(id_ for id_, (_, _, status) in fight.reservations.items() if status == "Expired")

    assert expired == sorted(event[b"reservation_id"].decode() for event in fight.events)
    assert expired == sorted(entry["reservation_id"] for entry in fight.log.of("reservation_expired"))


def test_none_expires_before_its_time(fight: Fight) -> None:
    """A reservation expires after every ExpiresAt that was acknowledged to a checkout."""
    held_until: Counter[str] = Counter()
    for answer in fight.told(is_done=True):
        held_until[answer.reservation_id] = max(held_until[answer.reservation_id], answer.expires_at)

    assert [] == [
        event for event in fight.events if int(event[b"expired_at"]) < held_until[event[b"reservation_id"].decode()]
    ]


@pytest.fixture
def backlog(server_client: redis.Redis) -> Backlog:
    """Return overdue reservations."""
    backlog = Backlog(server_client)
    backlog.add(30)
    return backlog


@pytest.fixture
def in_the_gap(
    monkeypatch: pytest.MonkeyPatch, shared_server: RedisServer
) -> Iterator[Callable[[dict[str, Any]], dict[bytes, bytes]]]:
    """Let a second client write the control key after the worker has read it and before EXEC, once.

    What this returns is filled with all keys as they are after that write.
    """
    with shared_server.client() as second:

        def arrange(fields: dict[str, Any]) -> dict[bytes, bytes]:
            snapshot: dict[bytes, bytes] = {}
            latest_ms = Expiry._latest_ms

            def decide_then_write(expiry: Expiry) -> float | str:
                monkeypatch.setattr(Expiry, "_latest_ms", latest_ms)
                second.hset(Inventory(second).keys.control, mapping=fields)
                snapshot.update(contents(second))
                return latest_ms(expiry)

            monkeypatch.setattr(Expiry, "_latest_ms", decide_then_write)
            return snapshot

        yield arrange


@pytest.mark.parametrize("fields", [{"paused": 1}, {"paused": 0}, {"reason": "stocktaking"}])
def test_a_change_in_the_gap_is_a_conflict(
    server_client: redis.Redis,
    backlog: Backlog,
    in_the_gap: Callable[[dict[str, Any]], dict[bytes, bytes]],
    log: Log,
    fields: dict[str, Any],
) -> None:
    """A control key written between the worker's read and EXEC: a warning, and no key changes."""
    after_write = in_the_gap(fields)

    tick = Worker(Servers.of(server_client, Settings()).shards[0], log.logger()).tick()

    assert Tick(conflicts=1) == tick
    assert [("concurrency_conflict", "warning")] == [(entry["event"], entry["log_level"]) for entry in log.entries]
    assert after_write == contents(server_client)
    assert backlog.left() == 30
    backlog.assert_conserved()


def test_after_a_conflict_the_next_tick_expires(
    server_client: redis.Redis,
    backlog: Backlog,
    in_the_gap: Callable[[dict[str, Any]], dict[bytes, bytes]],
    log: Log,
) -> None:
    """After a conflict that was no pause the next tick expires what is due."""
    worker = Worker(Servers.of(server_client, Settings()).shards[0], log.logger())
    in_the_gap({"reason": "stocktaking"})
    worker.tick()

    assert worker.tick().expired == 30
    backlog.assert_expired_once()


def test_a_pause_in_the_gap_holds(
    server_client: redis.Redis,
    backlog: Backlog,
    in_the_gap: Callable[[dict[str, Any]], dict[bytes, bytes]],
    log: Log,
) -> None:
    """After a pause that came between the worker's read and EXEC nothing expires until it is lifted."""
    worker = Worker(Servers.of(server_client, Settings()).shards[0], log.logger())
    in_the_gap({"paused": 1})
    worker.tick()

    assert Tick(overdue=30, paused=1) == worker.tick()
    assert backlog.expired() == []
    backlog.assert_conserved()
    server_client.delete(backlog.shop.keys.control)
    assert worker.tick().expired == 30
    backlog.assert_expired_once()


def test_a_pause_in_a_drain_is_a_barrier(
    shared_server: RedisServer, server_client: redis.Redis, backlog: Backlog, log: Log
) -> None:
    """Once a pause is written not one more reservation expires, however many workers are draining."""
    backlog.add(5000)
    keys = backlog.shop.keys
    ticks = Counter[int]()
    is_over = threading.Event()

    def work(number: int) -> None:
        with shared_server.client() as client:
            worker = Worker(Servers.of(client, Settings(batch_size=5)).shards[0], log.logger())
            while not is_over.is_set():
                assert worker.tick().errors == 0
                ticks[number] += 1

    with ThreadPoolExecutor(4) as threads:
        workers = [threads.submit(work, number) for number in range(4)]
        try:
            wait_until(lambda: server_client.xlen(keys.events))
            with server_client.pipeline() as pipe:
                pipe.hset(keys.control, "paused", 1)
                pipe.xlen(keys.events)
                _, expired = pipe.execute()
            before = dict(ticks)
            wait_until(lambda: all(ticks[number] > before.get(number, 0) + 2 for number in range(4)))
            assert expired == server_client.xlen(keys.events)
            backlog.assert_conserved()
            server_client.delete(keys.control)
            wait_until(lambda: not backlog.left())
        finally:
            is_over.set()
    for worker in workers:
        worker.result()

    backlog.assert_expired_once()
