"""Renders what the workers of this process counted for Prometheus; no label names an order or a product."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

import redis
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.openmetrics import exposition
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from expirer.version import __version__
from expirer.worker.http import Answer, Request, Route
from expirer.worker.metrics import Histogram, ShardMetrics
from expirer.worker.wake import WakeListener

_PLAIN = "text/plain; version=0.0.4; charset=utf-8"
_COUNTERS = (
    ("ticks", "ticks", "Drains that ended, with or without work"),
    ("conflicts", "conflicts", "Batches cancelled because the control key changed"),
    ("expired", "expired_reservations", "Reservations that this worker expired"),
    ("units", "expired_units", "Units that this worker gave back"),
)
"""Of ShardMetrics: the field, and the name and the meaning of its metric."""


class WorkerCollector(Collector):
    """The figures of a process that runs workers."""

    def __init__(self, id_: str, shards: Sequence[ShardMetrics], listener: WakeListener) -> None:
        versions = {"version": __version__, "python": platform.python_version(), "redis_py": redis.__version__}
        self._info = {**versions, "worker": id_}
        self._shards = shards
        self._listener = listener
        self._started_at = time.time()

    def collect(self) -> Iterator[Metric]:
        """Yield every figure."""
        yield InfoMetricFamily("expirer_worker", "The program that runs", self._info)
        yield GaugeMetricFamily(
            "expirer_worker_start_time_seconds", "When this worker started, Unix time", self._started_at
        )
        yield GaugeMetricFamily(
            "expirer_worker_listening", "1 while wake messages are heard", float(not self._listener.trouble)
        )
        for field, name, meaning in _COUNTERS:
            counter = CounterMetricFamily(f"expirer_worker_{name}", meaning, labels=["shard"])
            for number, shard in enumerate(self._shards):
                counter.add_metric([str(number)], getattr(shard, field))
            yield counter
        errors = CounterMetricFamily("expirer_worker_errors", "Batches that failed", labels=["shard", "error"])
        success = GaugeMetricFamily(
            "expirer_worker_last_success_timestamp_seconds", "When a batch last succeeded, Unix time", labels=["shard"]
        )
        for number, shard in enumerate(self._shards):
            for error, count in list(shard.errors.items()):
                errors.add_metric([str(number), error], count)
            if shard.succeeded_at:
                success.add_metric([str(number)], shard.succeeded_at)
        yield from (errors, success)
        meaning = "How late the units of each reservation came back, after the grace"
        yield _histogram("lateness", meaning, [shard.lateness for shard in self._shards])
        meaning = "Time from sending a batch to reading its reply"
        yield _histogram("batch_duration", meaning, [shard.batch_duration for shard in self._shards])


def metrics_route(collector: Collector) -> Route:
    """Return a route that serves these figures and those of the process, in the format that the client prefers."""
    registry = CollectorRegistry()
    registry.register(collector)
    ProcessCollector(registry=registry)
    in_openmetrics: Callable[[CollectorRegistry], bytes] = exposition.generate_latest

    def answer(request: Request) -> Answer:
        if "application/openmetrics-text" in request.headers.get("accept", ""):
            return Answer(in_openmetrics(registry), content_type=exposition.CONTENT_TYPE_LATEST)
        return Answer(generate_latest(registry), content_type=_PLAIN)

    return answer


def _histogram(name: str, meaning: str, histograms: Sequence[Histogram]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(f"expirer_worker_{name}_seconds", meaning)
    counts = [sum(column) for column in zip(*(histogram.counts for histogram in histograms), strict=True)]
    buckets = zip(map(floatToGoString, histograms[0].bounds), accumulate(counts), strict=True)
    family.add_metric([], list(buckets), sum(histogram.sum_s for histogram in histograms))
    return family
