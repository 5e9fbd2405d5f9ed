"""`expirer web` as a program: what it answers, to whom, and how it ends, whatever Redis does."""

from __future__ import annotations

import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack

import fakeredis
import pytest
from prometheus_client.parser import text_string_to_metric_families

from expirer import cli
from expirer.config.settings import Settings
from expirer.connection.connect import Servers
from expirer.contract.clock import worker_clock
from expirer.web.server import PORT, is_allowed, routes
from expirer.web.watch import Watch
from expirer.worker.http import Request
from tests.conftest import Log
from tests.inventory import Inventory
from tests.program import DEADLINE_S, Backlog, Program, wait_until
from tests.servers import RedisServer, free_port

pytestmark = pytest.mark.slow


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
    """A program that serves HTTP on a free port: `web`, or a worker (`run`)."""

    def __init__(self, url: str, stack: ExitStack, *flags: str, command: str = "web") -> None:
        self.port = free_port()
        self.program = stack.enter_context(Program(url, "--http-port", str(self.port), *flags, command=command))
        self.program.wait_for("http_started")

    def get(self, path: str, method: str = "GET", headers: dict[str, str] | None = None) -> tuple[int, str]:
        """Return status and body."""
        return get(self.port, path, method, headers)

    def figures(self) -> dict[str, float]:
        """Return the sum of each metric over its labels."""
        totals: dict[str, float] = {}
        for family in text_string_to_metric_families(self.get("/metrics")[1]):
            for sample in family.samples:
                totals[sample.name] = totals.get(sample.name, 0) + sample.value
        return totals


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """End what a test began."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def site(own_server: RedisServer, stack: ExitStack) -> Site:
    """Serve the inventory of a server that the test may break."""
    return Site(own_server.url, stack)


def test_it_shows_the_inventory(own_server: RedisServer, stack: ExitStack) -> None:
    """Page and figures are those of Redis, none of them a worker's: what expired, is paused, overdue, in quarantine."""
    with own_server.client() as client:
        backlog = Backlog(client)
        backlog.add(300)
        with Program(own_server.url) as worker:
            worker.wait_for("processing_completed")
            wait_until(lambda: backlog.left() == 0)
        backlog.assert_expired_once()
        shop = Inventory(client)
        client.hset(shop.keys.control, mapping={"paused": 1, "by": "ann", "reason": "stock count"})
        client.hset(shop.keys.quarantine, "gone:mug", "reason=stock_missing at=1 score=1")
        shop.stock("pen", 0, 3)
        shop.hold("pen", 3, int(worker_clock()) - 60_000)
        site = Site(own_server.url, stack)
        wait_until(lambda: site.get("/readyz") == (200, "ok\n"))
        figures = site.figures()
        shop.assert_conserved({**backlog.stocked, "pen": 3})

    assert {
        "expirer_shard_expired_reservations_total": 300,
        "expirer_shard_expired_units_total": backlog.stocked.total(),
        "expirer_shard_active_reservations": 1,
        "expirer_shard_overdue_reservations": 1,
        "expirer_shard_overdue_units": 3,
        "expirer_shard_quarantined_entries": 1,
        "expirer_shard_paused": 1,
        "expirer_shard_brake": 0,
        "expirer_redis_up": 1,
    }.items() <= figures.items()
    assert figures["expirer_shard_oldest_overdue_seconds"] >= 60
    assert [] == [name for name in figures if name.startswith("expirer_worker_")]
    assert "stock count" in site.get("/")[1]
    assert (404, "there are /, /metrics, /livez, /readyz\n") == site.get("/nowhere")
    assert 405 == site.get("/", "POST")[0]


def test_redis_away_is_said_and_the_program_lives(fake_server: fakeredis.FakeServer, log: Log) -> None:
    """While Redis is away figures are absent, not frozen; /readyz and the page say why; nothing calls for a restart."""
    settings = Settings()
    watch = Watch(Servers.of(fakeredis.FakeRedis(server=fake_server), settings).shards, log.logger())
    paths = routes(watch, settings)

    def ask(path: str) -> tuple[int, str]:
        watch.read()
        answer = paths[path](Request("GET", path, "", {"host": "localhost"}))
        return answer.status, answer.body.decode()

    assert (200, "ok\n") == ask("/readyz")
    assert "expirer_shard_active_reservations{" in ask("/metrics")[1]
    fake_server.connected = False
    code, why = ask("/readyz")
    figures = ask("/metrics")[1]

    assert (503, True) == (code, why.startswith("cannot read Redis: "))
    assert ("expirer_redis_up 0.0" in figures, "expirer_shard_active_reservations{" in figures) == (True, False)
    assert "Cannot read Redis" in ask("/")[1]
    assert (200, "ok\n") == ask("/livez")
    fake_server.connected = True
    assert (200, "ok\n") == ask("/readyz")


def test_no_request_reaches_redis(fake_server: fakeredis.FakeServer, log: Log) -> None:
    """Whatever is asked is answered from what was read last: a crowd costs Redis nothing."""
    settings = Settings()
    watch = Watch(Servers.of(fakeredis.FakeRedis(server=fake_server), settings).shards, log.logger())
    watch.read()
    fake_server.connected = False
    answers = {
        path: route(Request("GET", path, "", {"host": "localhost"})) for path, route in routes(watch, settings).items()
    }

    assert {200} == {answer.status for answer in answers.values()}
    assert b"expirer_redis_up 1.0" in answers["/metrics"].body


@pytest.mark.parametrize("hangs", [False, True])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_answers_and_ends_at_once(
    site: Site, own_server: RedisServer, number: signal.Signals, *, hangs: bool
) -> None:
    """While Redis hangs every path is answered at once, and a signal ends the program within a second."""
    if hangs:
        own_server.signal(signal.SIGSTOP)
    began_at = time.monotonic()
    for path in ("/", "/metrics", "/livez", "/readyz"):
        site.get(path)
    site.program.signal(number)

    assert 0 == site.program.wait()
    assert time.monotonic() - began_at < 1.5


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1:9878", True),
        ("10.1.2.3", True),
        ("[::1]:9878", True),
        ("localhost:9878", True),
        ("LOCALHOST", True),
        ("shop-7.internal", True),
        ("expirer-web.shop.svc:9878", True),
        ("EXPIRER-WEB.shop.svc", True),
        ("evil.example:9878", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("evil.example#@127.0.0.1", False),
        ("[::1", False),
        ("", False),
    ],
)
def test_a_strange_name_reads_nothing(host: str, *, expected: bool) -> None:
    """The page answers to addresses, localhost and the names of the settings: no site reads it by a name of its own."""
    settings = Settings(http_host="shop-7.internal", http_allowed_hosts="expirer-web.shop.svc, page.example.com")

    assert expected == is_allowed(host, settings)
    assert is_allowed(host, Settings(http_allowed_hosts="*")) or host == "[::1"


def test_only_the_page_asks_for_the_name(site: Site) -> None:
    """By a strange name there is no page, but the way out; figures and probes, which name no order, are for all."""
    strange = {"Host": "evil.example"}
    code, text = site.get("/", headers=strange)

    assert (421, True) == (code, "evil.example" in text and "EXPIRER_HTTP_ALLOWED_HOSTS" in text)
    assert 200 == site.get("/livez", headers=strange)[0]
    assert 200 == site.get("/metrics", headers=strange)[0]


def test_no_secret_is_served(own_server: RedisServer, stack: ExitStack) -> None:
    """What is said of a failed login names no password, on no path and in no line of the log."""
    with own_server.client() as client:
        client.config_set("requirepass", "s3cret/t")
    site = Site(f"{own_server.url}?password=wr0ng-pass", stack)
    wait_until(lambda: site.get("/readyz")[0] == 503)
    texts = [site.get(path)[1] for path in ("/", "/readyz", "/metrics", "/livez", "/nowhere")]

    assert "" == "".join(text for text in [*texts, *site.program.lines] if "wr0ng-pass" in text)


def test_it_has_a_port_by_itself(own_server: RedisServer) -> None:
    """Without a port in the settings it takes the one of its help."""
    with Program(own_server.url, command="web") as program:
        assert PORT == program.wait_for("http_started")["port"]


def test_an_address_in_use_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A port that somebody has ends the start with the settings' names and exit code 2."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code = cli.main(["web", "--http-port", str(port)])

    message = f"expirer: EXPIRER_HTTP_HOST=127.0.0.1, EXPIRER_HTTP_PORT={port}: Address already in use\n"
    assert (2, message) == (code, capsys.readouterr().err)


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the extra the start says how to get it."""
    for name in [name for name in sys.modules if name.startswith("expirer.web")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jinja2", None)

    assert 2 == cli.main(["web"])
    assert "expirer: jinja2 is not installed: pip install 'expirer[http]'\n" == capsys.readouterr().err
