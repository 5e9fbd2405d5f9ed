"""Lays out what `top` has sampled in lines, for a screen of any size."""

from __future__ import annotations

import time
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from expirer.contract.text import printable
from expirer.operate.snapshot import Snapshot
from expirer.operate.status import HEALTHY, ShardStatus
from expirer.operate.terminal import format_time

STATE_ROW = 1
"""Where the state is."""
_HISTORY = 300
"""Snapshots that the charts go back to."""
_BARS = {True: "▁▂▃▄▅▆▇█", False: "_.-=+*%#"}
_COLUMN = 14
_NAME = 24
"""Columns for the name of who pauses; the rest of the line is for the reason."""
_PAUSES = 3
_STALE_S = 3.0
"""A last snapshot that is older is not the present, whether an error says so or Redis hangs."""


@dataclass(slots=True)
class Page:
    """What is known so far: the last snapshot, what was before, and why there is no newer one."""

    address: str
    snapshot: Snapshot | None = None
    overdue: tuple[int, ...] = ()
    lateness: tuple[int, ...] = ()
    """The worst of each snapshot, ms; 0: nothing expired."""
    error: str = ""
    silent_since: float = field(default_factory=time.monotonic)
    """Of the last snapshot, or the start; monotonic seconds."""
    has_events: bool = True
    """Whether expiry writes the events that lateness is read from."""

    def add(self, seen: Snapshot | str) -> None:
        """Take a new snapshot, or why there is none."""
        if isinstance(seen, str):
            self.error = seen
            return
        worst_ms = seen.lateness[1] if seen.lateness else 0
        self.overdue = (*self.overdue, seen.overdue)[-_HISTORY:]
        self.lateness = (*self.lateness, worst_ms)[-_HISTORY:]
        self.snapshot, self.error, self.silent_since = seen, "", time.monotonic()


def lines(page: Page, width: int, height: int, *, is_unicode: bool = True) -> list[str]:
    """Return at most `height` lines of at most `width` columns."""
    all_lines = list(_head(page, width, _BARS[is_unicode]))
    if page.snapshot is not None:
        all_lines += _sections(page.snapshot, width, height - len(all_lines))
    return [_fit(line, width) for line in all_lines[:height]]


def _head(page: Page, width: int, bars: str) -> Iterator[str]:
    snapshot = page.snapshot
    when = "" if snapshot is None else format_time(snapshot.now)
    yield _spread(f"expirer top  {page.address}", f"{when}  q: quit", width)
    silent_s = time.monotonic() - page.silent_since
    if page.error or silent_s > _STALE_S:
        yield f"no answer for {silent_s:.0f} s{': ' * bool(page.error)}{printable(page.error)}"
    elif snapshot is not None:
        yield _state(snapshot.shards)
    else:
        yield "waiting for an answer"
    if snapshot is None:
        return
    yield ""
    oldest_s = snapshot.oldest_overdue_ms / 1000
    more = " or more" if snapshot.is_partial else ""
    yield f"active       {snapshot.active:,}, {snapshot.quarantined:,} quarantined"
    yield f"overdue      {snapshot.overdue:,}, {snapshot.overdue_units:,} units{more}, the oldest for {oldest_s:,.3f} s"
    rate = "?" if snapshot.rate is None else f"{snapshot.rate:,.1f}"
    late = "none" if page.has_events else "no events"
    if snapshot.lateness is not None:
        late = "{:,} ms median, {:,} ms worst".format(*snapshot.lateness)
    yield f"expired      {rate} per second, lateness {late}"
    yield from _pauses(snapshot)
    yield ""
    yield _chart("overdue", page.overdue, "", width, bars)
    yield _chart("lateness", page.lateness, " ms", width, bars)


def _state(shards: Sequence[ShardStatus]) -> str:
    """Return the state of all shards: what is not healthy, the worst first."""
    numbers: defaultdict[str, list[int]] = defaultdict(list)
    for shard in sorted(shards, key=lambda shard: not shard.problems):
        numbers[printable(shard.state)].append(shard.shard)
    if len(numbers) == 1:
        return next(iter(numbers))
    return ", ".join(f"{_name_shards(some)} {state}" for state, some in numbers.items() if state != HEALTHY)


def _name_shards(shards: Sequence[int]) -> str:
    return f"shard {shards[0]}" if len(shards) == 1 else f"{len(shards)} shards"


def _pauses(snapshot: Snapshot) -> Iterator[str]:
    """Yield who pauses what, until when and why; one line for all shards that were paused together."""
    pauses, today = snapshot.pauses, format_time(snapshot.now)[:11]
    for pause, numbers in pauses[:_PAUSES]:
        name = _fit(printable(pause.by), _NAME) or "nobody named"
        end = "until resumed" if pause.until is None else f"until {format_time(pause.until).removeprefix(today)}"
        label = "braked" if pause.is_brake else "paused"
        yield f"{label}       {_name_shards(numbers)} by {name} {end}: {printable(pause.reason) or 'no reason'}"
    if len(pauses) > _PAUSES:
        yield f"             and {len(pauses) - _PAUSES} more pauses"


def _chart(name: str, values: Sequence[int], unit: str, width: int, bars: str) -> str:
    """Draw the newest values, one column each, the last at the right."""
    most = max(values)
    label = f" at most {most:,}{unit}"
    space = max(width - 13 - len(label), 0)
    steps = [-(-value * (len(bars) - 1) // most) if most else 0 for value in list(values)[-space:]] if space else []
    return f"{name:<13}{''.join(bars[step] for step in steps)}{label}"


def _sections(snapshot: Snapshot, width: int, height: int) -> Iterator[str]:
    """Share the lines among shards, products and workers; what a short table leaves, the longer ones have."""
    tables = [table for table in (_shards(snapshot), _products(snapshot), _workers(snapshot)) if len(table) > 1]
    left = height - 2 * len(tables)
    counts = {}
    for sharing, table in zip(range(len(tables), 0, -1), sorted(tables, key=len), strict=True):
        title = table[0][0]
        counts[title] = min(len(table) - 1, -(-max(left, 0) // sharing))
        left -= counts[title]
    for (title, *names), *rows in tables:
        count = counts[title]
        if not count:
            continue
        yield ""
        cut = f"{title} {count}/{len(rows)}" if count < len(rows) else title
        for name, *values in [[cut, *names], *rows[:count]]:
            yield _spread(name, "".join(f" {_fit(value, _COLUMN - 1):>{_COLUMN - 1}}" for value in values), width)


def _shards(snapshot: Snapshot) -> list[list[str]]:
    if len(snapshot.shards) == 1:
        return []
    rows = [["SHARD", "ACTIVE", "OVERDUE", "OLDEST", "QUARANTINED"]]
    # Unhealthy shards first, then busy ones.
    for shard in sorted(snapshot.shards, key=lambda shard: (not shard.problems, -shard.overdue, shard.shard)):
        oldest = f"{shard.oldest_overdue_ms / 1000:,.3f} s"
        name = f"{shard.shard} {printable(shard.state)}"
        rows.append([name, _number(shard.active), _number(shard.overdue), oldest, _number(shard.quarantined)])
    return rows


def _products(snapshot: Snapshot) -> list[list[str]]:
    is_one = len(snapshot.shards) == 1
    which = f"{snapshot.sampled:,} due first" if is_one else f"first {snapshot.share:,} of each shard"
    rows = ([printable(row.id), _number(row.held), _number(row.overdue)] for row in snapshot.products)
    return [[f"PRODUCT (of the {which})", "UNITS HELD", "OVERDUE"], *rows]


def _workers(snapshot: Snapshot) -> list[list[str]]:
    rows = [["WORKER", "LAST TICK", "VERSION", "CLOCK"]]
    for worker in snapshot.workers:
        ago_s = (snapshot.now - worker.last_tick) / 1000
        last = f"{max(ago_s, 0):,.1f} s ago" if worker.is_live or ago_s > 0 else "in the future"
        clock = "?" if worker.skew_ms is None else _number(-worker.skew_ms, "+", " ms")
        rows.append([printable(worker.id), last, printable(worker.version or "?"), clock])
    return rows


def _number(value: int, sign: str = "", unit: str = "") -> str:
    """Return a number whole, or rounded if a column is too narrow for it: a number is never cut."""
    text = f"{value:{sign},}{unit}"
    return text if len(text) < _COLUMN else f"{value:{sign}.2e}{unit}"


def _spread(left: str, right: str, width: int) -> str:
    """Put one text at the left and one at the right; the left one is cut."""
    space = max(width - _columns(right) - 1, 0)
    left = _fit(left, space)
    return f"{left}{' ' * (space - _columns(left) + 1)}{right}"


def _fit(text: str, width: int) -> str:
    """Return as much of the text as fits into `width` columns."""
    if _columns(text) <= width:
        return text
    used = accumulate(map(_columns, text))
    return "".join(letter for letter, columns in zip(text, used, strict=True) if columns <= width)


def _columns(text: str) -> int:
    """Return how many columns a terminal needs: none for a mark above a letter, two for a Chinese letter."""
    letters = (letter for letter in text if unicodedata.category(letter) not in ("Mn", "Me"))
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in letters)
