"""What /metrics says of a worker and of an inventory, and what the worker's probes answer."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import fakeredis
import pytest
import redis
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_families
from prometheus_client.parser import text_string_to_metric_families as plain_families
from prometheus_client.registry import Collector

from expirer.config.settings import Settings
from expirer.connection.connect import Servers
from expirer.contract.about import describe
from expirer.contract.control import braking, pausing
from expirer.contract.keys import ShardKeys
from expirer.web.metrics import InventoryCollector, read_figures
from expirer.worker.http import Request
from expirer.worker.metrics import LATENESS_BOUNDS_S, ShardMetrics, why_not_alive, why_not_ready
from expirer.worker.prometheus import WorkerCollector, metrics_route
from expirer.worker.worker import Worker
from tests.conftest import Log
from tests.inventory import NOW, Inventory

OPENMETRICS = "application/openmetrics-text;version=1.0.0"


def served(collector: Collector, accept: str = "") -> str:
    """Return the text of /metrics."""
    return metrics_route(collector)(Request("GET", "/metrics", "", {"accept": accept})).body.decode()


def figures(collector: Collector) -> dict[str, dict[str, float]]:
    """Return metric -> shard -> figure, for what has a shard."""
    found: dict[str, dict[str, float]] = {}
    for family in plain_families(served(collector)):
        for sample in family.samples:
            if "shard" in sample.labels:
                found.setdefault(sample.name, {})[sample.labels["shard"]] = sample.value
    return found


def labels_of(text: str) -> set[str]:
    """Return every label name of a text."""
    return {name for family in plain_families(text) for sample in family.samples for name in sample.labels}


@pytest.fixture
def tick(client: redis.Redis, log: Log) -> Callable[..., tuple[WorkerCollector, InventoryCollector]]:
    """Return a function that ticks once on a shop of some shards, and returns what the two programs would serve."""

    def do(**settings: Any) -> tuple[WorkerCollector, InventoryCollector]:  # noqa: ANN401
        servers = Servers.of(client, Settings(clock="worker", **settings))
        counts = [ShardMetrics() for _ in servers.shards]
        for shard, metrics in zip(servers.shards, counts, strict=True):
            Worker(shard, log.logger(), lambda: NOW, metrics=metrics).tick()
        listener: Any = SimpleNamespace(trouble="")
        read = read_figures(servers.shards)
        return WorkerCollector("w1", counts, listener), InventoryCollector(lambda: read)

    return do


def test_each_shard_has_its_figures(client: redis.Redis, tick: Callable[..., tuple[Collector, Collector]]) -> None:
    """A figure of a shard is that shard's, whichever worker did the work; a pause is seen where it is."""
    first, second = (Inventory(client, ShardKeys.of("inventory", number, 2)) for number in (0, 1))
    first.stock("mug", 0, 5)
    first.hold("mug", 5, NOW - 2000)
    second.stock("tee", 0, 1)
    second.hold("tee", 1, NOW - 1000)
    client.hset(second.keys.control, mapping=pausing("ann", "outage", NOW))  # type: ignore[arg-type]
    worker, inventory = (figures(collector) for collector in tick(shards=2))

    assert {"0": 1, "1": 0} == inventory["expirer_shard_expired_reservations_total"]
    assert {"0": 0, "1": 1} == inventory["expirer_shard_paused"]
    assert {"0": 0, "1": 0} == inventory["expirer_shard_brake"]
    assert {"0": 0, "1": 1} == inventory["expirer_shard_active_reservations"]
    assert {"0": 5, "1": 0} == worker["expirer_worker_expired_units_total"]
    assert {"0": 1, "1": 1} == worker["expirer_worker_ticks_total"]
    first.assert_conserved({"mug": 5})


def test_a_brake_is_a_brake(client: redis.Redis, tick: Callable[..., tuple[Collector, Collector]]) -> None:
    """A brake shows as a brake, alone and behind a pause that has ended."""
    keys = Inventory(client).keys
    client.hset(keys.control, mapping=braking("w1", "too many", NOW))  # type: ignore[arg-type]
    _, alone = tick()
    client.hset(keys.control, mapping=pausing("ann", "outage", 1, 10**12))  # type: ignore[arg-type]
    _, behind = tick()

    for collector in (alone, behind):
        assert {"0": 1} == figures(collector)["expirer_shard_brake"] == figures(collector)["expirer_shard_paused"]


def test_no_stranger_names_a_label(client: redis.Redis, tick: Callable[..., tuple[Collector, Collector]]) -> None:
    """Labels are shard, error, reason, bounds and versions: never an order, a product or a reservation."""
    shop = Inventory(client)
    shop.hold("evil{label}", 1, id_='"}\n# TYPE')
    shop.overdue("mug", 2)
    client.hset(shop.keys.stats, "quarantined:x", "1")
    client.hset(shop.keys.stats, "quarantined:stock_missing", "1")
    client.hset(shop.keys.stats, "evil product", "1")
    text = "".join(map(served, tick()))

    assert {"shard", "reason", "le", "version", "python", "redis_py", "worker"} >= labels_of(text)
    assert "evil" not in text
    assert 'reason="stock_missing"' in text
    assert 'reason="x"' not in text


@pytest.mark.parametrize(("accept", "families"), [("", plain_families), (OPENMETRICS, open_families)])
def test_both_formats_say_the_same(
    client: redis.Redis,
    tick: Callable[..., tuple[Collector, Collector]],
    accept: str,
    families: Callable[[str], Any],
) -> None:
    """The text of Prometheus and that of OpenMetrics can be parsed, and lateness adds up in both."""
    Inventory(client).overdue("mug", 3)
    worker, _ = tick()
    buckets = {
        sample.labels["le"]: sample.value
        for family in families(served(worker, accept))
        for sample in family.samples
        if sample.name == "expirer_worker_lateness_seconds_bucket"
    }

    assert len(LATENESS_BOUNDS_S) == len(buckets)
    assert (0, 3, 3) == (buckets["0.5"], buckets["1.0"], buckets["+Inf"])


@pytest.mark.parametrize("accept", ["*/*", "application/openmetrics-text;version=9.x", ";", "\xff", ","])
def test_no_accept_header_is_an_error(accept: str) -> None:
    """Whatever a client says that it accepts, it gets one of the two formats."""
    inventory = InventoryCollector(lambda: read_figures(Servers.of(fakeredis.FakeRedis(), Settings()).shards))

    assert ("openmetrics" in accept) == served(inventory, accept).endswith("# EOF\n")


def test_what_cannot_be_read_is_absent(fake_server: fakeredis.FakeServer) -> None:
    """If Redis cannot be read there is no figure, not an old one; if one shard cannot, the others have theirs."""
    servers = Servers.of(client := fakeredis.FakeRedis(server=fake_server), Settings(shards=2))
    client.set(ShardKeys.of("inventory", 0, 2).index, "not ours")
    half = read_figures(servers.shards)
    fake_server.connected = False
    nothing = read_figures(servers.shards)

    assert ([1], False) == ([shard.shard for shard in half.shards], half.is_up)
    assert ((), False, None) == (nothing.shards, nothing.is_up, nothing.skew_ms)
    assert "expirer_redis_up 0.0" in served(InventoryCollector(lambda: nothing))


def test_the_furthest_clock_shows(client: redis.Redis) -> None:
    """The skew is that of the live worker whose clock is furthest from that of Redis; the dead do not count."""
    settings = Settings(clock="worker")
    servers = Servers.of(client, settings)
    [shard] = servers.shards
    now = shard.now()
    for id_, skew_ms, last_tick in (("a", 30, now), ("b", -9000, now), ("c", 99_000, now - 10**8)):
        client.zadd(shard.keys.workers, {id_: last_tick})
        client.hset(shard.keys.about, id_, f"{describe(settings)} skew_ms={skew_ms}")

    read = read_figures(servers.shards)
    assert (-9000, 2) == (read.skew_ms, len(read.shards[0].workers))


def test_settings_that_differ_are_counted(client: redis.Redis) -> None:
    """Each setting that live workers do not agree on counts; a worker that is gone, or says nothing, does not."""
    settings = Settings(clock="worker")
    [shard] = servers = Servers.of(client, settings).shards
    now = shard.now()
    others = Settings(clock="worker", grace="5s", retention="1h")
    for id_, about, last_tick in (
        ("a", describe(settings), now),
        ("b", describe(others), now),
        ("c", "version=0", now),
        ("d", describe(Settings(clock="worker", score_unit="s")), now - 10**8),
    ):
        client.zadd(shard.keys.workers, {id_: last_tick})
        client.hset(shard.keys.about, id_, about)
    read = read_figures(servers)

    assert {"0": 2} == figures(InventoryCollector(lambda: read))["expirer_shard_disagreements"]


def test_ready_is_a_tick_within_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each shard must have ticked, without failure, within its interval: else the answer says which did not."""
    shards = [ShardMetrics(), ShardMetrics()]
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    batch: Any = SimpleNamespace(counts=SimpleNamespace(expired=0, units=0), elapsed_s=0.1, lateness_ms=[])

    assert ["shard 0: no tick yet", "shard 1: no tick yet"] == why_not_ready(shards, 15)
    for shard in shards:
        shard.count_batch(batch)
    now += 15
    assert [] == why_not_ready(shards, 15)
    now += 1
    assert "shard 0: the last tick was 16 s ago" == why_not_ready(shards, 15)[0]
    shards[1].count_error(redis.ConnectionError(), "gone")
    assert "shard 1: the last tick failed: gone" == why_not_ready(shards, 15)[1]
    shards[1].count_error(redis.ConnectionError(), "gone")
    assert "shard 1: the last 2 ticks failed: gone" == why_not_ready(shards, 15)[1]


def test_alive_is_a_loop_that_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop may sleep as long as it said it would, and not longer; before it began it is not called dead."""
    shards = [ShardMetrics(), ShardMetrics()]
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)

    assert "" == why_not_alive(shards)
    shards[0].expect_back(60)
    now += 59
    assert "" == why_not_alive(shards)
    now += 4
    assert "the loop should have come back 3 s ago" == why_not_alive(shards)
