"""What `expirer status` says, and its exit code as a probe."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import redis

from expirer import __version__, cli
from expirer.config.settings import Settings
from expirer.contract.clock import worker_clock
from expirer.contract.keys import ShardKeys
from expirer.worker.worker import Worker
from tests.conftest import Log
from tests.inventory import Inventory
from tests.servers import RedisServer

Operate = Callable[..., tuple[int, str, str]]


@pytest.fixture
def look(shared_server: RedisServer, capsys: pytest.CaptureFixture[str]) -> Operate:
    """Return a function that runs `status` against the real server: exit code, standard output, standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(["status", *arguments, "--redis-url", shared_server.url])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def shop(server_client: redis.Redis) -> Inventory:
    """A shop with a live worker, two overdue reservations of five units in all, and one of tomorrow."""
    shop = Inventory(server_client)
    now = int(worker_clock())
    shop.stock("mug", 0, 6)
    shop.hold("mug", 2, now - 3000)
    shop.hold("mug", 3, now - 8000)
    shop.hold("mug", 1, now + 86_400_000)
    server_client.zadd(shop.keys.workers, {"shop-1:7:ab": now, "old\x1b[2J:7:cd": now - 3_600_000})
    server_client.hset(shop.keys.stats, mapping={"expired": 12, "units": 30})
    server_client.hset(shop.keys.quarantine, "o9:mug", "reason=stock_missing at=1 score=1")
    return shop


def test_it_says_what_is_there(shop: Inventory, look: Operate) -> None:
    """Active, overdue, its age and units, next expiry, quarantine, workers and totals; nothing is changed."""
    code, out, err = look("--json")

    assert (code, err) == (0, "")
    whole = json.loads(out)
    [shard] = whole["shards"]
    assert whole["healthy"] is True
    assert abs(whole["clock_skew_ms"]) < 1000
    assert (shard["active"], shard["overdue"], shard["overdue_units"], shard["quarantined"]) == (3, 2, 5, 1)
    assert 8000 <= shard["oldest_overdue_ms"] < 60_000
    assert shard["next_expires_at"] == max(shop.index().values())
    assert [worker["id"] for worker in shard["workers"]] == ["shop-1:7:ab", "old\\x1b[2J:7:cd"]
    assert shard["totals"] == {"expired": 12, "units": 30}
    assert shard["paused"] is None
    shop.assert_conserved({"mug": 6})


def test_workers_tell_their_version_and_their_clock(shop: Inventory, look: Operate, shared_server: RedisServer) -> None:
    """Each worker stands there with its version, and with how far its clock is from the server's."""
    with shared_server.client() as client:
        worker = Worker(client, Settings(), Log().logger())
        worker.tick()
        worker.tick()

    told = json.loads(look("--json")[1])["shards"][0]["workers"]

    assert {worker.id: __version__, "shop-1:7:ab": None} == {row["id"]: row["version"] for row in told[:2]}
    assert abs(next(row["skew_ms"] for row in told if row["id"] == worker.id)) < 1000
    out = look()[1]
    assert f"  worker       {worker.id}, version {__version__}, last tick 20" in out
    assert " ms behind\n" in out or " ms ahead\n" in out
    shop.assert_conserved({"mug": 6})


def test_a_person_reads_the_same(shop: Inventory, look: Operate) -> None:
    """On a terminal the same stands in lines, without a stranger's control characters."""
    shop.client.hset(shop.keys.control, mapping={"paused": 1, "by": "ann", "reason": "payment\noutage"})

    code, out, _ = look()

    assert code == 0
    assert "shard 0: healthy\n" in out
    assert "  overdue      2, 5 units, the oldest for 8." in out
    assert "  paused       by ann until resumed: payment\\noutage\n" in out
    assert "  totals       expired 12, units 30\n" in out
    assert "\x1b" not in out


def test_an_old_overdue_is_unhealthy_unless_paused(shop: Inventory, look: Operate) -> None:
    """An overdue older than --max-lateness exits 1; under a pause it is what the operator wants."""
    assert look("--max-lateness", "5s")[0] == 1

    shop.client.hset(shop.keys.control, mapping={"paused": 1})

    assert look("--max-lateness", "5s")[0] == 0


def test_a_brake_is_unhealthy(shop: Inventory, look: Operate) -> None:
    """Where a worker has paused the shard by itself somebody must look: it exits 1."""
    shop.client.hset(shop.keys.control, mapping={"paused": 1, "reason": "brake: 2 overdue"})

    code, out, _ = look()

    assert (code, out.splitlines()[0]) == (1, "shard 0: the brake holds")


def test_a_pause_that_has_ended_is_none(shop: Inventory, look: Operate) -> None:
    """A pause whose end has passed is not shown, and excuses nothing."""
    shop.client.hset(shop.keys.control, mapping={"paused": 1, "until": int(worker_clock()) - 1000})

    code, out, _ = look("--max-lateness", "5s")

    assert code == 1
    assert "  paused       no\n" in out


def test_no_live_worker_is_unhealthy(shop: Inventory, look: Operate) -> None:
    """Where the last tick of every worker is older than the interval it exits 1, paused or not."""
    shop.client.zrem(shop.keys.workers, "shop-1:7:ab")

    code, out, _ = look()

    assert code == 1
    assert out.startswith("shard 0: no live worker\n")


def test_the_workers_clock_decides_where_it_is_set(shop: Inventory, look: Operate) -> None:
    """With EXPIRER_CLOCK=worker the age is taken from this machine's clock."""
    [shard] = json.loads(look("--json", "--clock", "worker")[1])["shards"]

    assert (shard["overdue"], shard["problems"]) == (2, [])
    shop.assert_conserved({"mug": 6})


def test_every_shard_and_all_of_them(server_client: redis.Redis, look: Operate) -> None:
    """With shards each has its lines, and a last one sums them up; one sick shard makes the whole unhealthy."""
    first = Inventory(server_client, ShardKeys.of("inventory", 0, 2))
    server_client.zadd(first.keys.workers, {"w": worker_clock()})
    first.hold("mug", expires_at=int(worker_clock()) + 60_000)

    code, out, _ = look("--shards", "2")

    assert code == 1
    assert "shard 0: healthy" in out
    assert "shard 1: no live worker" in out
    assert "all: 1 active; 0 overdue, 0 units, the oldest for 0.000 s; 0 quarantined" in out


def test_damage_does_not_stop_it(shop: Inventory, look: Operate) -> None:
    """A reservation of the wrong type or quantity is left out of the units, and the rest is shown."""
    shop.client.set(shop.keys.reservation_prefix + "o8:mug", "x")
    shop.client.zadd(shop.keys.index, {"o8:mug": 1_700_000_000_000})

    code, out, _ = look("--json", "--max-lateness", "7d")

    [shard] = json.loads(out)["shards"]
    assert (shard["overdue"], shard["overdue_units"]) == (3, 5)
    assert code == 1


@pytest.mark.parametrize("score", ["inf", "-inf", "1e300", "-1e300"])
def test_no_score_is_too_large(server_client: redis.Redis, look: Operate, score: str) -> None:
    """A score or a tick that no calendar has, infinity too, is shown as it is, and stops no verb that looks."""
    keys = Inventory(server_client).keys
    server_client.zadd(keys.index, {"o1:mug": score})
    server_client.zadd(keys.workers, {"w": score})

    code, out, err = look()

    assert (code, err) == (int("-" in score), "")
    assert "9007199254740992 ms" in out
    url = ("--redis-url", f"unix://{server_client.connection_pool.connection_kwargs['path']}")
    assert [0, 0] == [cli.main([*verb, *url]) for verb in (["pending"], ["show", "o1:mug"])]


def test_another_purposes_redis_is_one_line(server_client: redis.Redis, look: Operate) -> None:
    """A Redis where the name of the index belongs to something else is named in one line, exit 1."""
    server_client.set(ShardKeys.of("inventory").index, "x")

    code, out, err = look()

    assert (code, out) == (1, "")
    assert "WRONGTYPE" in err
    assert err.count("\n") == 1
