"""Metrics for Prometheus: what this worker counted, and what Redis says of every shard.

The name says whose a figure is: `expirer_worker_…` is this worker's alone, `expirer_shard_…` the whole shard's,
the same from whichever worker is asked. None has a label of an order, a product or a reservation.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import redis
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

import expirer
from expirer.config.settings import Settings
from expirer.connection.connect import Servers
from expirer.connection.errors import lacks_right
from expirer.contract.clock import worker_clock
from expirer.contract.keys import shard_keys
from expirer.contract.reasons import ADVICE
from expirer.operate.server import is_live, server_now
from expirer.operate.status import ShardStatus, look_at
from expirer.web.refreshed import Refreshed
from expirer.worker.tally import Histogram, Tally

_COUNTED = 1000
"""Units of so many overdue reservations are summed, the oldest: a scrape must not cost what a backlog costs."""
_PATIENCE_S = 5.0
"""A look at many shards of a server that hangs ends after it; Prometheus waits ten seconds."""
_AT_ONCE = 32
"""Shards of a Cluster that are looked at beside each other."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What Redis said of the shards at a moment: those that could be read."""

    shards: list[ShardStatus]
    live_workers: list[int]
    """Of each of these shards."""
    skew_ms: int | None
    """How far a server's clock is ahead of this machine's, the furthest of them; None: unknown."""
    is_up: bool
    """Whether Redis answered for every shard, be it by a refusal."""
    lacks_right: bool
    """Whether a shard could not be read for want of a right."""


def take_sample(servers: Servers, settings: Settings) -> Sample:
    """Look at every shard, at those of each client beside the others; what cannot be read is left out."""
    lanes = servers.lanes()
    with ThreadPoolExecutor(min(len(lanes), _AT_ONCE)) as pool:
        seen = list(pool.map(partial(_look, servers, settings), lanes))
    looks = [look for some, _ in seen for look in some]
    refused = sum(count for _, count in seen)
    return Sample(
        shards=[shard for shard, _, _ in looks],
        live_workers=[live for _, live, _ in looks],
        skew_ms=max((skew_ms for _, _, skew_ms in looks), key=abs, default=None),
        is_up=len(looks) + refused == settings.shards,
        lacks_right=refused > 0,
    )


def _look(servers: Servers, settings: Settings, numbers: list[int]) -> tuple[list[tuple[ShardStatus, int, int]], int]:
    """Return state, live workers and skew of those that can be read within the patience; how many may not be read."""
    keys = shard_keys(settings)
    until = time.monotonic() + _PATIENCE_S
    looks, refused = [], 0
    for number in numbers:
        client = servers.shards[number].client
        try:
            now = server_now(client, settings)
            skew_ms = now - int(worker_clock())
            shard = look_at(client, settings, number, keys[number], 0, _COUNTED)
        except (redis.RedisError, OSError) as error:
            refused += lacks_right(error)
            if time.monotonic() > until:
                break
        else:
            live = sum(is_live(settings, worker["last_tick"], now) for worker in shard.workers)
            looks.append((shard, live, skew_ms))
    return looks, refused


class Metrics:
    """The text of `/metrics`: asks Redis once a second at most, however often it is scraped."""

    def __init__(self, servers: Servers, settings: Settings, tally: Tally, worker: str, pid: int) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Worker(tally, worker))
        self._registry.register(_Shards(Refreshed(lambda: take_sample(servers, settings))))
        ProcessCollector(pid=lambda: pid, registry=self._registry)

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return the text, and its content type: what the client prefers of the two that there are."""
        try:
            encode, content_type = choose_encoder(accept)
        except Exception:  # noqa: BLE001  # the header is a stranger's, and its parser promises nothing
            encode, content_type = choose_encoder("")
        return encode(self._registry), content_type


class _Worker(Collector):
    def __init__(self, tally: Tally, worker: str) -> None:
        self._tally = tally
        self._info = {
            "version": expirer.__version__,
            "python": platform.python_version(),
            "redis_py": redis.__version__,
            "worker": worker,
        }

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("expirer_worker", "What runs", self._info)
        started = GaugeMetricFamily("expirer_worker_start_time_seconds", "When this worker started, Unix time")
        started.add_metric([], self._tally.started_at)
        yield started
        yield from self._by_shard()
        yield _histogram(
            "expirer_worker_lateness_seconds",
            "How late the units of each reservation came back, after the grace",
            self._tally.lateness,
        )
        yield _histogram(
            "expirer_worker_batch_duration_seconds",
            "From sending a batch to its answer",
            self._tally.batch_duration,
        )

    def _by_shard(self) -> Iterator[Metric]:
        ticks = _counter("expirer_worker_ticks", "Drains that ended, with or without work, errors included")
        conflicts = _counter("expirer_worker_conflicts", "Batches that gave way to an operator's hand")
        errors = _counter("expirer_worker_errors", "Batches that failed, by class", "error")
        expired = _counter("expirer_worker_expired_reservations", "Reservations that this worker expired")
        units = _counter("expirer_worker_expired_units", "Units that this worker gave back")
        success = _gauge("expirer_worker_last_success_timestamp_seconds", "When a batch last succeeded, Unix time")
        for number, shard in enumerate(self._tally.shards()):
            labels = [str(number)]
            ticks.add_metric(labels, shard.ticks)
            conflicts.add_metric(labels, shard.conflicts)
            expired.add_metric(labels, shard.expired)
            units.add_metric(labels, shard.units)
            if shard.succeeded_at:
                success.add_metric(labels, shard.succeeded_at)
            for error, count in shard.errors.items():
                errors.add_metric([*labels, error], count)
        return iter((ticks, conflicts, errors, expired, units, success))


class _Shards(Collector):
    def __init__(self, sample: Refreshed[Sample]) -> None:
        self._sample = sample

    def collect(self) -> Iterator[Metric]:
        sample = self._sample.get()
        up = GaugeMetricFamily("expirer_redis_up", "Whether Redis answered for every shard, be it by a refusal")
        up.add_metric([], sample.is_up)
        yield up
        missing = GaugeMetricFamily("expirer_right_missing", "1 where a shard may not be read: a right is missing")
        missing.add_metric([], sample.lacks_right)
        yield missing
        if sample.skew_ms is not None:
            skew = GaugeMetricFamily(
                "expirer_worker_clock_skew_seconds", "How far the server's clock is ahead of this machine's"
            )
            skew.add_metric([], sample.skew_ms / 1000)
            yield skew
        yield from _gauges(sample)
        yield from _totals(sample)


def _gauges(sample: Sample) -> Iterator[Metric]:
    active = _gauge("expirer_shard_active_reservations", "Reservations in the index")
    overdue = _gauge("expirer_shard_overdue_reservations", "Reservations that are due and not expired")
    units = _gauge("expirer_shard_overdue_units", f"Units of the oldest {_COUNTED} of them at most")
    oldest = _gauge("expirer_shard_oldest_overdue_seconds", "Age of the oldest overdue; 0 where nothing is due")
    quarantined = _gauge("expirer_shard_quarantined_entries", "Entries in quarantine now")
    upcoming = _gauge("expirer_shard_next_expiry_timestamp_seconds", "Next ExpiresAt, Unix time")
    paused = _gauge("expirer_shard_paused", "1 while a pause or a brake holds")
    brake = _gauge("expirer_shard_brake", "1 while a brake holds")
    live = _gauge("expirer_shard_live_workers", "Workers that ticked within their interval")
    for shard, workers in zip(sample.shards, sample.live_workers, strict=True):
        labels = [str(shard.shard)]
        active.add_metric(labels, shard.active)
        overdue.add_metric(labels, shard.overdue)
        units.add_metric(labels, shard.overdue_units)
        oldest.add_metric(labels, shard.oldest_overdue_ms / 1000)
        quarantined.add_metric(labels, shard.quarantined)
        if shard.next_expires_at is not None:
            upcoming.add_metric(labels, shard.next_expires_at / 1000)
        paused.add_metric(labels, shard.paused is not None)
        brake.add_metric(labels, shard.paused is not None and shard.paused.is_brake)
        live.add_metric(labels, workers)
    return iter((active, overdue, units, oldest, quarantined, upcoming, paused, brake, live))


def _totals(sample: Sample) -> Iterator[Metric]:
    families = {
        "expired": _counter("expirer_shard_expired_reservations", "Reservations expired, by all workers, exactly"),
        "units": _counter("expirer_shard_expired_units", "Units given back, by all workers, exactly"),
        "skipped": _counter("expirer_shard_skipped_reservations", "Entries whose reservation had ended before"),
        "rescheduled": _counter("expirer_shard_rescheduled_reservations", "Entries moved to a later ExpiresAt"),
        "batches": _counter("expirer_shard_batches", "Calls of the script that found something due"),
    }
    reasons = _counter("expirer_shard_quarantined_reservations", "Entries put into quarantine, by reason", "reason")
    for shard in sample.shards:
        labels = [str(shard.shard)]
        for name, family in families.items():
            family.add_metric(labels, shard.totals.get(name, 0))
        for reason in ADVICE:
            if total := shard.totals.get(f"quarantined:{reason}"):
                reasons.add_metric([*labels, reason], total)
    return iter((*families.values(), reasons))


def _counter(name: str, meaning: str, *more: str) -> CounterMetricFamily:
    return CounterMetricFamily(name, meaning, labels=["shard", *more])


def _gauge(name: str, meaning: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, meaning, labels=["shard"])


def _histogram(name: str, meaning: str, histogram: Histogram) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, meaning)
    buckets = zip(map(floatToGoString, histogram.bounds), accumulate(histogram.counts), strict=True)
    family.add_metric([], list(buckets), histogram.sum_s)
    return family
