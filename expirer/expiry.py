"""Expires one batch of one shard: Python decides under WATCH, Lua does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import ConnectionError, NoScriptError, TimeoutError, WatchError  # noqa: A004

from expirer import scripts
from expirer.keys import ShardKeys
from expirer.settings import Settings, to_ms

_LEAST_UNIX_MS = 10**11
"""Less is a time in seconds, or no time."""
_NOT_PAUSED = {b"", b"0", b"no", b"false", b"off"}


@dataclass(frozen=True, slots=True)
class Pause:
    """The operator's hand on a shard: who holds it, why, and until when (Unix ms; None: until resumed)."""

    by: str
    reason: str
    until: int | None


@dataclass(frozen=True, slots=True)
class Expired:
    r"""A reservation whose units are back; `expires_at` is in Unix ms.

    Ids are text for people: bytes that are not UTF-8 stand as `\xNN`.
    """

    reservation_id: str
    order_id: str
    product_id: str
    quantity: int
    expires_at: int


@dataclass(frozen=True, slots=True)
class Batch:
    """What one call of the script did, and what it saw afterwards; times are in Unix ms."""

    now: int
    next_expires_at: int | None
    overdue: int
    expired: tuple[Expired, ...]
    skipped: tuple[tuple[str, str], ...]
    """Reservation id and status."""
    rescheduled: tuple[tuple[str, int], ...]
    """Reservation id and its own ExpiresAt."""
    quarantined: tuple[tuple[str, str], ...]
    """Reservation id and reason."""
    pause: Pause | None

    @property
    def due(self) -> int:
        """How many due entries the batch took."""
        return len(self.expired) + len(self.skipped) + len(self.rescheduled) + len(self.quarantined)


class Expiry:
    """Expires batches of one shard.

    Args:
        now_ms: the clock, Unix ms; None leaves it to the server.

    """

    def __init__(
        self,
        client: Redis,
        settings: Settings,
        keys: ShardKeys,
        worker: str,
        now_ms: Callable[[], int] | None = None,
    ) -> None:
        self._client = client
        self._keys = keys
        self._batch_size = settings.batch_size
        self._now_ms = now_ms
        self._script = scripts.load("expire")
        self._layout = (
            -1 if settings.retention is None else to_ms(settings.retention),
            settings.events_maxlen,
            worker,
            1000 if settings.score_unit == "s" else 1,
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
            *(word.encode().lower() for word in settings.status_ended),  # as Lua does: ASCII letters only
        )
        self._grace_ms = to_ms(settings.grace)

    def expire_batch(self) -> Batch:
        """Expire up to one batch of due reservations; while paused expire none, and only report.

        Raises:
            WatchError: the operator's hand moved between the decision and the commit; nothing happened.
            RedisError: Redis refused (nothing happened) or the reply was lost (the batch may be whole).

        """
        try:
            try:
                return self._guarded()
            except NoScriptError:
                self._client.script_load(self._script.text)
                return self._guarded()
        except WatchError as error:
            # redis-py says so too when the connection breaks while it watches.
            if isinstance(error.__context__, ConnectionError | TimeoutError):
                raise error.__context__ from None
            raise

    def _guarded(self) -> Batch:
        with self._client.pipeline(transaction=True) as pipe:
            pipe.watch(self._keys.control)  # type: ignore[no-untyped-call]
            pause = self._read_pause(pipe)
            pipe.multi()
            keys = self._keys
            pipe.evalsha(
                self._script.sha,
                5,
                keys.index,
                keys.events,
                keys.quarantine,
                keys.stats,
                keys.workers,
                self._batch_size if pause is None else 0,
                self._grace_ms,
                "" if self._now_ms is None else self._now_ms(),
                *self._layout,
            )
            (reply,) = pipe.execute()
        return _parse(reply, pause)

    def _read_pause(self, pipe: Pipeline) -> Pause | None:
        # Immediate while watching: the reply is here, not in EXEC.
        row = cast("list[bytes | None]", pipe.hmget(self._keys.control, ["paused", "until", "by", "reason"]))
        paused, until, by, reason = (value or b"" for value in row)
        if paused.strip().lower() in _NOT_PAUSED:
            return None
        # A pause whose end cannot be read lasts: nothing expires against the operator's will.
        end = int(until) if until.strip().isdigit() and int(until) >= _LEAST_UNIX_MS else None
        if end is not None and self._clock_ms(pipe) >= end:
            return None
        return Pause(by=_text(by), reason=_text(reason), until=end)

    def _clock_ms(self, pipe: Pipeline) -> int:
        if self._now_ms is not None:
            return self._now_ms()
        seconds, microseconds = pipe.time()
        return seconds * 1000 + microseconds // 1000


def _parse(reply: list[Any], pause: Pause | None) -> Batch:
    now, next_expires_at, overdue, expired, skipped, rescheduled, quarantined = reply
    return Batch(
        now=int(now),
        next_expires_at=int(next_expires_at) if next_expires_at else None,
        overdue=int(overdue),
        expired=tuple(
            Expired(_text(id_), _text(order), _text(product), int(quantity), int(expires_at))
            for id_, order, product, quantity, expires_at in _rows(expired, 5)
        ),
        skipped=tuple((_text(id_), _text(status)) for id_, status in _rows(skipped, 2)),
        rescheduled=tuple((_text(id_), int(expires_at)) for id_, expires_at in _rows(rescheduled, 2)),
        quarantined=tuple((_text(id_), _text(reason)) for id_, reason in _rows(quarantined, 2)),
        pause=pause,
    )


def _rows(flat: list[bytes], width: int) -> zip[tuple[bytes, ...]]:
    return zip(*[iter(flat)] * width, strict=True)


def _text(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")
