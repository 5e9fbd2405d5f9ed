"""When the worker looks: at the next expiry, at a message, when another worker is gone."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any

import fakeredis
import pytest
import redis

from expirer import Reservations
from expirer.config.settings import Settings
from expirer.connection.connect import Servers
from expirer.worker.batch import Batch
from expirer.worker.events import Limits
from expirer.worker.wake import WakeListener
from expirer.worker.worker import Worker
from tests.clock import FakeTime
from tests.conftest import Log, MakeWorker
from tests.inventory import NOW, Inventory
from tests.program import DEADLINE_S, wait_until
from tests.servers import RedisServer


def test_messages_do_not_shorten_the_pause_after_an_error(
    fake_server: fakeredis.FakeServer, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flood of wake messages does not make a failing worker spin."""
    worker = Worker(Servers.of(fakeredis.FakeRedis(server=fake_server), Settings()).shards[0], log.logger())
    fake_time = FakeTime(worker, monkeypatch, waits=31)
    fake_time.messages = [(worker.on_wake, b"", 0.01)] * 30
    fake_server.connected = False

    worker.run()

    assert len(log.of("processing_error")) <= 5


def test_an_outage_is_logged_and_outlived(
    fake_server: fakeredis.FakeServer, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While Redis is away the worker logs, waits longer each time, at most 5 s, and goes on when it is back."""
    client = fakeredis.FakeRedis(server=fake_server)
    shop = Inventory(client)
    shop.stock("mug", 9, 1)
    shop.hold("mug")
    worker = Worker(Servers.of(client, Settings()).shards[0], log.logger(), lambda: NOW)
    fake_time = FakeTime(worker, monkeypatch, waits=10)
    fake_server.connected = False

    worker.run()

    assert all(0.05 * 2**i <= wait <= 0.1 * 2**i for i, wait in enumerate(fake_time.waits[:6]))
    assert all(2.5 <= wait <= 5 for wait in fake_time.waits[6:])
    errors = log.of("processing_error")
    assert {"ConnectionError"} == {entry["error"] for entry in errors}
    # Half a millisecond may be rounded either way.
    assert [entry["retry_in_ms"] for entry in errors] == pytest.approx([1000 * wait for wait in fake_time.waits], abs=1)
    fake_server.connected = True
    assert worker.tick().expired == 1
    assert [10] == [entry["failures"] for entry in log.of("processing_recovered")]
    shop.assert_conserved({"mug": 10})


def test_an_outage_of_an_hour_is_a_bounded_log(
    fake_server: fakeredis.FakeServer, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the first lines an outage logs one each ten seconds, however many workers fail, and counts the rest."""
    limits = Limits()
    shards = Servers.of(fakeredis.FakeRedis(server=fake_server), Settings(shards=2)).shards
    worker, other = (Worker(shard, log.logger(), limits=limits) for shard in shards)
    fake_time = FakeTime(worker, monkeypatch, waits=1000)
    began_at = fake_time.now
    fake_server.connected = False
    handle = worker.tick
    worker.tick = lambda: handle() + other.tick()  # type: ignore[method-assign]

    failures = worker.run().errors

    errors = log.of("processing_error")
    elapsed_s = fake_time.now - began_at
    assert elapsed_s > 3000
    assert 20 + elapsed_s // 10 >= len(errors) >= elapsed_s // 10
    suppressed = sum(entry.get("suppressed", 0) for entry in errors)
    assert 0 <= failures - len(errors) - suppressed < 10


def test_it_wakes_for_what_it_rescheduled(
    inventory: Inventory, make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reservation that was put back at its own time is the next to wait for, where it is the soonest."""
    inventory.stock("mug", 8, 2)
    extended = inventory.hold("mug")
    inventory.client.hset(inventory.keys.reservation_prefix + extended, "expires_at", NOW + 2000)
    inventory.hold("mug", expires_at=NOW + 9000)
    worker = make_worker()
    fake_time = FakeTime(worker, monkeypatch, waits=1)

    worker.run()

    assert fake_time.waits == [2.0002]


def test_the_interval_caps_the_pause_after_an_error(
    fake_server: fakeredis.FakeServer, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pause after an error is never longer than the interval."""
    worker = Worker(
        Servers.of(fakeredis.FakeRedis(server=fake_server), Settings(interval="200ms")).shards[0], log.logger()
    )
    fake_time = FakeTime(worker, monkeypatch, waits=8)
    fake_server.connected = False

    worker.run()

    assert max(fake_time.waits) <= 0.2


@pytest.mark.parametrize(
    ("hold_ms", "settings", "wait"),
    [
        (None, {}, 60.0),
        (None, {"interval": "5s"}, 5.0),
        (90_000, {}, 60.0),
        (2_000, {}, 2.0002),
        (2_000, {"grace": "1s"}, 3.0002),
        (5, {}, 0.01),
        (10, {"resolution": "50ms"}, 0.05),
        (10, {"resolution": "1ms"}, 0.0102),
        (0, {"resolution": "1ms"}, 0.001),
    ],
)
def test_it_sleeps_until_the_next_expiry(
    inventory: Inventory,
    make_worker: MakeWorker,
    monkeypatch: pytest.MonkeyPatch,
    hold_ms: int | None,
    settings: dict[str, str],
    wait: float,
) -> None:
    """The worker sleeps until just after the next ExpiresAt, from the resolution to the interval."""
    inventory.stock("mug", 9, 1)
    if hold_ms is not None:
        inventory.hold("mug", expires_at=NOW + hold_ms)
    worker = make_worker(**settings)
    fake_time = FakeTime(worker, monkeypatch, waits=2)

    worker.run()

    assert [wait, wait] == fake_time.waits


@pytest.mark.parametrize(("until", "wait"), [({}, 60.0), ({"until": NOW + 7000}, 7.0)])
def test_it_sleeps_through_a_pause(
    inventory: Inventory,
    make_worker: MakeWorker,
    monkeypatch: pytest.MonkeyPatch,
    until: dict[str, int],
    wait: float,
) -> None:
    """While paused the worker does not spin on what is overdue: it sleeps the interval, or until the pause ends."""
    inventory.stock("mug", 9, 1)
    inventory.hold("mug")
    inventory.client.hset(inventory.keys.control, mapping={"paused": 1, **until})  # type: ignore[dict-item]
    worker = make_worker()
    fake_time = FakeTime(worker, monkeypatch, waits=2)

    worker.run()

    assert [wait, wait] == fake_time.waits


def test_no_message_puts_off_the_end_of_a_pause(
    inventory: Inventory, make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever others publish meanwhile, a worker is back when the pause ends."""
    worker = make_worker()
    publish = another(worker)
    inventory.client.hset(inventory.keys.control, mapping={"paused": 1, "until": NOW + 7000})
    fake_time = FakeTime(worker, monkeypatch, waits=2)
    fake_time.messages = [(worker.on_tick, publish(), 2.0)]

    worker.run()

    assert [7.0, 5.0] == fake_time.waits


@contextmanager
def running(worker: Worker) -> Iterator[WakeListener]:
    """Run the worker in a thread, with its listener, until the block ends."""
    thread = threading.Thread(target=worker.run)
    thread.start()
    listener = WakeListener([worker], Log().logger())
    listener.start()
    try:
        yield listener
    finally:
        listener.stop()
        worker.stop()
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


def test_a_message_wakes_it(server_client: redis.Redis, log: Log) -> None:
    """A reservation sooner than all before it is expired at once, though the worker slept."""
    shop = Inventory(server_client)
    shop.stock("mug", 10)
    worker = Worker(Servers.of(server_client, Settings()).shards[0], log.logger())

    with running(worker):
        wait_until(lambda: server_client.pubsub_numsub(shop.keys.wake)[0][1] == 1)
        wait_until(lambda: server_client.zcard(shop.keys.workers))
        Reservations(server_client).reserve("o1", "mug", 2, timedelta(milliseconds=30))
        wait_until(lambda: log.of("reservation_expired"))

    assert shop.status("o1:mug") == "Expired"
    shop.assert_conserved({"mug": 10})


def test_a_lost_subscription_is_renewed(server_client: redis.Redis, log: Log) -> None:
    """After its subscription was cut the worker subscribes again, and looks for what it missed."""
    shop = Inventory(server_client)
    shop.stock("mug", 10)
    worker = Worker(Servers.of(server_client, Settings()).shards[0], log.logger())

    with running(worker):
        wait_until(lambda: server_client.pubsub_numsub(shop.keys.wake)[0][1] == 1)
        server_client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")  # type: ignore[no-untyped-call]
        shop.stock("mug", 9, 1)
        shop.hold("mug", expires_at=1)
        wait_until(lambda: log.of("reservation_expired"))

    shop.assert_conserved({"mug": 10})


def test_a_message_that_tells_the_time_sets_the_alarm(make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told when the sooner reservation is due, the worker sleeps on until then; the soonest of several counts."""
    worker = make_worker()
    fake_time = FakeTime(worker, monkeypatch, waits=4)
    fake_time.messages = [
        (worker.on_wake, b"%d.250 %d" % (NOW + 10_000, NOW + 19_000), 10.0),
        (worker.on_wake, b"%d.250 %d" % (NOW + 11_000, NOW + 13_000), 1.0),
        (worker.on_wake, b"%d.250 %d" % (NOW + 11_500, NOW + 16_500), 0.5),
    ]

    worker.run()

    assert fake_time.waits == pytest.approx([60.0, 8.99995, 1.99995, 1.49995])


@pytest.mark.parametrize("step", ["reserve", "extend"])
def test_the_scripts_tell_when_the_soonest_is_due(client: redis.Redis, inventory: Inventory, step: str) -> None:
    """What is put in front of the index is told with the time and its ExpiresAt; what comes later is not."""
    channel = client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
    inventory.stock("mug", 10)
    reservations = Reservations(client, now_ms=lambda: NOW)
    if step == "extend":
        reservations.reserve("o1", "mug", 1, timedelta(seconds=2))
        client.zrem(inventory.keys.index, "o1:mug")
    channel.subscribe(inventory.keys.wake)

    if step == "reserve":
        reservations.reserve("o1", "mug", 1, timedelta(seconds=3))
    else:
        reservations.extend("o1", "mug", timedelta(seconds=3))
    reservations.reserve("o2", "mug", 1, timedelta(seconds=9))

    heard = [message["data"] for _ in range(9) if (message := channel.get_message(timeout=0.05))]
    assert heard == [b"%d.000 %d" % (NOW, NOW + 3000)]
    inventory.assert_conserved({"mug": 10})


def another(worker: Worker) -> Callable[..., bytes]:
    """Return a function that writes what a live worker of the same inventory publishes after its next tick."""
    fellow = Worker(worker.shard, Log().logger(), lambda: NOW, id_="other:1:aa")
    fellow.tick()  # from here on there is company
    worker.tick()
    numbers = itertools.count(100)

    def publish(head: int | None = None, **lies: object) -> bytes:
        assert worker._mark is not None
        parts = {
            "token": worker._mark[0].decode(),
            "number": next(numbers),
            "head": head or "",
            "overdue": 0,
            "id_": fellow.id,
            **lies,
        }
        return " ".join(map(str, parts.values())).encode()

    return publish


def test_another_workers_tick_is_as_good_as_ones_own(
    inventory: Inventory, make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After another's tick a worker stands by: it waits for the next expiry, and a while longer for the leader."""
    worker = make_worker(resolution="100ms")
    publish = another(worker)
    fake_time = FakeTime(worker, monkeypatch, waits=2)
    fake_time.messages = [(worker.on_tick, publish(NOW + 25_000), 20.0)]

    worker.run()

    assert fake_time.waits[0] == 60.0
    assert 5.05 <= fake_time.waits[1] <= 5.101
    assert inventory.client.zcard(inventory.keys.workers) == 2


def test_no_tick_of_others_puts_off_what_follows_a_conflict(
    inventory: Inventory, make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a conflict, and after the brake was pulled, a worker looks again whatever others publish meanwhile."""
    worker = make_worker(brake_above=1)
    publish = another(worker)

    def conflict(_may_go_on: object) -> Iterator[Batch]:
        raise redis.WatchError("the control key changed")

    with monkeypatch.context() as patch:
        patch.setattr(worker._expiry, "drain", conflict)
        assert worker.tick().conflicts == 1
    worker.on_tick(publish())
    assert worker.alarm.moment < time.monotonic() + 1

    inventory.overdue("mug", 2)
    assert worker.tick().errors == 1
    worker.on_tick(publish())
    assert worker.alarm.moment < time.monotonic() + 1
    inventory.assert_conserved({"mug": 2})


def test_standbys_poll_all_the_same(make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many ticks of others it hears of, a worker looks for itself after its own interval."""
    worker = make_worker(interval="30s")
    publish = another(worker)
    fake_time = FakeTime(worker, monkeypatch, waits=4)
    fake_time.messages = [(worker.on_tick, publish(), 10.0), (worker.on_tick, publish(), 15.0)]

    worker.run()

    assert fake_time.waits == [30.0, 20.0, 5.0, 30.0]


@pytest.mark.parametrize(
    "lies",
    [
        {"token": "f" * 16},
        {"token": ""},
        {"number": 0},
        {"number": "1e9"},
        {"number": "9" * 400},
        {"head": "soon"},
        {"head": "9" * 400},
        {"overdue": "many"},
    ],
)
def test_what_no_fellow_worker_says_is_not_believed(
    make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch, lies: dict[str, object]
) -> None:
    """A tick of another database, another inventory, an older moment or a stranger puts nothing off."""
    worker = make_worker()
    publish = another(worker)
    Inventory(worker.shard.client).hold("mug", expires_at=NOW + 5000)
    fake_time = FakeTime(worker, monkeypatch, waits=2)
    fake_time.messages = [(worker.on_tick, publish(**{"head": NOW + 50_000, **lies}), 1.0)]

    worker.run()

    assert fake_time.waits == [5.0002, 4.0002]


@pytest.mark.parametrize("message", [b"", b"1", b"wake up", b"1 2", b"\xff \xff \xff", b" 1  other", b"a b c d e"])
def test_a_strangers_message_is_none(make_worker: MakeWorker, message: bytes) -> None:
    """Anything that is published on the channel of ticks without its form leaves the alarm as it is."""
    worker = make_worker()
    another(worker)
    moment = worker.alarm.moment

    worker.on_tick(message)

    assert moment == worker.alarm.moment


def test_a_message_during_a_drain_is_kept(
    inventory: Inventory, make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reservation made while the last batch is on its way is expired on time, not an interval later."""
    worker = make_worker()
    worker.tick()
    inventory.overdue("mug", 3)
    drain = worker._expiry.drain

    def reserve_meanwhile(may_go_on: Callable[[], bool]) -> Iterator[Batch]:
        for batch in drain(may_go_on):
            worker.on_wake(b"%d %d" % (NOW, NOW + 500))
            yield batch

    worker._expiry.drain = reserve_meanwhile  # type: ignore[method-assign]
    fake_time = FakeTime(worker, monkeypatch, waits=1)

    worker.run()

    assert fake_time.waits == [0.5002]
    inventory.assert_conserved({"mug": 3})


@pytest.mark.parametrize("message", [b"1", b"nan nan", b"-1 1e999", b"0 " + b"9" * 400, b"nan inf x", b"inf  x"])
def test_no_message_ends_the_worker(
    inventory: Inventory, make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch, message: bytes
) -> None:
    """Whatever a stranger publishes on either channel, the worker looks again within the interval."""
    worker = make_worker()
    fake_time = FakeTime(worker, monkeypatch, waits=4)
    fake_time.messages = [(worker.on_wake, message, 10.0), (worker.on_tick, message, 10.0)]

    worker.run()

    assert all(0 <= wait <= 60.1 for wait in fake_time.waits)
    assert inventory.client.zcard(inventory.keys.workers) == 1


def test_a_woken_standby_lets_the_leader_go_first(make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wake message makes the leader look at once, and those who stand by a while later."""
    worker = make_worker(resolution="100ms")
    publish = another(worker)
    fake_time = FakeTime(worker, monkeypatch, waits=3)
    fake_time.messages = [(worker.on_tick, publish(), 10.0), (worker.on_wake, b"1", 5.0)]

    worker.run()

    assert 0.05 <= fake_time.waits[2] <= 0.1


def test_a_tick_is_published_to_the_others(client: redis.Redis, inventory: Inventory, make_worker: MakeWorker) -> None:
    """With two workers a tick is published, as on_tick has it; a paused one publishes nothing."""
    channel = client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
    channel.subscribe(inventory.keys.ticks)
    inventory.stock("mug", 8, 2)
    inventory.hold("mug")
    inventory.hold("mug", expires_at=NOW + 2000)
    first, second = make_worker(), make_worker()

    first.tick()
    second.tick()
    inventory.client.hset(inventory.keys.control, "paused", 1)
    second.tick()

    [message] = [message["data"] for _ in range(9) if (message := channel.get_message(timeout=0.05))]
    token: Any = inventory.client.hget(inventory.keys.stats, "token")
    assert message == b"%s 1 %d 0 %s" % (token, NOW + 2000, second.id.encode())
    inventory.assert_conserved({"mug": 10})


def test_a_fleet_releases_each_unit_once(shared_server: RedisServer, server_client: redis.Redis) -> None:
    """Five workers on one inventory release every reservation once, whoever leads."""
    shop = Inventory(server_client)
    shop.stock("mug", 300)
    logs = [Log() for _ in range(5)]
    with ExitStack() as fleet:
        for log in logs:
            client = fleet.enter_context(shared_server.client())
            fleet.enter_context(running(Worker(Servers.of(client, Settings()).shards[0], log.logger())))
        for number in range(100):
            Reservations(server_client).reserve(f"o{number}", "mug", 1, timedelta(milliseconds=20 + number))
        wait_until(lambda: server_client.xlen(shop.keys.events) == 100)

    assert 100 == sum(len(log.of("reservation_expired")) for log in logs)
    shop.assert_conserved({"mug": 300})
