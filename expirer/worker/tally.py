"""Counts what a worker does, in memory that the process which serves HTTP can read."""

from __future__ import annotations

import math
import mmap
import threading
import time
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from redis import exceptions

from expirer.worker.batch import Batch, Tick

LATENESS_BOUNDS_S = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0),
    *(60.0, 300.0, 900.0, 3600.0),
)
BATCH_BOUNDS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)

ERRORS = (
    *sorted(name for name, kind in vars(exceptions).items() if isinstance(kind, type) and issubclass(kind, Exception)),
    *("OSError", "other"),
)
"""The classes that are told apart: as many rows as there are names in redis-py, and no more."""

_SHARD_FIELDS = (
    *("ticks", "conflicts", "expired", "units", "failures"),
    *("succeeded_at", "succeeded_s", "due_back_s"),
)
_ROW = len(_SHARD_FIELDS) + len(ERRORS)
_WORKER_FIELDS = ("started_at", "is_stopping")

_WHY_BYTES = 512
"""So much of the text of a shard's last error is kept; a multiple of eight."""

DRAINS = 1024
"""So many drains are kept, less the one that may be half written: ten seconds of the busiest shard."""
_DRAIN_ROW = 10


@dataclass(frozen=True, slots=True)
class ShardCounts:
    """What a worker did on one shard; `…_at` is Unix seconds, `…_s` seconds of the monotonic clock, 0: never."""

    ticks: int
    conflicts: int
    expired: int
    units: int
    failures: int
    """Since the last batch that succeeded."""
    succeeded_at: float
    succeeded_s: float
    due_back_s: float
    """By when the loop that begins with this shard should be back; 0: none begins with it."""
    errors: dict[str, int]
    """Class -> count, of those that were met."""
    why: str
    """What the last of them said, as far as it is kept."""


@dataclass(frozen=True, slots=True)
class Drain:
    """What a drain did that did something or failed; `…_at` is Unix seconds."""

    shard: int
    began_at: float
    ended_at: float
    expired: int
    units: int
    skipped: int
    rescheduled: int
    quarantined: int
    overdue: int
    """Left in the index."""
    error: str
    """The class of what it failed with; empty: nothing."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many were at most each bound (seconds, the last is infinity) and above the one before; their sum."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum_s: float


class Tally:
    """Figures of one worker: one process writes, any process that maps the same memory reads, and one takes drains.

    Each figure is one aligned double, so none is ever read half written; counts are exact up to 2**53. The text of an
    error is copied in one piece, and may be met half way: the next reading has it whole.
    Writing takes no system call and waits for no reader.

    Args:
        shards: how many the worker has.
        descriptor: of a file of `Tally.size(shards)` bytes, all zero at first; -1: memory of this process alone.

    """

    def __init__(self, shards: int, descriptor: int = -1) -> None:
        self._bytes = memoryview(mmap.mmap(descriptor, self.size(shards)))
        self._whys_at = self.size(shards) - shards * _WHY_BYTES
        self._numbers = self._bytes[: self._whys_at].cast("d")
        self._shards = shards
        self._lateness_at = shards * _ROW
        self._batch_at = self._lateness_at + len(LATENESS_BOUNDS_S) + 2
        self._worker_at = self._batch_at + len(BATCH_BOUNDS_S) + 2
        self._drained_at = self._worker_at + len(_WORKER_FIELDS)
        self._taken_at = self._drained_at + 1
        self._drains_at = self._taken_at + 1
        self._lock = threading.Lock()
        """A shard has one writer, the histograms and the drains may have several."""

    @staticmethod
    def size(shards: int) -> int:
        """Return the bytes that the figures of so many shards take."""
        histograms = len(LATENESS_BOUNDS_S) + len(BATCH_BOUNDS_S) + 4
        drains = 2 + DRAINS * _DRAIN_ROW
        return 8 * (shards * _ROW + histograms + len(_WORKER_FIELDS) + drains) + shards * _WHY_BYTES

    def start(self) -> None:
        """Note that the worker begins."""
        self._numbers[self._worker_at] = time.time()

    def stop(self) -> None:
        """Note that the worker is about to stop; safe in a signal handler."""
        self._numbers[self._worker_at + 1] = 1.0

    def expect_back(self, shard: int, within_s: float) -> None:
        """Note that the loop which begins with this shard, if it lives, is back within so many seconds."""
        self._set(shard, "due_back_s", time.monotonic() + within_s)

    def count_batch(self, shard: int, batch: Batch) -> None:
        """Count what a batch did, how late and how long; it succeeded."""
        counts = batch.counts
        self._add(shard, "expired", counts.expired)
        self._add(shard, "units", counts.units)
        self._set(shard, "failures", 0)
        self._set(shard, "succeeded_at", time.time())
        self._set(shard, "succeeded_s", time.monotonic())
        lateness_s = [ms / 1000 for ms in batch.lateness_ms]
        with self._lock:
            self._observe(self._batch_at, BATCH_BOUNDS_S, [batch.elapsed_s])
            self._observe(self._lateness_at, LATENESS_BOUNDS_S, lateness_s)

    def count_conflict(self, shard: int) -> None:
        """Count a batch that the operator's hand was faster than."""
        self._add(shard, "conflicts", 1)

    def count_error(self, shard: int, error: Exception, why: str) -> None:
        """Count a batch that failed, by the class of the error, and keep what it said: a text without secrets."""
        start = self._whys_at + shard * _WHY_BYTES
        text = (why or type(error).__name__).encode(errors="replace")[:_WHY_BYTES]
        self._bytes[start : start + _WHY_BYTES] = text.ljust(_WHY_BYTES, b"\0")
        self._numbers[shard * _ROW + len(_SHARD_FIELDS) + _error_number(error)] += 1
        self._add(shard, "failures", 1)

    def count_drain(self, shard: int, done: Tick, elapsed_s: float, error: Exception | None = None) -> None:
        """Count a drain that ended, however it did; keep it for `take_drains` where it did something or failed."""
        self._add(shard, "ticks", 1)
        if not done.due and error is None:
            return
        now = time.time()
        number = -1 if error is None else _error_number(error)
        counts = (done.expired, done.units, done.skipped, done.rescheduled, done.quarantined, done.overdue)
        row = array("d", (shard, now - elapsed_s, now, *counts, number))
        with self._lock:
            drained = self._numbers[self._drained_at]
            start = self._drains_at + int(drained) % DRAINS * _DRAIN_ROW
            self._numbers[start : start + _DRAIN_ROW] = row
            self._numbers[self._drained_at] = drained + 1

    @property
    def started_at(self) -> float:
        """When the worker began, Unix seconds."""
        return self._numbers[self._worker_at]

    @property
    def is_stopping(self) -> bool:
        """Whether the worker was told to stop."""
        return self._numbers[self._worker_at + 1] != 0

    @property
    def lateness(self) -> Histogram:
        """How late the reservations expired."""
        return self._histogram(self._lateness_at, LATENESS_BOUNDS_S)

    @property
    def batch_duration(self) -> Histogram:
        """How long the batches took, from sending to reading the answer."""
        return self._histogram(self._batch_at, BATCH_BOUNDS_S)

    def shards(self) -> Iterator[ShardCounts]:
        """Yield the counts of each shard."""
        for shard in range(self._shards):
            row = self._numbers[shard * _ROW : (shard + 1) * _ROW].tolist()
            ticks, conflicts, expired, units, failures = map(int, row[:5])
            succeeded_at, succeeded_s, due_back_s = row[5 : len(_SHARD_FIELDS)]
            counted = zip(ERRORS, map(int, row[len(_SHARD_FIELDS) :]), strict=True)
            errors = {name: count for name, count in counted if count}
            at = self._whys_at + shard * _WHY_BYTES
            why = bytes(self._bytes[at : at + _WHY_BYTES]).rstrip(b"\0").decode(errors="ignore")
            yield ShardCounts(
                ticks, conflicts, expired, units, failures, succeeded_at, succeeded_s, due_back_s, errors, why
            )

    def take_drains(self) -> tuple[list[Drain], int]:
        """Return the drains since the last call, in whichever process that was, and how many were lost before them.

        One reader at a time: it leaves in the memory how far it came, for itself or who comes after it.
        """
        taken, drained = int(self._numbers[self._taken_at]), int(self._numbers[self._drained_at])
        numbers = range(max(taken, drained - DRAINS), drained)
        starts = (self._drains_at + number % DRAINS * _DRAIN_ROW for number in numbers)
        rows = [self._numbers[start : start + _DRAIN_ROW].tolist() for start in starts]
        # The writer went on meanwhile, and may be half way through one more.
        whole_from = int(self._numbers[self._drained_at]) + 1 - DRAINS
        whole = rows[max(0, whole_from - numbers.start) :]
        self._numbers[self._taken_at] = drained
        return [_drain(row) for row in whole], drained - taken - len(whole)

    def _add(self, shard: int, field: str, amount: int) -> None:
        self._numbers[shard * _ROW + _FIELD_NUMBERS[field]] += amount

    def _set(self, shard: int, field: str, number: float) -> None:
        self._numbers[shard * _ROW + _FIELD_NUMBERS[field]] = number

    def _observe(self, start: int, bounds: tuple[float, ...], values: Sequence[float]) -> None:
        if not values:
            return
        first, last = bisect_left(bounds, min(values)), bisect_left(bounds, max(values))
        if first == last:  # nearly always: a batch is of one moment
            self._numbers[start + first] += len(values)
        else:
            for value in values:
                self._numbers[start + bisect_left(bounds, value)] += 1
        self._numbers[start + len(bounds) + 1] += sum(values)

    def _histogram(self, start: int, bounds: tuple[float, ...]) -> Histogram:
        *counts, sum_s = self._numbers[start : start + len(bounds) + 2].tolist()
        return Histogram((*bounds, math.inf), tuple(map(int, counts)), sum_s)


_ERROR_NUMBERS = {name: number for number, name in enumerate(ERRORS)}
_FIELD_NUMBERS = {name: number for number, name in enumerate(_SHARD_FIELDS)}


def _error_number(error: Exception) -> int:
    names = (kind.__name__ for kind in type(error).__mro__)
    return _ERROR_NUMBERS[next((name for name in names if name in _ERROR_NUMBERS), "other")]


def _drain(row: Sequence[float]) -> Drain:
    expired, units, skipped, rescheduled, quarantined, overdue = map(int, row[3:9])
    outcomes = expired, units, skipped, rescheduled, quarantined, overdue
    return Drain(int(row[0]), row[1], row[2], *outcomes, "" if row[9] < 0 else ERRORS[int(row[9])])
