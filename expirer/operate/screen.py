"""Lays what `top` has seen out in lines, for a screen of any size."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from expirer.operate.snapshot import Picture
from expirer.operate.status import ShardStatus
from expirer.operate.terminal import shown, shown_time

STATE_ROW, HEALTHY = 1, "healthy"
"""Where the state stands, and how it should be."""
_HISTORY = 300
"""Pictures that the charts go back to."""
_BARS = {True: "▁▂▃▄▅▆▇█", False: "_.-=+*%#"}
_COLUMN = 14
_NAME = 24
"""Columns of the name of who pauses; the rest of the line is for the reason."""
_PAUSES = 3
_STALE_S = 3.0
"""A last picture that is older is not the present, whether an error says so or Redis hangs."""


@dataclass(slots=True)
class View:
    """What is known so far: the last picture, what was before, and why there is no newer one."""

    address: str
    picture: Picture | None = None
    overdue: tuple[int, ...] = ()
    lateness: tuple[int, ...] = ()
    """The worst of each picture, ms; 0: nothing expired."""
    error: str = ""
    silent_since: float = field(default_factory=time.monotonic)
    """Of the last picture, or the start; monotonic seconds."""
    has_events: bool = True
    """Whether expiry writes the events that lateness is read from."""

    def add(self, picture: Picture) -> None:
        """Take note of a new picture."""
        worst_ms = picture.lateness[1] if picture.lateness else 0
        self.overdue = (*self.overdue, picture.overdue)[-_HISTORY:]
        self.lateness = (*self.lateness, worst_ms)[-_HISTORY:]
        self.picture, self.error, self.silent_since = picture, "", time.monotonic()


def lines(view: View, width: int, height: int, *, is_unicode: bool = True) -> list[str]:
    """Return at most `height` lines of at most `width` columns."""
    all_lines = list(_head(view, width, _BARS[is_unicode]))
    if view.picture is not None:
        all_lines += _sections(view.picture, width, height - len(all_lines))
    return [_fit(line, width) for line in all_lines[:height]]


def _head(view: View, width: int, bars: str) -> Iterator[str]:
    picture = view.picture
    when = "" if picture is None else shown_time(picture.now)
    yield _spread(f"expirer top  {view.address}", f"{when}  q: quit", width)
    silent_s = time.monotonic() - view.silent_since
    if view.error:
        yield f"no answer for {silent_s:.0f} s: {shown(view.error)}"
    elif silent_s > _STALE_S:
        yield f"no answer for {silent_s:.0f} s"
    elif picture is not None:
        yield _state(picture.shards)
    else:
        yield "waiting for an answer"
    if picture is None:
        return
    yield ""
    oldest_s = picture.oldest_overdue_ms / 1000
    more = " or more" if picture.is_partial else ""
    yield f"active       {picture.active:,}, {picture.quarantined:,} quarantined"
    yield f"overdue      {picture.overdue:,}, {picture.overdue_units:,} units{more}, the oldest for {oldest_s:,.3f} s"
    rate = "?" if picture.rate is None else f"{picture.rate:,.1f}"
    late = "none" if view.has_events else "no events"
    if picture.lateness is not None:
        late = "{:,} ms median, {:,} ms worst".format(*picture.lateness)
    yield f"expired      {rate} per second, lateness {late}"
    yield from _pauses(picture)
    yield ""
    yield _chart("overdue", view.overdue, "", width, bars)
    yield _chart("lateness", view.lateness, " ms", width, bars)


def _state(shards: Sequence[ShardStatus]) -> str:
    sick = [shard for shard in shards if shard.problems]
    paused = sum(shard.paused is not None for shard in shards)
    if not sick:
        return f"{HEALTHY}, but {paused} of {len(shards)} shards paused" if paused else HEALTHY
    first = f"shard {sick[0].shard}: {'; '.join(sick[0].problems)}"
    return first if len(sick) == 1 else f"{len(sick)} of {len(shards)} shards are not healthy; {first}"


def _pauses(picture: Picture) -> Iterator[str]:
    """Tell who pauses what, until when and why; one line for all shards that were paused together."""
    pauses = picture.pauses
    for pause, numbers in pauses[:_PAUSES]:
        which = f"shard {numbers[0]}" if len(numbers) == 1 else f"{len(numbers)} shards"
        name = _fit(shown(pause.by), _NAME) or "nobody named"
        today = shown_time(picture.now)[:11]
        end = "until resumed" if pause.until is None else f"until {shown_time(pause.until).removeprefix(today)}"
        yield f"paused       {which} by {name} {end}: {shown(pause.reason) or 'no reason'}"
    if len(pauses) > _PAUSES:
        yield f"             and {len(pauses) - _PAUSES} more pauses"


def _chart(name: str, values: Sequence[int], unit: str, width: int, bars: str) -> str:
    """Draw the newest values, one column each, the last at the right."""
    most = max(values)
    label = f" at most {most:,}{unit}"
    space = max(width - 13 - len(label), 0)
    steps = [-(-value * (len(bars) - 1) // most) if most else 0 for value in list(values)[-space:]] if space else []
    return f"{name:<13}{''.join(bars[step] for step in steps)}{label}"


def _sections(picture: Picture, width: int, height: int) -> Iterator[str]:
    """Share the lines among shards, products and workers: one each in turn, as long as they have some."""
    tables = [table for table in (_shards(picture), _products(picture), _workers(picture)) if len(table) > 1]
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


def _shards(picture: Picture) -> list[list[str]]:
    if len(picture.shards) == 1:
        return []
    # The sick first, then the busy.
    shards = sorted(picture.shards, key=lambda shard: (not shard.problems, -shard.overdue, shard.shard))
    return [["SHARD", "ACTIVE", "OVERDUE", "OLDEST", "QUARANTINED"], *map(_shard, shards)]


def _shard(shard: ShardStatus) -> list[str]:
    state = "; ".join(shard.problems) or ("paused" if shard.paused else "healthy")
    oldest = f"{shard.oldest_overdue_ms / 1000:,.3f} s"
    return [f"{shard.shard} {state}", f"{shard.active:,}", f"{shard.overdue:,}", oldest, f"{shard.quarantined:,}"]


def _products(picture: Picture) -> list[list[str]]:
    of = f"{picture.sampled:,} due first" if len(picture.shards) == 1 else f"first {picture.share:,} of each shard"
    title = [f"PRODUCT (of the {of})", "UNITS HELD", "OVERDUE"]
    return [title, *([shown(product.id), f"{product.held:,}", f"{product.overdue:,}"] for product in picture.products)]


def _workers(picture: Picture) -> list[list[str]]:
    """One line for each worker, the last to tick first."""
    rows = [["WORKER", "LAST TICK", "VERSION", "CLOCK"]]
    for worker in picture.workers:
        ago_s = max(picture.now - worker["last_tick"], 0) / 1000
        skew_ms = worker["skew_ms"]
        clock = "?" if skew_ms is None else f"{-skew_ms:+,} ms"
        rows.append([worker["id"], f"{ago_s:,.1f} s ago", worker["version"] or "?", clock])
    return rows


def _spread(left: str, right: str, width: int) -> str:
    """Put one text at the left and one at the right; the left gives way."""
    space = max(width - _columns(right) - 1, 0)
    left = _fit(left, space)
    return f"{left}{' ' * (space - _columns(left) + 1)}{right}"


def _padded(text: str, width: int) -> str:
    return f" {_fit(text, width - 1):>{width - 1}}"


def _fit(text: str, width: int) -> str:
    """Return as much of the text as fits so many columns."""
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
    """Return how many columns a terminal takes for it."""
    return sum(_width(letter) for letter in text)


def _width(letter: str) -> int:
    if unicodedata.category(letter) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1
