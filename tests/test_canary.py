"""What `expirer check --canary` finds out, and that it leaves no trace."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from signal import SIGTERM, Signals

import pytest
import redis

from expirer import cli
from expirer.contract.clock import worker_clock
from expirer.contract.keys import ShardKeys
from tests.inventory import Inventory
from tests.program import Program, wait_until
from tests.servers import RedisServer
from tests.test_layouts import OWN_WORDS, PLAIN_COUNTERS, TOTAL_AND_RESERVED, flags

pytestmark = pytest.mark.slow

Fly = Callable[..., tuple[int, str, str]]


@pytest.fixture
def fly(shared_server: RedisServer, capsys: pytest.CaptureFixture[str]) -> Fly:
    """Return a function that lets a canary fly: exit code, standard output, standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(["check", "--canary", *arguments, "--redis-url", shared_server.url])
        return code, *capsys.readouterr()

    return run


def traces(client: redis.Redis) -> list[bytes]:
    """Return every key, index entry and event that a canary has left."""
    left = [key for key in client.scan_iter() if b"expirer-canary" in key]
    for key in client.scan_iter():
        kind = client.type(key)
        if kind == b"zset":
            left += client.zrange(key, 0, -1)
        elif kind == b"stream":
            left += [str(event).encode() for event in client.xrange(key)]  # type: ignore[union-attr]
        elif kind == b"hash":
            left += client.hkeys(key)
    return [name for name in left if b"canary" in name]


def pretend_a_worker(client: redis.Redis, shop: Inventory | None = None) -> None:
    """Write the tick of a worker that is not there."""
    client.zadd((shop or Inventory(client)).keys.workers, {"shop-1:7:abcd": worker_clock()})


@pytest.mark.parametrize("layout", [{}, PLAIN_COUNTERS, TOTAL_AND_RESERVED, OWN_WORDS])
def test_a_live_worker_is_found_punctual(
    server_client: redis.Redis, shared_server: RedisServer, fly: Fly, layout: dict[str, str]
) -> None:
    """In every layout a worker expires it, its lateness is told, and nothing of it stays."""
    with Program(shared_server.url, *flags(layout)) as program:
        program.wait_for("job_started")
        wait_until(lambda: server_client.zcard(ShardKeys.of("inventory").workers))

        code, out, err = fly("--json", *flags(layout))

    assert (code, err) == (0, "")
    result = json.loads(out)
    assert result["finding"] == f"expired {result['lateness_ms']:,} ms late"
    assert 0 <= result["lateness_ms"] < 20_000
    assert traces(server_client) == []


def test_every_shard_has_one(server_client: redis.Redis, shared_server: RedisServer, fly: Fly) -> None:
    """With shards each has a canary of its own, all at the same time, with grace and without events."""
    with Program(shared_server.url, "--shards", "3", "--grace", "1h", "--events-maxlen", "0"):
        wait_until(lambda: all(server_client.zcard(ShardKeys.of("inventory", n, 3).workers) for n in range(3)))

        code, out, _ = fly("--shards", "3", "--grace", "1h", "--events-maxlen", "0")

    assert code == 0
    assert [line.split()[:3] for line in sorted(out.splitlines())] == [["shard", f"{n}:", "expired"] for n in range(3)]
    assert traces(server_client) == []


def test_without_a_worker_nothing_is_reserved(server_client: redis.Redis, fly: Fly) -> None:
    """Where no worker ticks, or none has for longer than the interval, that is said at once."""
    assert fly() == (1, "", "expirer: shard 0: no live worker; no reservation was made\n")

    server_client.zadd(Inventory(server_client).keys.workers, {"shop-1:7:abcd": worker_clock() - 70_000})

    code, _, err = fly()
    assert (code, err.startswith("expirer: shard 0: no live worker: the last tick was at 20")) == (1, True)
    assert traces(server_client) == []


def test_a_pause_is_said(server_client: redis.Redis, fly: Fly) -> None:
    """While a shard is paused no hold is made, and the pause is shown; one that has ended is none."""
    shop = Inventory(server_client)
    server_client.hset(shop.keys.control, mapping={"paused": 1, "by": "ann", "reason": "payment outage"})

    code, _, err = fly()

    assert code == 1
    assert err == "expirer: shard 0: paused by ann until resumed: payment outage; no reservation was made\n"
    server_client.hset(shop.keys.control, mapping={"until": int(worker_clock()) - 1000})
    assert "no live worker" in fly()[2]


def test_a_worker_that_hangs_is_found_out(
    server_client: redis.Redis, fly: Fly, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that ticked a moment ago and expires nothing more: the hold is removed again, exit 1."""
    monkeypatch.setattr("expirer.operate.canary._PATIENCE_S", 0)
    monkeypatch.setattr("expirer.operate.canary._LIFE_MS", 20)
    pretend_a_worker(server_client)

    code, out, _ = fly("--interval", "50ms")

    assert (code, out) == (1, "shard 0: no worker expired it within 0 s\n")
    assert traces(server_client) == []


def test_a_worker_of_another_layout_is_found_out(
    server_client: redis.Redis, shared_server: RedisServer, fly: Fly
) -> None:
    """A worker that knows other field names quarantines it: the reason is told, and the entry removed."""
    with Program(shared_server.url, "--field-quantity", "pieces"):
        wait_until(lambda: server_client.zcard(Inventory(server_client).keys.workers))

        code, out, _ = fly()

    assert code == 1
    assert out.startswith("shard 0: quarantined: reason=quantity_invalid at=")
    assert traces(server_client) == []


def test_a_strangers_job_is_found_out(server_client: redis.Redis, fly: Fly, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where something takes entries out of the index and gives nothing back, that is said."""
    keys = Inventory(server_client).keys
    pretend_a_worker(server_client)
    monkeypatch.setattr("expirer.operate.canary.time.sleep", lambda _: server_client.delete(keys.index))

    code, out, _ = fly()

    assert (code, "something else takes entries out of the index" in out) == (1, True)
    assert traces(server_client) == []


@pytest.mark.parametrize("number", [SIGTERM, signal.SIGINT])
def test_a_signal_removes_it(server_client: redis.Redis, shared_server: RedisServer, number: Signals) -> None:
    """SIGTERM and Ctrl-C while it waits remove the hold, without a traceback."""
    shop = Inventory(server_client)
    pretend_a_worker(server_client)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EXPIRER_")}
    command = [sys.executable, "-m", "expirer", "check", "--canary", "--redis-url", shared_server.url]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment) as process:
        wait_until(lambda: server_client.zcard(shop.keys.index))
        process.send_signal(number)
        _, err = process.communicate(timeout=20)

    assert (process.returncode, err) == (1 if number == SIGTERM else 130, b"")
    assert traces(server_client) == []


def test_what_a_killed_one_leaves_goes_by_itself(server_client: redis.Redis, shared_server: RedisServer) -> None:
    """After SIGKILL its hold is an ordinary one that the next worker expires, and its product has a TTL."""
    shop = Inventory(server_client)
    pretend_a_worker(server_client)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EXPIRER_")}
    command = [sys.executable, "-m", "expirer", "check", "--canary", "--redis-url", shared_server.url]
    with subprocess.Popen(command, env=environment) as process:
        wait_until(lambda: server_client.zcard(shop.keys.index))
        process.kill()
    with Program(shared_server.url, "--retention", "0"):
        wait_until(lambda: not server_client.zcard(shop.keys.index))

    [left] = [key for key in server_client.scan_iter() if b"expirer-canary" in key]
    assert left.startswith(shop.keys.stock_prefix.encode())
    assert server_client.ttl(left) > 0


def test_its_shop_is_left_alone(server_client: redis.Redis, shared_server: RedisServer, fly: Fly) -> None:
    """Reservations beside it stay what they are, and the law holds."""
    shop = Inventory(server_client)
    shop.stock("mug", 7, 3)
    shop.hold("mug", 3, 4_000_000_000_000)
    with Program(shared_server.url):
        wait_until(lambda: server_client.zcard(shop.keys.workers))

        assert fly()[0] == 0

    assert len(shop.index()) == 1
    shop.assert_conserved({"mug": 10})
