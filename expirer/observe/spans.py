"""Makes spans of drains and sends them, as OpenTelemetry's variables say; imported only where its extra is there."""

from __future__ import annotations

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Status, StatusCode

import expirer
from expirer.tally import Drain


class Spans:
    """Sends spans in batches, on a thread of the SDK's; raises what the SDK does where a variable is wrong."""

    def __init__(self, worker: str) -> None:
        ours = {"service.name": "expirer", "service.version": expirer.__version__, "service.instance.id": worker}
        resource = Resource.create(ours).merge(OTELResourceDetector().detect())  # what the variables say goes first
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("expirer", expirer.__version__)

    def add(self, drain: Drain) -> None:
        """Make a span of a drain; it is sent with the next batch."""
        attributes: dict[str, str | int] = {
            "expirer.shard": drain.shard,
            "expirer.expired_reservations": drain.expired,
            "expirer.expired_units": drain.units,
            "expirer.skipped_reservations": drain.skipped,
            "expirer.rescheduled_reservations": drain.rescheduled,
            "expirer.quarantined_reservations": drain.quarantined,
            "expirer.overdue_reservations": drain.overdue,
        }
        if drain.error:
            attributes["error.type"] = drain.error
        began_at, ended_at = (int(at * 1e9) for at in (drain.began_at, drain.ended_at))
        span = self._tracer.start_span("expirer.drain", Context(), attributes=attributes, start_time=began_at)
        if drain.error:
            span.set_status(Status(StatusCode.ERROR))
        span.end(ended_at)

    def flush(self) -> None:
        """Send what there is; it may take as long as the exporter's time-out."""
        self._provider.force_flush()
