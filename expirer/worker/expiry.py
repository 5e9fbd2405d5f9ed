"""Expires one batch of one shard: Python decides under WATCH, Lua does."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from redis.exceptions import NoScriptError, RedisError, WatchError

import expirer
from expirer.config.durations import to_ms
from expirer.connection import pipeline
from expirer.connection.locate import LocatedConnection
from expirer.contract import control, scripts
from expirer.contract.clock import worker_clock
from expirer.contract.control import Control, Pause
from expirer.contract.shard import Shard
from expirer.worker.batch import Batch

_ELAPSED = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Goes on while the machine is suspended, where there is such a clock."""
_MOVED = "the control key changed; nothing was done"


class Expiry:
    """Expires batches of one shard, each in a guarded transaction.

    WATCH control, read control, decide, MULTI, the script, EXEC: the commands go out in as few packets as
    their order allows. In a drain the next decision's WATCH and read travel with this batch's EXEC, so that a
    batch costs one round trip, and Redis works on it while the caller logs the one before.

    Args:
        now_ms: the clock, Unix ms; None obeys `settings.clock`.

    """

    def __init__(self, shard: Shard, worker: str, now_ms: Callable[[], float] | None = None) -> None:
        client, keys, settings = shard.client, shard.keys, shard.settings
        self._pool = client.connection_pool
        self._worker = worker
        self._batch_size = settings.batch_size
        self._now_ms = worker_clock if now_ms is None and settings.clock == "worker" else now_ms
        self._script = scripts.load("expire")
        self._evaluate = client.register_script(self._script.text)
        self._watch = (
            ("WATCH", keys.control),
            ("HMGET", keys.control, *control.FIELDS),
        )
        self._keys = (keys.index, keys.events, keys.quarantine, keys.stats, keys.workers, keys.about)
        self._grace_ms = to_ms(settings.grace)
        self._about = f"version={expirer.__version__}"
        self._is_skew_known = False
        self._layout = (
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
        self._ended = tuple(word.encode().lower() for word in settings.status_ended)  # as Lua does: ASCII letters only
        self._brake_above = settings.brake_above
        self._max_rate = settings.max_rate
        self._max_jump_ms = to_ms(settings.max_clock_jump) if self._now_ms is None else 0
        self._believed: tuple[float, float] | None = None
        """The server's clock when it was last believed (Unix ms), and ours then (seconds since some moment)."""
        self._sent: _Sent | None = None

    @property
    def is_under_way(self) -> bool:
        """Whether a batch has been sent whose outcome has not been returned."""
        return self._sent is not None

    def expire_batch(self, *, go_on: bool = False) -> Batch:
        """Expire up to one batch of due reservations; while paused expire none, and only report.

        With `go_on` the next batch is sent before this one is returned, where more is overdue. It must then
        be asked for as well.

        Raises:
            WatchError: the operator's hand moved between the decision and the commit; nothing happened.
            RedisError: Redis refused (nothing happened) or the reply was lost (the batch may be whole).

        """
        sent, self._sent = self._sent, None
        connection = sent.connection if sent else self._pool.get_connection()
        try:
            return self._expire_batch(connection, sent, go_on=go_on)
        except BaseException:
            connection.disconnect()
            raise
        finally:
            if self._sent is None:
                self._pool.release(connection)

    def pull_brake(self, reason: str) -> None:
        """Pause the shard, unless somebody has.

        Raises:
            WatchError: the operator's hand moved meanwhile; nothing happened.
            RedisError: Redis refused, or the reply was lost.

        """
        connection: Any = self._pool.get_connection()
        try:
            self._pull_brake(connection, reason)
        except BaseException:
            connection.disconnect()
            raise
        finally:
            self._pool.release(connection)

    def _pull_brake(self, connection: Any, reason: str) -> None:  # noqa: ANN401  # see _Sent
        hand = Control.read(pipeline.ask(connection, *self._watch))
        if self._lasts(connection, hand.pause):
            pipeline.ask(connection, ("UNWATCH",))
            return
        fields = control.pausing(self._worker, reason, int(self._clock_ms(connection)))
        hset = ("HSET", self._watch[0][1], *(word for pair in fields.items() for word in pair))
        if pipeline.ask(connection, ("MULTI",), hset, ("EXEC",)) is None:
            raise WatchError(_MOVED)

    def preview(self) -> Batch:
        """Return what the next batch would do, pause or not, by the same script with its writes off; RedisError."""
        began_at = time.perf_counter()
        reply: Any = self._evaluate(keys=self._keys, args=self._arguments(self._batch_size, dry_run=True))
        return self._batch(reply, None, began_at)

    def _expire_batch(self, connection: Any, sent: _Sent | None, *, go_on: bool) -> Batch:  # noqa: ANN401  # see _Sent
        sent = sent or self._send(connection)
        reply, row = self._receive(sent)
        if isinstance(reply, NoScriptError):
            pipeline.ask(connection, ("UNWATCH",), ("SCRIPT", "LOAD", self._script.text))
            sent = self._send(connection)
            reply, row = self._receive(sent)
        if isinstance(reply, Exception):
            raise reply
        batch = self._batch(reply, sent.pause, sent.at)
        self._note_skew(batch.now)
        if batch.held != "clock":
            self._believed = batch.now, time.clock_gettime(_ELAPSED)
        is_given_up = isinstance(connection, LocatedConnection) and connection.is_given_up()
        if go_on and batch.overdue and sent.pause is None and not batch.held and not is_given_up:
            try:
                self._sent = self._send(connection, row, is_ahead=batch.overdue > self._batch_size)
            except (RedisError, OSError):
                connection.disconnect()  # the next call meets the trouble; this batch is done, and is told of
        elif row is not None:
            connection.disconnect()  # with it goes a WATCH that nobody needs
        return batch

    def _send(
        self,
        connection: Any,  # noqa: ANN401  # see _Sent
        row: list[bytes | None] | None = None,
        *,
        is_ahead: bool = False,
    ) -> _Sent:
        """Decide, and send a batch; `row` is the control key as it was read under the WATCH that still holds."""
        hand = Control.read(row or pipeline.ask(connection, *self._watch))
        pause = hand.pause if self._lasts(connection, hand.pause) else None
        if self._now_ms is None and not self._is_skew_known:
            self._note_skew(self._clock_ms(connection))
        limits = (self._latest_ms(), self._brake_above, hand.resumed_at, self._max_rate)
        evalsha = self.command(self._batch_size if pause is None else 0, limits)
        ahead = self._watch if is_ahead else ()
        at = time.perf_counter()
        pipeline.write(connection, ("MULTI",), evalsha, ("EXEC",), *ahead)
        return _Sent(connection, pause, is_ahead, at)

    def command(self, batch_size: int, limits: tuple[object, ...] = ("", 0, 0, 0)) -> tuple[object, ...]:
        """Return the call of the script; `limits`: latest_ms, brake, resumed_ms and rate, as its header has them."""
        return ("EVALSHA", self._script.sha, len(self._keys), *self._keys, *self._arguments(batch_size, limits))

    def _arguments(
        self, batch_size: int, limits: tuple[object, ...] = ("", 0, 0, 0), *, dry_run: bool = False
    ) -> tuple[Any, ...]:
        now_ms = "" if self._now_ms is None else self._now_ms()
        return (batch_size, self._grace_ms, now_ms, *limits, int(dry_run), *self._layout, self._about, *self._ended)

    def _batch(
        self,
        reply: Any,  # noqa: ANN401  # what the header of expire.lua says
        pause: Pause | None,
        sent_at: float,
    ) -> Batch:
        next_expires_at = int(reply[1]) if reply[1] else None
        elapsed_s = time.perf_counter() - sent_at
        return Batch(float(reply[0]), next_expires_at, int(reply[2]), pause, elapsed_s, self._grace_ms, *reply[3:])

    def _receive(self, sent: _Sent) -> tuple[Any, list[bytes | None] | None]:
        """Return the script's reply or its error, and the control key where it was read ahead."""
        connection = sent.connection
        pipeline.read(connection, 2)
        results = pipeline.read(connection)
        if results is None:
            raise WatchError(_MOVED)
        return results[0], pipeline.read(connection, len(self._watch)) if sent.is_ahead else None

    def _lasts(self, connection: Any, pause: Pause | None) -> bool:  # noqa: ANN401  # see _Sent
        return pause is not None and (pause.until is None or self._clock_ms(connection) < pause.until)

    def _latest_ms(self) -> float | str:
        """Return the latest time that the server's clock can show now, by our own; empty where none is known."""
        if not self._max_jump_ms or self._believed is None:
            return ""
        now_ms, at_s = self._believed
        return now_ms + 1000 * (time.clock_gettime(_ELAPSED) - at_s) + self._max_jump_ms

    def _note_skew(self, server_ms: float) -> None:
        if self._now_ms is None:
            self._about = f"version={expirer.__version__} skew_ms={round(server_ms - worker_clock())}"
            self._is_skew_known = True

    def _clock_ms(self, connection: Any) -> float:  # noqa: ANN401  # see _Sent
        if self._now_ms is not None:
            return self._now_ms()
        seconds, microseconds = pipeline.ask(connection, ("TIME",))
        return int(seconds) * 1000 + int(microseconds) // 1000


@dataclass(frozen=True, slots=True)
class _Sent:
    """A batch on its way: on which connection, and whether the next decision's WATCH and read went with it."""

    connection: Any  # redis-py names no type that its kinds of connection share
    pause: Pause | None
    is_ahead: bool
    at: float
    """When it was sent, by time.perf_counter."""
