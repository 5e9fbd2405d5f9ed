"""The curves of the last hour: as SVG paths, and in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from expirer.observe.history import HOUR_MS, PERIOD_MS, Point
from expirer.observe.words import figure, moment, span

WIDTH, HEIGHT = 360, 100
"""Of a drawing, in units of its own: one column for each point."""
_LONGEST_STEP_MS = 3 * PERIOD_MS
"""Between two points; what is longer is a gap, in which nobody knows how it was."""
_LEAST_HEIGHT = 2
"""Of what is more than nothing."""

_Value = Callable[[Point], float | None]
_Run = list[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Curve:
    """The paths of one value: its edge, and what is below."""

    name: str
    edge: str
    area: str


@dataclass(frozen=True, slots=True)
class Chart:
    """One drawing, and what it says."""

    name: str
    title: str
    words: str
    top: str
    """The value at its upper edge; 0 is at the lower."""
    curves: tuple[Curve, ...]
    gaps: tuple[tuple[str, str], ...]
    """Where there are no points: x and width."""


def charts(points: Sequence[Point], now: int, *, has_events: bool) -> list[Chart]:
    """Draw overdue, lateness (where there are events) and rate over the hour before `now`, Unix ms."""
    recent = [point for point in points if now - HOUR_MS < point.at <= now]
    found = [_chart("overdue", "Overdue reservations", recent, now, figure, overdue=lambda point: point.overdue)]
    if has_events:
        found.append(_chart("lateness", "Lateness", recent, now, _ms, worst=_worst, median=_median))
    return [*found, _chart("rate", "Expired per second", recent, now, figure, rate=lambda point: point.rate)]


def _chart(
    name: str, title: str, points: Sequence[Point], now: int, shown: Callable[[float], str], **values: _Value
) -> Chart:
    """Draw values of each point; the first is the largest."""
    largest = next(iter(values.values()))
    known = [(value, point.at) for point in points if (value := largest(point)) is not None]
    most, at = max(known, default=(0.0, 0))
    words = "No figures." if not points else "Nothing expired." if not known else "0 throughout."
    if most:
        words = f"Last {shown(known[-1][0])}, at most {shown(most)} at {moment(at, now)}."
    top = _round_up(most)
    return Chart(
        name=name,
        title=title,
        words=words,
        top=shown(top),
        curves=tuple(_curve(name, list(_runs(points, value)), now, top) for name, value in values.items()),
        gaps=tuple(_gaps(points, now)),
    )


def _runs(points: Sequence[Point], value: _Value) -> Iterator[_Run]:
    """Yield what is known without a gap: when and what."""
    run: _Run = []
    for point in points:
        known = value(point)
        if run and (known is None or point.at - run[-1][0] > _LONGEST_STEP_MS):
            yield run
            run = []
        if known is not None:
            run.append((point.at, known))
    if run:
        yield run


def _curve(name: str, runs: Sequence[_Run], now: int, top: float) -> Curve:
    """Draw steps: a value is that of the time before its point."""
    edges, areas = [], []
    for run in runs:
        start = f"{max(_x(run[0][0] - PERIOD_MS, now), 0):.1f}"
        steps = [f"V{_y(value, top)}H{_x(at, now):.1f}" for at, value in run]
        edges.append(f"M{start} {''.join(steps)[1:]}")
        areas.append(f"M{start} {HEIGHT}{''.join(steps)}V{HEIGHT}Z")
    return Curve(name, "".join(edges), "".join(areas))


def _gaps(points: Sequence[Point], now: int) -> Iterator[tuple[str, str]]:
    for before, after in pairwise([*(point.at for point in points), now] if points else ()):
        if after - before > _LONGEST_STEP_MS:
            yield f"{_x(before, now):.1f}", f"{_x(after, now) - _x(before, now):.1f}"


def _x(at: int, now: int) -> float:
    return WIDTH * (1 - (now - at) / HOUR_MS)


def _y(value: float, top: float) -> int:
    return HEIGHT - max(round(HEIGHT * value / top), _LEAST_HEIGHT if value else 0)


def _round_up(most: float) -> float:
    """Return the next of 1, 2, 5, 10, 20 and so on."""
    if not most:
        return 1
    power = 10.0 ** math.floor(math.log10(most))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= most)


def _ms(value: float) -> str:
    return span(round(value))


def _worst(point: Point) -> int | None:
    return point.lateness[1] if point.lateness else None


def _median(point: Point) -> int | None:
    return point.lateness[0] if point.lateness else None
