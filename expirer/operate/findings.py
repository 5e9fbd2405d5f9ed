"""Says what is wrong with a reservation or a product, and how it can be repaired, from what was read in one moment."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from expirer.config.durations import to_ms
from expirer.config.settings import Settings
from expirer.contract.clock import unix_ms
from expirer.contract.numbers import MAX, integer
from expirer.contract.shard import Shard
from expirer.contract.text import decode, printable
from expirer.operate.inventory_scan import Row
from expirer.operate.recount import Count
from expirer.operate.terminal import format_time

_MS_LEAST, _S_LEAST, _S_LIMIT = 1e11, 1e9, 1e10
"""A Unix time is in milliseconds from the first on, in seconds between the other two (as expire.lua has it)."""
_CENTURY_MS = 36_525 * 24 * 60 * 60 * 1000
_RECOUNTED = ("reserved_differs", "reserved_invalid", "reserved_negative")
"""What a recount repairs."""
_LONGEST = 60
"""Characters of a stranger's text that are printed."""

_Command = tuple[bytes | str | int, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a reservation or with a product."""

    shard: Shard
    id: bytes
    kind: str
    detail: str
    plan: str = ""
    """What would repair it; empty: what is right cannot be known."""
    commands: tuple[_Command, ...] = ()
    """They repair a reservation: the name of a key of ShardKeys or `reservation` in the second place."""
    counters: dict[str, int] = field(default_factory=dict)
    """They repair the counters of a product."""

    @property
    def id_name(self) -> str:
        """What the id is of: `product_id` if the kind is about counters, else `reservation_id`."""
        return "product_id" if self.kind.startswith(("available_", "reserved_", "stock_")) else "reservation_id"


def judge(shard: Shard, row: Row, now: int) -> list[Finding]:
    """Return what is wrong with a reservation at `now`, Unix ms."""
    return list(_Judgement(shard, row, now).findings())


def is_without_record(row: Row) -> bool:
    """Say whether it went to quarantine because it had no record, and has none."""
    is_known = row.entry.startswith(b"reason=reservation_") and b" retry=" not in row.entry
    return is_known and row.type != "hash" and row.score is None


@dataclass(frozen=True, slots=True)
class _Judgement:
    """What is wrong with one reservation."""

    shard: Shard
    row: Row
    now: int

    def findings(self) -> Iterator[Finding]:
        row, settings = self.row, self.shard.settings
        if row.type != "hash":
            yield from self._of_missing()
        elif row.status == settings.status_active:
            yield from self._of_active()
        else:
            if row.entry and row.score is None:  # a worker removes the entry of a reservation in the index
                yield self._stale(f"it is {printable(row.status[:_LONGEST])}")
            if row.status == settings.status_expired and row.ttl_ms == -1 and settings.retention:
                plan = f"keep it for {settings.retention.total_seconds():g} s more"
                command = ("PEXPIRE", "reservation", to_ms(settings.retention))
                yield self._found("retention_missing", f"{printable(row.status)}, and kept for ever", plan, command)

    def _of_missing(self) -> Iterator[Finding]:
        row = self.row
        lack = "there is no such reservation" if row.type == "none" else f"its key holds a {row.type}"
        if row.entry and row.score is None and not is_without_record(row):
            yield self._stale(lack)
        elif row.score is not None and not row.entry:
            kind = "reservation_missing" if row.type == "none" else "reservation_wrong_type"
            yield self._quarantine(kind, f"in the index, but {lack}")

    def _of_active(self) -> Iterator[Finding]:
        row, detail = self.row, "Active"
        if row.product_id and row.quantity is not None:
            detail = f"Active, holds {row.quantity:,} of {_printable(row.product_id)}"
        if row.ttl_ms is not None and row.ttl_ms >= 0:
            what = f"{detail}, but Redis deletes it in {row.ttl_ms / 1000:,.0f} s: its units would stay reserved"
            yield self._found("active_expires", what, "keep it until it has ended", ("PERSIST", "reservation"))
        if row.entry:
            return  # in quarantine; or something was missing for a moment, and a worker tries it again
        if not row.product_id or row.quantity is None:
            reason = "quantity_invalid" if row.product_id else "product_id_missing"
            yield self._quarantine(reason, "Active, but it cannot be expired")
        elif row.score is None:
            yield self._not_indexed(f"{detail}, not in the index: it would hold them for ever")
        elif row.expires_at and _time(row.expires_at) is None:
            yield self._quarantine("expires_at_invalid", "Active, but it cannot be expired")
        else:
            yield from self._of_times(row.score, _time(row.expires_at), detail)

    def _not_indexed(self, detail: str) -> Finding:
        due = self.row.expires_at
        if _time(due) is None:
            due = _default_due(self.shard.settings, self.row.reserved_at)
        if not due:
            detail += "; nothing says when it is due"
            return self._quarantine("not_indexed", detail, reason="expires_at_invalid")
        if self._implausible(float(due)):
            return self._quarantine("not_indexed", f"{detail}; its time is {due}", reason="unit_mismatch")
        return self._index("not_indexed", detail, due)

    def _of_times(self, score: float, own: float | None, detail: str) -> Iterator[Finding]:
        """Compare the score and expires_at: a time in another unit falls due at once, or never."""
        detail += f", due {self._format(score)} in the index"
        if own not in (None, score):
            detail += f", {self._format(own)} by its {self.shard.settings.field_expires_at}"
        wrong = self._implausible(score) or (own is not None and self._implausible(own))
        if wrong and (own is None or self._implausible(own)):
            yield self._quarantine(wrong, detail, reason="unit_mismatch")
        elif own not in (None, score):
            yield self._index(wrong or "score_differs", detail, self.row.expires_at)

    def _implausible(self, time: float) -> str:
        """Return the kind of finding if a time must be in another unit, else nothing."""
        unit_ms = self.shard.settings.unit_ms
        if time * unit_ms > self.now + _CENTURY_MS:
            return "never_due"
        return "unit_mismatch" if unit_ms == 1 and _S_LEAST <= time < _S_LIMIT else ""

    def _format(self, time: float) -> str:
        if self._implausible(time):
            return f"{time:.17g}"
        return format_time(unix_ms(time, self.shard.settings.unit_ms))

    def _found(self, kind: str, detail: str, plan: str, *commands: _Command) -> Finding:
        return Finding(self.shard, self.row.id, kind, detail, plan, commands)

    def _index(self, kind: str, detail: str, due: str) -> Finding:
        return self._found(
            kind, detail, f"index it, due {self._format(float(due))}", ("ZADD", "index", due, self.row.id)
        )

    def _stale(self, why: str) -> Finding:
        detail = f"in quarantine, but {why}: its units are not counted as held"
        return self._found("quarantine_stale", detail, "remove the entry", ("HDEL", "quarantine", self.row.id))

    def _quarantine(self, kind: str, detail: str, reason: str = "") -> Finding:
        row = self.row
        score = "unknown" if row.score is None else f"{row.score:.17g}"
        note = ("HSET", "quarantine", row.id, f"reason={reason or kind} at={self.now} score={score}")
        return self._found(kind, detail, "quarantine it; then decide by hand", note, ("ZREM", "index", row.id))


def judge_counters(shard: Shard, product_id: bytes, count: Count) -> Finding | None:
    """Return what is wrong with the counters of a product."""
    wrong = _wrong_counters(shard.settings, count)
    if wrong is None:
        return None
    kind, detail = wrong
    counters = _recounted(shard.settings, count) if kind in _RECOUNTED else {}
    if counters is None:
        detail += "; fewer are on hand than are held: count the shelf"
    plan = "set " + ", ".join(f"{name} to {value:,}" for name, value in counters.items()) if counters else ""
    return Finding(shard, product_id, kind, detail, plan, counters=counters or {})


def _wrong_counters(settings: Settings, count: Count) -> tuple[str, str] | None:
    is_plain = count.type == "string" and bool(settings.field_available)
    if not is_plain and (count.type != "hash" or count.texts == (None, None)):
        kind = "stock_missing" if count.type == "hash" else "stock_wrong_type"
        detail = f"reservations hold {count.held:,} of it, and it has no counters"
        return (kind, detail) if count.reservations else None
    if settings.field_available and count.available is None:
        return "available_invalid", f"{settings.field_available} is {_format_counter(count.texts[0])}"
    if settings.field_reserved and not is_plain and count.is_certain and count.reserved != count.held:
        kind = "reserved_differs"
        if count.reserved is None or count.reserved < 0:
            kind = "reserved_invalid" if count.reserved is None else "reserved_negative"
        value = _format_counter(count.texts[1])
        return kind, f"{settings.field_reserved} is {value}, its Active reservations hold {count.held:,}"
    if count.available is not None and count.available < 0:
        return "available_negative", f"{settings.field_available} is {count.available:,}: oversold"
    return None


def _recounted(settings: Settings, count: Count) -> dict[str, int] | None:
    """Return the counters as they should be, None if that cannot be known.

    Reserved is what the Active reservations hold. What is on hand (available and reserved together) stays what it was:
    an audit moves no unit into the warehouse or out of it.
    """
    counters = {settings.field_reserved: count.held}
    if count.available is not None and count.reserved is not None:
        available = count.available + count.reserved - count.held
        if available < min(count.available, 0):
            return None
        counters[settings.field_available] = available
    return counters if max(counters.values()) <= MAX else None


def _time(text: str) -> float | None:
    return float(text) if re.fullmatch(r"(?=.{1,24}$)\d+\.?\d*", text, re.ASCII) else None


def _default_due(settings: Settings, reserved_at: str) -> str:
    """Return reserved_at and the default duration, in the unit of the score; empty: it cannot be read."""
    time = _time(reserved_at) or 0.0
    if _S_LEAST <= time < _S_LIMIT:
        time *= 1000
    return "" if time < _MS_LEAST else f"{(time + to_ms(settings.default_duration)) // settings.unit_ms:.0f}"


def _format_counter(value: bytes | None) -> str:
    number = integer(value)
    return "missing" if value is None else repr(_printable(value)) if number is None else f"{number:,}"


def _printable(value: bytes) -> str:
    text = printable(decode(value))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
