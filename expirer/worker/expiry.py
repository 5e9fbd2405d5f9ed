"""Expires what is due on one shard, batch by batch: Python decides under WATCH, Lua does."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from redis.exceptions import NoScriptError, RedisError, WatchError

from expirer.config.durations import to_ms
from expirer.connection import pipeline
from expirer.connection.connect import is_replaced
from expirer.connection.pipeline import Connection, Reply
from expirer.contract import about, control, scripts
from expirer.contract.clock import worker_clock
from expirer.contract.control import Control, Pause
from expirer.contract.shard import Shard
from expirer.worker.batch import Batch

_ELAPSED = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Goes on while the machine is suspended, where there is such a clock."""
_MOVED = "the control key changed; nothing was done"
_LEAST_SAVED_MS = 100
"""The rate may save up for this long, or for a resolution if that is longer."""
_FOREVER_MS = 2.0**53
_Row = list[bytes | None]


@dataclass(frozen=True, slots=True)
class _Sent:
    """A batch on its way, and what was decided for it."""

    control: Control
    pause: Pause | None
    at: float
    """By time.perf_counter."""
    is_ahead: bool
    """Whether the next decision's WATCH and read went with it."""


class Expiry:
    """Expires batches of one shard, each in a guarded transaction: WATCH control, read it, MULTI, the script, EXEC.

    Args:
        worker: the name under which it ticks.
        now_ms: the clock, Unix ms; None: the server's, or this machine's if EXPIRER_CLOCK is `worker`.

    """

    def __init__(self, shard: Shard, worker: str, now_ms: Callable[[], float] | None = None) -> None:
        settings, keys = shard.settings, shard.keys
        self._shard = shard
        self._worker = worker
        self._pool = shard.client.connection_pool
        self._now_ms = worker_clock if now_ms is None and settings.clock == "worker" else now_ms
        self._script = scripts.load("expire")
        self._watch = ("WATCH", keys.control), ("HMGET", keys.control, *control.FIELDS)
        self._keys = keys.index, keys.events, keys.quarantine, keys.stats, keys.workers, keys.about
        self._constants = _constants(shard, worker)
        self._about = about.describe(settings)
        self._skew_ms: int | None = None
        self._max_jump_ms = to_ms(settings.max_clock_jump) if self._now_ms is None else 0
        self._believed: tuple[float, float, float] | None = None
        """The moment at which the server's clock was last believed: by it (Unix ms), and by two clocks here (s)."""
        self.peer: object = None
        """The address of the server that the last drain spoke to."""

    def drain(self, may_go_on: Callable[[], bool]) -> Iterator[Batch]:
        """Yield batch after batch, each once it is committed, until nothing more is due or `may_go_on` says no.

        The next batch is sent before this one is yielded: Redis works on it while the caller logs. A paused shard
        yields one batch that only reports.

        Raises:
            WatchError: the control key changed between the decision and the commit; nothing happened.
            RedisError: Redis refused (nothing happened), or the reply was lost (the batch may be committed).

        """
        with self._connection() as connection:
            self.peer = pipeline.peer_of(connection)
            yield from self._drain(connection, may_go_on)

    def _drain(self, connection: Connection, may_go_on: Callable[[], bool]) -> Iterator[Batch]:
        sent: _Sent | None = self._send(connection)
        while sent is not None:
            batch, row = self._receive(connection, sent)
            goes_on = batch.overdue > 0 and batch.pause is None and not batch.held
            if batch.held == "clock" and self._is_forgiven(sent.control, batch.now):
                goes_on, batch = True, batch.unheld()
            self._believe(batch)
            sent, failure = None, None
            if goes_on and may_go_on() and not is_replaced(connection):
                try:
                    sent = self._send(connection, row, is_ahead=batch.overdue > self._shard.settings.batch_size)
                except (RedisError, OSError) as error:
                    failure = error  # this batch is committed, and is reported first
            elif row is not None:
                connection.disconnect()  # ends a WATCH that nothing needs
            yield batch
            if failure is not None:
                raise failure

    def pull_brake(self, reason: str) -> None:
        """Pull the brake of the shard, unless it is on; a pause that came meanwhile may end by itself.

        Raises:
            WatchError: the control key changed meanwhile; nothing happened.
            RedisError: Redis refused, or the reply was lost.

        """
        with self._connection() as connection:
            found = Control.read(pipeline.ask(connection, *self._watch))
            if found.brake is not None:
                pipeline.ask(connection, ("UNWATCH",))
                return
            fields = control.braking(self._worker, reason, int(self._clock_ms(connection)))
            words = (word for field in fields.items() for word in field)
            hset = ("HSET", self._shard.keys.control, *words)
            if pipeline.ask(connection, ("MULTI",), hset, ("EXEC",)) is None:
                raise WatchError(_MOVED)

    def preview(self) -> Batch:
        """Return what the next batch would do, pause or not, by the same script with its writes off.

        Raises:
            RedisError: Redis failed.

        """
        began_at = time.perf_counter()
        script = self._shard.client.register_script(self._script.text)
        arguments = self._arguments(self._shard.settings.batch_size, is_dry_run=True)
        return self._batch(script(keys=list(self._keys), args=list(arguments)), None, began_at)

    def command(self, batch_size: int, limits: tuple[object, ...] = ("", 0, 0, 0)) -> tuple[object, ...]:
        """Return the call of the script; `limits`: latest_ms, brake, counted_from_ms and rate."""
        return ("EVALSHA", self._script.sha, len(self._keys), *self._keys, *self._arguments(batch_size, limits))

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        """Lend a connection; one that met an error is not used again."""
        connection: Connection = self._pool.get_connection()
        try:
            yield connection
        except BaseException:
            connection.disconnect()
            raise
        finally:
            self._pool.release(connection)

    def _send(self, connection: Connection, row: _Row | None = None, *, is_ahead: bool = False) -> _Sent:
        """Decide, and send a batch; `row` is the control key as it was read under the WATCH that still holds."""
        settings = self._shard.settings
        found = Control.read(row or pipeline.ask(connection, *self._watch))
        is_timed = found.pause is not None and found.pause.until is not None
        now = self._clock_ms(connection) if is_timed else _FOREVER_MS
        pause = found.halt(now)
        limits = (self._latest_ms(), settings.brake_above, found.counted_from(now), settings.max_rate)
        evalsha = self.command(0 if pause else settings.batch_size, limits)
        at = time.perf_counter()
        pipeline.write(connection, ("MULTI",), evalsha, ("EXEC",), *(self._watch if is_ahead else ()))
        return _Sent(found, pause, at, is_ahead)

    def _receive(self, connection: Connection, sent: _Sent) -> tuple[Batch, _Row | None]:
        """Return a batch, and the control key if it was read ahead."""
        pipeline.read(connection, 2)
        results = pipeline.read(connection)
        if results is None:
            raise WatchError(_MOVED)
        if isinstance(results[0], NoScriptError):
            if sent.is_ahead:
                pipeline.read(connection, len(self._watch))
            pipeline.ask(connection, ("UNWATCH",), ("SCRIPT", "LOAD", self._script.text))
            return self._receive(connection, self._send(connection))
        if isinstance(results[0], Exception):
            raise results[0]
        row = pipeline.read(connection, len(self._watch)) if sent.is_ahead else None
        return self._batch(results[0], sent.pause, sent.at), row

    def _arguments(
        self, batch_size: int, limits: tuple[object, ...] = ("", 0, 0, 0), *, is_dry_run: bool = False
    ) -> tuple[Any, ...]:
        now = "" if self._now_ms is None else self._now_ms()
        skew = "" if self._skew_ms is None else f" skew_ms={self._skew_ms}"
        grace_ms = to_ms(self._shard.settings.grace)
        before, after = self._constants
        return (batch_size, grace_ms, now, *limits, int(is_dry_run), *before, f"{self._about}{skew}", *after)

    def _batch(self, reply: Reply, pause: Pause | None, sent_at: float) -> Batch:
        next_expires_at = int(reply[1]) if reply[1] else None
        elapsed_s = time.perf_counter() - sent_at
        grace_ms = to_ms(self._shard.settings.grace)
        return Batch(float(reply[0]), next_expires_at, int(reply[2]), pause, elapsed_s, grace_ms, *reply[3:])

    def _believe(self, batch: Batch) -> None:
        if self._now_ms is None:
            self._skew_ms = round(batch.now - worker_clock())
        if batch.held != "clock":
            self._believed = batch.now, time.clock_gettime(_ELAPSED), time.time()

    def _passed_ms(self) -> float:
        """Return how long ago the server's clock was last believed, by the faster of two clocks of this machine."""
        if self._believed is None:
            return math.inf
        _, elapsed_s, clock_s = self._believed
        return 1000 * max(time.clock_gettime(_ELAPSED) - elapsed_s, time.time() - clock_s)

    def _latest_ms(self) -> float | str:
        """Return the latest time that the server's clock can show now; empty if it may show any."""
        if not self._max_jump_ms or self._believed is None:
            return ""
        return self._believed[0] + self._passed_ms() + self._max_jump_ms

    def _is_forgiven(self, found: Control, now: float) -> bool:
        """Say whether a person has resumed expiry after the clock jumped: then it is right."""
        return found.resumed_at <= now <= found.resumed_at + self._passed_ms() + self._max_jump_ms

    def _clock_ms(self, connection: Connection) -> float:
        if self._now_ms is not None:
            return self._now_ms()
        seconds, microseconds = pipeline.ask(connection, ("TIME",))
        return int(seconds) * 1000 + int(microseconds) // 1000


def _constants(shard: Shard, worker: str) -> tuple[tuple[object, ...], tuple[object, ...]]:
    """Return the script's arguments that never change: those before what the worker says of itself, and those after."""
    settings, keys = shard.settings, shard.keys
    before = (
        -1 if settings.retention is None else to_ms(settings.retention),
        settings.events_maxlen,
        worker,
        settings.unit_ms,
        keys.reservation_prefix,
        keys.stock_prefix,
        settings.field_order_id,
        settings.field_product_id,
        settings.field_quantity,
        settings.field_status,
        settings.field_expires_at,
        settings.field_available,
        settings.field_reserved,
        settings.status_active,
        settings.status_expired,
        keys.ticks,
    )
    after = (
        secrets.token_hex(8),
        max(_LEAST_SAVED_MS, to_ms(settings.resolution)),
        *(word.encode().lower() for word in settings.status_ended),  # as Lua does: ASCII letters only
    )
    return before, after
