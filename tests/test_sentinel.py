"""What the program promises with Sentinels: it follows the primary, and never works on a replica."""

from __future__ import annotations

import re
from pathlib import Path
from signal import SIGTERM

import pytest

from expirer import cli
from expirer.config.settings import Settings
from expirer.connection.connect import connect_all
from expirer.connection.errors import location
from expirer.worker.batch import Tick
from expirer.worker.worker import Worker
from tests.conftest import Log
from tests.inventory import Inventory
from tests.program import Backlog, Program, wait_until
from tests.servers import free_port
from tests.topology import SERVICE, Replicated, hung, info_of, wait_for_replicas

pytestmark = pytest.mark.slow


def worker_of(topology: Replicated, log: Log, **settings: object) -> Worker:
    """Build a worker with the client that the program would use."""
    chosen = Settings(**{**topology.settings, **settings})
    return Worker(connect_all(chosen).shards[0], log.logger())


def test_the_primary_is_found_again(replicated: Replicated, log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    """The Sentinels name the primary; after a failover the tick that learns of it is followed by one that works."""
    backlog = Backlog(replicated.primary().client())
    backlog.add(20)
    worker = worker_of(replicated, log)
    assert 20 == worker.tick().expired

    new = replicated.failover()
    backlog = followed(new.client(), backlog)
    backlog.add(20)
    wait_until(lambda: worker.tick().expired == 20)

    assert {entry["error"] for entry in log.of("processing_error")} <= {"ConnectionError", "ReadOnlyError"}
    backlog.assert_expired_once()
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in replicated.settings.items()]
    assert 0 == cli.main(["status", *flags])
    assert "overdue      0" in capsys.readouterr().out


def followed(client: object, backlog: Backlog) -> Backlog:
    """Return the same backlog, looked at on another server."""
    other = Backlog(client)
    other.stocked, other._ids = backlog.stocked, backlog._ids
    return other


def test_a_replica_that_was_the_primary_is_left(replicated: Replicated, log: Log) -> None:
    """A worker whose server has become a replica under it changes nothing there, and goes to the new primary."""
    old = replicated.primary()
    shop = Inventory(old.client())
    shop.stock("mug", 9, 1)
    worker = worker_of(replicated, log)
    worker.tick()
    shop.hold("mug", 1, 1000)
    wait_for_replicas(old, 2)
    replicated.failover()

    wait_until(lambda: info_of(old).get("role") == "slave")
    wait_until(lambda: worker.tick().expired == 1)

    assert (10, 0) == Inventory(replicated.primary().client()).counters("mug")


@pytest.mark.parametrize("how", ["killed", "hung"])
def test_a_failover_in_a_drain_doubles_nothing(replicated: Replicated, how: str) -> None:
    """The primary dies or hangs under a drain: the worker waits, and drains the one that the Sentinels promote."""
    old = replicated.primary()
    backlog = Backlog(old.client())
    backlog.add(3000)
    wait_for_replicas(old, 2)

    flags = ("--batch-size", "10", "--max-rate", "2000", "--interval", "1s")
    url = "redis://127.0.0.1:1/0?socket_timeout=1"
    with Program(url, *flags, **replicated.settings) as program:
        program.wait_for("reservation_expired")
        if how == "killed":
            old.stop()
            new = replicated.wait_for_another(old)
        else:
            with hung(old):
                new = replicated.wait_for_another(old)
                program.wait_for("processing_recovered")
        backlog = followed(new.client(), backlog)
        wait_until(lambda: not backlog.left())
        program.signal(SIGTERM)
        assert 0 == program.wait()

    backlog.assert_expired_once()


def test_sentinels_that_are_away_are_passed_over(replicated: Replicated, log: Log) -> None:
    """One Sentinel that answers is enough, wherever it stands in the list."""
    first, second, third = replicated.sentinels
    first.stop()
    second.stop()

    ticks = [worker_of(replicated, log).tick() for _ in range(2)]

    assert [Tick()] * 2 == ticks, log.entries
    third.stop()
    assert Tick(errors=1) == worker_of(replicated, log).tick()
    [error] = log.of("processing_error")
    assert error["message"].startswith(f"no Sentinel names a primary of '{SERVICE}': 127.0.0.1:")


def test_an_unknown_service_is_one_clear_line(replicated: Replicated, log: Log) -> None:
    """A service that no Sentinel knows is said by its name."""
    settings = Settings(**{**replicated.settings, "redis_sentinel_service": "shpo"})

    assert 1 == Worker(connect_all(settings).shards[0], log.logger()).tick().errors

    [error] = log.of("processing_error")
    assert error["message"].startswith("no Sentinel names a primary of 'shpo': ")
    assert 3 == error["message"].count("it does not know")


_CLERK = "user clerk on >night:shift -@all +sentinel|get-master-addr-by-name"


@pytest.mark.parametrize("is_from_file", [False, True])
def test_sentinels_have_credentials_of_their_own(
    server_binary: Path, tmp_path: Path, log: Log, *, is_from_file: bool
) -> None:
    """A user of the Sentinels needs one right; server's and Sentinels' passwords are told apart, and never logged."""
    acl = ("user default off", "user watcher on >night:shift ~* &* +@all", _CLERK, "sentinel auth-pass shop day-shift")
    secret = tmp_path / "secret"
    secret.write_text("night:shift\n")
    topology = Replicated(
        server_binary, tmp_path, "--requirepass", "day-shift", "--masterauth", "day-shift", sentinel_lines=acl,
        login={"password": "day-shift"}, sentinel_login={"username": "watcher", "password": "night:shift"},
    )  # fmt: skip
    with topology:
        own = {"redis_sentinel_password": "night:shift"}
        if is_from_file:
            own = {"redis_sentinel_password_file": str(secret)}
        settings = {**topology.settings, "redis_url": "redis://:day-shift@", "redis_sentinel_username": "clerk", **own}

        assert Tick() == worker_of(topology, log, **settings).tick(), log.entries
        assert 1 == worker_of(topology, log, **{**settings, "redis_sentinel_username": "nobody"}).tick().errors
        assert 1 == worker_of(topology, log, **{**settings, "redis_url": "redis://:wrong-shift@"}).tick().errors

    told = " ".join(entry["message"] for entry in log.of("processing_error"))
    assert 2 == len(log.of("processing_error"))
    assert [] == re.findall(r"(?:night|day|wrong).shift", told)


def test_the_location_is_that_of_the_sentinels() -> None:
    """What is logged of the address names the Sentinels and the service, and no password."""
    settings = Settings(redis_url="redis://:hunter2@host", redis_sentinels="a:26379, b:26380")

    assert "sentinel://a:26379,b:26380/mymaster" == location(settings)


def test_no_sentinel_is_there_yet(log: Log) -> None:
    """Where no Sentinel answers each is named with what it said."""
    ports = free_port(), free_port()
    settings = Settings(redis_sentinels=",".join(f"127.0.0.1:{port}" for port in ports))

    assert Tick(errors=1) == Worker(connect_all(settings).shards[0], log.logger()).tick()
    [error] = log.of("processing_error")
    assert all(f"127.0.0.1:{port}: Error 111" in error["message"] for port in ports)
