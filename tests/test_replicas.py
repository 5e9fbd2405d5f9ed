"""What EXPIRER_MIN_REPLICAS_ACK promises: a batch that its replicas have not acknowledged is told of, not redone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from signal import SIGTERM
from typing import Any

import pytest

from expirer import cli, replicas, wire
from expirer.batch import Tick
from expirer.connect import connect
from expirer.keys import shard_keys
from expirer.settings import Settings
from expirer.worker import Worker
from tests.beds import hung, wait_for_replicas
from tests.conftest import Log
from tests.program import Backlog, Program, wait_until
from tests.servers import RedisServer, free_port


class Pair:
    """A primary and its replica."""

    def __init__(self, primary: RedisServer, replica: RedisServer) -> None:
        self.primary = primary
        self.replica = replica
        self.backlog = Backlog(primary.client())

    def worker(self, log: Log, **settings: Any) -> Worker:  # noqa: ANN401  # settings
        """Build a worker that wants its replica's word."""
        chosen = Settings(redis_url=self.primary.url, min_replicas_ack=1, batch_size=10, **settings)
        return Worker(connect(chosen), chosen, log.logger())


@pytest.fixture
def pair(server_binary: Path, tmp_path: Path) -> Iterator[Pair]:
    """Run a primary with one replica that follows."""
    with ExitStack() as stack:
        servers = []
        for name in ("primary", "replica"):
            (tmp_path / name).mkdir()
            server = RedisServer(server_binary, tmp_path / name, "--repl-diskless-sync-delay", "0", port=free_port())
            stack.callback(server.stop)
            server.start()
            servers.append(server)
        primary, replica = servers
        replica.client().replicaof("127.0.0.1", primary.port)
        wait_for_replicas(primary, 1)
        yield Pair(primary, replica)


def test_a_batch_that_is_acknowledged_is_done(pair: Pair, log: Log) -> None:
    """With a replica that follows a drain is as ever, and what it did is on the replica when it is over."""
    pair.backlog.add(35)

    assert 35 == pair.worker(log).tick().expired
    assert [] == log.of("processing_error")
    assert b"35" == pair.replica.client().hget(pair.backlog.shop.keys.stats, "expired")
    pair.backlog.assert_expired_once()


def test_a_replica_that_lags_slows_the_drain(pair: Pair, log: Log) -> None:
    """While its replica hangs each tick does one batch, says that a failover would forget it, and does none twice."""
    pair.backlog.add(35)
    worker = pair.worker(log)
    with hung(pair.replica):
        ticks = [worker.tick(), worker.tick()]

    assert [(10, 1), (10, 1)] == [(tick.expired, tick.errors) for tick in ticks]
    errors = log.of("processing_error")
    assert ["ReplicasLagError"] * 2 == [entry["error"] for entry in errors]
    said = "the batch is committed on the primary, but 0 of 1 replicas acknowledged it within 500 ms"
    assert f"{said}: a failover now would forget it" == errors[0]["message"]
    assert 20 == len(log.of("reservation_expired"))
    wait_for_replicas(pair.primary, 1)
    assert 15 == worker.tick().expired
    assert [2] == [entry["failures"] for entry in log.of("processing_recovered")]
    pair.backlog.assert_expired_once()


def test_shards_wait_for_a_replica_together(pair: Pair, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a replica hangs one batch waits half a second for it, and those of the other shards only briefly."""
    monkeypatch.setattr(replicas, "_BRIEFLY_FOR_S", 60)
    worker = pair.worker(log, shards=4)
    for keys in shard_keys(Settings(shards=4)):
        Backlog(pair.primary.client(), keys).add(1)
    with hung(pair.replica):
        done = worker.tick()

    assert (4, 4) == (done.expired, done.errors)
    waits = [re.findall(r"within (\d+) ms", entry["message"]) for entry in log.of("processing_error")]
    assert [["500"], ["20"], ["20"], ["20"]] == waits
    wait_for_replicas(pair.primary, 1)


def test_an_idle_tick_waits_for_nobody(pair: Pair, log: Log) -> None:
    """A tick that expires nothing does not ask the replicas."""
    with hung(pair.replica):
        assert Tick() == pair.worker(log).tick()


def test_a_primary_that_dies_before_the_word_came_is_told_of(pair: Pair, log: Log) -> None:
    """Where the primary dies between a commit and the word of its replica, both the batch and the doubt are logged."""
    pair.backlog.add(5)
    worker = pair.worker(log)
    worker.tick()
    pair.backlog.add(5)
    ask = wire.ask

    def die(connection: object, *commands: tuple[object, ...]) -> object:
        if commands[0][0] == "WAIT":
            pair.primary.stop()
        return ask(connection, *commands)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "ask", die)
        tick = worker.tick()

    assert (5, 1) == (tick.expired, tick.errors)
    assert log.of("processing_error")[0]["message"].startswith("the batch is committed on the primary, but nothing is")


def test_a_batch_that_a_failover_forgot_is_done_again(pair: Pair, log: Log) -> None:
    """What the new primary never heard of is Active there, held and due: it expires there, once."""
    pair.backlog.add(15)
    wait_for_replicas(pair.primary, 1)
    pair.replica.client().replicaof("NO", "ONE")  # it hears no more
    assert (10, 1) == expired(pair.worker(log).tick())
    pair.primary.stop()
    forgotten = Backlog(pair.replica.client())
    forgotten.stocked, forgotten._ids = pair.backlog.stocked, pair.backlog._ids
    settings = Settings(redis_url=pair.replica.url)

    assert 15 == Worker(connect(settings), settings, log.logger()).tick().expired
    forgotten.assert_expired_once()


def expired(tick: Tick) -> tuple[int, int]:
    """Return how many expired, and how many errors there were."""
    return tick.expired, tick.errors


def test_a_drain_with_acknowledgements_costs_one_packet_a_batch(
    pair: Pair, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait for the replicas travels with the batch, before the next decision's WATCH: no round trip of its own."""
    worker = pair.worker(log)
    worker.tick()
    pair.backlog.add(80)
    write = wire.write
    packets: list[list[object]] = []

    def count(connection: object, *commands: tuple[object, ...]) -> None:
        packets.append([command[0] for command in commands])
        write(connection, *commands)

    monkeypatch.setattr(wire, "write", count)

    assert worker.tick().expired == 80
    look, batch, wait = ["WATCH", "HMGET"], ["MULTI", "EVALSHA", "EXEC"], ["WAIT"]
    assert packets == [look, batch, wait, look, *[batch + wait + look] * 6, batch, wait]


def test_a_stop_does_not_wait_for_a_replica_that_hangs(pair: Pair) -> None:
    """While its replica hangs under a backlog, told to stop, it does not wait for it batch by batch."""
    pair.backlog.add(5000)
    with hung(pair.replica), Program(pair.primary.url, "--batch-size", "10", min_replicas_ack=1) as program:
        program.wait_for("processing_error")
        program.signal(SIGTERM)
        assert 0 == program.wait()


@contextmanager
def without_replica(pair: Pair) -> Iterator[None]:
    """Let the replica go until the block ends."""
    pair.replica.client().replicaof("NO", "ONE")
    wait_until(lambda: pair.primary.client().info()["connected_slaves"] == 0)
    yield


def test_a_check_counts_the_replicas(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    """`check` says how many replicas there are, and fails where no batch could be acknowledged."""
    arguments = ["check", "--json", "--redis-url", pair.primary.url, "--min-replicas-ack", "1"]
    levels = []
    with ExitStack() as stack:
        for _ in range(2):
            code = cli.main(arguments)
            remarks = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
            levels += [(code, remark["level"]) for remark in remarks if remark["what"] == "replicas"]
            stack.enter_context(without_replica(pair)) if len(levels) == 1 else None

    assert [(0, "ok"), (1, "failure")] == levels
