"""The traces of a real worker as a real collector gets them, and that nothing waits for one that is not well."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

import expirer
from expirer.observe.traces import are_wanted
from tests.collector import Collector, plain
from tests.conftest import Unhurried
from tests.program import Backlog, Program, wait_until
from tests.servers import RedisServer, free_port

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """Run a collector, and let the environment say where it is."""
    with Collector() as collector:
        monkeypatch.setenv(ENDPOINT, collector.url)
        yield collector


@pytest.fixture
def backlog(own_server: RedisServer) -> Iterator[Backlog]:
    """Return a shop with nothing overdue yet."""
    with own_server.client() as client:
        yield Backlog(client)


def run(server: RedisServer, *flags: str) -> Program:
    """Run a worker with its web process, and wait until that serves."""
    program = Program(server.url, "--http-port", str(free_port()), *flags)
    try:
        program.wait_for("web_started")
    except BaseException:
        program.kill()
        raise
    return program


def expire(backlog: Backlog, server: RedisServer, count: int = 3) -> None:
    """Add overdue reservations, wake the worker, and wait until none is left."""
    backlog.add(count)
    with server.client() as client:
        client.publish(backlog.shop.keys.wake, "1")
        wait_until(lambda: not backlog.left())
    backlog.assert_expired_once()


def test_a_backlog_is_a_span(own_server: RedisServer, backlog: Backlog, collector: Collector) -> None:
    """The drain of a known backlog, begun before the exporter was up, arrives as one span with the right figures."""
    backlog.add(300)
    with run(own_server) as program:
        wait_until(lambda: collector.spans)
        worker = program.of("job_started")[0]["worker"]
    backlog.assert_expired_once()
    (span,) = collector.spans
    (resource,) = collector.resources

    assert ("expirer.drain", Span.SPAN_KIND_INTERNAL, b"") == (span.name, span.kind, span.parent_span_id)
    assert Status.STATUS_CODE_UNSET == span.status.code
    assert 0 < span.start_time_unix_nano < span.end_time_unix_nano
    assert {
        "expirer.shard": 0,
        "expirer.expired_reservations": 300,
        "expirer.expired_units": backlog.stocked.total(),
        "expirer.skipped_reservations": 0,
        "expirer.rescheduled_reservations": 0,
        "expirer.quarantined_reservations": 0,
        "expirer.overdue_reservations": 0,
    } == plain(span.attributes)
    assert {
        "service.name": "expirer",
        "service.version": expirer.__version__,
        "service.instance.id": worker,
    }.items() <= resource.items()
    assert ["/v1/traces"] == [path for path, _ in collector.requests]


def test_each_drain_is_told_once(own_server: RedisServer, backlog: Backlog, collector: Collector) -> None:
    """Over many drains the spans add up to what was expired, each in a trace of its own."""
    with run(own_server):
        for _ in range(5):
            expire(backlog, own_server, 7)
        wait_until(lambda: collector.sums("expirer.expired_reservations") >= 35)

    assert 35 == collector.sums("expirer.expired_reservations")
    assert backlog.stocked.total() == collector.sums("expirer.expired_units")
    assert len(collector.spans) == len({span.trace_id for span in collector.spans})


def test_failed_ticks_are_errors(own_server: RedisServer, backlog: Backlog, collector: Collector) -> None:
    """While Redis is away each tick is a span with the status error and the class; afterwards they are well again."""
    with run(own_server, "--interval", "100ms") as program:
        own_server.stop()
        program.wait_for("processing_error")
        own_server.start()
        expire(backlog, own_server)
        wait_until(lambda: collector.sums("expirer.expired_reservations") == 3)
    failed = [span for span in collector.spans if span.status.code == Status.STATUS_CODE_ERROR]

    assert {"ConnectionError"} == {plain(span.attributes)["error.type"] for span in failed}
    assert "error.type" not in plain(collector.spans[-1].attributes)


def test_the_variables_are_obeyed(
    own_server: RedisServer, backlog: Backlog, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names, resource attributes and headers are those that OpenTelemetry's own variables say."""
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop-expirer")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,service.instance.id=pod-1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=shop%201")
    with run(own_server):
        expire(backlog, own_server)
        wait_until(lambda: collector.spans)

    assert {
        "service.name": "shop-expirer",
        "service.instance.id": "pod-1",
        "deployment.environment.name": "test",
    }.items() <= collector.resources[0].items()
    assert "shop 1" == collector.requests[0][1]["x-tenant"]


def test_a_stop_loses_no_span(
    own_server: RedisServer,
    backlog: Backlog,
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
    unhurried: Unhurried,
) -> None:
    """What was done right before a stop is sent before the end, however rarely batches are sent."""
    unhurried("sidecar._STOP_DEADLINE_S", "observe.beside._LAST_WORDS_S")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")
    with run(own_server) as program:
        expire(backlog, own_server)
        program.signal(signal.SIGTERM)

        assert 0 == program.wait()
    assert 3 == collector.sums("expirer.expired_reservations")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_collector_that_hangs_holds_nobody(
    own_server: RedisServer, backlog: Backlog, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    """A collector that never answers delays no tick and no end: the web process goes with its worker."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3600")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv(ENDPOINT, f"http://127.0.0.1:{silent.getsockname()[1]}")
        with run(own_server) as program:
            web = web_process(program)
            expire(backlog, own_server)
            connection, _ = silent.accept()
            with connection:
                expire(backlog, own_server)
                program.signal(number)

                assert code == program.wait()
                wait_until(lambda: not web.exists() or ") Z " in (web / "stat").read_text())


def test_a_collector_that_is_away_costs_lines_only(
    own_server: RedisServer, backlog: Backlog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody listens ticks go on, the log says why nothing is sent, and no secret is in it."""
    monkeypatch.setenv(ENDPOINT, f"http://127.0.0.1:{free_port()}/?key=s3cret-in-query")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20s3cret-token,s3cret malformed")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "5")
    with run(own_server) as program:
        expire(backlog, own_server)
        wait_until(lambda: any("refused" in entry["message"] for entry in program.of("traces_error")))
        expire(backlog, own_server)

    assert [] == [line for line in program.lines if "s3cret" in line]
    assert any("***" in entry["message"] for entry in program.of("traces_error"))
    assert [] == program.of("not JSON")


def test_a_refusal_is_said(own_server: RedisServer, backlog: Backlog, monkeypatch: pytest.MonkeyPatch) -> None:
    """A collector that refuses is quoted in the log."""
    with Collector(status=401) as collector:
        monkeypatch.setenv(ENDPOINT, collector.url)
        with run(own_server) as program:
            expire(backlog, own_server)

            assert "401" in program.wait_for("traces_error")["message"]


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "OTEL_EXPORTER_OTLP_PROTOCOL=grpc: only http/protobuf is spoken"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "-1", "max_queue_size must be a positive integer"),
    ],
)
def test_a_wrong_variable_is_a_warning(
    own_server: RedisServer,
    backlog: Backlog,
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str,
    reason: str,
) -> None:
    """Variables that cannot be obeyed are one warning; the worker works."""
    monkeypatch.setenv(name, value)
    with run(own_server) as program:
        entry = program.wait_for("traces_off")
        expire(backlog, own_server)

    assert entry["reason"].startswith(reason)
    assert ([], "warning") == (collector.requests, entry["level"])


def test_a_missing_extra_is_a_warning(
    own_server: RedisServer, backlog: Backlog, collector: Collector, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Clusters set the variables for everybody: without the extra one line says how to get it, and the worker works."""
    (tmp_path / "opentelemetry.py").write_text("raise ImportError(\"No module named 'opentelemetry'\")\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with run(own_server) as program:
        entry = program.wait_for("traces_off")
        expire(backlog, own_server)

    assert "No module named 'opentelemetry': pip install 'expirer[otel]'" == entry["reason"]
    assert [] == collector.requests


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({ENDPOINT: ""}, False),
        ({ENDPOINT: "http://c:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://c:4318/v1/metrics"}, False),
        ({ENDPOINT: "http://c:4318", "OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({ENDPOINT: "http://c:4318", "OTEL_TRACES_EXPORTER": "None "}, False),
        ({ENDPOINT: "http://c:4318", "OTEL_SDK_DISABLED": "True"}, False),
        ({ENDPOINT: "http://c:4318", "OTEL_SDK_DISABLED": "no"}, True),
    ],
)
def test_traces_are_wanted_where_the_variables_say_so(environment: dict[str, str], expected: bool) -> None:  # noqa: FBT001
    """An endpoint asks for traces, unless the SDK or the exporter is switched off."""
    assert expected == are_wanted(environment)


def test_the_worker_knows_nothing_of_it() -> None:
    """The worker's process imports nothing that could export; redis-py itself looks for OpenTelemetry's metrics."""
    program = "import sys, expirer.sidecar; print([name for name in sys.modules if 'opentelemetry.exporter' in name])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert "[]\n" == done.stdout


def web_process(program: Program) -> Path:
    """Return the web process's place in /proc."""
    tasks = Path(f"/proc/{program.pid}/task").iterdir()
    (child,) = [pid for task in tasks for pid in (task / "children").read_text().split()]
    return Path(f"/proc/{child}")
