"""What /metrics says, and what a probe answers, on a fake server and a real one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import fakeredis
import pytest
import redis
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_families
from prometheus_client.parser import text_string_to_metric_families as plain_families

from expirer.config.settings import Settings
from expirer.connection.connect import Servers
from expirer.contract.control import pausing
from expirer.contract.keys import ShardKeys
from expirer.web.metrics import Metrics, take_sample
from expirer.web.probes import why_not_alive, why_not_ready
from expirer.web.refreshed import Refreshed
from expirer.worker.batch import Tick
from expirer.worker.tally import LATENESS_BOUNDS_S, Tally
from expirer.worker.worker import Worker
from tests.conftest import Log
from tests.inventory import NOW, Inventory
from tests.program import DEADLINE_S, wait_until

OPENMETRICS = "application/openmetrics-text;version=1.0.0"


def labels_of(text: str) -> set[str]:
    """Return every label name of a text."""
    return {name for family in plain_families(text) for sample in family.samples for name in sample.labels}


def figures(metrics: Metrics) -> dict[str, dict[str, float]]:
    """Return metric -> shard -> figure, for what has a shard."""
    found: dict[str, dict[str, float]] = {}
    for family in plain_families(metrics.render("")[0].decode()):
        for sample in family.samples:
            if "shard" in sample.labels:
                found.setdefault(sample.name, {})[sample.labels["shard"]] = sample.value
    return found


@pytest.fixture
def tick(client: redis.Redis, log: Log) -> Callable[..., tuple[Metrics, Tick]]:
    """Return a function that ticks once on a shop of some shards, and then builds its metrics."""

    def do(**settings: Any) -> tuple[Metrics, Tick]:  # noqa: ANN401
        known = Settings(clock="worker", **settings)
        tally = Tally(known.shards)
        done = Worker(client, known, log.logger(), lambda: NOW, tally=tally).tick()
        return Metrics(Servers.of(client, known), known, tally, "w1", 1), done

    return do


def test_each_shard_has_its_figures(client: redis.Redis, tick: Callable[..., tuple[Metrics, Tick]]) -> None:
    """A figure of a shard is that shard's, whichever worker did the work; a pause is seen where it holds."""
    first, second = (Inventory(client, ShardKeys.of("inventory", number, 2)) for number in (0, 1))
    first.stock("mug", 0, 5)
    first.hold("mug", 5, NOW - 2000)
    second.stock("tee", 0, 1)
    second.hold("tee", 1, NOW - 1000)
    client.hset(second.keys.control, mapping=pausing("ann", "outage", NOW))  # type: ignore[arg-type]
    metrics, _ = tick(shards=2)
    found = figures(metrics)

    assert {"0": 1, "1": 0} == found["expirer_shard_expired_reservations_total"]
    assert {"0": 5, "1": 0} == found["expirer_worker_expired_units_total"]
    assert {"0": 0, "1": 1} == found["expirer_shard_paused"]
    assert {"0": 0, "1": 0} == found["expirer_shard_brake"]
    assert {"0": 0, "1": 1} == found["expirer_shard_active_reservations"]
    assert {"0": 1, "1": 1} == found["expirer_worker_ticks_total"]
    first.assert_conserved({"mug": 5})


def test_no_stranger_names_a_label(client: redis.Redis, tick: Callable[..., tuple[Metrics, Tick]]) -> None:
    """Labels are shard, error, reason, bounds and versions: never an order, a product or a reservation."""
    shop = Inventory(client)
    shop.hold("evil{label}", 1, id_='"}\n# TYPE')
    shop.overdue("mug", 2)
    client.hset(shop.keys.stats, "quarantined:x", "1")
    client.hset(shop.keys.stats, "evil product", "1")
    metrics, _ = tick()
    text = metrics.render("")[0].decode()

    assert {"shard", "reason", "le", "version", "python", "redis_py", "worker"} >= labels_of(text)
    assert "evil" not in text
    assert 'reason="stock_missing"' in text
    assert 'reason="x"' not in text


@pytest.mark.parametrize(("accept", "families"), [("", plain_families), (OPENMETRICS, open_families)])
def test_both_formats_say_the_same(
    client: redis.Redis, tick: Callable[..., tuple[Metrics, Tick]], accept: str, families: Callable[[str], Any]
) -> None:
    """The text of Prometheus and that of OpenMetrics can be parsed, and lateness adds up in both."""
    shop = Inventory(client)
    shop.overdue("mug", 3)
    metrics, done = tick()
    body, _ = metrics.render(accept)
    buckets = {
        sample.labels["le"]: sample.value
        for family in families(body.decode())
        for sample in family.samples
        if sample.name == "expirer_worker_lateness_seconds_bucket"
    }

    assert done.expired == 3
    assert len(LATENESS_BOUNDS_S) + 1 == len(buckets)
    assert (0, 3, 3) == (buckets["0.5"], buckets["1.0"], buckets["+Inf"])


def test_what_cannot_be_read_is_absent(fake_server: fakeredis.FakeServer) -> None:
    """Where Redis cannot be read a sample has no figure, not an old one; where one shard cannot, the others have."""
    client = fakeredis.FakeRedis(server=fake_server)
    client.set(ShardKeys.of("inventory", 0, 2).index, "not ours")
    half = take_sample(Servers.of(client, Settings(shards=2)), Settings(shards=2))
    fake_server.connected = False
    nothing = take_sample(Servers.of(client, Settings(shards=2)), Settings(shards=2))

    assert ([1], False) == ([shard.shard for shard in half.shards], half.is_up)
    assert ([], False, None) == (nothing.shards, nothing.is_up, nothing.skew_ms)


def test_many_who_ask_cost_one() -> None:
    """However many ask at once a value is made once, and nobody waits for one that is being made anew."""
    may_end = threading.Event()
    made: list[int] = []

    def make() -> int:
        made.append(len(made))
        if len(made) > 1:
            may_end.wait(DEADLINE_S)
        return made[-1]

    value = Refreshed(make, lasts_s=0)
    assert 0 == value.get()
    maker = threading.Thread(target=value.get)
    maker.start()
    wait_until(lambda: len(made) == 2)
    meanwhile = [value.get() for _ in range(100)]
    may_end.set()
    maker.join()

    assert [0] * 100 == meanwhile
    assert [0, 1] == made


def test_a_fresh_value_is_not_made_again() -> None:
    """Within its time a value is made once."""
    made: list[int] = []
    value = Refreshed(lambda: made.append(1), lasts_s=3600)
    value.get()
    value.get()

    assert [1] == made


def test_ready_is_who_ticked_within_the_interval(monkeypatch: pytest.MonkeyPatch, log: Log) -> None:
    """Each shard must have ticked, without failure, within its interval: else the answer says which did not."""
    server = fakeredis.FakeServer()
    settings = Settings(shards=2, interval="10s")
    tally = Tally(2)
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    worker = Worker(fakeredis.FakeRedis(server=server), settings, log.logger(), lambda: NOW, tally=tally)

    assert ["shard 0: no tick yet", "shard 1: no tick yet"] == why_not_ready(tally, settings, "")
    worker.tick()
    assert [] == why_not_ready(tally, settings, "")
    assert ["Redis: gone"] == why_not_ready(tally, settings, "Redis: gone")
    now += 15
    assert [] == why_not_ready(tally, settings, "")
    now += 1
    assert "shard 0: the last tick was 16 s ago" == why_not_ready(tally, settings, "")[0]
    server.connected = False
    worker.tick()
    away = log.of("processing_error")[1]["message"]
    assert f"shard 1: the last tick failed: {away}" == why_not_ready(tally, settings, "")[1]
    worker.tick()
    assert f"shard 1: the last 2 ticks failed: {away}" == why_not_ready(tally, settings, "")[1]
    worker.stop()
    assert ["the worker is about to stop"] == why_not_ready(tally, settings, "")


def test_alive_is_a_loop_that_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop may sleep as long as it said it would, and not longer; before it began it is not called dead."""
    tally = Tally(2)
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)

    assert "" == why_not_alive(tally)
    tally.expect_back(0, 60)
    now += 59
    assert "" == why_not_alive(tally)
    now += 4
    assert "the loop should have come back 3 s ago" == why_not_alive(tally)
