"""The curves of the last hour, as SVG paths and in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from expirer.web.format import figure, moment, span

PERIOD_MS = 10_000
HOUR_MS = 3_600_000
_SECOND = 3
"""10 to its power ms are a second."""
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

    title: str
    words: str
    scale: Scale
    curves: dict[str, str]
    """Name -> the path around the area below."""
    gaps: list[tuple[str, str]]
    """Where there are no points: x and width."""


def charts(points: Sequence[Point], now: int, *, has_events: bool) -> list[Chart]:
    """Draw overdue, lateness (where there are events) and rate over the hour before `now`, Unix ms."""
    plot = _Plot([point for point in points if now - HOUR_MS < point.at <= now], now)
    drawn = [
        plot.chart("Overdue reservations", _linear, figure, overdue=lambda point: point.overdue),
        plot.chart(
            "Lateness",
            _decades,
            lambda ms: span(round(ms)),
            worst=lambda point: point.lateness and point.lateness[1],
            median=lambda point: point.lateness and point.lateness[0],
        ),
        plot.chart("Expired per second", _linear, figure, rate=lambda point: point.rate),
    ]
    return drawn if has_events else [drawn[0], drawn[2]]


@dataclass(frozen=True, slots=True)
class _Plot:
    points: list[Point]
    """Of the hour before `now`."""
    now: int

    def chart(
        self, title: str, scale_to: Callable[[float], Scale], text: Callable[[float], str], **values: _Value
    ) -> Chart:
        """Draw values of each point; the first is the largest."""
        largest = next(iter(values.values()))
        known = [(value, point.at) for point in self.points if (value := largest(point)) is not None]
        most, at = max(known, default=(0.0, 0))
        words = "No figures." if not self.points else "Nothing expired." if not known else "0 throughout."
        if most:
            words = f"Last {text(known[-1][0])}, at most {text(most)} at {moment(at, self.now)}."
        scale = scale_to(most)
        curves = {name: self._area(value, scale) for name, value in values.items()}
        return Chart(title, words, scale, curves, list(self._gaps()))

    def _area(self, value: _Value, scale: Scale) -> str:
        """Draw steps, as a value counts for the time before its point; nothing where nothing is known."""
        path, last = "", None
        for point in self.points:
            known = value(point)
            if last and (known is None or point.at - last > _LONGEST_STEP_MS):
                path, last = f"{path}V{HEIGHT}Z", None
            if known is not None:
                start = "" if last else f"M{max(self._x(point.at - PERIOD_MS), 0):.1f} {HEIGHT}"
                path, last = f"{path}{start}V{scale.y(known)}H{self._x(point.at):.1f}", point.at
        return f"{path}V{HEIGHT}Z" if last else path

    def _gaps(self) -> Iterator[tuple[str, str]]:
        for before, after in pairwise([*(point.at for point in self.points), self.now] if self.points else ()):
            if after - before > _LONGEST_STEP_MS:
                yield f"{self._x(before):.1f}", f"{self._x(after) - self._x(before):.1f}"

    def _x(self, at: int) -> float:
        return WIDTH * (1 - (self.now - at) / HOUR_MS)


def _linear(most: float) -> Scale:
    """Scale from 0 to the next of 1, 2, 5, 10, 20 and so on."""
    power = 10.0 ** math.floor(math.log10(most)) if most else 1
    top = next(step * power for step in (1, 2, 5, 10) if step * power >= most)
    return Scale(lambda value: value / top, (f"{top:,.12g}", f"{top / 2:,.12g}", "0"))


def _decades(most: float) -> Scale:
    """Scale by powers of ten, from 1 ms: an outage of minutes must not hide what happens in milliseconds."""
    decades = max(math.ceil(math.log10(max(most, 1))), 1)
    step = math.ceil(decades / _MOST_DECADES)
    decades += -decades % step
    powers = range(decades, -1, -step)
    marks = tuple(f"{10**power} ms" if power < _SECOND else f"{10 ** (power - _SECOND):,} s" for power in powers)
    return Scale(lambda ms: math.log10(max(ms, 1)) / decades, marks)
