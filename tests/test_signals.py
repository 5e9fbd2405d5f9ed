"""What the real program promises when it is told to stop, and when it is killed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from signal import SIGCONT, SIGINT, SIGSTOP, SIGTERM, Signals

import pytest
import redis

from expirer.config.settings import Settings
from expirer.connection.connect import Servers, connect
from expirer.worker.worker import Worker
from tests.conftest import Log, SlowMachine
from tests.program import Backlog, Program, wait_until
from tests.proxy import Gate, Proxy, Way
from tests.servers import RedisServer

pytestmark = pytest.mark.slow

PATIENT = "?socket_timeout=600"
"""Who ends before that has not waited for an answer."""

# The first EXEC of a worker on a new server is answered with NOSCRIPT: the third carries the second batch.
IN_SECOND_BATCH = 3

FINISHES = "worker.process._STOP_DEADLINE_S"
"""Of one that is told to stop, for what is under way."""
GIVES_UP = "worker.process._FAREWELL_S"
"""Of one that does not wait for it, to say so."""

stop_signals = pytest.mark.parametrize("number", [SIGTERM, SIGINT])


def drain(url: str) -> None:
    """Tick once, as the next worker would."""
    settings = Settings(redis_url=url)
    with connect(settings) as client:
        Worker(Servers.of(client, settings).shards[0], Log().logger()).tick()


@contextmanager
def held_in_second_batch(server: RedisServer, held: Way) -> Iterator[tuple[Gate, Program]]:
    """Run the program until its second batch is held on the way to the server, or on the way back."""
    gate = Gate(IN_SECOND_BATCH, held)
    with Proxy(server.port, gate) as proxy, Program(f"{proxy.url}{PATIENT}", "--batch-size", "10") as program:
        gate.wait_until_held()
        yield gate, program


def test_kills_lose_and_double_nothing(shared_server: RedisServer, server_client: redis.Redis) -> None:
    """Twenty workers killed with SIGKILL in the middle of a drain leave exact counters and nothing behind."""
    backlog = Backlog(server_client)
    chance = random.Random(1)
    killed_in_drain = 0

    def kill_after(expired: int) -> None:
        # Small batches and no log: nearly all its time is spent in transactions, so there the kill strikes.
        with Program(shared_server.url, "--batch-size", "2", "--log-level", "error") as program:
            wait_until(lambda: server_client.xlen(backlog.shop.keys.events) >= expired)
            program.kill()

    for _ in range(20):
        backlog.add(1000)
        kill_after(server_client.xlen(backlog.shop.keys.events) + chance.randint(1, 500))
        killed_in_drain += backlog.left() > 0
        backlog.assert_conserved()

    assert killed_in_drain > 0
    with Program(shared_server.url):
        wait_until(lambda: not backlog.left())
    backlog.assert_expired_once()


@pytest.mark.parametrize(("held", "expired"), [("request", 10), ("reply", 20)])
def test_a_kill_in_a_batch_is_all_or_nothing(own_server: RedisServer, held: Way, expired: int) -> None:
    """A worker killed while a batch is under way has done the whole of it, or nothing."""
    with own_server.client() as client:
        backlog = Backlog(client)
        backlog.add(100)

        with held_in_second_batch(own_server, held) as (_, program):
            program.kill()

        assert expired == len(backlog.expired())
        backlog.assert_conserved()
        drain(own_server.url)
        backlog.assert_expired_once()


@stop_signals
def test_a_stop_finishes_the_batch(own_server: RedisServer, number: Signals, slow_machine: SlowMachine) -> None:
    """Told to stop while a batch is under way, it finishes it, whole, says what it did, and exits 0."""
    slow_machine(FINISHES)
    with own_server.client() as client:
        backlog = Backlog(client)
        backlog.add(1000)

        with held_in_second_batch(own_server, "reply") as (gate, program):
            program.signal(number)
            gate.pass_on()
            code = program.wait()

        # The signal arrives when it arrives: more batches may have run by then.
        expired = [entry["reservation_id"] for entry in program.of("reservation_expired")]
        assert (0, len(expired)) == (code, program.of("job_stopped")[0]["expired"])
        assert len(expired) >= 20
        assert len(expired) % 10 == 0
        assert sorted(expired) == backlog.expired()
        backlog.assert_conserved()
        drain(own_server.url)
        backlog.assert_expired_once()


def test_a_stop_in_a_drain_is_prompt(
    shared_server: RedisServer, server_client: redis.Redis, slow_machine: SlowMachine
) -> None:
    """Told to stop at any moment of a long drain, it exits 0 at once, and what it logged is what it did."""
    slow_machine(FINISHES)
    backlog = Backlog(server_client)
    chance = random.Random(2)

    for _ in range(5):
        backlog.add(2000)
        with Program(shared_server.url) as program:
            before = len(backlog.expired())
            program.wait_for("reservation_expired", chance.randint(1, 500))
            program.signal(SIGTERM)
            code = program.wait()

        (stopped,) = program.of("job_stopped")
        assert (0, []) == (code, program.of("processing_error"))
        assert before + stopped["expired"] == len(backlog.expired())
        assert stopped["expired"] == len(program.of("reservation_expired"))
        backlog.assert_conserved()


@stop_signals
def test_a_stop_while_idle_is_prompt(
    shared_server: RedisServer, server_client: redis.Redis, number: Signals, slow_machine: SlowMachine
) -> None:
    """Told to stop while it sleeps, it says so and exits 0 at once."""
    slow_machine(FINISHES)
    with Program(shared_server.url, "--interval", "10m") as program:
        wait_until(lambda: server_client.zcard(Backlog(server_client).shop.keys.workers))
        program.signal(number)

        assert program.wait() == 0
        assert "error" not in program.of("job_stopped")[0]


@stop_signals
def test_a_second_stop_changes_nothing(
    shared_server: RedisServer, server_client: redis.Redis, number: Signals, slow_machine: SlowMachine
) -> None:
    """Told to stop again and again in the middle of a drain, it still ends cleanly, with exit code 0."""
    slow_machine(FINISHES)
    backlog = Backlog(server_client)
    backlog.add(3000)

    with Program(shared_server.url, "--batch-size", "10") as program:
        program.wait_for("reservation_expired")
        for _ in range(10):
            program.signal(number)
        code = program.wait()

    assert (0, 1, 0) == (code, len(program.of("job_stopped")), len(program.of("not JSON")))
    backlog.assert_conserved()


@stop_signals
@pytest.mark.parametrize("held", ["request", "reply"])
def test_a_stop_while_the_reply_is_awaited_is_prompt(
    own_server: RedisServer, number: Signals, held: Way, slow_machine: SlowMachine
) -> None:
    """Told to stop while a batch gets no answer, it waits no longer than its deadline, says so and exits 0."""
    slow_machine(GIVES_UP)
    with own_server.client() as client:
        backlog = Backlog(client)
        backlog.add(100)

        with held_in_second_batch(own_server, held) as (_, program):
            program.signal(number)
            code = program.wait()

        assert (0, 1) == (code, len(program.of("job_stopped")))
        backlog.assert_conserved()
        drain(own_server.url)
        backlog.assert_expired_once()


@stop_signals
def test_a_stop_while_the_server_hangs_is_prompt(
    own_server: RedisServer, number: Signals, slow_machine: SlowMachine
) -> None:
    """Told to stop while the server hangs, it does not wait for it: it says so and exits 0."""
    slow_machine(GIVES_UP)
    with own_server.client() as client:
        backlog = Backlog(client)
        backlog.add(3000)

        with Program(f"{own_server.url}{PATIENT}", "--batch-size", "10") as program:
            program.wait_for("reservation_expired")
            own_server.signal(SIGSTOP)
            program.signal(number)
            code = program.wait()
        own_server.signal(SIGCONT)
        client.ping()  # what the program had sent is done before this is answered

        assert (0, 1) == (code, len(program.of("job_stopped")))
        backlog.assert_conserved()
        drain(own_server.url)
        backlog.assert_expired_once()


def test_a_stop_while_the_server_was_never_there_is_prompt(own_server: RedisServer, slow_machine: SlowMachine) -> None:
    """Told to stop while it waits for a server, it says so and exits 0 at once."""
    slow_machine(FINISHES)
    own_server.stop()

    with Program(own_server.url) as program:
        program.wait_for("processing_error", 4)
        program.signal(SIGTERM)

        assert program.wait() == 0
        assert "error" not in program.of("job_stopped")[0]
