"""Decides when: `tick` does one pass and never sleeps, `run` sleeps and does no work."""

from __future__ import annotations

import math
import os
import random
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from redis.exceptions import RedisError, WatchError
from structlog.typing import FilteringBoundLogger

from expirer.config.durations import to_ms
from expirer.connection.connect import longest_turn_s
from expirer.connection.errors import describe
from expirer.contract import about
from expirer.contract.numbers import integer
from expirer.contract.shard import Shard
from expirer.worker.alarm import Alarm
from expirer.worker.batch import Batch, Tick
from expirer.worker.events import Limits, ShardEvents
from expirer.worker.expiry import Expiry
from expirer.worker.metrics import ShardMetrics

_FIRST_RETRY_S = 0.1
_LONGEST_RETRY_S = 5.0
"""An outage longer than this must not add an interval of lateness to its own length."""
_AFTER_MS = 0.2
"""Wake just after ExpiresAt: a reservation is due strictly later, and waking early would wait a whole resolution."""
_SIGN_OF_LIFE_S = 30.0
"""A sleeping worker says at least this often that it lives, however long its interval is."""


def new_id() -> str:
    """Name a worker: its machine, its process, and what tells it from its namesakes."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(2)}"


class Worker:
    """Expires what is due on one shard, again and again.

    Args:
        now_ms: the clock, Unix ms; None obeys `settings.clock`.
        id_: its name; None: one of its own.
        metrics: where to count; None: nowhere that is read.
        limits: of its log lines about errors, shared by the workers of a process; None: of its own.

    """

    def __init__(  # noqa: PLR0913  # what the workers of a process share is named
        self,
        shard: Shard,
        log: FilteringBoundLogger,
        now_ms: Callable[[], float] | None = None,
        *,
        id_: str | None = None,
        metrics: ShardMetrics | None = None,
        limits: Limits | None = None,
    ) -> None:
        settings = shard.settings
        self.id = id_ or new_id()
        self.shard = shard
        self.alarm = Alarm()
        self._interval_s = settings.interval.total_seconds()
        self._resolution_s = settings.resolution.total_seconds()
        self._grace_ms = to_ms(settings.grace)
        self._turn_s = longest_turn_s(settings)
        self._expiry = Expiry(shard, self.id, now_ms)
        self._events = ShardEvents(log.bind(shard=shard.number, worker=self.id), settings, limits or Limits())
        self.metrics = metrics or ShardMetrics()
        self._failed_at = 0.0
        self._compared_at = -math.inf
        self._seen: tuple[float, float] | None = None
        """The time that decides what is due (Unix ms), and the monotonic second in which it was read."""
        self._mark: tuple[bytes, int] | None = None
        """The token of the inventory and the newest call of the script that is known; None: no other worker is."""
        self._is_standby = False

    @property
    def peer(self) -> object:
        """The address of the server that the last tick spoke to."""
        return self._expiry.peer

    def run(self) -> Tick:
        """Tick until stopped; return what was done in all. No error of Redis ends it."""
        done = Tick()
        while not self.alarm.is_stopped:
            done += self.tick()
            self._sleep()
        return done

    def run_once(self) -> Tick:
        """Tick until nothing is due that may expire now: the rate may spread that over several ticks."""
        done = self.tick()
        while self._expiry_is_paced:
            self._sleep()
            done += self.tick()
        return done

    def stop(self) -> None:
        """Let `run` return once its current batch is whole."""
        self.alarm.stop()

    def tick(self) -> Tick:
        """Expire everything that is due, and set the alarm for the next look. Errors are logged, not raised."""
        began_at = time.monotonic()
        self.metrics.expect_back(self._turn_s)
        self.alarm.begin()
        self._is_standby = self._expiry_is_paced = False
        done, earliest = Tick(), began_at + self._resolution_s
        try:
            for batch in self._expiry.drain(lambda: not self.alarm.is_stopped):
                self._record(batch, is_first=done == Tick())
                done = replace(done + batch.counts, overdue=batch.overdue)
            if batch.held in ("brake", "clock"):
                self._expiry.pull_brake(self._events.log_brake(batch))
                done = replace(done, errors=1)
                self.alarm.end(earliest, earliest, earliest)
            else:
                done = replace(done, paused=int(batch.pause is not None))
                self._expiry_is_paced = batch.held == "rate"
                self._compare_settings()
                self.alarm.end(self._next_look_at(batch), earliest, self._latest_look_at(batch))
        except WatchError:
            self.metrics.conflicts += 1
            self._events.log_conflict()
            done = replace(done, conflicts=1)
            self.alarm.end(earliest, earliest, earliest)
        except Exception as error:  # noqa: BLE001  # the sidecar outlives every error, and logs it
            done = replace(done, errors=1)
            delay_s = self._report(error)
            retry_at = time.monotonic() + delay_s
            self.alarm.end(retry_at, retry_at, retry_at)
        self.metrics.ticks += 1
        self._events.log_drain(done, time.monotonic() - began_at)
        return done

    def on_wake(self, message: bytes) -> None:
        """Look in time for a sooner reservation: `<now> <ExpiresAt>`, both Unix ms; any other message means now."""
        at = now = time.monotonic()
        with suppress(ValueError):
            told_now, expires_at = map(float, message.split())
            if math.isfinite(told_now) and math.isfinite(expires_at):
                # Both clocks may be wrong; the sooner look costs nothing but a look.
                at = min(self._due_at(expires_at), now + self._wait_s(expires_at, told_now))
        self.alarm.sooner(at + _jittered(self._resolution_s) if self._is_standby else at)

    def on_tick(self, message: bytes) -> None:
        """Take note of another worker's tick: `<token> <number> <first ExpiresAt or nothing> <overdue> <worker>`.

        Only a worker that can read the keys of this very inventory knows the token, and only what happened after this
        worker's own look has a higher number. What is believed are facts about the index; when to look is decided here.
        The worker that ticked last leads; the others stand by, and take over within two resolutions if it dies.
        """
        token, number, head, overdue, worker = (*message.split(b" ", 4), b"", b"", b"", b"")[:5]
        count, first, left = integer(number), integer(head), integer(overdue)
        mark = self._mark
        if mark is None or token != mark[0] or count is None or count <= mark[1] or worker == self.id.encode():
            return
        if left is None or (head and first is None):
            return
        self._mark = token, count
        self._is_standby = True
        now, due_at = time.monotonic(), math.inf if first is None else self._due_at(first)
        is_left = not left and due_at <= now - self._resolution_s / 2  # the other worker has a longer grace
        self.alarm.later(_jittered(self._resolution_s) + (now if is_left else max(due_at, now + self._resolution_s)))

    def _sleep(self) -> None:
        while not self.alarm.is_stopped:
            self.metrics.expect_back(_SIGN_OF_LIFE_S + self._turn_s)
            if self.alarm.wait(_SIGN_OF_LIFE_S):
                return

    def _record(self, batch: Batch, *, is_first: bool) -> None:
        self._seen = batch.now, time.monotonic()
        self._mark = batch.mark
        if self.metrics.failures:
            self._events.log_recovery(batch, self.metrics.failures, time.monotonic() - self._failed_at)
        self.metrics.count_batch(batch)
        self._events.log_batch(batch, is_first=is_first)

    def _report(self, error: Exception) -> float:
        """Count and log an error; return after how many seconds to try again."""
        if not self.metrics.failures:
            self._failed_at = time.monotonic()
        delay_s = min(self._interval_s, _LONGEST_RETRY_S, _FIRST_RETRY_S * 2.0 ** min(self.metrics.failures, 10))
        delay_s = _jittered(delay_s)
        message = describe(error, self.shard.settings)
        self.metrics.count_error(error, message)
        with suppress(Exception):
            self._events.log_error(error, message, delay_s)
        return delay_s

    def _next_look_at(self, batch: Batch) -> float:
        """Return when the next reservation is due; a paused shard waits for the end of its pause."""
        if batch.pause is not None or batch.next_expires_at is None:
            return math.inf
        return self._due_at(batch.next_expires_at)

    def _latest_look_at(self, batch: Batch) -> float:
        """Return the end of the interval, or of the pause; no message puts that off."""
        wait_s = self._interval_s
        if batch.pause is not None and batch.pause.until is not None:
            wait_s = min(wait_s, max(0.0, batch.pause.until - batch.now) / 1000)
        return time.monotonic() + wait_s

    def _due_at(self, expires_at: float) -> float:
        """Return the monotonic second in which a reservation is due, by the clock of the last look."""
        if self._seen is None:
            return time.monotonic()
        now, at = self._seen
        return at + self._wait_s(expires_at, now)

    def _wait_s(self, expires_at: float, now: float) -> float:
        return (expires_at + self._grace_ms + _AFTER_MS - now) / 1000

    def _compare_settings(self) -> None:
        """Compare this worker's settings with those of the others, once an interval."""
        if self._mark is None or time.monotonic() < self._compared_at + self._interval_s:
            return
        self._compared_at = time.monotonic()
        client, keys = self.shard.client, self.shard.keys
        with suppress(RedisError, OSError):  # a right may be missing; `status` and `check` compare too
            now = self.shard.now()
            ticks: Any = client.zrange(keys.workers, 0, -1, withscores=True)
            texts: Any = client.hgetall(keys.about)
            live = [id_ for id_, last in ticks if self.shard.is_live(last, now)]
            self._events.log_disagreements(about.disagreements(about.parse(texts.get(id_, b"")) for id_ in live))


def _jittered(seconds: float) -> float:
    """Return a half of it to the whole, at random, so that a fleet does not act as one."""
    return seconds * random.uniform(0.5, 1)  # noqa: S311  # no secret
