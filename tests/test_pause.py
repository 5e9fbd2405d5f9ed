"""Pause, brake and resume: the machine of the control key, its commands, the rate, and the preview of a batch."""

from __future__ import annotations

import io
import re
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from expirer import cli
from expirer.config.settings import Settings
from expirer.connection.connect import Servers
from expirer.contract import control
from expirer.contract.control import Control
from expirer.contract.keys import ShardKeys
from expirer.contract.shard import Shard
from expirer.operate.terminal import format_time, who
from expirer.worker.expiry import Expiry
from expirer.worker.worker import Worker
from tests.conftest import Log, MakeWorker, Operate
from tests.inventory import NOW, Inventory, contents
from tests.program import Backlog, Program, wait_until
from tests.servers import RedisServer

PAST = 1_700_000_000_000


@pytest.fixture
def run(
    server_client: redis.Redis, shared_server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs a command against the real server: exit code, standard output, standard error."""
    assert server_client.ping()

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.main([*arguments, "--redis-url", shared_server.url])
        return code, *capsys.readouterr()

    return run


def read(shop: Inventory) -> Control:
    """Read the control key of a shop."""
    row: Any = shop.client.hmget(shop.keys.control, list(control.FIELDS))
    return Control.read(row)


def write(shop: Inventory, fields: dict[str, str | int]) -> None:
    """Write fields of the control key of a shop."""
    mapping: Any = fields
    shop.client.hset(shop.keys.control, mapping=mapping)


_LINES = [re.split(r"  +", line.strip()) for line in (control.__doc__ or "").splitlines() if line.startswith("    ")]
TABLE = {(row[0], command): after for row in _LINES[1:] for command, after in zip(_LINES[0][1:], row[1:], strict=True)}
"""(state, command) -> the state after it, as contract/control.py documents it."""
_LONG_AGO, _IN_AN_HOUR = 1_600_000_000_000, 4_000_000_000_000
STATES: dict[str, list[dict[str, str | int]]] = {
    "running": [],
    "paused": [control.pausing("ann", "", _LONG_AGO)],
    "timed": [control.pausing("ann", "", _LONG_AGO, _IN_AN_HOUR)],
}
STATES |= {f"{name}, braked": [*fields, control.braking("shop-1", "9 overdue", 1)] for name, fields in STATES.items()}
STATES["braked"] = STATES.pop("running, braked")


def state(found: Control, now: int) -> str:
    """Name the state at a time, Unix ms."""
    pause = found.pause if found.pause and not found.pause.has_ended(now) else None
    names = [] if pause is None else ["paused" if pause.until is None else "timed"]
    return ", ".join(names + ["braked"] * (found.brake is not None)) or "running"


@pytest.mark.parametrize(("before", "command"), TABLE)
def test_every_state_meets_every_command(inventory: Inventory, operate: Operate, before: str, command: str) -> None:
    """From each state each command leads to the documented one, and a state that stops expiry always has a halt."""
    now = 1_800_000_000_000
    for fields in STATES[before]:
        write(inventory, fields)
    assert state(read(inventory), now) == before
    shard = Servers.of(inventory.client, Settings()).shards[0]

    if command == "brake pulled":
        Expiry(shard, "shop-2").pull_brake("9 overdue")
    elif command == "pause ends":
        now = _IN_AN_HOUR
    else:
        arguments = {"pause": ["pause"], "pause --for": ["pause", "--for", "10000d"], "resume": ["resume", "--yes"]}
        assert operate(*arguments[command])[0] == 0

    after = state(read(inventory), now)
    assert after == TABLE[before, command]
    assert (after == "running") == (shard.pause(now) is None)


@pytest.mark.parametrize("command", ["status", "resume", "check --canary"])
def test_every_command_says_the_same_of_a_pause_that_has_ended(
    inventory: Inventory, operate: Operate, command: str
) -> None:
    """After a timed pause has ended no command says that the shard is paused."""
    write(inventory, control.pausing("ann", "lunch", PAST, PAST + 1000))

    _, out, err = operate(*command.split())

    assert "lunch" not in out + err


@pytest.mark.parametrize("moment", ["before the transaction", "in it"])
def test_a_brake_pulled_meanwhile_is_not_released(
    inventory: Inventory, operate: Operate, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """`resume` ends what it showed: if the control key changes before it writes, it writes nothing and exits 1."""
    write(inventory, control.pausing("ann", "lunch", PAST))
    braking = control.braking("shop-1", "9 overdue", PAST)
    place: tuple[Any, str] = (Shard, "count_overdue") if moment == "before the transaction" else (control, "resuming")
    original = getattr(*place)

    def braked_first(*arguments: Any) -> Any:  # noqa: ANN401  # what either takes
        write(inventory, braking)
        return original(*arguments)

    monkeypatch.setattr(*place, braked_first)
    code, out, err = operate("resume")

    assert (code, out.endswith("would expire\n")) == (1, True)
    assert err == "expirer: shard 0: its control key changed meanwhile, look again: not resumed\n"
    assert state(read(inventory), NOW) == "paused, braked"


def _nobody() -> str:
    raise KeyError("getpwuid(): uid not found: 10001")


def test_more_overdue_than_the_brake_allows_stay(inventory: Inventory, make_worker: MakeWorker, log: Log) -> None:
    """With more overdue than EXPIRER_BRAKE_ABOVE the worker expires none, pauses the shard and says why."""
    inventory.overdue("mug", 4)

    done = make_worker(brake_above=3).tick()

    assert (done.expired, done.errors) == (0, 1)
    reason = "4 overdue, more than EXPIRER_BRAKE_ABOVE (3)"
    assert [reason] == [entry["reason"] for entry in log.of("brake_pulled")]
    brake = read(inventory).brake
    assert brake is not None
    assert (brake.reason, brake.is_brake) == (reason, True)
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

    write(inventory, control.resuming("ann", NOW - 500))
    assert worker.tick().expired == 9
    inventory.stock("tee", 0, 4)
    for _ in range(4):
        inventory.hold("tee", expires_at=NOW - 100)

    assert worker.tick().expired == 0
    inventory.assert_conserved({"mug": 9, "tee": 4})


def test_a_pause_that_ends_lets_go_what_it_held_back(inventory: Inventory, make_worker: MakeWorker) -> None:
    """The brake does not count what fell due during a timed pause; what falls due after it counts."""
    inventory.overdue("mug", 4)
    write(inventory, control.pausing("ann", "lunch", NOW - 5000, NOW - 500))

    assert make_worker(brake_above=3).tick().expired == 4

    inventory.stock("tee", 0, 4)
    for _ in range(4):
        inventory.hold("tee", expires_at=NOW - 100)
    assert make_worker(brake_above=3).tick().expired == 0
    inventory.assert_conserved({"mug": 4, "tee": 4})


@pytest.mark.parametrize("pausing", [{}, control.pausing("ann", "lunch", NOW - 90_000, NOW - 80_000)])
def test_a_resume_in_the_future_switches_no_brake_off(
    inventory: Inventory, make_worker: MakeWorker, pausing: dict[str, str | int]
) -> None:
    """A `resumed_at` that a wrong clock wrote does not keep the brake from counting."""
    inventory.overdue("mug", 4)
    write(inventory, {**pausing, "resumed_at": NOW + 3_600_000})

    assert make_worker(brake_above=3).tick().expired == 0
    inventory.assert_conserved({"mug": 4})


def test_a_timed_pause_over_a_brake_leaves_the_brake(inventory: Inventory, make_worker: MakeWorker) -> None:
    """After `pause --for` over a brake has ended, the brake is still on, and nothing expires by itself."""
    inventory.overdue("mug", 4)
    assert make_worker(brake_above=3).tick().errors == 1
    write(inventory, control.pausing("ann", "lunch", NOW, NOW + 1000))

    done = make_worker(now_ms=lambda: NOW + 2000, brake_above=3).tick()

    assert (done.expired, done.paused) == (0, 1)
    inventory.assert_conserved({"mug": 4})


def test_a_control_key_that_changes_while_the_brake_is_pulled_wins(
    inventory: Inventory, make_worker: MakeWorker, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody writes the control key just then: the brake is not pulled, it is a conflict, and nothing expires."""
    inventory.overdue("mug", 4)
    worker = make_worker(brake_above=3)
    expiry = worker._expiry
    clock = expiry._clock_ms

    def write_then_read(connection: object) -> float:
        inventory.client.hset(inventory.keys.control, "note", "here I am")
        return clock(connection)

    monkeypatch.setattr(expiry, "_clock_ms", write_then_read)

    done = worker.tick()

    assert (done.expired, done.conflicts) == (0, 1)
    assert len(log.of("concurrency_conflict")) == 1
    assert read(inventory) == Control(None, None, 0)
    inventory.assert_conserved({"mug": 4})


def test_a_clock_that_jumps_ahead_expires_nothing(
    client: redis.Redis, inventory: Inventory, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the server's clock runs an hour ahead of the time that has passed, the worker pauses instead of expiring."""
    inventory.stock("mug", 0, 2)
    for _ in range(2):
        inventory.hold("mug", expires_at=PAST)
    worker = Worker(Servers.of(client, Settings(batch_size=1)).shards[0], log.logger())
    next(worker._expiry.drain(lambda: False))
    an_hour_ago = SimpleNamespace(
        clock_gettime=lambda clock: time.clock_gettime(clock) - 3600,
        time=lambda: time.time() - 3600,
        perf_counter=time.perf_counter,
    )
    monkeypatch.setattr("expirer.worker.expiry.time", an_hour_ago)

    done = worker.tick()

    assert (done.expired, done.errors) == (0, 1)
    assert "clock jumped ahead" in log.of("brake_pulled")[0]["reason"]
    assert worker.tick().paused == 1
    inventory.client.delete(inventory.keys.control)
    assert worker.tick().expired == 1
    inventory.assert_conserved({"mug": 2})


def test_a_backlog_goes_no_faster_than_the_rate(inventory: Inventory, make_worker: MakeWorker) -> None:
    """Two workers at EXPIRER_MAX_RATE=20 together expire 20 a second."""
    inventory.overdue("mug", 50)
    now = [float(NOW)]
    workers = [make_worker(now_ms=lambda: now[0], max_rate=20) for _ in range(2)]

    released = []
    for _ in range(10):
        released.append(sum(worker.tick().expired for worker in workers))
        now[0] += 100

    assert released == [2] * 10
    inventory.assert_conserved({"mug": 50})


def test_a_dry_run_writes_nothing(server_client: redis.Redis, run: Callable[..., tuple[int, str, str]]) -> None:
    """`once --dry-run` names the outcome of each entry of the next batch, and no key changes."""
    shop = Inventory(server_client)
    shop.stock("mug", 8, 2)
    shop.hold("mug", 2, PAST, id_="o1:\x1b[31mmug")
    shop.hold("mug", 1, PAST, id_="o2:mug", status="Confirmed")
    shop.hold("mug", "two", PAST, id_="o3:mug")
    late = shop.hold("mug", 1, PAST, id_="o4:mug")
    server_client.hset(shop.keys.reservation_prefix + late, "expires_at", NOW * 2)
    before = contents(server_client)

    code, out, err = run("once", "--dry-run")

    assert (code, err) == (0, "")
    assert "4 due; the next batch would expire 1 (2 units), skip 1, reschedule 1, quarantine 1" in out
    assert "expired      o1:\\x1b[31mmug  2 of mug, due 2023-11-14 22:13:20.000 UTC" in out
    assert "quarantined  o3:mug  quantity_invalid" in out
    assert contents(server_client) == before


def test_pause_and_resume(server_client: redis.Redis, run: Callable[..., tuple[int, str, str]]) -> None:
    """While it is paused nothing expires, after `resume` all that is due does; both say what they did in numbers."""
    shop = Inventory(server_client)
    shop.stock("mug", 0, 3)
    for _ in range(3):
        shop.hold("mug", expires_at=PAST)

    code, out, err = run("pause", "--for", "30m", "--reason", "payment outage")
    assert (code, err) == (0, "")
    assert out.endswith("UTC; 3 overdue stay Active, and their units reserved\n")
    assert run("once")[0] == 0
    assert shop.counters("mug") == (0, 3)

    code, out, err = run("resume")
    assert (code, err) == (0, "")
    assert "payment outage; 3 overdue would expire" in out
    assert run("once")[0] == 0
    assert shop.counters("mug") == (3, 0)
    shop.assert_conserved({"mug": 3})


def test_a_brake_is_not_released_by_mistake(
    server_client: redis.Redis, run: Callable[..., tuple[int, str, str]]
) -> None:
    """While the brake is on, `resume` shows what would expire and wants --yes; the `once` that pulled it exits 1."""
    shop = Inventory(server_client)
    shop.stock("mug", 0, 3)
    for _ in range(3):
        shop.hold("mug", expires_at=PAST)

    assert run("once", "--brake-above", "2")[0] == 1
    code, out, err = run("resume")
    assert code == 1
    assert out.startswith("shard 0: braked by ")
    assert "3 overdue, more than EXPIRER_BRAKE_ABOVE (2); 3 overdue would expire\n" in out
    assert "--yes" in err
    assert run("once", "--brake-above", "2")[0] == 0
    assert shop.counters("mug") == (0, 3)

    assert run("resume", "--yes")[0] == 0
    assert run("once", "--brake-above", "2")[0] == 0
    assert shop.counters("mug") == (3, 0)
    shop.assert_conserved({"mug": 3})


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("\n", 1)])
def test_a_terminal_is_asked(
    server_client: redis.Redis,
    run: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
    code: int,
) -> None:
    """On a terminal a person may answer instead of writing --yes; no answer is no, even if nothing is overdue."""
    shop = Inventory(server_client)
    write(shop, control.braking("shop-1", "1 overdue", NOW))
    terminal = io.StringIO(answer)
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stdin", terminal)

    assert run("resume")[0] == code
    assert bool(read(shop).brake) == bool(code)


def test_one_shard_can_be_paused(server_client: redis.Redis, run: Callable[..., tuple[int, str, str]]) -> None:
    """`--shard` pauses one shard and leaves the others; one that does not exist is refused."""
    assert run("pause", "--shard", "1", "--shards", "2")[0] == 0

    paused = [server_client.exists(ShardKeys.of("inventory", number, 2).control) for number in range(2)]
    assert paused == [0, 1]
    code, _, err = run("resume", "--shard", "2", "--shards", "2")
    assert (code, err) == (2, "expirer: --shard 2: the shards are 0 to 1\n")


@pytest.mark.parametrize("command", [["pause"], ["resume"], ["once", "--dry-run"]])
def test_no_redis_is_one_line(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Without Redis each command says so in one line without the password, and exits 1."""
    assert cli.main([*command, "--redis-url", "redis://:hunter2@127.0.0.1:1/0"]) == 1

    err = capsys.readouterr().err
    assert err.startswith("expirer: redis://127.0.0.1:1/0: ")
    assert err.count("\n") == 1
    assert "hunter2" not in err


@pytest.mark.parametrize("text", ["soon", "0s", "-5m", "1e9d"])
def test_a_pause_needs_a_duration(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A --for that is no duration is refused in one line, and nothing is touched."""
    with pytest.raises(SystemExit, match="2"):
        cli.main(["pause", f"--for={text}"])

    assert capsys.readouterr().err == "expirer: argument --for: must be a duration such as 90s, 30m or 2h\n"


def test_who_paused_is_known_without_a_user_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's user without a name is named by its number."""
    monkeypatch.setattr("expirer.operate.terminal.getpass.getuser", _nobody)

    assert who().split("@")[0].isdigit()


@pytest.mark.parametrize("moment", [10**18, sys.maxsize])
def test_a_time_beyond_the_calendar_is_shown_as_it_is(moment: int) -> None:
    """A time that no calendar has does not stop a command."""
    assert format_time(moment) == f"{moment} ms"


def count_scripts(client: redis.Redis) -> int:
    """Return how often the server has run a script."""
    commands: Any = client.info("commandstats")
    return int(commands["cmdstat_evalsha"]["calls"])


@pytest.mark.slow
def test_a_pause_stops_four_workers_under_load(
    server_client: redis.Redis, shared_server: RedisServer, run: Callable[..., tuple[int, str, str]]
) -> None:
    """While four workers drain a backlog `expirer pause` returns, and not one reservation expires afterwards."""
    backlog = Backlog(server_client)
    keys = backlog.shop.keys
    run("pause")
    backlog.add(12_000)
    with ExitStack() as stack:
        flags = ("--batch-size", "5", "--log-level", "warning")
        programs = [stack.enter_context(Program(shared_server.url, *flags)) for _ in range(4)]
        wait_until(lambda: server_client.zcard(keys.workers) == 4)
        run("resume")
        wait_until(lambda: server_client.xlen(keys.events))

        code, out, _ = run("pause", "--reason", "payment outage")

        expired = server_client.xlen(keys.events)
        assert (code, f"; {12_000 - expired:,} overdue stay Active" in out) == (0, True)
        assert 0 < expired < 12_000
        backlog.add(100)
        ticks = count_scripts(server_client)
        wait_until(lambda: server_client.publish(keys.wake, "1") and count_scripts(server_client) > ticks + 20)
        assert expired == server_client.xlen(keys.events)
        backlog.assert_conserved()
        assert {1, 2} >= {len(program.of("expiry_paused")) for program in programs}

        assert run("resume", "--yes")[0] == 0
        wait_until(lambda: not backlog.left())
    backlog.assert_expired_once()
