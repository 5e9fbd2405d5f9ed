"""The conservation law under random use: checkouts, broken writers, expiry, and time that moves."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from datetime import timedelta

import fakeredis
import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from expirer import Refused, Reservations
from expirer.config.settings import Settings
from expirer.connection.connect import Servers
from expirer.worker.worker import Worker
from tests.conftest import Log
from tests.inventory import NOW, Inventory

pytestmark = pytest.mark.slow

PRODUCTS = ["mug", "tea:black", "größe\n", ""]
STOCKED = 20

products = st.sampled_from(PRODUCTS)
orders = st.sampled_from([f"o{i}" for i in range(12)])
quantities = st.integers(min_value=1, max_value=8)
durations = st.integers(min_value=1, max_value=5000).map(lambda ms: timedelta(milliseconds=ms))


class Shop(RuleBasedStateMachine):
    """Four products, twelve orders, one worker, and a clock that the rules move.

    The model is what Redis should hold: reservation id -> [product, quantity, status, its own ExpiresAt].
    """

    connect: Callable[[], redis.Redis]
    steps = 0

    @initialize()
    def open(self) -> None:
        """Start from an empty Redis with every product stocked."""
        self.client = self.connect()
        self.client.flushall()
        self.now = NOW
        self.shop = Inventory(self.client)
        self.checkout = Reservations(self.client, now_ms=lambda: self.now)
        self.log = Log()
        shard = Servers.of(self.client, Settings(batch_size=3)).shards[0]
        self.worker = Worker(shard, self.log.logger(), lambda: self.now)
        self.held: dict[str, tuple[str, int, str, int]] = {}
        for product in PRODUCTS:
            self.shop.stock(product, STOCKED)

    @rule(ms=st.integers(min_value=0, max_value=3000))
    def time_passes(self, ms: int) -> None:
        """Let time pass."""
        self.now += ms

    @rule(order=orders, product=products, quantity=quantities, duration=durations)
    def reserve(self, order: str, product: str, quantity: int, duration: timedelta) -> None:
        """Reserve, or be refused."""
        id_ = f"{order}:{product}"
        try:
            done = self.checkout.reserve(order, product, quantity, duration)
        except Refused as refused:
            available = self.shop.counters(product)[0]
            assert id_ in self.held or (refused.code == "insufficient_stock" and available < quantity)
        else:
            if done.changed:
                assert id_ not in self.held
                assert done.expires_at is not None
                self.held[id_] = (product, quantity, "Active", done.expires_at)

    @rule(order=orders, product=products, step=st.sampled_from(["confirm", "release"]))
    def end(self, order: str, product: str, step: str) -> None:
        """Confirm or release, or be refused."""
        id_ = f"{order}:{product}"
        before = self.held.get(id_)
        try:
            done = getattr(self.checkout, step)(order, product)
        except Refused:
            assert before is None or before[2] != "Active"
        else:
            assert before is not None
            assert done.changed == (before[2] == "Active")
            self.held[id_] = (*before[:2], done.status, before[3])

    @rule(order=orders, product=products, duration=durations, cap=st.none() | durations)
    def extend(self, order: str, product: str, duration: timedelta, cap: timedelta | None) -> None:
        """Extend, or be refused; never backwards."""
        id_ = f"{order}:{product}"
        before = self.held.get(id_)
        try:
            done = self.checkout.extend(order, product, duration, max_hold=cap)
        except Refused as refused:
            assert before is None or before[2] != "Active" or refused.code == "limit_reached"
        else:
            assert before is not None
            assert done.expires_at is not None
            assert done.expires_at >= before[3]
            self.held[id_] = (*before[:3], done.expires_at)

    @rule()
    def expire(self) -> None:
        """Tick: exactly the due reservations expire; one that is tried again is due at its score."""
        due = {
            id_
            for id_, (_, _, status, at) in self.held.items()
            if status == "Active" and at < self.now and self.score(id_) < self.now
        }
        self.log.entries.clear()

        tick = self.worker.tick()

        assert due == {entry["reservation_id"] for entry in self.log.of("reservation_expired")}
        assert (len(due), 0, 0) == (tick.expired, tick.errors, tick.overdue)
        for id_ in due:
            product, quantity, _, at = self.held[id_]
            self.held[id_] = (product, quantity, "Expired", at)

    @rule(order=orders, product=products, status=st.sampled_from(["Confirmed", "Released"]))
    def writer_dies_before_the_index(self, order: str, product: str, status: str) -> None:
        """A writer ends a reservation in plain commands and dies before it removes the index entry."""
        id_ = f"{order}:{product}"
        if id_ in self.held and self.held[id_][2] == "Active":
            _, quantity, _, at = self.held[id_]
            stock = self.shop.keys.stock_prefix + product
            self.client.hset(self.shop.keys.reservation_prefix + id_, "status", status)
            self.client.hincrby(stock, "reserved", -quantity)
            if status == "Released":
                self.client.hincrby(stock, "available", quantity)
            self.held[id_] = (product, quantity, status, at)

    @rule(order=orders, product=products, ms=st.integers(min_value=1, max_value=5000))
    def writer_dies_while_extending(self, order: str, product: str, ms: int) -> None:
        """A writer moves a reservation's own expires_at and dies before it moves the index."""
        id_ = f"{order}:{product}"
        if id_ in self.held and self.held[id_][2] == "Active":
            at = self.held[id_][3] + ms
            self.client.hset(self.shop.keys.reservation_prefix + id_, "expires_at", at)
            self.held[id_] = (*self.held[id_][:3], at)

    @rule(order=orders, product=products)
    def writer_dies_after_the_index(self, order: str, product: str) -> None:
        """A writer adds an index entry and dies before it writes anything else."""
        id_ = f"{order}:{product}"
        if id_ not in self.held:
            self.client.zadd(self.shop.keys.index, {id_: self.now - 1})

    def score(self, id_: str) -> float:
        """Return the score of a reservation in the index; infinite: it is in quarantine, for good."""
        score: float | None = self.client.zscore(self.shop.keys.index, id_)
        return math.inf if score is None else score

    @rule(order=orders, product=products, seconds=st.sampled_from([0, 1, 30, 90]))
    def keys_are_missing_for_a_while(self, order: str, product: str, seconds: int) -> None:
        """An import replaces the stock, a writer is slow to write a record: while they are missing workers tick."""
        away = [self.shop.keys.stock_prefix + product, f"{self.shop.keys.reservation_prefix}{order}:tea:black"]
        here = [key for key in away if self.client.exists(key)]
        for key in here:
            self.client.rename(key, f"aside:{key}")
        for _ in range(2):
            tick = self.worker.tick()
            assert (0, 0) == (tick.errors, tick.overdue)
            self.now += 1000 * seconds
        for key in here:
            self.client.rename(f"aside:{key}", key)
        for id_, (its, quantity, status, at) in self.held.items():
            if status == "Active" and self.shop.status(id_) == "Expired":
                self.held[id_] = (its, quantity, "Expired", at)

    @invariant()
    def nothing_is_lost(self) -> None:
        """Available + reserved + sold == stocked, and reserved == the sum over Active reservations."""
        type(self).steps += 1
        reserved: Counter[str] = Counter()
        sold: Counter[str] = Counter()
        for product, quantity, status, _ in self.held.values():
            reserved[product] += quantity if status == "Active" else 0
            sold[product] += quantity if status == "Confirmed" else 0

        for product in PRODUCTS:
            expected = (STOCKED - reserved[product] - sold[product], reserved[product])
            assert expected == self.shop.counters(product)

    @invariant()
    def every_reservation_is_in_one_state(self) -> None:
        """Each reservation has the status that the model has, and an Active one is in the index or in quarantine."""
        index = {id_.decode() for id_ in self.shop.index()} | set(self.shop.quarantine())
        for id_, (_, _, status, _) in self.held.items():
            assert status == self.shop.status(id_)
            assert status != "Active" or id_ in index


@pytest.mark.parametrize("kind", ["fake", "server"])
@pytest.mark.timeout(600)
def test_units_are_conserved(kind: str, request: pytest.FixtureRequest) -> None:
    """Over thousands of random steps no unit is lost, doubled or left behind."""
    client = (
        fakeredis.FakeRedis(server=fakeredis.FakeServer())
        if kind == "fake"
        else request.getfixturevalue("server_client")
    )

    class ThisShop(Shop):
        @staticmethod
        def connect() -> redis.Redis:
            return client

    run_state_machine_as_test(
        ThisShop,
        settings=settings(
            max_examples=60,
            stateful_step_count=60,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )

    assert ThisShop.steps >= 2000
