"""Decides when: `tick` does one pass over the shards and never sleeps, `run` sleeps and does no work."""

from __future__ import annotations

import logging
import os
import random
import secrets
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from queue import Empty, SimpleQueue
from typing import cast

from redis import Redis
from redis.exceptions import RedisError, WatchError
from structlog.typing import FilteringBoundLogger

import expirer
from expirer.connect import location, redact
from expirer.expiry import Batch, Expiry, Pause
from expirer.keys import ShardKeys, shard_keys
from expirer.settings import LAYOUT, LONGEST, Settings, to_ms, worker_clock
from expirer.wake import WakeListener

_FIRST_RETRY_S = 0.1
_LONGEST_RETRY_S = 5.0
"""An outage longer than this must not add an interval of lateness to its own length."""

_AFTER_MS = 0.2
"""Due is strictly before now; a look that came too early would cost a resolution."""

_STOP = -1


@dataclass(frozen=True, slots=True)
class Tick:
    """What one pass did: reservations by outcome, units given back, and what stood in the way."""

    expired: int = 0
    units: int = 0
    skipped: int = 0
    rescheduled: int = 0
    quarantined: int = 0
    overdue: int = 0
    """Left in the index: a stop, a pause or an error came first."""
    paused: int = 0
    """Shards."""
    conflicts: int = 0
    errors: int = 0

    def __add__(self, other: Tick) -> Tick:
        return Tick(*map(sum, zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True, slots=True)
class _Heard:
    """A tick of which the channel told: when (monotonic seconds), what was next, and whose it was."""

    at: float
    now: float
    next_expires_at: int | None
    worker: bytes


class _Shard:
    """One shard: its expiry, the drain under way, and when it is looked at next (monotonic seconds)."""

    def __init__(self, number: int, expiry: Expiry, log: FilteringBoundLogger) -> None:
        self.number = number
        self.expiry = expiry
        self.log = log.bind(shard=number)
        self.drain: Tick | None = None
        self.drain_began_at = 0.0
        self.wake_at = 0.0
        self.failures = 0
        self.failed_at = 0.0
        self.is_far = False
        self.pause: Pause | None = None
        self.is_standby = False
        # What the listener's thread leaves here for the worker's.
        self.has_news = False
        self.is_woken = False
        self.heard: _Heard | None = None


class Worker:
    """Expires what is due on every shard, again and again.

    Args:
        now_ms: the clock, Unix ms; None obeys `settings.clock`.

    """

    def __init__(
        self,
        client: Redis,
        settings: Settings,
        log: FilteringBoundLogger,
        now_ms: Callable[[], float] | None = None,
    ) -> None:
        self.id = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(2)}"
        self._client = client
        self._settings = settings
        self._interval_s = settings.interval.total_seconds()
        self._resolution_s = settings.resolution.total_seconds()
        self._log = log.bind(worker=self.id)
        if now_ms is None and settings.clock == "worker":
            now_ms = worker_clock
        self._keys = shard_keys(settings)
        self._shards = [
            _Shard(number, Expiry(client, settings, keys, self.id, now_ms), self._log)
            for number, keys in enumerate(self._keys)
        ]
        self._signals: SimpleQueue[int] = SimpleQueue()
        self._is_stopping = False

    def run(self) -> None:
        """Tick until stopped; no error of Redis ends it."""
        self._log_start()
        done = Tick()
        listener = WakeListener(self._client, self._keys, self._wake, self._hear)
        listener.start()
        try:
            while not self._is_stopping:
                now = time.monotonic()
                done += self._advance_all(shard for shard in self._shards if shard.wake_at <= now)
                self._sleep()
            while draining := [shard for shard in self._shards if shard.drain is not None]:
                done += self._advance_all(draining)
        finally:
            listener.stop()
            self._log_stop(done)

    def run_once(self) -> Tick:
        """Tick once, with the first and the last line that `run` would log."""
        self._log_start()
        done = self.tick()
        self._log_stop(done)
        return done

    def stop(self) -> None:
        """Let `run` return once its current batch is whole; safe in a signal handler, and more than once."""
        self._is_stopping = True
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
        try:
            batch = shard.expiry.expire_batch(go_on=not self._is_stopping)
            self._log_change(shard, batch)
            if batch.due and shard.drain == Tick():
                shard.log.info("found_expired_reservations", count=batch.due + batch.overdue)
            _log_outcomes(shard.log, batch)
            shard.drain = replace(shard.drain + Tick(**batch.counts), overdue=batch.overdue)
        except WatchError:
            shard.log.warning("concurrency_conflict", error="the control key changed; nothing was done")
            return self._end_drain(shard, conflicts=1)
        except Exception as error:  # the sidecar outlives every error, and says it
            delay_s = self._retry_delay_s(shard)
            shard.log.error(  # noqa: TRY400  # a traceback is for bugs; exc_info says when
                "processing_error",
                error=type(error).__name__,
                message=redact(str(error), self._settings),
                retry_in_ms=round(delay_s * 1000),
                exc_info=not isinstance(error, RedisError | OSError),
            )
            return self._end_drain(shard, delay_s, errors=1)
        if batch.pause is not None:
            return self._end_drain(shard, self._pause_s(batch, batch.pause), paused=1)
        if shard.expiry.is_under_way or (batch.overdue and not self._is_stopping):
            return Tick()
        return self._end_drain(shard, self._delay_s(batch.now, batch.next_expires_at))

    def _end_drain(self, shard: _Shard, delay_s: float = 0.0, **obstacles: int) -> Tick:
        """Say what the drain did, and when to look at the shard again."""
        done = replace(shard.drain or Tick(), **obstacles)
        shard.drain = None
        shard.is_standby = False
        shard.wake_at = max(shard.drain_began_at + self._resolution_s, time.monotonic() + delay_s)
        if done.expired or done.skipped or done.rescheduled or done.quarantined:
            shard.log.info(
                "processing_completed",
                count=done.expired,
                units=done.units,
                skipped=done.skipped,
                rescheduled=done.rescheduled,
                quarantined=done.quarantined,
                overdue=done.overdue,
                elapsed_ms=round((time.monotonic() - shard.drain_began_at) * 1000),
            )
        return done

    def _sleep(self) -> None:
        timeout = min(shard.wake_at for shard in self._shards) - time.monotonic()
        with suppress(Empty):
            number = self._signals.get(timeout=max(timeout, 0))
            if number != _STOP:
                self._read_news(self._shards[number])

    def _wake(self, number: int) -> None:
        self._shards[number].is_woken = True
        self._signal(number)

    def _hear(self, number: int, message: bytes) -> None:
        """Take note of a tick: `<now> <next ExpiresAt or nothing> <worker>`; a stranger's message is none."""
        with suppress(ValueError):
            now, next_expires_at, worker = message.split(b" ", 2)
            heard = _Heard(time.monotonic(), float(now), int(next_expires_at) if next_expires_at else None, worker)
            self._shards[number].heard = heard
            self._signal(number)

    def _signal(self, number: int) -> None:
        shard = self._shards[number]
        if not shard.has_news:  # a burst of messages is one signal
            shard.has_news = True
            self._signals.put(number)

    def _read_news(self, shard: _Shard) -> None:
        shard.has_news = False
        heard, shard.heard = shard.heard, None
        is_woken, shard.is_woken = shard.is_woken, False
        if shard.failures or shard.drain is not None:
            return  # messages must not turn the pause after an error into a spin
        if heard is not None:
            # The worker that ticked last leads: it is there in time for the next expiry. The others stand by,
            # each a random while later, and lead when they come first: the leader has gone, or is slow.
            # Without messages each worker is on its own, which costs commands and never a reservation.
            shard.is_standby = heard.worker != self.id.encode()
            delay_s = max(self._resolution_s, self._delay_s(heard.now, heard.next_expires_at))
            polled_at = shard.drain_began_at + self._interval_s
            shard.wake_at = min(polled_at, heard.at + delay_s + self._standby_s(shard))
        if is_woken:
            earliest = shard.drain_began_at + self._resolution_s
            shard.wake_at = min(shard.wake_at, max(earliest, time.monotonic()) + self._standby_s(shard))

    def _standby_s(self, shard: _Shard) -> float:
        # The half gives the leader time to tick and tell, the whole is what its death may cost.
        return self._resolution_s * random.uniform(0.5, 1) if shard.is_standby else 0.0  # noqa: S311

    def _pause_s(self, batch: Batch, pause: Pause) -> float:
        """Return the seconds until the pause ends, at most the interval."""
        return (
            self._interval_s if pause.until is None else min(self._interval_s, max(0, pause.until - batch.now) / 1000)
        )

    def _delay_s(self, now: float, next_expires_at: int | None) -> float:
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

    def _log_start(self) -> None:
        settings = self._settings
        self._log.info(
            "job_started",
            version=expirer.__version__,
            redis=location(settings),
            namespace=settings.namespace,
            shards=settings.shards,
            interval_ms=to_ms(settings.interval),
            batch_size=settings.batch_size,
            layout=_describe_layout(settings, self._keys[0]),
        )
        with suppress(RedisError, OSError):  # a host may hide it; the first tick tells of a dead one
            memory = cast("dict[str, object]", self._client.info("memory"))
            policy = str(memory.get("maxmemory_policy", ""))
            if policy.startswith("allkeys"):  # Active reservations have no TTL: no other policy evicts them
                advice = "set maxmemory-policy to noeviction or volatile-ttl"
                self._log.warning("eviction_risk", policy=policy, advice=advice)

    def _log_stop(self, done: Tick) -> None:
        self._log.info("job_stopped", expired=done.expired, units=done.units)

    def _log_change(self, shard: _Shard, batch: Batch) -> None:
        """Log what is otherwise than it was: once, not every tick."""
        overdue = batch.due + batch.overdue
        if shard.failures:
            down_ms = round((time.monotonic() - shard.failed_at) * 1000)
            shard.log.info("processing_recovered", failures=shard.failures, down_ms=down_ms, overdue=overdue)
            shard.failures = 0
        if batch.pause != shard.pause:
            shard.pause = pause = batch.pause
            if pause is None:
                shard.log.info("expiry_resumed", overdue=overdue)
            else:
                shard.log.warning("expiry_paused", by=pause.by, reason=pause.reason, until=pause.until, overdue=overdue)
        is_far = batch.next_expires_at is not None and batch.next_expires_at - batch.now > to_ms(LONGEST)
        if is_far and not shard.is_far:
            shard.log.warning(
                "unit_mismatch",
                next_expires_at=batch.next_expires_at,
                advice="nothing is due for a century: check EXPIRER_SCORE_UNIT",
            )
        shard.is_far = is_far


def _log_outcomes(log: FilteringBoundLogger, batch: Batch) -> None:
    for reservation in batch.expired() if log.is_enabled_for(logging.INFO) else ():
        log.info(
            "reservation_expired",
            reservation_id=reservation.reservation_id,
            order_id=reservation.order_id,
            product_id=reservation.product_id,
            quantity=reservation.quantity,
            expires_at=reservation.expires_at,
            lateness_ms=int(batch.now) - reservation.expires_at,
        )
    for reservation_id, reason in batch.quarantined():
        log.error("reservation_quarantined", reservation_id=reservation_id, reason=reason)
    for reservation_id, status in batch.skipped():
        log.debug("reservation_skipped", reservation_id=reservation_id, status=status)
    for reservation_id, expires_at in batch.rescheduled():
        log.debug("reservation_rescheduled", reservation_id=reservation_id, expires_at=expires_at)


def _describe_layout(settings: Settings, keys: ShardKeys) -> str | dict[str, object]:
    if not settings.is_custom_layout:
        return "contract"
    names = {
        "index_key": keys.index,
        "reservation_prefix": keys.reservation_prefix,
        "stock_prefix": keys.stock_prefix,
        "events_key": keys.events,
    }
    return {name: names.get(name, getattr(settings, name)) for name in LAYOUT}
