"""Counts what a worker does, and says whether it lives and is ready."""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from expirer.worker.batch import Batch

LATENESS_BOUNDS_S = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0),
    *(60.0, 300.0, 900.0, 3600.0, math.inf),
)
BATCH_BOUNDS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, math.inf)


class Histogram:
    """How many values were at most each bound (seconds, the last is infinity) and above the one before; their sum."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * len(bounds)
        self.sum_s = 0.0

    def observe(self, values: Sequence[float]) -> None:
        """Count values in seconds."""
        if not values:
            return
        first, last = bisect_left(self.bounds, min(values)), bisect_left(self.bounds, max(values))
        if first == last:  # nearly always: a batch is of one moment
            self.counts[first] += len(values)
        else:
            for value in values:
                self.counts[bisect_left(self.bounds, value)] += 1
        self.sum_s += sum(values)


@dataclass(slots=True)
class ShardMetrics:
    """What a worker did on its shard: `…_at` is Unix seconds, `…_s` monotonic seconds, 0: never."""

    ticks: int = 0
    conflicts: int = 0
    expired: int = 0
    units: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    """By class."""
    failures: int = 0
    """Since the last batch that succeeded."""
    why: str = ""
    """What the last failure said, without secrets."""
    succeeded_at: float = 0.0
    succeeded_s: float = 0.0
    due_back_s: float = 0.0
    lateness: Histogram = field(default_factory=lambda: Histogram(LATENESS_BOUNDS_S))
    batch_duration: Histogram = field(default_factory=lambda: Histogram(BATCH_BOUNDS_S))

    def expect_back(self, within_s: float) -> None:
        """Note that the loop, if it lives, is back within this time."""
        self.due_back_s = time.monotonic() + within_s

    def count_batch(self, batch: Batch) -> None:
        """Count what a batch did, how late and how long; it succeeded."""
        counts = batch.counts
        self.expired += counts.expired
        self.units += counts.units
        self.failures = 0
        self.succeeded_at, self.succeeded_s = time.time(), time.monotonic()
        self.batch_duration.observe([batch.elapsed_s])
        self.lateness.observe([ms / 1000 for ms in batch.lateness_ms])

    def count_error(self, error: Exception, why: str) -> None:
        """Count a batch that failed, and keep what it said."""
        self.errors[type(error).__name__] += 1
        self.failures += 1
        self.why = why


def why_not_alive(shards: Sequence[ShardMetrics]) -> str:
    """Say how long a loop has been away longer than it can be; empty: all are well.

    A Redis that is away is met, logged and tried again by a loop that is well.
    """
    now = time.monotonic()
    late_s = max((now - shard.due_back_s for shard in shards if shard.due_back_s), default=0.0)
    return f"the loop should have come back {late_s:.0f} s ago" if late_s > 0 else ""


def why_not_ready(shards: Sequence[ShardMetrics], longest_s: float) -> list[str]:
    """Say what is in the way, a line for each shard; `longest_s` is how old a last tick may be."""
    return [f"shard {number}: {why}" for number, shard in enumerate(shards) if (why := _trouble(shard, longest_s))]


def _trouble(shard: ShardMetrics, longest_s: float) -> str:
    if shard.failures:
        ticks = f"{shard.failures} ticks" if shard.failures > 1 else "tick"
        return f"the last {ticks} failed: {shard.why}"
    if not shard.succeeded_s:
        return "no tick yet"
    age_s = time.monotonic() - shard.succeeded_s
    return f"the last tick was {age_s:.0f} s ago" if age_s > longest_s else ""
