"""Says what is wrong with a reservation or a product, and how it can be repaired, from what was read in one moment."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

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

_Command = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a reservation or with a product."""

    shard: Shard
    id: bytes
    kind: str
    detail: str
    plan: str | None = None
    """What the commands do; None: there are none, because what is right cannot be known."""
    commands: tuple[_Command, ...] = ()

    @property
    def id_name(self) -> str:
        """What the id is of: `product_id` or `reservation_id`."""
        return "product_id" if self.kind.startswith(("available_", "reserved_", "stock_")) else "reservation_id"

    @property
    def key(self) -> bytes:
        """The key of the product or of the reservation."""
        keys = self.shard.keys
        return (keys.stock_prefix if self.id_name == "product_id" else keys.reservation_prefix).encode() + self.id

    def fields(self) -> dict[str, Any]:
        """Return it as logs and JSON have it."""
        what = {"shard": self.shard.number, "kind": self.kind, self.id_name: decode(self.id)}
        return {**what, "detail": self.detail, "plan": self.plan}


def is_without_record(row: Row) -> bool:
    """Say whether it went to quarantine because it had no record, and has none."""
    is_known = row.entry.startswith(b"reason=reservation_") and b" retry=" not in row.entry
    return is_known and row.type != "hash" and row.score is None


def judge(row: Row, now: int) -> list[Finding]:
    """Return what is wrong with a reservation at `now`, Unix ms."""
    return list(_Judgement(row, now).findings())


class _Judgement:
    def __init__(self, row: Row, now: int) -> None:
        self._row, self._now = row, now
        self._keys, self._settings = row.shard.keys, row.shard.settings
        self._key = self._keys.reservation_prefix.encode() + row.id

    def findings(self) -> Iterator[Finding]:
        row, retention = self._row, self._settings.retention
        if row.type != "hash":
            yield from self._of_missing()
        elif row.is_active:
            yield from self._of_active()
        else:
            status = printable(row.status[:_LONGEST])
            if row.entry and row.score is None:  # a worker removes the entry of a reservation in the index
                yield self._stale(f"it is {status}")
            if row.status == self._settings.status_expired and row.ttl_ms == -1 and retention:
                plan = f"keep it for {retention.total_seconds():g} s more"
                command = ("PEXPIRE", self._key, to_ms(retention))
                yield self._found("retention_missing", f"{status}, and kept for ever", plan, command)

    def _of_missing(self) -> Iterator[Finding]:
        row = self._row
        is_missing = row.type == "none"
        lack = "there is no such reservation" if is_missing else f"its key holds a {row.type}"
        if row.entry and row.score is None and not is_without_record(row):
            yield self._stale(lack)
        elif row.score is not None and not row.entry:
            kind = "reservation_missing" if is_missing else "reservation_wrong_type"
            yield self._quarantine(kind, f"in the index, but {lack}")

    def _of_active(self) -> Iterator[Finding]:
        row, detail = self._row, "Active"
        if row.product_id and row.quantity is not None:
            detail = f"Active, holds {row.quantity:,} of {_printable(row.product_id)}"
        if row.ttl_ms is not None and row.ttl_ms >= 0:
            what = f"{detail}, but Redis deletes it in {row.ttl_ms / 1000:,.0f} s: its units would stay reserved"
            yield self._found("active_expires", what, "keep it until it has ended", ("PERSIST", self._key))
        if row.entry:
            return  # in quarantine; or something was missing for a moment, and a worker tries it again
        own = _time(row.expires_at)
        if not row.product_id or row.quantity is None:
            kind = "quantity_invalid" if row.product_id else "product_id_missing"
            yield self._quarantine(kind, "Active, but it cannot be expired")
        elif row.score is None:
            yield self._of_not_indexed(f"{detail}, not in the index: it would hold them for ever")
        elif row.expires_at and own is None:
            yield self._quarantine("expires_at_invalid", "Active, but it cannot be expired")
        else:
            yield from self._of_times(row.score, row.score if own is None else own, detail)

    def _of_not_indexed(self, detail: str) -> Finding:
        due = self._row.expires_at
        if _time(due) is None:
            due = _default_due(self._settings, self._row.reserved_at)
        if not due:
            detail += "; nothing says when it is due"
            return self._quarantine("not_indexed", detail, "expires_at_invalid")
        if self._implausible(float(due)):
            return self._quarantine("not_indexed", f"{detail}; its time is {due}", "unit_mismatch")
        return self._index("not_indexed", detail, due)

    def _of_times(self, score: float, own: float, detail: str) -> Iterator[Finding]:
        """Compare the score and expires_at: a time in another unit falls due at once, or never."""
        detail += f", due {self._format(score)} in the index"
        if own != score:
            detail += f", {self._format(own)} by its {self._settings.field_expires_at}"
        if self._implausible(own):
            yield self._quarantine(self._implausible(score) or self._implausible(own), detail, "unit_mismatch")
        elif own != score:
            yield self._index(self._implausible(score) or "score_differs", detail, self._row.expires_at)

    def _implausible(self, time: float) -> str:
        """Return the kind of finding if a time must be in another unit, else nothing."""
        unit_ms = self._settings.unit_ms
        if time * unit_ms > self._now + _CENTURY_MS:
            return "never_due"
        return "unit_mismatch" if unit_ms == 1 and _S_LEAST <= time < _S_LIMIT else ""

    def _format(self, time: float) -> str:
        return f"{time:.17g}" if self._implausible(time) else format_time(unix_ms(time, self._settings.unit_ms))

    def _found(self, kind: str, detail: str, plan: str, *commands: _Command) -> Finding:
        return Finding(self._row.shard, self._row.id, kind, detail, plan, commands)

    def _index(self, kind: str, detail: str, due: str) -> Finding:
        command = ("ZADD", self._keys.index, due, self._row.id)
        return self._found(kind, detail, f"index it, due {self._format(float(due))}", command)

    def _stale(self, why: str) -> Finding:
        detail = f"in quarantine, but {why}: its units are not counted as held"
        command = ("HDEL", self._keys.quarantine, self._row.id)
        return self._found("quarantine_stale", detail, "remove the entry", command)

    def _quarantine(self, kind: str, detail: str, reason: str = "") -> Finding:
        row, keys = self._row, self._keys
        score = "unknown" if row.score is None else f"{row.score:.17g}"
        note = ("HSET", keys.quarantine, row.id, f"reason={reason or kind} at={self._now} score={score}")
        plan = "quarantine it; then decide by hand"
        return self._found(kind, detail, plan, note, ("ZREM", keys.index, row.id))


def judge_counters(shard: Shard, product_id: bytes, count: Count) -> Finding | None:
    """Return what is wrong with the counters of a product."""
    settings = shard.settings
    available = integer(count.available) if settings.field_available else None
    reserved = integer(count.reserved) if settings.field_reserved else None
    wrong = _wrong_counters(settings, count, available, reserved)
    if wrong is None:
        return None
    kind, detail = wrong
    found = Finding(shard, product_id, *wrong)
    if kind not in _RECOUNTED:
        return found
    # Reserved is what the Active reservations hold. What is on hand (available and reserved together) stays what it
    # was: an audit moves no unit into the warehouse or out of it.
    counters = {settings.field_reserved: count.held}
    if available is not None and reserved is not None:
        counters[settings.field_available] = available + reserved - count.held
        if counters[settings.field_available] < min(available, 0):
            return Finding(shard, product_id, kind, f"{detail}; fewer are on hand than are held: count the shelf")
    if max(counters.values()) > MAX:
        return found
    plan = "set " + ", ".join(f"{name} to {value:,}" for name, value in counters.items())
    words = (word for counter in counters.items() for word in counter)
    return Finding(shard, product_id, kind, detail, plan, (("HSET", found.key, *words),))


def _wrong_counters(
    settings: Settings, count: Count, available: int | None, reserved: int | None
) -> tuple[str, str] | None:
    is_plain = count.type == "string" and bool(settings.field_available)
    if not is_plain and (count.type != "hash" or (count.available is None and count.reserved is None)):
        kind = "stock_missing" if count.type == "hash" else "stock_wrong_type"
        detail = f"reservations hold {count.held:,} of it, and it has no counters"
        return (kind, detail) if count.reservations else None
    if settings.field_available and available is None:
        return "available_invalid", f"{settings.field_available} is {_format_counter(count.available)}"
    if settings.field_reserved and not is_plain and count.is_certain and reserved != count.held:
        kind = "reserved_differs"
        if reserved is None or reserved < 0:
            kind = "reserved_invalid" if reserved is None else "reserved_negative"
        value = _format_counter(count.reserved)
        return kind, f"{settings.field_reserved} is {value}, its Active reservations hold {count.held:,}"
    if available is not None and available < 0:
        return "available_negative", f"{settings.field_available} is {available:,}: oversold"
    return None


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
