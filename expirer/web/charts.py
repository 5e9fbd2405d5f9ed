"""The curves of the last hour, as SVG paths and in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from expirer.web.format import figure, moment, span

PERIOD_MS = 10_000
HOUR_MS = 3_600_000
_SECOND_MS = 1000
WIDTH, HEIGHT = 360, 100
"""Of a drawing, in SVG units: one column for each point."""
_LONGEST_STEP_MS = 3 * PERIOD_MS
"""Between two points; a longer one is a gap, of which nothing is known."""
_LEAST_HEIGHT = 2
"""Of a value above 0."""
_MOST_DECADES = 6
"""With a mark each."""


@dataclass(frozen=True, slots=True)
class Point:
    """How all shards were at a moment."""

    at: int
    """Unix ms by this machine's clock."""
    overdue: int
    lateness: tuple[int, int] | None
    """Median and worst in ms of what expired since the point before; None: nothing did."""
    rate: float | None
    """Expired per second since the point before; None: there is none."""


_Value = Callable[[Point], float | None]
_Run = list[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Curve:
    """The paths of one value: its edge, and the area below."""

    name: str
    edge: str
    area: str


@dataclass(frozen=True, slots=True)
class Scale:
    """The height of a value as a share of the whole, and marks at equal distances, the highest first."""

    share: Callable[[float], float]
    marks: tuple[str, ...]

    @property
    def grid(self) -> list[int]:
        """Where the marks are, from the upper edge."""
        return [HEIGHT * number // (len(self.marks) - 1) for number in range(len(self.marks))]

    def y(self, value: float) -> int:
        """Return where a value is, from the upper edge."""
        return HEIGHT - max(round(HEIGHT * self.share(value)), _LEAST_HEIGHT if value else 0)


@dataclass(frozen=True, slots=True)
class Chart:
    """One drawing, and its text."""

    name: str
    title: str
    words: str
    scale: Scale
    curves: tuple[Curve, ...]
    gaps: tuple[tuple[str, str], ...]
    """Where there are no points: x and width."""


def charts(points: Sequence[Point], now: int, *, has_events: bool) -> list[Chart]:
    """Draw overdue, lateness (where there are events) and rate over the hour before `now`, Unix ms."""
    plot = _Plot([point for point in points if now - HOUR_MS < point.at <= now], now)
    lateness = [plot.chart("lateness", "Lateness", _decades, _ms, worst=_worst, median=_median)] if has_events else []
    return [
        plot.chart("overdue", "Overdue reservations", _linear, figure, overdue=lambda point: point.overdue),
        *lateness,
        plot.chart("rate", "Expired per second", _linear, figure, rate=lambda point: point.rate),
    ]


class _Plot:
    """The points of the hour before `now`."""

    def __init__(self, points: Sequence[Point], now: int) -> None:
        self._points = points
        self._now = now

    def chart(
        self,
        name: str,
        title: str,
        scale: Callable[[float], Scale],
        format_: Callable[[float], str],
        **values: _Value,
    ) -> Chart:
        """Draw values of each point; the first is the largest."""
        largest = next(iter(values.values()))
        known = [(value, point.at) for point in self._points if (value := largest(point)) is not None]
        most, at = max(known, default=(0.0, 0))
        words = "No figures." if not self._points else "Nothing expired." if not known else "0 throughout."
        if most:
            words = f"Last {format_(known[-1][0])}, at most {format_(most)} at {moment(at, self._now)}."
        drawn = scale(most)
        return Chart(
            name=name,
            title=title,
            words=words,
            scale=drawn,
            curves=tuple(self._curve(name, value, drawn) for name, value in values.items()),
            gaps=tuple(self._gaps()),
        )

    def _curve(self, name: str, value: _Value, scale: Scale) -> Curve:
        """Draw steps: a value counts for the time before its point."""
        edges, areas = [], []
        for run in self._runs(value):
            start = f"{max(self._x(run[0][0] - PERIOD_MS), 0):.1f}"
            steps = "".join(f"V{scale.y(known)}H{self._x(at):.1f}" for at, known in run)
            edges.append(f"M{start} {steps[1:]}")
            areas.append(f"M{start} {HEIGHT}{steps}V{HEIGHT}Z")
        return Curve(name, "".join(edges), "".join(areas))

    def _runs(self, value: _Value) -> Iterator[_Run]:
        """Yield the runs of known values that have no gap."""
        run: _Run = []
        for point in self._points:
            known = value(point)
            if run and (known is None or point.at - run[-1][0] > _LONGEST_STEP_MS):
                yield run
                run = []
            if known is not None:
                run.append((point.at, known))
        if run:
            yield run

    def _gaps(self) -> Iterator[tuple[str, str]]:
        for before, after in pairwise([*(point.at for point in self._points), self._now] if self._points else ()):
            if after - before > _LONGEST_STEP_MS:
                yield f"{self._x(before):.1f}", f"{self._x(after) - self._x(before):.1f}"

    def _x(self, at: int) -> float:
        return WIDTH * (1 - (self._now - at) / HOUR_MS)


def _linear(most: float) -> Scale:
    """Scale from 0 to the next of 1, 2, 5, 10, 20 and so on."""
    power = 10.0 ** math.floor(math.log10(most)) if most else 1
    top = next(step * power for step in (1, 2, 5, 10) if step * power >= most)
    return Scale(lambda value: value / top, (_mark(top), _mark(top / 2), "0"))


def _decades(most: float) -> Scale:
    """Scale by powers of ten, from 1 ms: an outage of minutes must not hide what happens in milliseconds."""
    decades = max(math.ceil(math.log10(max(most, 1))), 1)
    step = math.ceil(decades / _MOST_DECADES)
    decades += -decades % step
    marks = tuple(_decade_mark(10**power) for power in range(decades, -1, -step))
    return Scale(lambda ms: math.log10(max(ms, 1)) / decades, marks)


def _mark(value: float) -> str:
    return figure(value) if value >= 1 else f"{value:g}"


def _decade_mark(ms: int) -> str:
    return f"{ms:,} ms" if ms < _SECOND_MS else f"{ms // _SECOND_MS:,} s"


def _ms(value: float) -> str:
    return span(round(value))


def _worst(point: Point) -> int | None:
    return point.lateness[1] if point.lateness else None


def _median(point: Point) -> int | None:
    return point.lateness[0] if point.lateness else None
