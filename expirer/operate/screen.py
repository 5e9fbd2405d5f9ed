"""Lays out what `top` has sampled in lines, for a screen of any size."""

from __future__ import annotations

import time
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

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
    if page.error:
        yield f"no answer for {silent_s:.0f} s: {printable(page.error)}"
    elif silent_s > _STALE_S:
        yield f"no answer for {silent_s:.0f} s"
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
    return ", ".join(f"{_named(some)} {state}" for state, some in numbers.items() if state != HEALTHY)


def _named(shards: Sequence[int]) -> str:
    return f"shard {shards[0]}" if len(shards) == 1 else f"{len(shards)} shards"


def _pauses(snapshot: Snapshot) -> Iterator[str]:
    """Yield who pauses what, until when and why; one line for all shards that were paused together."""
    pauses = snapshot.pauses
    for pause, numbers in pauses[:_PAUSES]:
        name = _fit(printable(pause.by), _NAME) or "nobody named"
        today = format_time(snapshot.now)[:11]
        end = "until resumed" if pause.until is None else f"until {format_time(pause.until).removeprefix(today)}"
        label = "braked" if pause.is_brake else "paused"
        yield f"{label}       {_named(numbers)} by {name} {end}: {printable(pause.reason) or 'no reason'}"
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
    """Share the lines among shards, products and workers: one each in turn, until a table is complete."""
    tables = [table for table in (_shards(snapshot), _products(snapshot), _workers(snapshot)) if len(table) > 1]
    rows = [0] * len(tables)
    left = height - 2 * len(tables)
    while left > 0 and any(count < len(table) - 1 for count, table in zip(rows, tables, strict=True)):
        for number, table in enumerate(tables):
            if left > 0 and rows[number] < len(table) - 1:
                rows[number] += 1
                left -= 1
    for count, table in zip(rows, tables, strict=True):
        if count:
            yield ""
            if count < len(table) - 1:
                table[0][0] += f" {count}/{len(table) - 1}"
            for name, *values in table[: count + 1]:
                yield _spread(name, "".join(_padded(value, _COLUMN) for value in values), width)


def _shards(snapshot: Snapshot) -> list[list[str]]:
    if len(snapshot.shards) == 1:
        return []
    # Those with problems first, then the busy.
    shards = sorted(snapshot.shards, key=lambda shard: (not shard.problems, -shard.overdue, shard.shard))
    return [["SHARD", "ACTIVE", "OVERDUE", "OLDEST", "QUARANTINED"], *map(_shard, shards)]


def _shard(shard: ShardStatus) -> list[str]:
    oldest = f"{shard.oldest_overdue_ms / 1000:,.3f} s"
    counts = _number(shard.active), _number(shard.overdue), oldest, _number(shard.quarantined)
    return [f"{shard.shard} {printable(shard.state)}", *counts]


def _products(snapshot: Snapshot) -> list[list[str]]:
    one = len(snapshot.shards) == 1
    title = (
        f"PRODUCT (of the {f'{snapshot.sampled:,} due first' if one else f'first {snapshot.share:,} of each shard'})"
    )
    rows = ([printable(row.id), _number(row.held), _number(row.overdue)] for row in snapshot.products)
    return [[title, "UNITS HELD", "OVERDUE"], *rows]


def _workers(snapshot: Snapshot) -> list[list[str]]:
    rows = [["WORKER", "LAST TICK", "VERSION", "CLOCK"]]
    for worker in snapshot.workers:
        ago_s = (snapshot.now - worker.last_tick) / 1000
        last = f"{ago_s:,.1f} s ago" if worker.is_live or ago_s > 0 else "in the future"
        clock = "?" if worker.skew_ms is None else f"{-worker.skew_ms:+,} ms"
        rows.append([printable(worker.id), last, printable(worker.version or "?"), clock])
    return rows


def _number(value: int) -> str:
    """Return a number whole, or rounded if a column is too narrow for it: a number is never cut."""
    text = f"{value:,}"
    return text if len(text) < _COLUMN else f"{value:.2e}"


def _spread(left: str, right: str, width: int) -> str:
    """Put one text at the left and one at the right; the left one is cut."""
    space = max(width - _columns(right) - 1, 0)
    left = _fit(left, space)
    return f"{left}{' ' * (space - _columns(left) + 1)}{right}"


def _padded(text: str, width: int) -> str:
    return f" {_fit(text, width - 1):>{width - 1}}"


def _fit(text: str, width: int) -> str:
    """Return as much of the text as fits into `width` columns."""
    if _columns(text) <= width:
        return text
    fitting, used = "", 0
    for letter in text:
        used += _columns(letter)
        if used > width:
            break
        fitting += letter
    return fitting


def _columns(text: str) -> int:
    """Return how many columns a terminal needs for the text."""
    return sum(_width(letter) for letter in text)


def _width(letter: str) -> int:
    if unicodedata.category(letter) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1
