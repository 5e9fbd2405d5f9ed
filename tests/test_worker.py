"""What the worker promises: when it looks, what it logs, and that nothing ends it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from queue import Empty
from typing import Any

import fakeredis
import pytest
import redis

from expirer import Reservations, expiry
from expirer.keys import ShardKeys
from expirer.settings import Settings
from expirer.worker import Tick, Worker
from tests.conftest import Log
from tests.inventory import NOW, Inventory
from tests.program import DEADLINE_S, wait_until
from tests.servers import RedisServer

MakeWorker = Callable[..., Worker]


class FakeTime:
    """A clock and a signal queue in one: waiting for a signal moves the clock, and the last wait stops the worker."""

    def __init__(self, worker: Worker, monkeypatch: pytest.MonkeyPatch, *, waits: int) -> None:
        self.now = 1000.0
        self.waits: list[float] = []
        self.messages: list[tuple[bytes | None, float]] = []
        """A tick, or None for a wake, each after so many seconds; each ends a wait."""
        self._worker = worker
        self._most = waits
        monkeypatch.setattr("expirer.worker.time.monotonic", lambda: self.now)
        monkeypatch.setattr(worker, "_signals", self)
        monkeypatch.setattr("expirer.worker.WakeListener.start", lambda _: None)

    def get(self, timeout: float) -> int:
        """Wait, until the next message or for the whole time."""
        self.waits.append(round(timeout, 6))
        if len(self.waits) == self._most:
            self._worker.stop()
        if not self.messages:
            self.now += timeout
            raise Empty
        message, after = self.messages.pop(0)
        self.now += after
        shard = self._worker._shards[0]
        if message is None:
            shard.is_woken = True
        else:
            self._worker._hear(shard.number, message)
        return shard.number

    def put(self, _signal: int) -> None:
        """Take a signal: the next wait ends anyway."""


@pytest.mark.parametrize("word", ["1", "yes", "true", "on", "maintenance"])
def test_a_pause_holds(inventory: Inventory, worker: Worker, word: str) -> None:
    """While the control key says paused nothing expires; the heartbeat and the overdue count go on."""
    inventory.stock("mug", 9, 1)
    inventory.hold("mug")
    inventory.client.hset(inventory.keys.control, "paused", word)

    assert Tick(overdue=1, paused=1) == worker.tick()
    assert inventory.client.zcard(inventory.keys.workers) == 1
    inventory.assert_conserved({"mug": 10})


@pytest.mark.parametrize("word", ["0", "", "no", "False", "OFF"])
def test_no_pause_is_no_pause(inventory: Inventory, worker: Worker, word: str) -> None:
    """A control key that says not paused holds nothing up."""
    inventory.stock("mug", 9, 1)
    inventory.hold("mug")
    inventory.client.hset(inventory.keys.control, mapping={"paused": word, "reason": "earlier"})

    assert worker.tick().expired == 1
    inventory.assert_conserved({"mug": 10})


@pytest.mark.parametrize(
    ("until", "expired"),
    [(NOW + 1, 0), (NOW, 1), (NOW - 1, 1), ("tomorrow", 0), ("", 0), (NOW // 1000 - 5, 0)],
)
def test_a_pause_ends_by_itself(inventory: Inventory, worker: Worker, until: object, expired: int) -> None:
    """A pause lasts until its time; one whose end cannot be read, or is in seconds, lasts."""
    inventory.stock("mug", 9, 1)
    inventory.hold("mug")
    inventory.client.hset(inventory.keys.control, mapping={"paused": 1, "until": until})  # type: ignore[dict-item]

    assert expired == worker.tick().expired
    inventory.assert_conserved({"mug": 10})


def test_the_end_of_a_pause_is_the_servers_time(inventory: Inventory, make_worker: MakeWorker) -> None:
    """Where the server's clock decides what is due, it also decides when a pause ends."""
    inventory.stock("mug", 9, 1)
    inventory.hold("mug", expires_at=1)
    seconds, _ = inventory.client.time()
    worker = make_worker(None)
    inventory.client.hset(inventory.keys.control, mapping={"paused": 1, "until": (seconds + 3600) * 1000})
    assert worker.tick().expired == 0

    inventory.client.hset(inventory.keys.control, "until", (seconds - 1) * 1000)

    assert worker.tick().expired == 1
    inventory.assert_conserved({"mug": 10})


def test_a_pause_is_logged_once(inventory: Inventory, worker: Worker, log: Log) -> None:
    """The start of a pause is logged once, with who and why, and its end once."""
    control = {"paused": 1, "by": "ann", "reason": "payment outage", "until": NOW + 5000}
    inventory.client.hset(inventory.keys.control, mapping=control)  # type: ignore[arg-type]
    worker.tick()
    worker.tick()
    inventory.client.delete(inventory.keys.control)
    worker.tick()
    worker.tick()

    (paused,) = log.of("expiry_paused")
    assert (paused["by"], paused["reason"], paused["until"]) == ("ann", "payment outage", NOW + 5000)
    assert [entry["event"] for entry in log.entries] == ["expiry_paused", "expiry_resumed"]


def test_a_resumed_backlog_is_announced(inventory: Inventory, worker: Worker, log: Log) -> None:
    """The end of a pause is logged before what it lets go, with how many are overdue."""
    inventory.stock("mug", 9, 1)
    inventory.hold("mug")
    inventory.client.hset(inventory.keys.control, "paused", 1)
    worker.tick()
    inventory.client.delete(inventory.keys.control)
    worker.tick()

    events = [entry["event"] for entry in log.entries]
    assert events[:3] == ["expiry_paused", "expiry_resumed", "found_expired_reservations"]
    assert log.of("expiry_resumed")[0]["overdue"] == 1
    inventory.assert_conserved({"mug": 10})


def test_a_time_of_another_unit_is_warned_of(client: redis.Redis, make_worker: MakeWorker, log: Log) -> None:
    """Scores in ms under a setting of seconds are due in thousands of years: that is said once, not endured."""
    client.zadd("{inventory}:reservations", {"r": NOW + 60_000})
    worker = make_worker(score_unit="s")

    worker.tick()
    worker.tick()

    assert ["unit_mismatch"] == [entry["event"] for entry in log.entries]


def test_a_drain_stops_at_a_pause(inventory: Inventory, make_worker: MakeWorker, log: Log) -> None:
    """A pause in the middle of a drain ends it after the batch that was under way."""
    inventory.stock("mug", 0, 30)
    for _ in range(30):
        inventory.hold("mug")
    worker = make_worker(batch_size=10)
    expiry = worker._shards[0].expiry
    expire_batch = expiry.expire_batch

    def pause_after_one(*, go_on: bool) -> object:
        del go_on  # a batch already under way may be the last one before the pause
        batch = expire_batch()
        inventory.client.hset(inventory.keys.control, "paused", 1)
        return batch

    expiry.expire_batch = pause_after_one  # type: ignore[method-assign,assignment]

    assert Tick(expired=10, units=10, overdue=20, paused=1) == worker.tick()
    assert len(log.of("expiry_paused")) == 1
    inventory.assert_conserved({"mug": 30})


def test_the_log_tells_the_tick(inventory: Inventory, make_worker: MakeWorker, log: Log) -> None:
    """A tick logs what it found, each reservation, and one line of counts, in that order."""
    inventory.stock("mug", 7, 3)
    inventory.hold("mug", 2, id_="o1:mug", order_id="o1")
    inventory.hold("mug", 1, id_="o2:mug", order_id="o2")
    inventory.hold("mug", 0, id_="o3:mug")
    inventory.hold("mug", status="Released", id_="o4:mug")
    worker = make_worker(batch_size=2)

    worker.tick()

    found, *reservations, completed = [
        {name: value for name, value in entry.items() if name not in ("log_level", "elapsed_ms")}
        for entry in log.entries
    ]
    common = {"worker": worker.id, "shard": 0}
    assert {"event": "found_expired_reservations", "count": 4, **common} == found
    assert [(entry["event"], entry["reservation_id"]) for entry in reservations] == [
        ("reservation_expired", "o1:mug"),
        ("reservation_expired", "o2:mug"),
        ("reservation_quarantined", "o3:mug"),
        ("reservation_skipped", "o4:mug"),
    ]
    assert {
        "event": "reservation_expired",
        "reservation_id": "o1:mug",
        "order_id": "o1",
        "product_id": "mug",
        "quantity": 2,
        "expires_at": NOW - 1000,
        "lateness_ms": 1000,
        **common,
    } == reservations[0]
    assert {
        "event": "processing_completed",
        "count": 2,
        "units": 3,
        "skipped": 1,
        "rescheduled": 0,
        "quarantined": 1,
        "overdue": 0,
        **common,
    } == completed


def test_an_idle_tick_is_silent(inventory: Inventory, worker: Worker, log: Log) -> None:
    """A tick that finds nothing due logs nothing."""
    inventory.stock("mug", 9, 1)
    inventory.hold("mug", expires_at=NOW + 1)

    assert Tick() == worker.tick()
    assert log.entries == []


def test_a_flushed_script_is_no_error(inventory: Inventory, worker: Worker, log: Log) -> None:
    """After SCRIPT FLUSH the script is loaded again at once, and nothing is logged about it."""
    inventory.stock("mug", 8, 2)
    inventory.hold("mug")
    worker.tick()
    inventory.hold("mug")
    inventory.client.script_flush()

    assert Tick(expired=1, units=1) == worker.tick()
    assert log.of("processing_error") == []
    inventory.assert_conserved({"mug": 10})


def test_one_bad_shard_does_not_stop_the_others(client: redis.Redis, log: Log) -> None:
    """An error on one shard is logged with its number, and the other shards are swept."""
    shops = [Inventory(client, ShardKeys.of("inventory", shard, 3)) for shard in range(3)]
    for shop in shops:
        shop.stock("mug", 9, 1)
        shop.hold("mug")
    client.delete(shops[1].keys.index)
    client.set(shops[1].keys.index, "not ours")

    tick = Worker(client, Settings(shards=3), log.logger(), lambda: NOW).tick()

    assert Tick(expired=2, units=2, errors=1) == tick
    assert [entry["shard"] for entry in log.of("processing_error")] == [1]
    for shop in shops:
        shop.assert_conserved({"mug": 10})


def test_a_backlog_does_not_delay_other_shards(client: redis.Redis, log: Log) -> None:
    """While one shard has a backlog the others get their turn after each batch of it."""
    shops = [Inventory(client, ShardKeys.of("inventory", shard, 2)) for shard in range(2)]
    for shop, count in zip(shops, (25, 1), strict=True):
        shop.stock("mug", 0, count)
        for _ in range(count):
            shop.hold("mug")

    tick = Worker(client, Settings(shards=2, batch_size=10), log.logger(), lambda: NOW).tick()

    assert Tick(expired=26, units=26) == tick
    assert [0] * 10 + [1] + [0] * 15 == [entry["shard"] for entry in log.of("reservation_expired")]
    assert [(1, 1), (0, 25)] == [(entry["shard"], entry["count"]) for entry in log.of("processing_completed")]
    for shop, count in zip(shops, (25, 1), strict=True):
        shop.assert_conserved({"mug": count})


def test_an_error_in_a_drain_leaves_the_rest_counted(inventory: Inventory, make_worker: MakeWorker, log: Log) -> None:
    """Where a drain ends with an error, its last line says how many are left overdue."""
    inventory.stock("mug", 0, 30)
    for _ in range(30):
        inventory.hold("mug")
    worker = make_worker(batch_size=10)
    expiry = worker._shards[0].expiry
    real = expiry.expire_batch

    def fail_after_one(*, go_on: bool) -> object:
        del go_on
        batch = real()
        inventory.client.delete(inventory.keys.control)
        inventory.client.set(inventory.keys.control, "not ours")
        return batch

    expiry.expire_batch = fail_after_one  # type: ignore[method-assign,assignment]

    assert Tick(expired=10, units=10, overdue=20, errors=1) == worker.tick()
    (completed,) = log.of("processing_completed")
    assert (10, 20) == (completed["count"], completed["overdue"])
    inventory.assert_conserved({"mug": 30})


def test_messages_do_not_shorten_the_pause_after_an_error(
    fake_server: fakeredis.FakeServer, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flood of wake messages does not make a failing worker spin."""
    worker = Worker(fakeredis.FakeRedis(server=fake_server), Settings(), log.logger())
    fake_time = FakeTime(worker, monkeypatch, waits=31)
    fake_time.messages = [(None, 0.01)] * 30
    fake_server.connected = False

    worker.run()

    assert len(log.of("processing_error")) <= 5


@pytest.fixture
def fake_server() -> fakeredis.FakeServer:
    """Return a fake server that can go away."""
    return fakeredis.FakeServer()


def test_an_outage_is_logged_and_outlived(
    fake_server: fakeredis.FakeServer, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While Redis is away the worker logs, waits longer each time, at most 5 s, and goes on when it is back."""
    client = fakeredis.FakeRedis(server=fake_server)
    shop = Inventory(client)
    shop.stock("mug", 9, 1)
    shop.hold("mug")
    worker = Worker(client, Settings(), log.logger(), lambda: NOW)
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
    worker = Worker(fakeredis.FakeRedis(server=fake_server), Settings(interval="200ms"), log.logger())
    fake_time = FakeTime(worker, monkeypatch, waits=8)
    fake_server.connected = False

    worker.run()

    assert max(fake_time.waits) <= 0.2


def test_a_bug_is_logged_with_its_traceback(worker: Worker, log: Log) -> None:
    """An error that is not Redis's is logged with a traceback, and does not end the worker."""

    def fail(*, go_on: bool) -> None:
        del go_on
        raise LookupError("surprise")

    worker._shards[0].expiry.expire_batch = fail  # type: ignore[method-assign,assignment]

    assert Tick(errors=1) == worker.tick()
    (entry,) = log.of("processing_error")
    assert (entry["error"], entry["message"], entry["exc_info"]) == ("LookupError", "surprise", True)


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


def test_only_shards_that_are_due_are_swept(client: redis.Redis, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two expiries of one shard the others are left alone until their own time, or the interval."""
    Inventory(client, ShardKeys.of("inventory", 1, 2)).hold("mug", expires_at=NOW + 10_000)
    worker = Worker(client, Settings(shards=2), log.logger(), lambda: NOW)
    fake_time = FakeTime(worker, monkeypatch, waits=7)
    swept: list[tuple[int, float]] = []
    for shard in worker._shards:

        def sweep(
            *, go_on: bool, number: int = shard.number, real: Callable[..., Any] = shard.expiry.expire_batch
        ) -> object:
            swept.append((number, round(fake_time.now - 1000)))
            return real(go_on=go_on)

        shard.expiry.expire_batch = sweep  # type: ignore[assignment, method-assign]

    worker.run()

    assert [sweep for sweep in swept if sweep[0] == 0] == [(0, 0), (0, 60)]
    assert [at for number, at in swept if number == 1] == [0, 10, 20, 30, 40, 50]


@contextmanager
def running(worker: Worker) -> Iterator[None]:
    """Run the worker in a thread until the block ends."""
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield
    finally:
        worker.stop()
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


def test_a_message_wakes_it(server_client: redis.Redis, log: Log) -> None:
    """A reservation sooner than all before it is expired at once, though the worker slept for a day."""
    shop = Inventory(server_client)
    shop.stock("mug", 10)
    worker = Worker(server_client, Settings(interval="24h"), log.logger())

    with running(worker):
        wait_until(lambda: server_client.pubsub_numsub(shop.keys.wake)[0][1] == 1)
        wait_until(lambda: server_client.zcard(shop.keys.workers))
        Reservations(server_client).reserve("o1", "mug", 2, timedelta(milliseconds=30))
        wait_until(lambda: log.of("reservation_expired"))

    assert shop.status("o1:mug") == "Expired"
    shop.assert_conserved({"mug": 10})


def test_a_lost_subscription_is_renewed(server_client: redis.Redis, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its subscription was cut the worker subscribes again, and looks for what it missed."""
    monkeypatch.setattr("expirer.wake._RECONNECT_S", 0.05)
    shop = Inventory(server_client)
    shop.stock("mug", 10)
    worker = Worker(server_client, Settings(interval="24h"), log.logger())

    with running(worker):
        wait_until(lambda: server_client.pubsub_numsub(shop.keys.wake)[0][1] == 1)
        server_client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")  # type: ignore[no-untyped-call]
        shop.stock("mug", 9, 1)
        shop.hold("mug", expires_at=1)
        wait_until(lambda: log.of("reservation_expired"))

    shop.assert_conserved({"mug": 10})


def test_a_burst_of_messages_is_one_signal(make_worker: MakeWorker) -> None:
    """However many messages arrive while the worker is busy, they wake it once."""
    worker = make_worker()

    for _ in range(1000):
        worker._wake(0)

    assert worker._signals.qsize() == 1


def test_start_and_stop_are_logged(
    inventory: Inventory, make_worker: MakeWorker, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first line names the settings and the layout in use, the last one what was done."""
    inventory.stock("mug", 8, 2)
    inventory.hold("mug", 2)
    worker = make_worker(redis_url="redis://:secret@db.example:6380/3")
    FakeTime(worker, monkeypatch, waits=1)

    worker.run()

    started, *_, stopped = log.entries
    assert (
        started["event"],
        started["layout"],
        started["interval_ms"],
    ) == ("job_started", "contract", 60_000)
    assert started["redis"] == "redis://db.example:6380/3"
    assert (stopped["event"], stopped["expired"], stopped["units"]) == ("job_stopped", 1, 2)
    inventory.assert_conserved({"mug": 10})


def test_the_layout_in_use_is_named(make_worker: MakeWorker, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """With names of its own the first line lists the whole mapping."""
    worker = make_worker(index_key="holds", field_quantity="qty")
    FakeTime(worker, monkeypatch, waits=1)

    worker.run()

    layout = log.of("job_started")[0]["layout"]
    assert (
        layout["index_key"],
        layout["field_quantity"],
        layout["stock_prefix"],
    ) == ("holds", "qty", "{inventory}:stock:")


def test_an_evicting_policy_is_warned_of(server_client: redis.Redis, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy that may evict Active reservations is warned of at the start."""
    worker = Worker(server_client, Settings(), log.logger())
    FakeTime(worker, monkeypatch, waits=1)
    server_client.config_set("maxmemory-policy", "allkeys-lru")

    try:
        worker.run()
    finally:
        server_client.config_set("maxmemory-policy", "noeviction")

    assert [entry["policy"] for entry in log.of("eviction_risk")] == ["allkeys-lru"]


def test_a_stop_before_the_start_is_kept(worker: Worker, log: Log) -> None:
    """A worker that was stopped before it ran returns at once, and may be stopped again."""
    worker.stop()
    worker.stop()

    worker.run()

    assert [entry["event"] for entry in log.entries] == ["job_started", "job_stopped"]


def test_a_stop_ends_a_drain_after_its_batch(inventory: Inventory, make_worker: MakeWorker, log: Log) -> None:
    """A stop in the middle of a drain lets the current batch finish, whole, and leaves the rest."""
    inventory.stock("mug", 0, 30)
    for _ in range(30):
        inventory.hold("mug")
    worker = make_worker(batch_size=10)
    expiry = worker._shards[0].expiry
    expire_batch = expiry.expire_batch

    def stop_after_one(*, go_on: bool) -> object:
        del go_on  # a batch already under way would be finished and told of as well
        batch = expire_batch()
        worker.stop()
        return batch

    expiry.expire_batch = stop_after_one  # type: ignore[method-assign,assignment]

    worker.run()

    (completed,) = log.of("processing_completed")
    assert (completed["count"], completed["overdue"]) == (10, 20)
    inventory.assert_conserved({"mug": 30})


def test_another_workers_tick_is_as_good_as_ones_own(make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that hears of a tick stands by: it waits for the next expiry, and a while longer for the leader."""
    worker = make_worker(resolution="100ms")
    fake_time = FakeTime(worker, monkeypatch, waits=2)
    fake_time.messages = [(b"%d %d other:1:aa" % (NOW, NOW + 2000), 20.0)]

    worker.run()

    assert fake_time.waits[0] == 60.0
    assert 2.05 <= fake_time.waits[1] <= 2.101


def test_the_leader_is_on_time(make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that hears of its own tick last leads: it waits for the next expiry and no longer."""
    worker = make_worker(resolution="100ms")
    fake_time = FakeTime(worker, monkeypatch, waits=3)
    fake_time.messages = [
        (b"%d %d other:1:aa" % (NOW, NOW + 2000), 20.0),
        (b"%d %d %s" % (NOW, NOW + 2000, worker.id.encode()), 0.0),
    ]

    worker.run()

    assert fake_time.waits[2] == 2.0002


def test_who_stands_by_polls_all_the_same(make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many ticks of others it hears of, a worker looks for itself after its own interval."""
    worker = make_worker(interval="30s")
    fake_time = FakeTime(worker, monkeypatch, waits=4)
    fake_time.messages = [(b"%d  other:1:aa" % NOW, 10.0), (b"%d  other:1:aa" % NOW, 15.0)]

    worker.run()

    assert fake_time.waits == [30.0, 20.0, 5.0, 30.0]


@pytest.mark.parametrize("message", [b"", b"1", b"wake up", b"1 2", b"\xff \xff \xff"])
def test_a_strangers_message_is_none(make_worker: MakeWorker, message: bytes) -> None:
    """Whatever is published on the channel of ticks does not disturb a worker."""
    worker = make_worker()

    worker._hear(0, message)

    assert worker._signals.empty()


def test_a_woken_standby_lets_the_leader_go_first(make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wake message makes the leader look at once, and those who stand by a while later."""
    worker = make_worker(resolution="100ms")
    fake_time = FakeTime(worker, monkeypatch, waits=3)
    fake_time.messages = [(b"%d  other:1:aa" % NOW, 10.0), (None, 5.0)]

    worker.run()

    assert 0.05 <= fake_time.waits[2] <= 0.1


def test_a_tick_is_told_to_the_others(client: redis.Redis, inventory: Inventory, make_worker: MakeWorker) -> None:
    """With two workers each tick is published with the time and what is next; a paused one waits for nothing."""
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

    heard = [message["data"] for _ in range(9) if (message := channel.get_message(timeout=0.05))]
    assert heard == [
        b"%d.000 %d %s" % (NOW, NOW + 2000, second.id.encode()),
        b"%d.000  %s" % (NOW, second.id.encode()),
    ]
    inventory.assert_conserved({"mug": 10})


def test_a_fleet_releases_each_unit_once(shared_server: RedisServer, server_client: redis.Redis) -> None:
    """Five workers on one inventory release every reservation once, whoever leads."""
    shop = Inventory(server_client)
    shop.stock("mug", 300)
    logs = [Log() for _ in range(5)]
    with ExitStack() as fleet:
        for log in logs:
            client = fleet.enter_context(shared_server.client())
            fleet.enter_context(running(Worker(client, Settings(), log.logger())))
        for number in range(100):
            Reservations(server_client).reserve(f"o{number}", "mug", 1, timedelta(milliseconds=20 + number))
        wait_until(lambda: server_client.xlen(shop.keys.events) == 100)

    assert 100 == sum(len(log.of("reservation_expired")) for log in logs)
    shop.assert_conserved({"mug": 300})


def test_a_batch_under_way_at_a_stop_is_told_of(inventory: Inventory, make_worker: MakeWorker, log: Log) -> None:
    """A batch that was already sent when the stop came is waited for, and each of its reservations is logged."""
    inventory.stock("mug", 0, 30)
    for _ in range(30):
        inventory.hold("mug")
    worker = make_worker(batch_size=10)
    expiry = worker._shards[0].expiry
    expire_batch = expiry.expire_batch

    def stop_meanwhile(*, go_on: bool) -> object:
        batch = expire_batch(go_on=go_on)
        worker.stop()
        return batch

    expiry.expire_batch = stop_meanwhile  # type: ignore[assignment,method-assign]

    worker.run()

    assert len(log.of("reservation_expired")) == 20
    (completed,) = log.of("processing_completed")
    assert (completed["count"], completed["overdue"]) == (20, 10)
    inventory.assert_conserved({"mug": 30})


def test_a_drain_costs_one_packet_a_batch(
    inventory: Inventory, make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a drain the next decision's WATCH and read travel with the batch before: one round trip for each batch."""
    inventory.stock("mug", 0, 80)
    for _ in range(80):
        inventory.hold("mug")
    worker = make_worker(batch_size=10)
    worker.tick()  # loads the script
    for _ in range(80):
        inventory.hold("mug")
    inventory.stock("mug", 0, 80)
    write = expiry._write
    packets: list[list[object]] = []

    def count(connection: object, *commands: tuple[object, ...]) -> None:
        packets.append([command[0] for command in commands])
        write(connection, *commands)

    monkeypatch.setattr(expiry, "_write", count)

    assert worker.tick().expired == 80
    look, batch = ["WATCH", "HMGET"], ["MULTI", "EVALSHA", "EXEC"]
    assert packets == [look, batch, look, *[batch + look] * 6, batch]
    inventory.assert_conserved({"mug": 80})


def test_a_batch_is_told_of_though_the_next_cannot_be_sent(
    inventory: Inventory, make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    """Where the connection breaks while the next batch is sent, the one before is logged and counted all the same."""
    worker = make_worker(batch_size=10)
    worker.tick()  # loads the script
    inventory.stock("mug", 0, 30)
    for _ in range(30):
        inventory.hold("mug")
    write = expiry._write
    left = iter(range(3))

    def break_down(connection: object, *commands: tuple[object, ...]) -> None:
        if next(left, None) is None:
            raise redis.ConnectionError("cut")
        write(connection, *commands)

    monkeypatch.setattr(expiry, "_write", break_down)

    assert worker.tick() == Tick(expired=10, units=10, overdue=20, errors=1)
    assert len(log.of("reservation_expired")) == 10
    monkeypatch.setattr(expiry, "_write", write)
    assert worker.tick().expired == 20
    inventory.assert_conserved({"mug": 30})
