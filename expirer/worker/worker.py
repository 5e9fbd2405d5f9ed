"""Decides when: `tick` does one pass over the shards and never sleeps, `run` sleeps and does no work."""

from __future__ import annotations

import math
import os
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue

from redis import Redis
from redis.exceptions import WatchError
from structlog.typing import FilteringBoundLogger

from expirer.config.durations import to_ms
from expirer.config.settings import Settings
from expirer.connection.connect import longest_turn_s
from expirer.connection.errors import explain
from expirer.contract.control import Pause
from expirer.contract.keys import shard_keys
from expirer.worker.batch import Batch, Tick
from expirer.worker.events import Pace, ShardJournal, log_start, log_stop, warn_of_host
from expirer.worker.expiry import Expiry
from expirer.worker.tally import Tally
from expirer.worker.wake import WakeListener

_FIRST_RETRY_S = 0.1
_LONGEST_RETRY_S = 5.0
"""An outage longer than this must not add an interval of lateness to its own length."""

_AFTER_MS = 0.2
"""Due is strictly before now; a look that came too early would cost a resolution."""

_STOP = -1


@dataclass(frozen=True, slots=True)
class _Heard:
    """A tick of which the channel told: when (monotonic seconds), what was next, and whose it was."""

    at: float
    now: float
    next_expires_at: float | None
    worker: bytes


@dataclass(slots=True)
class _News:
    """What the listener's thread leaves for the worker's, one signal for all of it."""

    heard: _Heard | None = None
    """The last tick."""
    look_at: float = math.inf
    """When the soonest of the sooner reservations is due (monotonic seconds)."""


class _Shard:
    """One shard: its expiry, the drain under way, and when it is looked at next (monotonic seconds)."""

    def __init__(self, number: int, expiry: Expiry, journal: ShardJournal) -> None:
        self.number = number
        self.expiry = expiry
        self.journal = journal
        self.drain: Tick | None = None
        self.drain_began_at = 0.0
        self.wake_at = 0.0
        self.pause_ends_at = math.inf
        """When a pause that was met last time ends, or is looked for again; no message of others puts that off."""
        self.failures = 0
        self.failed_at = 0.0
        self.is_standby = False
        self.news: _News | None = None
        self.news_lock = threading.Lock()


def new_id() -> str:
    """Name a worker: its machine, its process, and what tells it from its namesakes."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(2)}"


class Worker:
    """Expires what is due on every shard, again and again.

    Args:
        now_ms: the clock, Unix ms; None obeys `settings.clock`.
        id_: its name; None: one of its own.
        numbers: the shards it works on; None: all.
        tally: where to count; None: in memory of its own.
        paces: of its lines about errors, and about their end; None: of its own.

    """

    def __init__(  # noqa: PLR0913  # what tells one worker of a crew from another is named
        self,
        client: Redis,
        settings: Settings,
        log: FilteringBoundLogger,
        now_ms: Callable[[], float] | None = None,
        *,
        id_: str | None = None,
        numbers: Sequence[int] | None = None,
        tally: Tally | None = None,
        paces: tuple[Pace, Pace] | None = None,
    ) -> None:
        self.id = new_id() if id_ is None else id_
        self._client = client
        self._settings = settings
        self._interval_s = settings.interval.total_seconds()
        self._resolution_s = settings.resolution.total_seconds()
        self._log = log.bind(worker=self.id)
        self._tally = tally or Tally(settings.shards)
        self._turn_s = longest_turn_s(settings)
        keys_of = shard_keys(settings)
        numbers = range(len(keys_of)) if numbers is None else numbers
        self._keys = [keys_of[number] for number in numbers]
        errors, recoveries = paces or (Pace(), Pace())
        self._shards = [
            _Shard(
                number,
                Expiry(client, settings, keys, self.id, now_ms, replicas=replicas),
                ShardJournal(self._log.bind(shard=number), settings, errors, recoveries),
            )
            for number, keys in zip(numbers, self._keys, strict=True)
        ]
        self._signals: SimpleQueue[int] = SimpleQueue()
        self._is_stopping = False
        self._done = Tick()

    def run(self) -> None:
        """Tick until stopped, and say so at the start and at the end; no error of Redis ends it."""
        self._tell_start()
        try:
            self.work()
        finally:
            log_stop(self._log, self._done)

    def work(self) -> Tick:
        """Tick until stopped; return what was done."""
        listener = WakeListener(self._client, self._keys, self._wake, self._hear)
        listener.start()
        try:
            while not self._is_stopping:
                now = time.monotonic()
                self._done += self._advance_all(shard for shard in self._shards if shard.wake_at <= now)
                self._sleep()
            while draining := [shard for shard in self._shards if shard.drain is not None]:
                self._done += self._advance_all(draining)
        finally:
            listener.stop()
        return self._done

    def run_once(self) -> Tick:
        """Tick once, with the first and the last line that `run` would log."""
        self._tell_start()
        done = self.tick()
        log_stop(self._log, done)
        return done

    def _tell_start(self) -> None:
        self._tally.start()
        log_start(self._log, self._settings, self._keys[0])
        warn_of_host(self._log, self._client, self._settings)

    def stop(self) -> None:
        """Let `run` return once its current batch is whole; safe in a signal handler, and more than once."""
        self._is_stopping = True
        self._tally.stop()
        self._signals.put(_STOP)  # Event.set() could deadlock in a signal handler; this cannot

    def tick(self) -> Tick:
        """Expire everything that is due on every shard; errors are logged and counted, not raised."""
        done = self._advance_all(self._shards)
        while draining := [shard for shard in self._shards if shard.drain is not None]:
            done += self._advance_all(draining)
        return done

    def _advance_all(self, shards: Iterable[_Shard]) -> Tick:
        """Run one batch on each of the shards, so that the backlog of one does not delay the others."""
        return sum((self._advance(shard) for shard in shards), Tick())

    def _advance(self, shard: _Shard) -> Tick:
        """Run one batch; return what the whole drain did once a batch comes back short, nothing before."""
        if shard.drain is None:
            shard.drain, shard.drain_began_at = Tick(), time.monotonic()
        self._tally.expect_back(self._shards[0].number, self._turn_s)
        try:
            batch = shard.expiry.expire_batch(go_on=not self._is_stopping)
            self._tally.count_batch(shard.number, batch)
            if shard.failures:
                shard.journal.tell_recovery(batch, shard.failures, time.monotonic() - shard.failed_at)
                shard.failures = 0
            shard.journal.tell_batch(batch, is_first=shard.drain == Tick())
            shard.drain = replace(shard.drain + batch.counts, overdue=batch.overdue)
            if batch.held in ("brake", "clock"):
                shard.expiry.pull_brake(shard.journal.tell_brake(batch))
                return self._end_drain(shard, errors=1)
        except WatchError as error:
            self._tally.count_conflict(shard.number)
            shard.journal.tell_conflict()
            return self._end_drain(shard, error=error, conflicts=1)
        except Exception as error:  # noqa: BLE001  # the sidecar outlives every error, and says it
            delay_s = self._retry_delay_s(shard)
            why = explain(error, self._settings)
            self._tally.count_error(shard.number, error, why)
            shard.journal.tell_error(error, why, delay_s)
            return self._end_drain(shard, delay_s, error, errors=1)
        if batch.pause is not None:
            return self._end_drain(shard, self._pause_s(batch, batch.pause), paused=1)
        if shard.expiry.is_under_way or (batch.overdue and not batch.held and not self._is_stopping):
            return Tick()
        return self._end_drain(shard, self._delay_s(batch.now, batch.next_expires_at))

    def _end_drain(self, shard: _Shard, delay_s: float = 0.0, error: Exception | None = None, **obstacles: int) -> Tick:
        """Say what the drain did, and when to look at the shard again."""
        done = replace(shard.drain or Tick(), **obstacles)
        shard.drain = None
        shard.is_standby = False
        now = time.monotonic()
        shard.wake_at = max(shard.drain_began_at + self._resolution_s, now + delay_s)
        shard.pause_ends_at = shard.wake_at if done.paused else math.inf
        self._tally.count_drain(shard.number, done, now - shard.drain_began_at, error)
        shard.journal.tell_drain(done, now - shard.drain_began_at)
        return done

    def _sleep(self) -> None:
        timeout = max(min(shard.wake_at for shard in self._shards) - time.monotonic(), 0)
        self._tally.expect_back(self._shards[0].number, timeout + self._turn_s)
        with suppress(Empty):
            number = self._signals.get(timeout=timeout)
            if number != _STOP:
                self._read_news(self._shards[number])

    def _wake(self, number: int, message: bytes) -> None:
        """Take note of a sooner reservation: `<now> <ExpiresAt>`; any other message means now."""
        look_at = time.monotonic()
        with suppress(ValueError):
            now, expires_at = map(float, message.split())
            look_at += self._delay_s(now, expires_at)
        with self._telling(number) as news:
            news.look_at = min(news.look_at, look_at)

    def _hear(self, number: int, message: bytes) -> None:
        """Take note of a tick: `<now> <next ExpiresAt or nothing> <worker>`; a stranger's message is none."""
        with suppress(ValueError):
            now, next_expires_at, worker = message.split(b" ", 2)
            heard = _Heard(time.monotonic(), float(now), float(next_expires_at) if next_expires_at else None, worker)
            with self._telling(number) as news:
                news.heard = heard

    @contextmanager
    def _telling(self, number: int) -> Iterator[_News]:
        shard = self._shards[number]
        with shard.news_lock:
            if shard.news is None:
                shard.news = _News()
                self._signals.put(number)
            yield shard.news

    def _read_news(self, shard: _Shard) -> None:
        with shard.news_lock:
            news, shard.news = shard.news, None
        if news is None or shard.failures or shard.drain is not None:
            return  # messages must not turn the pause after an error into a spin
        if (heard := news.heard) is not None:
            # The worker that ticked last leads: it is there in time for the next expiry. The others stand by,
            # each a random while later, and lead when they come first: the leader has gone, or is slow.
            # Without messages each worker is on its own, which costs commands and never a reservation.
            shard.is_standby = heard.worker != self.id.encode()
            delay_s = max(self._resolution_s, self._delay_s(heard.now, heard.next_expires_at))
            polled_at = shard.drain_began_at + self._interval_s
            shard.wake_at = min(polled_at, shard.pause_ends_at, heard.at + delay_s + self._standby_s(shard))
        if news.look_at < math.inf:
            earliest = shard.drain_began_at + self._resolution_s
            shard.wake_at = min(shard.wake_at, max(earliest, news.look_at) + self._standby_s(shard))

    def _standby_s(self, shard: _Shard) -> float:
        # The half gives the leader time to tick and tell, the whole is what its death may cost.
        return self._resolution_s * random.uniform(0.5, 1) if shard.is_standby else 0.0  # noqa: S311  # jitter

    def _pause_s(self, batch: Batch, pause: Pause) -> float:
        """Return the seconds until the pause ends, at most the interval."""
        return (
            self._interval_s if pause.until is None else min(self._interval_s, max(0, pause.until - batch.now) / 1000)
        )

    def _delay_s(self, now: float, next_expires_at: float | None) -> float:
        """Return the seconds until the next reservation falls due, at most the interval."""
        if next_expires_at is None:
            return self._interval_s
        due_at = next_expires_at + to_ms(self._settings.grace) + _AFTER_MS
        return min(self._interval_s, max(0, due_at - now) / 1000)

    def _retry_delay_s(self, shard: _Shard) -> float:
        longest = min(self._interval_s, _LONGEST_RETRY_S)
        delay = min(longest, _FIRST_RETRY_S * 2.0 ** min(shard.failures, 10))
        if not shard.failures:
            shard.failed_at = time.monotonic()
        shard.failures += 1
        return delay * random.uniform(0.5, 1)  # noqa: S311  # jitter, so that a fleet does not return as one
