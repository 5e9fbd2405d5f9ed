"""What the listener does when it cannot listen, and that this is said where people look."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis

from expirer import Reservations
from expirer.config.settings import Settings
from expirer.connection.connect import Servers, connect_all
from expirer.worker.wake import WakeListener
from expirer.worker.worker import Worker
from tests.conftest import Log
from tests.inventory import Inventory
from tests.program import Program, wait_until
from tests.servers import RedisServer, free_port
from tests.workers import Workers


def readyz(port: int) -> str:
    """Return what the worker's probe says."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
        text: str = answer.read().decode()
    return text


def listening(port: int) -> bool:
    """Say what the metric says."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return b"\nexpirer_worker_listening 1.0\n" in answer.read()


def test_a_user_without_channels_is_told(own_server: RedisServer) -> None:
    """Without the right to SUBSCRIBE the worker works, and says once in the log, in /readyz and in a metric what fails.

    Redis 7 gives a new user no channels at all.
    """
    with own_server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "clerk", "on", ">pw", "~*", "+@all", "resetchannels")
        port = free_port()
        with Program(f"redis://clerk:pw@127.0.0.1:{own_server.port}", http_port=port) as program:
            entry = program.wait_for("wake_unavailable")
            shop = Inventory(admin)
            wait_until(lambda: admin.zcard(shop.keys.workers))

            assert "NOPERM" in entry["message"] or "permissions" in entry["message"]
            assert readyz(port).startswith("ok, but wake messages are not heard: ")
            assert not listening(port)
            admin.execute_command("ACL", "SETUSER", "clerk", "allchannels")
            wait_until(lambda: listening(port))
            assert readyz(port) == "ok\n"
            assert len(program.of("wake_unavailable")) == 1


@contextmanager
def listener_of(workers: Workers) -> Iterator[WakeListener]:
    """Run a listener of these workers until the block ends."""
    listener = WakeListener(workers.each, Log().logger())
    listener.start()
    try:
        wait_until(lambda: not listener.trouble)
        yield listener
    finally:
        listener.stop()


def test_a_cut_subscription_is_renewed_at_once(own_server: RedisServer, log: Log) -> None:
    """After CLIENT KILL the listener subscribes again at once, however often: no reservation waits for seconds."""
    shop = Inventory(own_server.client())
    workers = Workers(log, redis_url=own_server.url)
    with listener_of(workers), own_server.client() as admin:
        for _ in range(3):
            before = {client["id"] for client in admin.client_list(_type="pubsub")}
            admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            wait_until(lambda: {client["id"] for client in admin.client_list(_type="pubsub")} - before, 2)  # noqa: B023
            wait_until(lambda: admin.pubsub_numsub(shop.keys.wake)[0][1] == 1, 2)


def test_the_listener_follows_its_worker(server_binary: Path, tmp_path: Path, log: Log) -> None:
    """When the name of the server leads elsewhere by now, and the worker has gone there, the listener goes too."""
    servers = []
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        servers.append(RedisServer(server_binary, tmp_path / name, port=free_port()))
        servers[-1].start()
    old, new = servers
    try:
        workers = Workers(log, redis_url=f"redis://127.0.0.1:{old.port}")
        [worker] = workers.each
        with listener_of(workers):
            worker.tick()
            pool: Any = worker.shard.client.connection_pool
            pool.connection_kwargs["port"] = new.port  # as a changed name would
            pool.reset()
            assert worker.tick().errors == 0
            client = new.client()
            wait_until(lambda: client.pubsub_numsub(worker.shard.keys.wake)[0][1] == 1)
    finally:
        old.stop()
        new.stop()


def test_workers_that_disagree_are_told(server_client: redis.Redis, log: Log) -> None:
    """Two live workers with another grace, retention or layout: each says so once, with both values."""
    fellow = Worker(Servers.of(server_client, Settings(grace="10m")).shards[0], Log().logger())
    worker = Worker(Servers.of(server_client, Settings(interval="10ms")).shards[0], log.logger())

    for _ in range(3):
        fellow.tick()
        worker.tick()
        worker._compared_at = 0.0

    [entry] = log.of("settings_disagree")
    assert entry["finding"] == "the workers disagree on grace: 0, 600000"


def test_databases_share_nothing(own_server: RedisServer, log: Log) -> None:
    """Ticks of database 0, where nothing is due, put no worker of database 1 to sleep: Pub/Sub knows no databases."""
    urls = [f"redis://127.0.0.1:{own_server.port}/{database}" for database in (0, 0, 1, 1)]
    others = [Worker(connect_all(Settings(redis_url=url)).shards[0], Log().logger()) for url in urls[:3]]
    workers = Workers(log, redis_url=urls[3])
    client = redis.Redis.from_url(urls[3])
    shop = Inventory(client)
    shop.stock("mug", 10)
    for worker in (*others, *workers.each):  # each has company
        worker.tick()
        worker.tick()
    with workers.running():
        wait_until(lambda: client.pubsub_numsub(shop.keys.wake)[0][1] == 1)
        Reservations(client).reserve("o1", "mug", 2, timedelta(milliseconds=300))
        for _ in range(5):
            for worker in others[:2]:
                worker.tick()
        wait_until(lambda: log.of("reservation_expired"))

    [entry] = log.of("reservation_expired")
    assert entry["lateness_ms"] < 5000
    shop.assert_conserved({"mug": 10})


def test_one_pass_obeys_the_rate_and_ends(server_client: redis.Redis, log: Log) -> None:
    """`once` expires all that is due, as fast as the rate allows: not one bucket for each CronJob."""
    shop = Inventory(server_client)
    shop.stock("mug", 0, 60)
    for number in range(60):
        shop.hold("mug", expires_at=1000 + number)
    worker = Worker(Servers.of(server_client, Settings(max_rate=200)).shards[0], log.logger())

    assert worker.run_once().expired == 60
    shop.assert_conserved({"mug": 60})


def test_no_descriptor_left_ends_nothing(own_server: RedisServer, tmp_path: Path) -> None:
    """Without a file descriptor left, and Redis restarted, the worker logs its errors and goes on when it can."""
    secret = tmp_path / "password"
    secret.write_text("pw")
    with own_server.client() as admin:
        admin.config_set("requirepass", "pw")
    url = f"redis://127.0.0.1:{own_server.port}"
    with Program(url, redis_password_file=secret) as program:
        program.wait_for("job_started")
        admin = redis.Redis(port=own_server.port, password="pw")  # noqa: S106  # of this test
        wait_until(lambda: admin.zcard("{inventory}:workers"))
        program.limit_files(3)
        admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")  # type: ignore[no-untyped-call]
        admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")  # type: ignore[no-untyped-call]
        admin.publish("{inventory}:wake", "1")
        program.limit_files(1024)
        shop = Inventory(admin)
        shop.stock("mug", 9, 1)
        shop.hold("mug", expires_at=1000)
        admin.publish(shop.keys.wake, "1")
        wait_until(lambda: shop.status("o0:mug") == "Expired")
    shop.assert_conserved({"mug": 10})


@pytest.mark.parametrize("clock", ["elapsed", "wall"])
def test_a_machine_that_was_frozen_pulls_no_brake(server_client: redis.Redis, log: Log, clock: str) -> None:
    """If only one clock of this machine stood still, the other shows that time has passed: the server is right."""
    shop = Inventory(server_client)
    shop.stock("mug", 9, 1)
    shop.hold("mug", expires_at=1000)
    worker = Worker(Servers.of(server_client, Settings(batch_size=1)).shards[0], log.logger())
    next(worker._expiry.drain(lambda: False))
    shop.hold("mug", expires_at=1000)
    server_client.hincrby(shop.keys.stock_prefix + "mug", "reserved", 1)
    now_ms, elapsed_s, wall_s = worker._expiry._believed or (0, 0, 0)
    hour = 3600
    worker._expiry._believed = (
        now_ms - 1000 * hour,
        elapsed_s - (0 if clock == "elapsed" else hour),
        wall_s - (0 if clock == "wall" else hour),
    )

    assert worker.tick().expired == 1
    assert log.of("brake_pulled") == []


def test_after_a_resume_no_worker_pulls_the_brake_again(server_client: redis.Redis, log: Log) -> None:
    """After ONE jump of the clock and one resume the whole fleet goes on: a person has said that the clock is right."""
    shop = Inventory(server_client)
    shop.stock("mug", 0, 3)
    shard = Servers.of(server_client, Settings(batch_size=1)).shards[0]
    fleet = [Worker(shard, log.logger(), id_=f"w{number}") for number in range(3)]
    for worker in fleet:
        worker.tick()
    for number in range(3):
        shop.hold("mug", expires_at=1000 + number)
    hour_ms = 3_600_000
    for worker in fleet:  # the server's clock is an hour ahead of what each of them believes
        now_ms, elapsed_s, wall_s = worker._expiry._believed or (0, 0, 0)
        worker._expiry._believed = now_ms - hour_ms, elapsed_s, wall_s
    server_client.delete(shop.keys.workers)
    assert fleet[0].tick().errors == 1
    seconds, _ = server_client.time()
    server_client.hset(shop.keys.control, mapping={"paused": 0, "brake": "", "resumed_at": seconds * 1000})

    done = [worker.tick() for worker in fleet]

    assert sum(tick.expired for tick in done) == 3
    assert len(log.of("brake_pulled")) == 1
    shop.assert_conserved({"mug": 3})
