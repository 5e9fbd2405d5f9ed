"""A collector of traces: an OTLP/HTTP receiver that keeps what real exporters send."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span


def plain(attributes: Any) -> dict[str, Any]:  # noqa: ANN401  # protobuf names no type for its lists
    """Return attributes as a dictionary of numbers and text."""
    pairs: list[KeyValue] = list(attributes)
    return {pair.key: getattr(pair.value, str(pair.value.WhichOneof("value"))) for pair in pairs}


class Collector:
    """Listens on a port of its own until the block ends, and answers with a status."""

    def __init__(self, status: int = 200) -> None:
        self.spans: list[Span] = []
        self.resources: list[dict[str, Any]] = []
        self.requests: list[tuple[str, dict[str, str]]] = []
        """Path and headers of each."""
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if status == 200:
                    collector.keep(ExportTraceServiceRequest.FromString(body))
                collector.requests.append((self.path, dict(self.headers)))
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *_: object) -> None:  # noqa: A002  # its name in the library
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        """What OTEL_EXPORTER_OTLP_ENDPOINT should say."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def keep(self, request: ExportTraceServiceRequest) -> None:
        """Keep the spans of one request."""
        for group in request.resource_spans:
            self.resources.append(plain(group.resource.attributes))
            for scope in group.scope_spans:
                self.spans.extend(scope.spans)

    def sums(self, name: str) -> int:
        """Return an attribute's sum over all spans."""
        return sum(plain(span.attributes)[name] for span in list(self.spans))
