"""What `expirer status` says, and its exit code as a probe."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis

from expirer import __version__, cli
from expirer.config.settings import Settings
from expirer.connection.connect import Servers
from expirer.contract import control
from expirer.contract.clock import worker_clock
from expirer.contract.keys import ShardKeys
from expirer.operate.screen import Page, lines
from expirer.operate.snapshot import Sampler
from expirer.operate.status import read_status
from expirer.worker.worker import Worker
from tests.conftest import Log
from tests.inventory import Inventory
from tests.servers import RedisServer

Operate = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run_status(shared_server: RedisServer, capsys: pytest.CaptureFixture[str]) -> Operate:
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


def test_it_says_what_is_there(shop: Inventory, run_status: Operate) -> None:
    """Active, overdue, its age and units, next expiry, quarantine, workers and totals; nothing is changed."""
    code, out, err = run_status("--json")

    assert (code, err) == (0, "")
    whole = json.loads(out)
    [shard] = whole["shards"]
    assert whole["healthy"] is True
    assert abs(whole["clock_skew_ms"]) < 1000
    assert (shard["active"], shard["overdue"], shard["overdue_units"], shard["quarantined"]) == (3, 2, 5, 1)
    assert 8000 <= shard["oldest_overdue_ms"] < 60_000
    assert shard["next_expires_at"] == max(shop.index().values())
    assert [worker["id"] for worker in shard["workers"]] == ["shop-1:7:ab"]
    assert (shard["gone_count"], [worker["id"] for worker in shard["gone"]]) == (1, ["old\x1b[2J:7:cd"])
    assert shard["totals"] == {"expired": 12, "units": 30}
    assert shard["paused"] is None
    shop.assert_conserved({"mug": 6})


def test_workers_tell_their_version_and_their_clock(
    shop: Inventory, run_status: Operate, shared_server: RedisServer
) -> None:
    """Each worker is shown with its version, and with how far its clock is from the server's."""
    with shared_server.client() as client:
        worker = Worker(Servers.of(client, Settings()).shards[0], Log().logger())
        worker.tick()
        worker.tick()

    told = json.loads(run_status("--json")[1])["shards"][0]["workers"]

    assert {worker.id: __version__, "shop-1:7:ab": None} == {row["id"]: row["version"] for row in told[:2]}
    assert abs(next(row["skew_ms"] for row in told if row["id"] == worker.id)) < 1000
    out = run_status()[1]
    assert f"  worker       {worker.id}, version {__version__}, last tick 20" in out
    assert " ms behind\n" in out or " ms ahead\n" in out
    shop.assert_conserved({"mug": 6})


def test_a_person_reads_the_same(shop: Inventory, run_status: Operate) -> None:
    """On a terminal the same stands in lines, without a stranger's control characters."""
    shop.client.hset(shop.keys.control, mapping={"paused": 1, "by": "ann", "reason": "payment\noutage"})

    code, out, _ = run_status()

    assert code == 0
    assert "shard 0: paused\n" in out
    assert "  overdue      2, 5 units, the oldest for 8." in out
    assert "  paused       by ann until resumed: payment\\x0aoutage\n" in out
    assert "  totals       expired 12, units 30\n" in out
    assert "\x1b" not in out


def test_an_old_overdue_is_unhealthy_unless_paused(shop: Inventory, run_status: Operate) -> None:
    """An overdue older than --max-lateness exits 1; under a pause it is what the operator wants."""
    assert run_status("--max-lateness", "5s")[0] == 1

    shop.client.hset(shop.keys.control, mapping={"paused": 1})

    assert run_status("--max-lateness", "5s")[0] == 0


def now() -> int:
    """Return the time, Unix ms."""
    return int(worker_clock())


def paused(until: int | None = None) -> dict[str, str | int]:
    """Return the control key of a shard that a person paused."""
    return control.pausing("ann", "outage", now(), until)


@pytest.mark.parametrize(
    ("fields", "state", "code"),
    [
        ({}, "healthy", 0),
        (paused(), "paused", 0),
        (paused(now() + 86_400_000), "paused", 0),
        (paused(now() - 1000), "healthy", 0),
        (control.braking("w", "2 overdue", now()), "braked", 1),
        ({**control.braking("w", "2 overdue", now()), **paused()}, "braked; paused", 1),
        ({**control.braking("w", "2 overdue", now()), **paused(now() - 1000)}, "braked", 1),
        (control.resuming("ann", now()), "healthy", 0),
    ],
    ids=["running", "paused", "timed", "timed, over", "braked", "both", "both, timed, over", "resumed"],
)
def test_the_state_is_one_word_everywhere(
    shop: Inventory, run_status: Operate, fields: dict[Any, Any], state: str, code: int
) -> None:
    """`status`, its JSON and `top` call a shard the same, whatever the control key says; a brake is unhealthy."""
    if fields:
        shop.client.hset(shop.keys.control, mapping=fields)

    answer, out, _ = run_status()
    assert (answer, out.splitlines()[0]) == (code, f"shard 0: {state}")
    assert ("  paused       no\n" in out) == (state == "healthy")
    assert json.loads(run_status("--json")[1])["shards"][0]["state"] == state
    page = Page("redis")
    page.add(Sampler(Servers.of(shop.client, Settings()).shards).sample())
    assert lines(page, 80, 24)[1] == state
    shop.assert_conserved({"mug": 6})


def test_a_pause_that_has_ended_excuses_nothing(shop: Inventory, run_status: Operate) -> None:
    """Once a timed pause is over an old overdue is unhealthy again."""
    shop.client.hset(shop.keys.control, mapping={"paused": 1, "until": now() - 1000})

    code, out, _ = run_status("--max-lateness", "5s")

    assert (code, out.splitlines()[0]) == (1, "shard 0: the oldest overdue is too old")


class Busy(redis.Redis):
    """A client beside which a worker expires what is due, after each command that reads the index by itself."""

    def execute_command(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        """Run a command, then let the worker run."""
        answer = super().execute_command(*arguments, **options)  # type: ignore[no-untyped-call]
        if arguments[0] in ("ZCOUNT", "ZRANGE"):
            worker = redis.Redis(connection_pool=self.connection_pool)
            worker.zremrangebyscore(ShardKeys.of("inventory").index, "-inf", now())
        return answer


def test_a_shard_is_read_at_one_moment(shop: Inventory) -> None:
    """Beside a worker that expires meanwhile no age is below zero, and the next expiry is the next."""
    later = max(shop.index().values())
    shop.client.zadd(shop.keys.index, {"o8:mug": later + 1})
    client = Busy(connection_pool=shop.client.connection_pool)
    seen = read_status(Servers.of(client, Settings()).shards[0], 10_000)

    assert (seen.active, seen.overdue, seen.next_expires_at) == (4, 2, later)
    assert 8000 <= seen.oldest_overdue_ms < 60_000


def test_workers_that_disagree_are_a_problem(shop: Inventory, run_status: Operate) -> None:
    """Live workers with another grace or layout are named; a worker that has gone disagrees with nobody."""
    shop.client.zadd(shop.keys.workers, {"shop-2:7:ab": now()})
    said = {
        "shop-1:7:ab": "grace_ms=0 layout=ab",
        "shop-2:7:ab": "grace_ms=5000 layout=ab",
        "old\x1b[2J:7:cd": "layout=x",
    }
    shop.client.hset(shop.keys.about, mapping=said)  # type: ignore[arg-type]

    code, out, _ = run_status()

    assert (code, out.splitlines()[0]) == (1, "shard 0: the workers disagree on grace: 0, 5000")


def test_a_tick_of_the_future_is_no_live_worker(shop: Inventory, run_status: Operate) -> None:
    """A worker whose last tick is a minute ahead of the server is not live; a second is what clocks differ by."""
    shop.client.zadd(shop.keys.workers, {"shop-1:7:ab": now() + 60_000})
    assert run_status()[1].startswith("shard 0: no live worker\n")

    shop.client.zadd(shop.keys.workers, {"shop-1:7:ab": now() + 1000})
    assert run_status()[0] == 0


def test_a_day_of_cron_jobs_is_a_few_lines(shop: Inventory, run_status: Operate) -> None:
    """Of workers that have gone three are named and the others counted; the live ones are all there."""
    shop.client.zadd(shop.keys.workers, {f"job-{number}": now() - 60_000 * number for number in range(2, 1441)})

    out = run_status()[1]

    assert out.count("  worker ") == 1
    assert [line.split()[2] for line in out.splitlines() if "gone worker" in line] == ["job-2,", "job-3,", "job-4,"]
    assert "               and 1,437 more that have gone\n" in out
    [shard] = json.loads(run_status("--json")[1])["shards"]
    assert ([worker["id"] for worker in shard["workers"]], shard["gone_count"]) == (["shop-1:7:ab"], 1440)


LONG = "9" * 4301
"""More digits than Python reads."""


@pytest.mark.parametrize("digits", ["9" * 309, LONG, "\u00b2", "\u0661", "+1", "01", str(2**53 + 1)])
def test_no_number_of_a_stranger_harms(shop: Inventory, run_status: Operate, digits: str) -> None:
    """A quantity, a total or a skew that the scripts would not read as an integer is left out by each command."""
    shop.hold("mug", digits, 1_700_000_000_000, "o7:mug", expired_at=digits)
    shop.client.hset(shop.keys.stats, mapping={"expired": digits, "units": 30})
    shop.client.hset(shop.keys.about, "shop-1:7:ab", f"version=1 skew_ms={digits}")
    shop.client.xadd(shop.keys.events, {"expires_at": digits, "expired_at": digits, "quantity": digits}, "1-1")
    sampler = Sampler(Servers.of(shop.client, Settings()).shards)
    sampler.sample()
    shop.client.xadd(shop.keys.events, {"expires_at": digits, "expired_at": digits})

    code, out, err = run_status("--json", "--max-lateness", "30000d")
    snapshot = sampler.sample()

    assert (code, err) == (0, "")
    [shard] = json.loads(out)["shards"]
    assert (shard["overdue_units"], shard["totals"], shard["workers"][0]["skew_ms"]) == (5, {"units": 30}, None)
    assert (snapshot.overdue_units, snapshot.lateness, snapshot.rate) == (5, None, 0)
    url = ("--redis-url", f"unix://{shop.client.connection_pool.connection_kwargs['path']}")
    commands = (["status", "--max-lateness", "30000d"], ["pending"], ["show", "o7:mug"])
    assert [0, 0, 0] == [cli.main([*command, *url]) for command in commands]


def test_no_text_of_a_stranger_harms(shop: Inventory, run_status: Operate) -> None:
    """Names of totals, workers and people may be any bytes: a terminal sees them escaped, JSON has them whole."""
    hostile = b"\x1b[2J\xff"
    shop.client.zadd(shop.keys.workers, {hostile: now()})
    shop.client.hset(shop.keys.about, hostile, b"version=" + hostile)
    shop.client.hset(shop.keys.stats, b"quarantined:" + hostile, 3)
    shop.client.hset(shop.keys.stats, hostile, 4)
    shop.client.hset(shop.keys.control, mapping={"paused": 1, "by": hostile, "reason": hostile})

    code, out, err = run_status()

    assert (code, err) == (0, "")
    assert "\x1b" not in out
    assert out.count(r"\x1b[2J\xff") == 5
    totals = json.loads(run_status("--json")[1])["shards"][0]["totals"]
    assert totals == {"expired": 12, "units": 30, "quarantined:\x1b[2J\\xff": 3}


def test_what_never_falls_due_is_counted(shop: Inventory, run_status: Operate) -> None:
    """A time in microseconds, or infinity, is said: its units would never come back, and nothing would be overdue."""
    shop.client.zadd(shop.keys.index, {"o7:mug": time.time() * 1e6, "o8:mug": "inf"})

    out = run_status()[1]

    assert "  never due    2, with a time more than a century ahead\n" in out


def test_no_live_worker_is_unhealthy(shop: Inventory, run_status: Operate) -> None:
    """Where the last tick of every worker is older than the interval it exits 1, paused or not."""
    shop.client.zrem(shop.keys.workers, "shop-1:7:ab")

    code, out, _ = run_status()

    assert code == 1
    assert out.startswith("shard 0: no live worker\n")


def test_the_workers_clock_decides_where_it_is_set(shop: Inventory, run_status: Operate) -> None:
    """With EXPIRER_CLOCK=worker the age is taken from this machine's clock."""
    [shard] = json.loads(run_status("--json", "--clock", "worker")[1])["shards"]

    assert (shard["overdue"], shard["problems"]) == (2, [])
    shop.assert_conserved({"mug": 6})


def test_every_shard_and_all_of_them(server_client: redis.Redis, run_status: Operate) -> None:
    """With shards each has its lines, and a last one sums them up; one sick shard makes the whole unhealthy."""
    first = Inventory(server_client, ShardKeys.of("inventory", 0, 2))
    server_client.zadd(first.keys.workers, {"w": worker_clock()})
    first.hold("mug", expires_at=int(worker_clock()) + 60_000)

    code, out, _ = run_status("--shards", "2")

    assert code == 1
    assert "shard 0: healthy" in out
    assert "shard 1: no live worker" in out
    assert "all: 1 active; 0 overdue, 0 units, the oldest for 0.000 s; 0 quarantined" in out


def test_damage_does_not_stop_it(shop: Inventory, run_status: Operate) -> None:
    """A reservation of the wrong type or quantity is left out of the units, and the rest is shown."""
    shop.client.set(shop.keys.reservation_prefix + "o8:mug", "x")
    shop.client.zadd(shop.keys.index, {"o8:mug": 1_700_000_000_000})

    code, out, _ = run_status("--json", "--max-lateness", "7d")

    [shard] = json.loads(out)["shards"]
    assert (shard["overdue"], shard["overdue_units"]) == (3, 5)
    assert code == 1


def test_a_short_time_to_live_is_a_problem(shop: Inventory, run_status: Operate) -> None:
    """A reservation that Redis deletes when it falls due takes its units along; one that stays a day longer is fine."""
    [*_, last] = shop.index()
    key = shop.keys.reservation_prefix + last.decode()
    shop.client.pexpire(key, 2 * 86_400_000)
    assert run_status()[0] == 0

    shop.client.pexpire(key, 86_400_000)
    code, out, _ = run_status()

    problem = "Redis deletes 1 of the next 3 reservations when they fall due: raise their TTL"
    assert (code, out.splitlines()[0]) == (1, f"shard 0: {problem}")
    shop.client.hset(key, "status", "Confirmed")  # it is sold, and only its retention ends
    assert run_status()[0] == 0


@pytest.mark.parametrize("score", ["inf", "-inf", "1e300", "-1e300"])
def test_no_score_is_too_large(server_client: redis.Redis, run_status: Operate, score: str) -> None:
    """A score or a tick that no calendar has, infinity too, is shown as it is, and stops no command."""
    keys = Inventory(server_client).keys
    server_client.zadd(keys.index, {"o1:mug": score})
    server_client.zadd(keys.workers, {"w": score})

    code, out, err = run_status()

    assert (code, err) == (1, "")
    assert "9007199254740992 ms" in out
    url = ("--redis-url", f"unix://{server_client.connection_pool.connection_kwargs['path']}")
    assert [0, 0] == [cli.main([*command, *url]) for command in (["pending"], ["show", "o1:mug"])]


def test_another_purposes_redis_is_one_line(server_client: redis.Redis, run_status: Operate) -> None:
    """A Redis where the name of the index belongs to something else is named in one line, exit 1."""
    server_client.set(ShardKeys.of("inventory").index, "x")

    code, out, err = run_status()

    assert (code, out) == (1, "")
    assert "WRONGTYPE" in err
    assert err.count("\n") == 1
