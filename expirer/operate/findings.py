"""What an audit calls wrong, and how it can be mended: judged from what was read in one moment."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from expirer.config.durations import to_ms
from expirer.config.settings import Settings
from expirer.contract.clock import unix_ms
from expirer.contract.text import readable
from expirer.operate.inventory_scan import Row
from expirer.operate.terminal import shown, shown_time

_MS_LEAST, _S_LEAST, _S_LIMIT = 1e11, 1e9, 1e10
"""A Unix time is in milliseconds from the first on, in seconds between the other two (as expire.lua has it)."""


RECOUNTED = ("reserved_differs", "reserved_invalid", "reserved_negative")
"""What a recount mends."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a reservation or with a product."""

    shard: int
    kind: str
    id: bytes
    """Of the reservation; of the product where the kind is about counters."""
    detail: str
    plan: str
    """What would mend it; empty: that cannot be known."""
    commands: tuple[tuple[bytes | str | int, ...], ...] = ()
    """Mend a reservation: the name of a key of ShardKeys or `reservation` in the second place."""

    @property
    def is_of_product(self) -> bool:
        """Whether it is about the counters of a product."""
        return self.kind.partition("_")[0] in ("available", "reserved", "stock")


def judge(settings: Settings, shard: int, row: Row, now: int) -> Finding | None:
    """Return what is wrong with a reservation; `now` in Unix ms goes into what the plan writes."""
    if row.type != "hash":
        return _judge_lost(shard, row, now)
    if row.status != settings.status_active:
        return _judge_ended(settings, shard, row)
    return None if row.entry else _judge_active(settings, shard, row, now)


def _judge_lost(shard: int, row: Row, now: int) -> Finding | None:
    if row.score is None or row.entry:
        return None
    if row.type == "none":
        return _to_quarantine(shard, row, now, "reservation_missing", "in the index, but there is no such reservation")
    return _to_quarantine(shard, row, now, "reservation_wrong_type", f"in the index, but its key holds a {row.type}")


def _judge_ended(settings: Settings, shard: int, row: Row) -> Finding | None:
    status, retention = shown(row.status), settings.retention
    if row.entry:
        command = ("HDEL", "quarantine", row.id)
        return Finding(
            shard, "quarantine_stale", row.id, f"in quarantine, but it is {status}", "remove the entry", (command,)
        )
    if row.status == settings.status_expired and row.ttl_ms == -1 and retention:
        plan = f"keep it for {retention.total_seconds():g} s more"
        commands = (("PEXPIRE", "reservation", to_ms(retention)),)
        return Finding(shard, "retention_missing", row.id, f"{status}, and kept for ever", plan, commands)
    return None


def _judge_active(settings: Settings, shard: int, row: Row, now: int) -> Finding | None:
    if not row.product_id or row.quantity is None:
        reason = "quantity_invalid" if row.product_id else "product_id_missing"
        return _to_quarantine(shard, row, now, reason, "Active, but it cannot be expired")
    expires_at = _score(row.expires_at)
    detail = f"Active, holds {row.quantity:,} of {shown(readable(row.product_id))}"
    if row.score is None:
        detail += ", not in the index: it would hold them for ever"
        due = expires_at or _default_score(settings, row.reserved_at)
        if due is None:
            detail += "; nothing says when it is due"
            return replace(_to_quarantine(shard, row, now, "expires_at_invalid", detail), kind="not_indexed")
        plan = f"index it, due {_shown_score(settings, float(due))}"
        return Finding(shard, "not_indexed", row.id, detail, plan, (("ZADD", "index", due, row.id),))
    if expires_at is not None and float(expires_at) != row.score:
        was, due = _shown_score(settings, row.score), _shown_score(settings, float(expires_at))
        detail += f", due {was} in the index, {due} by its {settings.field_expires_at}"
        command = ("ZADD", "index", expires_at, row.id)
        return Finding(shard, "score_differs", row.id, detail, f"index it, due {due}", (command,))
    return None


def _to_quarantine(shard: int, row: Row, now: int, reason: str, detail: str) -> Finding:
    score = "unknown" if row.score is None else f"{row.score:.17g}"
    commands = (
        ("HSET", "quarantine", row.id, f"reason={reason} at={now} score={score}"),
        ("ZREM", "index", row.id),
    )
    return Finding(shard, reason, row.id, detail, "quarantine it, to be settled by hand", commands)


@dataclass(frozen=True, slots=True)
class Count:
    """The counters of a product and what its Active reservations hold, in one moment."""

    type: str
    """Of the stock key: `hash`, `string`, `none` or another."""
    available: int | None
    """None: not kept, or not an integer."""
    reserved: int | None
    texts: tuple[bytes | None, bytes | None]
    """The two counters as they stand."""
    held: int
    reservations: int
    is_certain: bool
    """Whether the quantity of each is known."""


def judge_counters(settings: Settings, shard: int, product_id: bytes, count: Count) -> Finding | None:
    """Return what is wrong with the counters of a product."""
    wrong = _wrong_counters(settings, count)
    if wrong is None:
        return None
    kind, detail = wrong
    values = mend_counters(settings, count) if kind in RECOUNTED else {}
    if values is None:
        detail += "; fewer are on hand than are held: count the shelf"
    plan = "set " + ", ".join(f"{name} to {value:,}" for name, value in values.items()) if values else ""
    return Finding(shard, kind, product_id, detail, plan)


def _wrong_counters(settings: Settings, count: Count) -> tuple[str, str] | None:
    is_plain = count.type == "string" and bool(settings.field_available)
    if not is_plain and (count.type != "hash" or count.texts == (None, None)):
        kind = "stock_missing" if count.type in ("hash", "none") else "stock_wrong_type"
        detail = f"reservations hold {count.held:,} of it, and it has no counters"
        return (kind, detail) if count.reservations else None
    if settings.field_available and count.available is None:
        return "available_invalid", f"{settings.field_available or 'the counter'} is {_as_it_stands(count.texts[0])}"
    if settings.field_reserved and not is_plain and count.is_certain and count.reserved != count.held:
        kind = "reserved_differs"
        if count.reserved is None or count.reserved < 0:
            kind = "reserved_invalid" if count.reserved is None else "reserved_negative"
        stands = _as_it_stands(count.texts[1])
        return kind, f"{settings.field_reserved} is {stands}, its Active reservations hold {count.held:,}"
    if count.available is not None and count.available < 0:
        return "available_negative", f"{settings.field_available} is {count.available:,}: oversold"
    return None


def mend_counters(settings: Settings, count: Count) -> dict[str, int] | None:
    """Return the counters as they should be, None where that cannot be known.

    Reserved is what the Active reservations hold. What is on hand (available and reserved together) is left as
    it was: an audit moves no unit into the warehouse or out of it.
    """
    mended = {settings.field_reserved: count.held}
    if count.available is not None and count.reserved is not None:
        available = count.available + count.reserved - count.held
        if available < min(count.available, 0):
            return None
        mended[settings.field_available] = available
    return mended


def _score(text: str) -> str | None:
    return text if len(text) <= 24 and re.fullmatch(r"\d+\.?\d*", text) else None  # noqa: PLR2004  # as expire.lua


def _default_score(settings: Settings, reserved_at: str) -> str | None:
    """Return reserved_at and the default duration, in the unit of the score."""
    time = float(_score(reserved_at) or 0)
    if _S_LEAST <= time < _S_LIMIT:
        time *= 1000
    if time < _MS_LEAST:
        return None
    return str(int((time + to_ms(settings.default_duration)) / settings.unit_ms))


def _shown_score(settings: Settings, score: float) -> str:
    return shown_time(unix_ms(score, settings.unit_ms))


def _as_it_stands(value: bytes | None) -> str:
    return "missing" if value is None else f"{shown(readable(value))!r}" if not value.isdigit() else f"{int(value):,}"
