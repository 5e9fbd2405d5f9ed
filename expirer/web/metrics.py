"""The inventory's figures for Prometheus, read from Redis; no label names an order, a product or a reservation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from redis.exceptions import RedisError

from expirer.contract.about import disagreements
from expirer.contract.reasons import ADVICE
from expirer.contract.shard import Shard
from expirer.operate.status import ShardStatus, read_status

_COUNTED = 1000
"""The units of this many overdue reservations are summed, the oldest: a backlog must not make reading it dear."""
_PATIENCE_S = 5.0
"""No shard is begun later than this: a server that hangs costs each shard a time-out."""
_AT_ONCE = 32
_GAUGES: dict[str, tuple[str, Callable[[ShardStatus], float | None]]] = {
    "active_reservations": ("Reservations in the index", lambda shard: shard.active),
    "overdue_reservations": ("Reservations that are due and have not expired", lambda shard: shard.overdue),
    "overdue_units": (f"Units of the oldest {_COUNTED} of them at most", lambda shard: shard.overdue_units),
    "oldest_overdue_seconds": ("Age of the oldest overdue; 0: none", lambda shard: shard.oldest_overdue_ms / 1000),
    "quarantined_entries": ("Entries in quarantine now", lambda shard: shard.quarantined),
    "next_expiry_timestamp_seconds": (
        "Next ExpiresAt, Unix time",
        lambda shard: None if shard.next_expires_at is None else shard.next_expires_at / 1000,
    ),
    "never_due_reservations": (
        "Reservations whose ExpiresAt is more than a century ahead",
        lambda shard: shard.never_due,
    ),
    "live_workers": ("Workers that ticked within their interval and 5 s", lambda shard: len(shard.workers)),
    "disagreements": (
        "Settings that must agree and differ between live workers",
        lambda shard: len(disagreements(worker.about for worker in shard.workers)),
    ),
    "paused": ("1 while a pause or a brake stops expiry", lambda shard: shard.paused is not None),
    "brake": ("1 while a brake stops expiry", lambda shard: shard.paused is not None and shard.paused.is_brake),
}
_TOTALS = {
    "expired_reservations": ("Reservations expired by all workers, exactly", "expired"),
    "expired_units": ("Units given back by all workers, exactly", "units"),
    "skipped_reservations": ("Entries whose reservation had ended before", "skipped"),
    "rescheduled_reservations": ("Entries moved to a later ExpiresAt", "rescheduled"),
    "batches": ("Calls of the script that found something due", "batches"),
}


@dataclass(frozen=True, slots=True)
class Figures:
    """What Redis said of the shards that could be read."""

    shards: tuple[ShardStatus, ...] = ()
    is_up: bool = False
    """Whether every shard could be read."""

    @property
    def skew_ms(self) -> int | None:
        """How far the server's clock is ahead of this machine's or a live worker's: the furthest; None: unknown."""
        workers = (worker.skew_ms for shard in self.shards for worker in shard.workers if worker.skew_ms is not None)
        return max((*(shard.skew_ms for shard in self.shards), *workers), key=abs, default=None)


def read_figures(shards: Sequence[Shard]) -> Figures:
    """Read every shard, several at a time; leave out the ones that cannot be read."""
    until = time.monotonic() + _PATIENCE_S

    def read(shard: Shard) -> ShardStatus | None:
        if time.monotonic() < until:
            with suppress(RedisError, OSError):
                return read_status(shard, 0, _COUNTED)
        return None

    with ThreadPoolExecutor(min(len(shards), _AT_ONCE)) as pool:
        known = tuple(status for status in pool.map(read, shards) if status is not None)
    return Figures(known, is_up=len(known) == len(shards))


class InventoryCollector(Collector):
    """The figures that were read last.

    Args:
        figures: returns them at once, without asking Redis.

    """

    def __init__(self, figures: Callable[[], Figures]) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        """Yield every figure."""
        figures = self._figures()
        yield GaugeMetricFamily("expirer_redis_up", "Whether every shard could be read", value=float(figures.is_up))
        if figures.skew_ms is not None:
            meaning = "How far the clock of Redis is ahead of this machine's or a live worker's: the furthest of them"
            yield GaugeMetricFamily("expirer_clock_skew_seconds", meaning, value=figures.skew_ms / 1000)
        for name, (meaning, value_of) in _GAUGES.items():
            gauge = GaugeMetricFamily(f"expirer_shard_{name}", meaning, labels=["shard"])
            for shard in figures.shards:
                if (value := value_of(shard)) is not None:
                    gauge.add_metric([str(shard.shard)], value)
            yield gauge
        for name, (meaning, total) in _TOTALS.items():
            counter = CounterMetricFamily(f"expirer_shard_{name}", meaning, labels=["shard"])
            for shard in figures.shards:
                counter.add_metric([str(shard.shard)], shard.totals.get(total, 0))
            yield counter
        name, meaning = "expirer_shard_quarantined_reservations", "Entries put into quarantine, by reason"
        reasons = CounterMetricFamily(name, meaning, labels=["shard", "reason"])
        for shard in figures.shards:
            for reason in ADVICE:
                if count := shard.totals.get(f"quarantined:{reason}"):
                    reasons.add_metric([str(shard.shard), reason], count)
        yield reasons
