"""The inventory's figures for Prometheus, read from Redis; no label names an order, a product or a reservation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from redis.exceptions import RedisError

from expirer.connection.connect import Servers
from expirer.contract.reasons import ADVICE
from expirer.contract.shard import Shard
from expirer.operate.status import BRAKED, ShardStatus, read_status

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
    "paused": ("1 while a pause or a brake stops expiry", lambda shard: shard.paused is not None),
    "brake": ("1 while a brake is pulled", lambda shard: BRAKED in shard.problems),
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
    live_workers: Mapping[int, int] = field(default_factory=dict)
    """By shard."""
    skew_ms: int | None = None
    """How far the server's clock is ahead of this machine's or a live worker's: the furthest; None: unknown."""
    is_up: bool = False
    """Whether every shard could be read."""


def read_figures(servers: Servers) -> Figures:
    """Read every shard, several at a time; leave out the ones that cannot be read."""
    until = time.monotonic() + _PATIENCE_S

    def read(shard: Shard) -> tuple[ShardStatus, int, int] | None:
        if time.monotonic() > until:
            return None
        try:
            status = read_status(shard, 0, _COUNTED)
        except (RedisError, OSError):
            return None
        skews = [status.skew_ms, *(worker.skew_ms for worker in status.workers if worker.skew_ms is not None)]
        return status, len(status.workers), max(skews, key=abs)

    with ThreadPoolExecutor(min(len(servers.shards), _AT_ONCE)) as pool:
        rows = [row for row in pool.map(read, servers.shards) if row is not None]
    return Figures(
        shards=tuple(status for status, _, _ in rows),
        live_workers={status.shard: live for status, live, _ in rows},
        skew_ms=max((skew_ms for _, _, skew_ms in rows), key=abs, default=None),
        is_up=len(rows) == len(servers.shards),
    )


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
        yield _gauge("live_workers", "Workers that ticked within their interval and 5 s", figures.live_workers)
        for name, (meaning, value_of) in _GAUGES.items():
            yield _gauge(name, meaning, {shard.shard: value_of(shard) for shard in figures.shards})
        for name, (meaning, total) in _TOTALS.items():
            counter = CounterMetricFamily(f"expirer_shard_{name}", meaning, labels=["shard"])
            for shard in figures.shards:
                counter.add_metric([str(shard.shard)], shard.totals.get(total, 0))
            yield counter
        yield _reasons(figures.shards)


def _gauge(name: str, meaning: str, values: Mapping[int, float | None]) -> GaugeMetricFamily:
    gauge = GaugeMetricFamily(f"expirer_shard_{name}", meaning, labels=["shard"])
    for shard, value in values.items():
        if value is not None:
            gauge.add_metric([str(shard)], value)
    return gauge


def _reasons(shards: Sequence[ShardStatus]) -> CounterMetricFamily:
    name, meaning = "expirer_shard_quarantined_reservations", "Entries put into quarantine, by reason"
    counter = CounterMetricFamily(name, meaning, labels=["shard", "reason"])
    for shard in shards:
        for reason in ADVICE:
            if total := shard.totals.get(f"quarantined:{reason}"):
                counter.add_metric([str(shard.shard), reason], total)
    return counter
