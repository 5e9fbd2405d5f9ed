"""The operator's hand: pause and resume, the brake, the rate, and a look at the next batch."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import redis

from expirer import cli
from expirer.config.settings import Settings
from expirer.contract.keys import ShardKeys
from expirer.operate import pause
from expirer.operate.terminal import shown_time, who
from expirer.worker.worker import Worker
from tests.clock import FakeTime
from tests.conftest import Log, MakeWorker
from tests.inventory import NOW, Inventory, contents
from tests.program import Backlog, Program, wait_until
from tests.servers import RedisServer

PAST = 1_700_000_000_000


@pytest.fixture
def operate(
    server_client: redis.Redis, shared_server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs a verb against the real server: exit code, standard output, standard error."""
    assert server_client.ping()

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.main([*arguments, "--redis-url", shared_server.url])
        return code, *capsys.readouterr()

    return run


def _nobody() -> str:
    raise KeyError("getpwuid(): uid not found: 10001")


def test_more_overdue_than_the_brake_allows_stay(inventory: Inventory, make_worker: MakeWorker, log: Log) -> None:
    """With more overdue than EXPIRER_BRAKE_ABOVE the worker expires none, pauses the shard and says why."""
    inventory.overdue("mug", 4)

    done = make_worker(brake_above=3).tick()

    assert (done.expired, done.errors) == (0, 1)
    reason = "brake: 4 overdue, more than EXPIRER_BRAKE_ABOVE (3)"
    assert [reason] == [entry["reason"] for entry in log.of("brake_pulled")]
    control = inventory.client.hgetall(inventory.keys.control)
    assert (control[b"paused"], control[b"reason"]) == (b"1", reason.encode())
    assert make_worker().tick().paused == 1
    inventory.assert_conserved({"mug": 4})


def test_the_brake_lets_an_ordinary_backlog_go(inventory: Inventory, make_worker: MakeWorker) -> None:
    """As many overdue as the brake allows expire, batch after batch."""
    inventory.overdue("mug", 7)

    done = make_worker(brake_above=7, batch_size=2).tick()

    assert (done.expired, done.errors) == (7, 0)
    inventory.assert_conserved({"mug": 7})


def test_what_was_let_go_is_not_held_again(inventory: Inventory, make_worker: MakeWorker) -> None:
    """After a resumption the overdue of then expire, however many; those that fall due later count anew."""
    inventory.overdue("mug", 9)
    worker = make_worker(brake_above=3, batch_size=2)
    assert worker.tick().expired == 0

    inventory.client.hset(inventory.keys.control, mapping={"paused": 0, "resumed_at": NOW - 500})
    assert worker.tick().expired == 9
    inventory.stock("tee", 0, 4)
    for _ in range(4):
        inventory.hold("tee", expires_at=NOW - 100)

    assert worker.tick().expired == 0
    inventory.assert_conserved({"mug": 9, "tee": 4})


def test_the_brake_does_not_overwrite_a_persons_pause(inventory: Inventory, make_worker: MakeWorker) -> None:
    """A pause that stands already keeps its reason."""
    worker = make_worker(brake_above=1)
    inventory.client.hset(inventory.keys.control, mapping={"paused": 1, "reason": "stocktaking"})

    worker._shards[0].expiry.pull_brake("brake: 2 overdue")

    assert inventory.client.hget(inventory.keys.control, "reason") == b"stocktaking"


def test_a_hand_that_moves_while_the_brake_is_pulled_wins(
    inventory: Inventory, make_worker: MakeWorker, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody writes the control key just then: the brake is not pulled, it is a conflict, and nothing expires."""
    inventory.overdue("mug", 4)
    worker = make_worker(brake_above=3)
    expiry = worker._shards[0].expiry
    clock = expiry._clock_ms

    def write_then_read(connection: object) -> float:
        inventory.client.hset(inventory.keys.control, "note", "here I am")
        return clock(connection)

    monkeypatch.setattr(expiry, "_clock_ms", write_then_read)

    done = worker.tick()

    assert (done.expired, done.conflicts) == (0, 1)
    assert len(log.of("concurrency_conflict")) == 1
    assert inventory.client.hget(inventory.keys.control, "paused") is None
    inventory.assert_conserved({"mug": 4})


def test_a_clock_that_jumps_ahead_expires_nothing(
    client: redis.Redis, inventory: Inventory, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the server's clock runs an hour ahead of the time that has passed, the worker pauses instead of expiring."""
    inventory.stock("mug", 0, 2)
    for _ in range(2):
        inventory.hold("mug", expires_at=PAST)
    worker = Worker(client, Settings(batch_size=1), log.logger())
    worker._shards[0].expiry.expire_batch()
    passed = time.clock_gettime
    monkeypatch.setattr("expirer.worker.expiry.time.clock_gettime", lambda clock: passed(clock) - 3600)

    done = worker.tick()

    assert (done.expired, done.errors) == (0, 1)
    assert "clock jumped ahead" in log.of("brake_pulled")[0]["reason"]
    assert worker.tick().paused == 1
    inventory.client.delete(inventory.keys.control)
    assert worker.tick().expired == 1
    inventory.assert_conserved({"mug": 2})


def test_a_backlog_goes_no_faster_than_the_rate(
    inventory: Inventory, make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers at EXPIRER_MAX_RATE=20 together expire 20 a second, and wake as often as that needs."""
    inventory.overdue("mug", 50)
    now = [float(NOW)]
    workers = [make_worker(now_ms=lambda: now[0], max_rate=20) for _ in range(2)]

    released = []
    for _ in range(10):
        released.append(sum(worker.tick().expired for worker in workers))
        now[0] += 100

    assert released == [2] * 10
    fake_time = FakeTime(workers[0], monkeypatch, waits=1)
    workers[0]._shards[0].wake_at = 0.0
    workers[0].run()
    assert fake_time.waits == [pytest.approx(0.1002)]
    inventory.assert_conserved({"mug": 50})


def test_a_dry_run_writes_nothing(server_client: redis.Redis, operate: Callable[..., tuple[int, str, str]]) -> None:
    """`once --dry-run` names the outcome of each entry of the next batch, and no key changes."""
    shop = Inventory(server_client)
    shop.stock("mug", 8, 2)
    shop.hold("mug", 2, PAST, id_="o1:\x1b[31mmug")
    shop.hold("mug", 1, PAST, id_="o2:mug", status="Confirmed")
    shop.hold("mug", "two", PAST, id_="o3:mug")
    late = shop.hold("mug", 1, PAST, id_="o4:mug")
    server_client.hset(shop.keys.reservation_prefix + late, "expires_at", NOW * 2)
    before = contents(server_client)

    code, out, err = operate("once", "--dry-run")

    assert (code, err) == (0, "")
    assert "4 due; the next batch would expire 1 (2 units), skip 1, reschedule 1, quarantine 1" in out
    assert "expired      o1:\\x1b[31mmug  2 of mug, due 2023-11-14 22:13:20.000 UTC" in out
    assert "quarantined  o3:mug  quantity_invalid" in out
    assert contents(server_client) == before


def test_pause_and_resume(server_client: redis.Redis, operate: Callable[..., tuple[int, str, str]]) -> None:
    """`pause` holds what is due, `resume` lets it go; both say what they did in numbers."""
    shop = Inventory(server_client)
    shop.stock("mug", 0, 3)
    for _ in range(3):
        shop.hold("mug", expires_at=PAST)

    code, out, err = operate("pause", "--for", "30m", "--reason", "payment outage")
    assert (code, err) == (0, "")
    assert out.endswith("UTC; 3 overdue stay Active, and their units held\n")
    assert operate("once")[0] == 0
    assert shop.counters("mug") == (0, 3)

    code, out, err = operate("resume")
    assert (code, err) == (0, "")
    assert "payment outage; 3 overdue would expire" in out
    assert operate("once")[0] == 0
    assert shop.counters("mug") == (3, 0)
    shop.assert_conserved({"mug": 3})


def test_a_brake_is_not_let_go_by_mistake(
    server_client: redis.Redis, operate: Callable[..., tuple[int, str, str]]
) -> None:
    """Where the brake holds, `resume` shows what would expire and wants --yes; `once` that pulled it exits 1."""
    shop = Inventory(server_client)
    shop.stock("mug", 0, 3)
    for _ in range(3):
        shop.hold("mug", expires_at=PAST)

    assert operate("once", "--brake-above", "2")[0] == 1
    code, out, err = operate("resume")
    assert code == 1
    assert "brake: 3 overdue" in out
    assert "--yes" in err
    assert operate("once", "--brake-above", "2")[0] == 0
    assert shop.counters("mug") == (0, 3)

    assert operate("resume", "--yes")[0] == 0
    assert operate("once", "--brake-above", "2")[0] == 0
    assert shop.counters("mug") == (3, 0)
    shop.assert_conserved({"mug": 3})


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("\n", 1)])
def test_a_terminal_is_asked(server_client: redis.Redis, shared_server: RedisServer, answer: str, code: int) -> None:
    """On a terminal a person may answer instead of writing --yes; no answer is no."""
    keys = ShardKeys.of("inventory")
    server_client.hset(keys.control, mapping={"paused": 1, "reason": "brake: 1 overdue"})
    server_client.zadd(keys.index, {"o1:mug": 1})
    terminal = io.StringIO(answer)
    terminal.isatty = lambda: True  # type: ignore[method-assign]

    assert pause.resume(Settings(redis_url=shared_server.url), None, is_sure=False, answers=terminal) == code

    assert server_client.hget(keys.control, "paused") == (b"1" if code else b"0")


def test_one_shard_can_be_paused(server_client: redis.Redis, operate: Callable[..., tuple[int, str, str]]) -> None:
    """`--shard` holds one shard and leaves the others; one that does not exist is refused."""
    assert operate("pause", "--shard", "1", "--shards", "2")[0] == 0

    held = [server_client.exists(ShardKeys.of("inventory", number, 2).control) for number in range(2)]
    assert held == [0, 1]
    code, _, err = operate("resume", "--shard", "2", "--shards", "2")
    assert (code, err) == (2, "expirer: --shard 2: the shards are 0 to 1\n")


@pytest.mark.parametrize("verb", [["pause"], ["resume"], ["once", "--dry-run"]])
def test_no_redis_is_one_line(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Without Redis each verb says so in one line without the password, and exits 1."""
    assert cli.main([*verb, "--redis-url", "redis://:hunter2@127.0.0.1:1/0"]) == 1

    err = capsys.readouterr().err
    assert err.startswith("expirer: redis://127.0.0.1:1/0: ")
    assert err.count("\n") == 1
    assert "hunter2" not in err


@pytest.mark.parametrize("text", ["soon", "0s", "-5m", "1e9d"])
def test_a_pause_needs_a_duration(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A --for that is no duration is refused in one line, and nothing is touched."""
    with pytest.raises(SystemExit, match="2"):
        cli.main(["pause", f"--for={text}"])

    assert capsys.readouterr().err == "expirer: argument --for: needs a duration such as 90s, 30m or 2h\n"


def test_who_paused_is_known_without_a_user_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's user without a name is named by its number."""
    monkeypatch.setattr("expirer.operate.terminal.getpass.getuser", _nobody)

    assert who().split("@")[0].isdigit()


@pytest.mark.parametrize("moment", [10**18, sys.maxsize])
def test_a_time_beyond_the_calendar_is_shown_as_it_is(moment: int) -> None:
    """A time that no calendar has does not stop a verb."""
    assert shown_time(moment) == f"{moment} ms"


def looks(client: redis.Redis) -> int:
    """Return how often the server has run a script."""
    commands: Any = client.info("commandstats")
    return int(commands["cmdstat_evalsha"]["calls"])


def test_a_pause_holds_four_workers_under_load(
    server_client: redis.Redis, shared_server: RedisServer, operate: Callable[..., tuple[int, str, str]]
) -> None:
    """While four workers drain a backlog `expirer pause` returns, and not one reservation expires afterwards."""
    backlog = Backlog(server_client)
    backlog.add(12_000)
    keys = backlog.shop.keys
    with ExitStack() as stack:
        flags = ("--batch-size", "5", "--log-level", "warning")
        programs = [stack.enter_context(Program(shared_server.url, *flags)) for _ in range(4)]
        wait_until(lambda: server_client.zcard(keys.workers) == 4)

        code, out, _ = operate("pause", "--reason", "payment outage")

        expired = server_client.xlen(keys.events)
        assert (code, f"; {12_000 - expired:,} overdue stay Active" in out) == (0, True)
        assert 0 < expired < 12_000
        backlog.add(100)
        ticks = looks(server_client)
        wait_until(lambda: server_client.publish(keys.wake, "1") and looks(server_client) > ticks + 20)
        assert expired == server_client.xlen(keys.events)
        backlog.assert_conserved()
        assert {1} == {len(program.of("expiry_paused")) for program in programs} - {0}

        assert operate("resume", "--yes")[0] == 0
        wait_until(lambda: not backlog.left())
    backlog.assert_expired_once()
