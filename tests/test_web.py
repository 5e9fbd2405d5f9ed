"""What is served over HTTP beside a real worker, and what no client and no fault can do to either."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from expirer.config.settings import ConfigurationError, Settings
from expirer.connection.connect import connect
from expirer.contract.clock import worker_clock
from expirer.web import beside
from expirer.worker.process import run
from expirer.worker.worker import Worker
from tests.conftest import Log
from tests.inventory import Inventory
from tests.program import DEADLINE_S, Backlog, Program, wait_until
from tests.servers import RedisServer, free_port


def get(port: int, path: str, method: str = "GET", headers: dict[str, str] | None = None) -> tuple[int, str]:
    """Return status and body."""
    url = f"http://127.0.0.1:{port}{path}"
    request = urllib.request.Request(url, method=method, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:  # noqa: S310  # http only
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


class Site:
    """A worker with its web process, on a port of its own."""

    def __init__(self, url: str, stack: ExitStack, *flags: str) -> None:
        self.port = free_port()
        self.program = stack.enter_context(Program(url, "--http-port", str(self.port), *flags))
        self.program.wait_for("web_started")

    def get(self, path: str, method: str = "GET", headers: dict[str, str] | None = None) -> tuple[int, str]:
        """Return status and body."""
        return get(self.port, path, method, headers)

    def figures(self, accept: str = "") -> dict[str, float]:
        """Return the sum of each metric over its labels."""
        totals: dict[str, float] = {}
        _, body = self.get("/metrics", headers={"Accept": accept})
        for family in text_string_to_metric_families(body):
            for sample in family.samples:
                totals[sample.name] = totals.get(sample.name, 0) + sample.value
        return totals

    def web_pid(self) -> int:
        """Return the id of the web process."""
        tasks = Path(f"/proc/{self.program.pid}/task").iterdir()
        (child,) = [pid for task in tasks for pid in (task / "children").read_text().split()]
        return int(child)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """End what a test began."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def quiet_site(shared_server: RedisServer) -> Iterator[Site]:
    """Run one worker with HTTP for all tests that only ask."""
    with ExitStack() as stack:
        yield Site(shared_server.url, stack)


@pytest.fixture
def site(own_server: RedisServer, stack: ExitStack) -> Site:
    """Run a worker with HTTP on a server of its own."""
    return Site(own_server.url, stack)


def test_the_figures_are_exact(own_server: RedisServer, stack: ExitStack) -> None:
    """After a known backlog the totals of the worker and of the shard are exact, and lateness has each reservation."""
    with own_server.client() as client:
        backlog = Backlog(client)
        backlog.add(300)
        site = Site(own_server.url, stack)
        wait_until(lambda: site.figures()["expirer_shard_expired_reservations_total"] == 300)
        figures = site.figures()
        backlog.assert_expired_once()

    assert {
        "expirer_worker_expired_reservations_total": 300,
        "expirer_worker_expired_units_total": backlog.stocked.total(),
        "expirer_worker_lateness_seconds_count": 300,
        "expirer_shard_expired_units_total": backlog.stocked.total(),
        "expirer_shard_active_reservations": 0,
        "expirer_shard_overdue_reservations": 0,
        "expirer_shard_oldest_overdue_seconds": 0,
        "expirer_shard_live_workers": 1,
        "expirer_redis_up": 1,
    }.items() <= figures.items()


def test_what_is_held_shows(site: Site, own_server: RedisServer) -> None:
    """A pause shows, and behind it what is overdue, for how long, and in how many units; quarantine by its reason."""
    with own_server.client() as client:
        shop = Inventory(client)
        shop.stock("mug", 0, 3)
        shop.hold("gone", 1, int(worker_clock()) - 1)
        client.publish(shop.keys.wake, "1")
        wait_until(shop.quarantine)
        client.hset(shop.keys.control, mapping={"paused": 1, "by": "ann", "reason": "brake: too many"})
        shop.hold("mug", 3, int(worker_clock()) - 60_000)
        wait_until(lambda: site.figures()["expirer_shard_overdue_reservations"] == 1)
        _, text = site.get("/metrics")
        figures = site.figures()
        shop.assert_conserved({"mug": 3}, {})

    assert (1, 1, 1, 3) == tuple(
        figures[f"expirer_shard_{name}"] for name in ("paused", "brake", "overdue_reservations", "overdue_units")
    )
    assert figures["expirer_shard_oldest_overdue_seconds"] >= 60
    assert 'expirer_shard_quarantined_reservations_total{reason="stock_missing",shard="0"} 1.0' in text


def test_redis_away_is_said_and_the_loop_lives(site: Site, own_server: RedisServer) -> None:
    """While Redis is away the shard's figures are absent, not frozen; the worker is alive, and not ready."""
    wait_until(lambda: site.get("/readyz") == (200, "ok\n"))
    own_server.stop()
    wait_until(lambda: site.figures()["expirer_redis_up"] == 0)
    wait_until(lambda: site.get("/readyz")[0] == 503)
    figures = site.figures()
    code, why = site.get("/readyz")

    assert [] == [name for name in figures if name.startswith("expirer_shard_")]
    assert (503, "Redis: ") == (code, why[: len("Redis: ")])
    assert (200, "ok\n") == site.get("/livez")
    own_server.start()
    wait_until(lambda: site.get("/readyz")[0] == 200)


def test_a_redis_that_hangs_holds_no_probe_of_the_loop(own_server: RedisServer, stack: ExitStack) -> None:
    """While requests for figures wait for a Redis that hangs, the loop's probe is answered: it is well."""
    site = Site(own_server.url, stack)
    own_server.signal(signal.SIGSTOP)
    waiting = [socket.create_connection(("127.0.0.1", site.port)) for _ in range(50)]
    for path, connection in zip(["/metrics", "/readyz"] * 25, waiting, strict=True):
        stack.enter_context(connection)
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())

    assert (200, "ok\n") == site.get("/livez")


def test_a_loop_that_stands_still_is_not_alive(own_server: RedisServer, stack: ExitStack) -> None:
    """A worker whose loop does not come back is called dead, by a process that does not stand still with it."""
    url = f"{own_server.url}?socket_timeout=0.01&socket_connect_timeout=0.01"
    site = Site(url, stack, "--interval", "100ms")
    assert (200, "ok\n") == site.get("/livez")
    site.program.signal(signal.SIGSTOP)
    wait_until(lambda: site.get("/livez")[0] == 503)

    assert "the loop should have come back" in site.get("/livez")[1]
    site.program.signal(signal.SIGCONT)
    wait_until(lambda: site.get("/livez")[0] == 200)


def test_it_is_not_ready_before_it_stops(own_server: RedisServer, log: Log) -> None:
    """From the moment that the worker is told to stop it is not ready, while its batch may still be under way."""
    settings = Settings(redis_url=own_server.url, http_port=free_port())
    web = beside.WebProcess(settings, log.logger())
    with connect(settings) as client:
        worker = Worker(client, settings, log.logger(), tally=web.tally)
        web.start(worker.id)
        worker.tick()
        wait_until(lambda: get(settings.http_port, "/readyz") == (200, "ok\n"))
        worker.stop()

        assert (503, "the worker is about to stop\n") == get(settings.http_port, "/readyz")
    web.stop(0)


def test_a_dead_web_process_comes_back(site: Site) -> None:
    """A web process that is killed is started anew; who connects meanwhile is answered by the next."""
    first = site.web_pid()
    os.kill(first, signal.SIGKILL)
    site.program.wait_for("web_ended")

    assert (200, "ok\n") == site.get("/livez")
    assert first != site.web_pid()
    assert -9 == site.program.of("web_ended")[0]["exit_code"]


def test_a_web_process_that_cannot_be_started_is_tried_again(monkeypatch: pytest.MonkeyPatch, log: Log) -> None:
    """Where the machine has no process left the log says so, and the next try serves."""
    popen, failures = subprocess.Popen, [OSError(errno.EAGAIN, "Resource temporarily unavailable")]

    def start(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401  # what Popen takes
        if failures:
            raise failures.pop()
        return popen(*arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", start)
    settings = Settings(http_port=free_port())
    web = beside.WebProcess(settings, log.logger())
    web.start("worker")
    try:
        assert 200 == get(settings.http_port, "/livez")[0]
    finally:
        web.stop(0)
    [ended] = log.of("web_ended")
    assert ("Resource temporarily unavailable", 500) == (ended["error"], ended["retry_in_ms"])


def test_a_web_process_leaves_with_its_worker(site: Site) -> None:
    """A worker killed with SIGKILL takes its web process along: nothing answers for the dead."""
    web = Path(f"/proc/{site.web_pid()}")
    site.program.kill()

    wait_until(lambda: not web.exists() or ") Z " in (web / "stat").read_text())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_processes_stops_in_order(site: Site, number: signal.Signals) -> None:
    """Where the signal goes to both processes, as systemd and a terminal send it, the worker still stops cleanly."""
    os.kill(site.web_pid(), number)
    assert (200, "ok\n") == site.get("/livez")
    site.program.signal(number)

    assert 0 == site.program.wait()
    assert [] == site.program.of("web_ended")


@pytest.mark.parametrize(
    ("path", "method", "expected"),
    [
        ("/", "POST", 405),
        ("/metrics", "DELETE", 405),
        ("/metrics", "OPTIONS", 405),
        ("/livez", "BREW", 405),
        ("/metrics/", "GET", 404),
        ("/../../etc/passwd", "GET", 404),
        ("/%00%ff", "GET", 404),
        ("/" + "x" * 9000, "GET", 404),
        ("/metrics?x=1", "GET", 200),
    ],
)
def test_only_what_there_is_is_answered(quiet_site: Site, path: str, method: str, expected: int) -> None:
    """Unknown paths are not found, and nothing but GET and HEAD is allowed."""
    code, body = quiet_site.get(path, method)

    assert expected == code
    assert "Traceback" not in body


def test_what_is_no_http_is_refused(quiet_site: Site) -> None:
    """Noise, huge headers and huge bodies are refused, and the next client is served."""
    for request, expected in (
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),
        (b"GET /livez HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", b"431"),
        (b"POST /livez HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n", b"413"),
        (b"GET /livez HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"400"),
    ):
        with socket.create_connection(("127.0.0.1", quiet_site.port), DEADLINE_S) as connection:
            connection.sendall(request)
            assert expected in connection.recv(100).splitlines()[0]

    assert (200, "") == quiet_site.get("/livez", "HEAD")


@pytest.mark.parametrize(
    "accept", ["", "*/*", "application/openmetrics-text;version=1.0.0", "text/plain;version=9.x", ";", "\xff"]
)
def test_no_accept_header_is_an_error(quiet_site: Site, accept: str) -> None:
    """Both formats are served, and whatever a client says that it accepts it gets one of them."""
    with socket.create_connection(("127.0.0.1", quiet_site.port), DEADLINE_S) as connection:
        connection.sendall(f"GET /metrics HTTP/1.0\r\nAccept: {accept}\r\n\r\n".encode("latin-1"))
        answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode()

    assert " 200 OK\r\n" in answer
    assert ("openmetrics" in accept) == answer.endswith("# EOF\n")


def test_a_crowd_of_slow_clients_disturbs_no_tick(site: Site, own_server: RedisServer) -> None:
    """While more clients than there is room for sit on half a request, reservations expire as ever."""
    crowd = [socket.socket() for _ in range(700)]
    with own_server.client() as client, ExitStack() as open_:
        descriptors = len(list(Path(f"/proc/{site.program.pid}/fd").iterdir()))
        for one in crowd:
            open_.enter_context(one)
            one.settimeout(0)
            one.connect_ex(("127.0.0.1", site.port))
        for one in crowd[:500]:
            wait_until(partial(_sends, one, b"GET /metrics HTTP/1.1\r\nX: "))
        backlog = Backlog(client)
        backlog.add(5)
        client.publish(backlog.shop.keys.wake, "1")
        site.program.wait_for("processing_completed")

        assert descriptors == len(list(Path(f"/proc/{site.program.pid}/fd").iterdir()))
        backlog.assert_expired_once()
    assert (200, "ok\n") == site.get("/livez")


def test_a_drip_of_bytes_is_cut_off(quiet_site: Site) -> None:
    """A client that drips in its request byte by byte is hung up on, however alive it seems."""
    with socket.create_connection(("127.0.0.1", quiet_site.port), DEADLINE_S) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX: ")
        wait_until(lambda: not _sends(connection, b"x"))


def test_no_secret_is_served(own_server: RedisServer, stack: ExitStack) -> None:
    """What a probe says of a failed login names no password."""
    with own_server.client() as client:
        client.config_set("requirepass", "s3cret/t")
    site = Site(f"{own_server.url}?password=wr0ng-pass", stack)
    wait_until(lambda: site.get("/readyz")[0] == 503)
    texts = [site.get(path)[1] for path in ("/readyz", "/metrics", "/livez", "/nowhere")]

    assert "" == "".join(text for text in texts if "wr0ng-pass" in text)


def test_an_address_in_use_is_one_line() -> None:
    """A port that somebody has stops the start with the settings' names, before Redis is touched."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError) as caught:
            run(Settings(http_port=port))

    assert f"EXPIRER_HTTP_HOST=127.0.0.1, EXPIRER_HTTP_PORT={port}: Address already in use" == str(caught.value)


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch, log: Log) -> None:
    """Without the extra, the start says how to get it."""
    monkeypatch.setattr(beside, "find_spec", lambda name: None if name == "waitress" else name)

    with pytest.raises(ConfigurationError) as caught:
        beside.WebProcess(Settings(http_port=free_port()), log.logger())
    assert "EXPIRER_HTTP_PORT needs waitress: pip install 'expirer[http]'" == str(caught.value)


def _sends(connection: socket.socket, data: bytes) -> bool:
    try:
        return connection.send(data) > 0
    except OSError:
        return False
