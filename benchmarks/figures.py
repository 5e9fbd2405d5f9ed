"""Figures of a round, and how several rounds are told in one line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import TypeAlias

Value: TypeAlias = float | str | list[float]
Figures: TypeAlias = dict[str, Value]
Round: TypeAlias = dict[str, Figures]
"""Case -> its figures."""

CDF_POINTS = 200


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that at least so many percent of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def weighted_percentile(values: Sequence[float], percent: float) -> float:
    """Return the percentile where each value weighs as much as it is large.

    Of latencies measured back to back it is the latency that is under way at a random moment: a client
    that waits for a stall cannot send the requests that would have met the same stall.
    """
    ordered = sorted(values)
    wanted, reached = sum(ordered) * percent / 100, 0.0
    for value in ordered:
        reached += value
        if reached >= wanted:
            return value
    return ordered[-1]


def curve(values: Sequence[float]) -> list[float]:
    """Return evenly spaced quantiles: the distribution, small enough to keep."""
    return [round(percentile(values, 100 * point / CDF_POINTS), 4) for point in range(1, CDF_POINTS + 1)]


def number(figures: Figures, name: str) -> float:
    """Return a figure that is a number."""
    value = figures[name]
    if not isinstance(value, int | float):
        raise TypeError(f"{name} is {value!r}, and should be a number")
    return value


def numbers(rounds: Sequence[Round], case: str, name: str) -> list[float]:
    """Return one figure of one case over the rounds that have it."""
    return [number(figures[case], name) for figures in rounds if case in figures and name in figures[case]]


def text(value: float) -> str:
    """Format with three significant digits, and none fewer than the whole part has."""
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(decimals, 4)}f}"


def spread(values: Sequence[float]) -> str:
    """Format as `median (least-most)`; empty where nothing was measured."""
    if not values:
        return ""
    if len(values) == 1 or min(values) == max(values):
        return text(median(values))
    return f"{text(median(values))} ({text(min(values))}\N{EN DASH}{text(max(values))})"
