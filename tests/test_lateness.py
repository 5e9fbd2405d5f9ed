"""No reservation comes back later than promised, whatever messages, ticks of others, pauses and outages do.

Without messages it is an interval; with its own wake message a resolution, or two while another worker leads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import fakeredis
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from redis.exceptions import WatchError

from expirer.config.settings import Settings
from expirer.connection.connect import Servers
from expirer.contract import control
from expirer.worker.batch import Batch
from expirer.worker.worker import Worker
from tests.conftest import Log
from tests.inventory import NOW, Inventory

pytestmark = pytest.mark.slow

RESOLUTION_MS, INTERVAL_MS, LONGEST_RETRY_MS = 50, 10_000, 5000
GRACE_MS = 2000
"""Of the other worker: it expires later than the one under test."""
ROUNDING_MS = 2


class Lateness(RuleBasedStateMachine):
    """One worker sleeps by its alarm; everything else happens around it, on a clock that only the test moves."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ms = float(NOW)
        self.server = fakeredis.FakeServer()
        self.client = fakeredis.FakeRedis(server=self.server)
        self.shop = Inventory(self.client)
        self.shop.stock("mug", 0, 0)
        self.stocked = 0
        self.deadlines: dict[str, float] = {}
        """When each must have expired at the latest, Unix ms."""
        self.due: dict[str, int] = {}
        self.during_drain: list[Callable[[], None]] = []
        self.outage_ends_ms = 0.0
        self.paused_until_ms = 0.0
        self.conflicts = 0
        clock = patch("expirer.worker.worker.time.monotonic", lambda: (self.now_ms - NOW) / 1000 + 1000)
        clock.start()
        self.stop_clock = clock.stop
        self.worker = self._worker("sleeper")
        self.others = [
            self._worker("fellow"),
            self._worker("patient", grace=f"{GRACE_MS}ms"),
            self._worker("slow", lag_ms=3000),
        ]
        drain = self.worker._expiry.drain

        def drain_with_events(may_go_on: Callable[[], bool]) -> Iterator[Batch]:
            if self.conflicts:
                self.conflicts -= 1
                raise WatchError("the control key changed")
            for batch in drain(may_go_on):
                while self.during_drain:
                    self.during_drain.pop()()
                yield batch

        self.worker._expiry.drain = drain_with_events  # type: ignore[method-assign]
        self._subscribe()
        self._tick()

    def _subscribe(self) -> None:
        self.channel: Any = self.client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        self.channel.subscribe(self.shop.keys.ticks, self.shop.keys.wake)
        for _ in range(2):
            self.channel.get_message()  # that it is subscribed
        self.worker.on_wake(b"")  # as the listener does

    def _worker(self, name: str, lag_ms: int = 0, **chosen: Any) -> Worker:  # noqa: ANN401  # settings
        known = Settings(
            resolution=f"{RESOLUTION_MS}ms", interval=f"{INTERVAL_MS}ms", batch_size=3, max_clock_jump="0", **chosen
        )
        shard = Servers.of(fakeredis.FakeRedis(server=self.server), known).shards[0]
        return Worker(shard, Log().logger(), lambda: self.now_ms - lag_ms, id_=name)

    @precondition(lambda self: self.server.connected)
    @rule(hold_ms=st.integers(1, 15_000), count=st.integers(1, 8), is_told=st.booleans())
    def reserve(self, hold_ms: int, count: int, *, is_told: bool) -> None:
        """Reserve, with or without a wake message."""
        self._reserve(hold_ms, count, is_told=is_told)

    @rule(hold_ms=st.integers(1, 3000), is_told=st.booleans())
    def reserve_during_the_next_drain(self, hold_ms: int, *, is_told: bool) -> None:
        """Reserve while the worker's next batch is on its way."""
        self.during_drain.append(lambda: self._reserve(hold_ms, 1, is_told=is_told))

    def _reserve(self, hold_ms: int, count: int, *, is_told: bool) -> None:
        expires_at = int(self.now_ms) + hold_ms
        for _ in range(count):
            id_ = f"o{self.stocked}:mug"
            self.shop.hold("mug", 1, expires_at, id_=id_)
            self.client.hincrby(self.shop.keys.stock_prefix + "mug", "reserved", 1)
            self.stocked += 1
            self.due[id_] = expires_at
            promised: float = expires_at + (2 * RESOLUTION_MS if is_told else INTERVAL_MS)
            if self.now_ms < self.paused_until_ms:
                promised = max(promised, self.paused_until_ms + INTERVAL_MS)
            promised += self.conflicts * RESOLUTION_MS
            self.deadlines[id_] = max(promised, self.outage_ends_ms + LONGEST_RETRY_MS)
        if is_told:
            self.client.publish(self.shop.keys.wake, f"{int(self.now_ms)} {expires_at}")

    @rule(ms=st.one_of(st.integers(1, 60), st.integers(1, 12_000)))
    def pass_time(self, ms: int) -> None:
        """Let time pass; the worker ticks whenever its alarm says so."""
        until = self.now_ms + ms
        self._deliver()
        while (at := self.worker.alarm.moment * 1000 - 1_000_000 + NOW) <= until:
            self.now_ms = max(self.now_ms, at)
            self._restore()
            self._tick()
        self.now_ms = until
        self._restore()

    def _restore(self) -> None:
        if not self.server.connected and self.now_ms >= self.outage_ends_ms:
            self.server.connected = True
            self._subscribe()

    def _tick(self) -> None:
        self.worker.tick()
        self._deliver()

    def _deliver(self) -> None:
        """Hand on what was published, as the listener does."""
        while self.server.connected and (message := self.channel.get_message()):
            is_wake = message["channel"].decode() == self.shop.keys.wake
            (self.worker.on_wake if is_wake else self.worker.on_tick)(message["data"])

    @precondition(lambda self: self.server.connected)
    @rule(number=st.integers(0, 2))
    def another_ticks(self, number: int) -> None:
        """A fellow worker, one with a longer grace, or one with a slow clock ticks, and publishes facts."""
        self.others[number].tick()
        self._deliver()

    @rule(
        token=st.sampled_from(["", "0" * 16, "of another database"]),
        number=st.sampled_from(["1", "10000000", "-5", "x"]),
        head=st.sampled_from(["", str(NOW + 10**9), "0", "nan"]),
        overdue=st.sampled_from(["0", "7", ""]),
    )
    def a_lie_is_published(self, token: str, number: str, head: str, overdue: str) -> None:
        """A stranger, or a worker of another database, publishes on the channel of ticks."""
        self.worker.on_tick(f"{token} {number} {head} {overdue} stranger".encode())

    @rule(message=st.sampled_from([b"", b"1", b"nan nan", b"0 1e999", b"\xff", b"9 " + b"9" * 400]))
    def noise_is_published(self, message: bytes) -> None:
        """Anything is published on both channels."""
        self.worker.on_tick(message)
        self.worker.on_wake(message)

    @precondition(lambda self: self.server.connected)
    @rule(for_ms=st.integers(1, 20_000))
    def pause(self, for_ms: int) -> None:
        """Pause for a while: what is due meanwhile comes back after the end."""
        until = int(self.now_ms) + for_ms
        self.paused_until_ms = float(until)
        fields: Any = control.pausing("ann", "test", int(self.now_ms), until)
        self.client.hset(self.shop.keys.control, mapping=fields)
        # A worker that sleeps through an earlier, longer pause looks after its interval.
        for id_ in self.due:
            self.deadlines[id_] = max(self.deadlines[id_], until + INTERVAL_MS)

    @precondition(lambda self: self.server.connected)
    @rule()
    def resume(self) -> None:
        """Resume, with the wake message that `expirer resume` sends."""
        self.paused_until_ms = 0.0
        fields: Any = control.resuming("ann", int(self.now_ms))
        self.client.hset(self.shop.keys.control, mapping=fields)
        self.client.publish(self.shop.keys.wake, "1")
        self._deliver()

    @rule()
    def conflict(self) -> None:
        """Somebody writes the control key during the next tick, which costs it a resolution."""
        self.conflicts += 1
        self.deadlines = {id_: deadline + RESOLUTION_MS for id_, deadline in self.deadlines.items()}

    @precondition(lambda self: self.server.connected)
    @rule(for_ms=st.integers(1, 20_000))
    def lose_redis(self, for_ms: int) -> None:
        """Redis is away for a while; what was published meanwhile is never heard."""
        self.server.connected = False
        self.outage_ends_ms = self.now_ms + for_ms
        for id_, due in self.due.items():
            self.deadlines[id_] = max(self.deadlines[id_], due + INTERVAL_MS, self.outage_ends_ms + LONGEST_RETRY_MS)

    @invariant()
    def nothing_is_later_than_promised(self) -> None:
        """What is still there has time, and what has expired came in time."""
        if not self.server.connected:
            return
        left = {id_.decode() for id_ in self.shop.index()}
        late = {
            id_: self.now_ms - by
            for id_, by in self.deadlines.items()
            if id_ in left and self.now_ms - by > ROUNDING_MS
        }

        assert late == {}
        for id_ in set(self.due) - left:
            del self.due[id_], self.deadlines[id_]

    def teardown(self) -> None:
        """Let everything expire; every unit is back."""
        self.outage_ends_ms = self.now_ms
        self._restore()
        self.during_drain.clear()
        self.resume()
        self.pass_time(20_000)
        self.pass_time(20_000)
        self.stop_clock()

        assert self.shop.counters("mug") == (self.stocked, 0)


TestLateness = Lateness.TestCase
TestLateness.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
