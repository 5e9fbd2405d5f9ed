"""What a tick does and logs, and that nothing ends the worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import redis

from expirer.config.settings import Settings
from expirer.connection import pipeline
from expirer.connection.connect import Servers
from expirer.contract.keys import ShardKeys, shard_keys
from expirer.worker.batch import Batch, Tick
from expirer.worker.events import log_start, warn_of_host
from expirer.worker.worker import Worker
from tests.conftest import Log, MakeWorker
from tests.inventory import NOW, Inventory


def after_each_batch(worker: Worker, act: Callable[[], object], *, sends_ahead: bool = False) -> None:
    """Let something happen after each batch, before or after the next one is sent."""
    drain = worker._expiry.drain

    def drain_and_act(may_go_on: Callable[[], bool]) -> Iterator[Batch]:
        if sends_ahead:
            for batch in drain(may_go_on):
                act()
                yield batch
        else:
            yield from drain(lambda: (act(), may_go_on())[1])

    worker._expiry.drain = drain_and_act  # type: ignore[method-assign]


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
    inventory.overdue("mug", 30)
    worker = make_worker(batch_size=10)
    after_each_batch(worker, lambda: inventory.client.hset(inventory.keys.control, "paused", 1))

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

    shards = Servers.of(client, Settings(shards=3)).shards
    tick = sum((Worker(shard, log.logger(), lambda: NOW).tick() for shard in shards), Tick())

    assert Tick(expired=2, units=2, errors=1) == tick
    assert [entry["shard"] for entry in log.of("processing_error")] == [1]
    for shop in shops:
        shop.assert_conserved({"mug": 10})


def test_an_error_in_a_drain_leaves_the_rest_counted(inventory: Inventory, make_worker: MakeWorker, log: Log) -> None:
    """Where a drain ends with an error, its last line says how many are left overdue."""
    inventory.overdue("mug", 30)
    worker = make_worker(batch_size=10)
    after_each_batch(worker, lambda: inventory.client.set(inventory.keys.index, "not ours"))

    assert Tick(expired=10, units=10, overdue=20, errors=1) == worker.tick()
    (completed,) = log.of("processing_completed")
    assert (10, 20) == (completed["count"], completed["overdue"])
    inventory.assert_conserved({"mug": 30})


def test_a_bug_is_logged_with_its_traceback(worker: Worker, log: Log) -> None:
    """An error that is not Redis's is logged with a traceback, and does not end the worker."""

    def fail(_may_go_on: object) -> Iterator[Batch]:
        raise LookupError("surprise")

    worker._expiry.drain = fail  # type: ignore[assignment, method-assign]

    assert Tick(errors=1) == worker.tick()
    (entry,) = log.of("processing_error")
    assert (entry["error"], entry["message"]) == ("LookupError", "surprise")
    assert isinstance(entry["exc_info"], LookupError)


def test_the_start_names_the_settings(log: Log) -> None:
    """The first line names the settings and the layout in use, without the password."""
    settings = Settings(redis_url="redis://:secret@db.example:6380/3")

    log_start(log.logger(), settings, ShardKeys.of("inventory"))

    [started] = log.entries
    assert ("job_started", "contract", 60_000) == (started["event"], started["layout"], started["interval_ms"])
    assert started["redis"] == "redis://db.example:6380/3"


def test_the_layout_in_use_is_named(log: Log) -> None:
    """With names of its own the first line lists the whole mapping."""
    settings = Settings(index_key="holds", field_quantity="qty")

    log_start(log.logger(), settings, *shard_keys(settings))

    layout = log.of("job_started")[0]["layout"]
    assert ("holds", "qty", "{inventory}:stock:") == (
        layout["index_key"],
        layout["field_quantity"],
        layout["stock_prefix"],
    )


def test_an_unfit_server_is_warned_of(server_client: redis.Redis, log: Log) -> None:
    """What makes the server unfit, such as a policy that may evict Active reservations, is warned of at the start."""
    server_client.config_set("maxmemory-policy", "allkeys-lru")

    try:
        warn_of_host(log.logger(), server_client, Settings())
    finally:
        server_client.config_set("maxmemory-policy", "noeviction")

    [risk] = log.of("host_risk")
    assert (risk["what"], risk["finding"]) == ("eviction", "allkeys-lru")
    assert "noeviction" in risk["advice"]


def test_a_stop_before_the_start_is_kept(worker: Worker, log: Log) -> None:
    """A worker that was stopped before it ran returns at once, and may be stopped again."""
    worker.stop()
    worker.stop()

    assert Tick() == worker.run()

    assert log.entries == []


def test_a_stop_ends_a_drain_after_its_batch(inventory: Inventory, make_worker: MakeWorker, log: Log) -> None:
    """A stop in the middle of a drain lets the current batch finish, whole, and leaves the rest."""
    inventory.overdue("mug", 30)
    worker = make_worker(batch_size=10)
    after_each_batch(worker, worker.stop)

    worker.run()

    (completed,) = log.of("processing_completed")
    assert (completed["count"], completed["overdue"]) == (10, 20)
    inventory.assert_conserved({"mug": 30})


def test_a_batch_under_way_at_a_stop_is_told_of(inventory: Inventory, make_worker: MakeWorker, log: Log) -> None:
    """A batch that was already sent when the stop came is waited for, and each of its reservations is logged."""
    inventory.overdue("mug", 30)
    worker = make_worker(batch_size=10)
    after_each_batch(worker, worker.stop, sends_ahead=True)

    worker.run()

    assert len(log.of("reservation_expired")) == 20
    (completed,) = log.of("processing_completed")
    assert (completed["count"], completed["overdue"]) == (20, 10)
    inventory.assert_conserved({"mug": 30})


def test_a_drain_costs_one_packet_a_batch(
    inventory: Inventory, make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a drain the next decision's WATCH and read travel with the batch before: one round trip for each batch."""
    inventory.overdue("mug", 80)
    worker = make_worker(batch_size=10)
    worker.tick()  # loads the script
    inventory.overdue("mug", 80)
    write = pipeline.write
    packets: list[list[object]] = []

    def count(connection: object, *commands: tuple[object, ...]) -> None:
        packets.append([command[0] for command in commands])
        write(connection, *commands)

    monkeypatch.setattr(pipeline, "write", count)

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
    inventory.overdue("mug", 30)
    write = pipeline.write
    left = iter(range(3))

    def break_down(connection: object, *commands: tuple[object, ...]) -> None:
        if next(left, None) is None:
            raise redis.ConnectionError("cut")
        write(connection, *commands)

    monkeypatch.setattr(pipeline, "write", break_down)

    assert worker.tick() == Tick(expired=10, units=10, overdue=20, errors=1)
    assert len(log.of("reservation_expired")) == 10
    monkeypatch.setattr(pipeline, "write", write)
    assert worker.tick().expired == 20
    inventory.assert_conserved({"mug": 30})
