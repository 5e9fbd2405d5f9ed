"""What the program promises on a Redis Cluster: every shard is served, whatever becomes of one of its primaries."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from signal import SIGTERM
from typing import Any

import pytest
from redis.cluster import RedisCluster

from expirer import Reservations, cli
from expirer.config.environment import variable
from expirer.config.settings import Settings
from expirer.contract.keys import ShardKeys, shard_of
from expirer.worker.batch import Tick
from tests.cluster import Cluster
from tests.conftest import Log
from tests.inventory import Inventory
from tests.program import Backlog, Program, wait_until
from tests.reader import ROOT
from tests.servers import RedisServer, free_port
from tests.topology import hung, wait_for_replicas
from tests.workers import Workers

pytestmark = pytest.mark.slow

SHARDS = 6
README = (ROOT / "README.md").read_text()
PAGE = (ROOT / "docs" / "topologies.md").read_text()


@pytest.fixture
def client(cluster: Cluster) -> Iterator[RedisCluster]:
    """Connect to the shared Cluster, emptied."""
    with cluster.client() as client:
        yield client


def shops_of(client: Any, shards: int = SHARDS) -> list[Inventory]:  # noqa: ANN401  # of a Cluster
    """Return the shop on each shard."""
    return [Inventory(client, ShardKeys.of("inventory", number, shards)) for number in range(shards)]


def workers_of(topology: Cluster, log: Log, **settings: Any) -> Workers:  # noqa: ANN401  # settings
    """Build the workers that the program would run."""
    return Workers(log, **{**topology.settings, "shards": SHARDS, **settings})


def by_primary(topology: Cluster, shards: int = SHARDS) -> dict[RedisServer, list[int]]:
    """Return which shards each primary serves."""
    served: dict[RedisServer, list[int]] = {}
    for number in range(shards):
        served.setdefault(topology.primary_of(ShardKeys.of("inventory", number, shards).control), []).append(number)
    return served


def test_all_shards_are_swept(cluster: Cluster, client: RedisCluster, log: Log) -> None:
    """One pass expires what is due on every shard, whichever primary serves it."""
    backlogs = [Backlog(client, shop.keys) for shop in shops_of(client)]
    for backlog in backlogs:
        backlog.add(25)

    tick = workers_of(cluster, log, batch_size=10).tick()

    assert len(by_primary(cluster)) == 3
    assert (25 * SHARDS, 0) == (tick.expired, tick.errors), log.entries
    for backlog in backlogs:
        backlog.assert_expired_once()


def test_a_checkout_and_its_workers_agree(cluster: Cluster, client: RedisCluster, log: Log) -> None:
    """Reservations made, confirmed, released and extended through a RedisCluster client are conserved and expire."""
    shops = shops_of(client)
    products = {f"product-{number}": shops[shard_of(f"product-{number}", SHARDS)] for number in range(12)}
    reservations = Reservations(client, shards=SHARDS)
    for product_id, shop in products.items():
        shop.stock(product_id, 10)
    for product_id in products:
        reservations.reserve("o1", product_id, 1, timedelta(minutes=5))
        reservations.reserve("o2", product_id, 2, timedelta(minutes=5))
        reservations.reserve("o3", product_id, 3, timedelta(milliseconds=1))
        reservations.reserve("o4", product_id, 1, timedelta(minutes=5))
        reservations.confirm("o1", product_id)
        reservations.release("o2", product_id)
        reservations.extend("o4", product_id, timedelta(minutes=9))

    expired = 0
    workers = workers_of(cluster, log)
    while expired < len(products):
        expired += workers.tick().expired

    assert {(8, 1)} == {shop.counters(product_id) for product_id, shop in products.items()}
    for product_id, shop in products.items():
        assert (shop.status(f"o3:{product_id}"), shop.status(f"o4:{product_id}")) == ("Expired", "Active")


def test_a_message_wakes_its_shard(cluster: Cluster, client: RedisCluster, log: Log) -> None:
    """A reservation sooner than all before it is expired at once, though its worker slept for a day."""
    shop = shops_of(client)[shard_of("mug", SHARDS)]
    shop.stock("mug", 10)

    with workers_of(cluster, log, interval="10m").running():
        wait_until(lambda: all(client.zcard(shop.keys.workers) for shop in shops_of(client)))
        wait_until(lambda: listeners(cluster, shop.keys.wake))
        Reservations(client, shards=SHARDS).reserve("o1", "mug", 2, timedelta(milliseconds=30))
        wait_until(lambda: log.of("reservation_expired"))

    assert "Expired" == shop.status("o1:mug")
    assert (10, 0) == shop.counters("mug")


def listeners(topology: Cluster, channel: str) -> int:
    """Count who listens on a channel, on whichever node."""
    return sum(node.client().pubsub_numsub(channel)[0][1] for node in topology.nodes)


def test_a_node_that_is_addressed_alone_says_what_it_is(
    cluster: Cluster, client: RedisCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the setting a node is told to be of a Cluster, in one line with the way out."""
    shop = shops_of(client, 1)[0]
    other = next(node for node in cluster.nodes[:3] if node is not cluster.primary_of(shop.keys.control))

    code = cli.main(["status", "--redis-url", f"redis://127.0.0.1:{other.port}"])

    [line] = capsys.readouterr().err.splitlines()
    assert (1, True) == (code, line.endswith("this is a Redis Cluster, set EXPIRER_REDIS_CLUSTER=true")), line


def test_one_start_node_that_lives_is_enough(cluster: Cluster, log: Log) -> None:
    """Of several start nodes those that are not there are passed over."""
    living = cluster.nodes[4].port

    tick = workers_of(cluster, log, redis_url=f"redis://127.0.0.1:{free_port()},127.0.0.1:{living}/0").tick()

    assert Tick() == tick, log.entries


def test_no_start_node_is_an_error_of_the_tick(log: Log) -> None:
    """Where no node answers each is named, and the worker waits like for any server."""
    tick = Workers(log, redis_cluster=True, redis_url="redis://127.0.0.1:1,127.0.0.1:2", shards=2).tick()

    message = log.of("processing_error")[0]["message"]
    assert 2 == tick.errors
    assert ["127.0.0.1:1: ", "127.0.0.1:2: "] == re.findall(r"127\.0\.0\.1:\d: ", message)


def test_a_hung_primary_delays_no_other(
    server_binary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """While one primary hangs for ever the others' shards expire, status tells them apart, and a stop ends them all."""
    with ExitStack() as stack:
        topology = stack.enter_context(Cluster(server_binary, tmp_path, "--cluster-node-timeout", "60000"))
        client = stack.enter_context(topology.client())
        shops = shops_of(client)
        served = by_primary(topology)
        hanging, *living = served
        for shop in shops:
            shop.stock("mug", 5)
        program = stack.enter_context(
            Program(f"{topology.settings['redis_url']}?socket_timeout=60", redis_cluster=True, shards=SHARDS)
        )
        wait_until(lambda: all(client.zcard(shop.keys.workers) for shop in shops))
        stack.enter_context(hung(hanging))
        numbers = [number for primary in living for number in served[primary]]
        for number in numbers:
            shops[number].stock("mug", 4, 1)
            shops[number].hold("mug", 1, 1000)
            living[0].client().publish(shops[number].keys.wake, "1")

        wait_until(lambda: len(program.of("processing_completed")) == len(numbers))
        url = f"{topology.settings['redis_url']}?socket_timeout=0.2"
        assert 1 == cli.main(["status", "--redis-url", url, "--redis-cluster", "true", "--shards", str(SHARDS)])
        states = re.findall(r"shard (\d): (\w+ \w+|healthy)", capsys.readouterr().out)
        assert {(str(number), "no answer") for number in served[hanging]} == set(states) - {
            (str(number), "healthy") for number in numbers
        }
        program.signal(SIGTERM)
        assert 0 == program.wait()

        assert set(numbers) == {entry["shard"] for entry in program.of("reservation_expired")}
        assert {(5, 0)} == {shops[number].counters("mug") for number in numbers}


def test_a_lost_primary_is_replaced(own_cluster: Cluster) -> None:
    """A primary is killed in a drain: its replica is promoted, and drained from there; nothing is lost or doubled."""
    client = own_cluster.client()
    shops = shops_of(client, 3)
    backlogs = [Backlog(client, shop.keys) for shop in shops]
    lost = own_cluster.primary_of(shops[0].keys.control)
    for backlog in backlogs:
        backlog.add(2000)
    wait_for_replicas(lost, 1)

    with Program(own_cluster.settings["redis_url"], "--batch-size", "10", redis_cluster=True, shards=3) as program:
        wait_until(lambda: {0} <= {entry["shard"] for entry in program.of("reservation_expired")})
        lost.stop()
        own_cluster.wait_for_another(lost, shops[0].keys.control)
        own_cluster.wait_until_ok()
        client.close()
        client = own_cluster.client()
        backlogs = [moved_to(client, backlog) for backlog in backlogs]
        wait_until(lambda: not any(backlog.left() for backlog in backlogs))
        program.wait_for("processing_recovered")

    for backlog in backlogs:
        backlog.assert_expired_once()
    client.close()


def moved_to(client: RedisCluster, backlog: Backlog) -> Backlog:
    """Return the same backlog, looked at through another client."""
    other = Backlog(client, backlog.shop.keys)
    other.stocked, other._ids = backlog.stocked, backlog._ids
    return other


def test_a_failover_by_hand_costs_a_tick(own_cluster: Cluster, log: Log) -> None:
    """After a primary and its replica have changed places the work goes on at the new primary."""
    with own_cluster.client() as client:
        shop = shops_of(client, 1)[0]
        shop.stock("mug", 10)
        with workers_of(own_cluster, log, shards=1, interval="300ms").running():
            wait_until(lambda: client.zcard(shop.keys.workers))
            new = own_cluster.failover(own_cluster.primary_of(shop.keys.control))
            shop.stock("mug", 9, 1)
            shop.hold("mug", 1, 1000)
            wait_until(lambda: log.of("reservation_expired"))

        assert own_cluster.primary_of(shop.keys.control) is new
        assert (10, 0) == shop.counters("mug")


def test_the_page_names_real_settings() -> None:
    """Every variable on the page is a setting."""
    named = set(re.findall(r"EXPIRER_[A-Z_]+", PAGE))

    assert set() == named - {variable(name) for name in Settings.model_fields}
