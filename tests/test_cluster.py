"""What the program promises on a Redis Cluster: every shard is served, whatever becomes of one of its primaries."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from signal import SIGTERM
from typing import Any

import pytest
from redis.cluster import RedisCluster

from expirer import Reservations, cli
from expirer.connect import connect_all
from expirer.crew import Crew
from expirer.expiry import Tick
from expirer.keys import ShardKeys, shard_of
from expirer.operate.picture import Camera
from expirer.operate.tail import _follow_all, _positions
from expirer.settings import Settings
from expirer.verbs import VERBS
from tests.beds import Cluster, hung, wait_for_replicas
from tests.conftest import Log
from tests.inventory import Inventory
from tests.program import Backlog, Program, wait_until
from tests.servers import RedisServer, free_port
from tests.test_every_verb import EXAMPLES
from tests.test_tail import expire

SHARDS = 6

Verb = Callable[..., tuple[int, str, str]]


@pytest.fixture
def client(cluster: Cluster) -> Iterator[RedisCluster]:
    """Connect to the shared Cluster, emptied."""
    with cluster.client() as client:
        yield client


@pytest.fixture
def verb(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> Verb:
    """Return a function that runs a command line against the Cluster: exit code, standard output and error."""

    def run(command: str, shards: int = SHARDS) -> tuple[int, str, str]:
        url = cluster.settings["redis_url"]
        code = cli.main([*command.split(), "--redis-url", url, "--redis-cluster", "true", "--shards", str(shards)])
        return code, *capsys.readouterr()

    return run


def shops_of(client: Any, shards: int = SHARDS) -> list[Inventory]:  # noqa: ANN401  # of a Cluster
    """Return the shop on each shard."""
    return [Inventory(client, ShardKeys.of("inventory", number, shards)) for number in range(shards)]


def crew_of(bed: Cluster, log: Log, **settings: Any) -> Crew:  # noqa: ANN401  # settings
    """Build the crew that the program would run."""
    chosen = Settings(**{**bed.settings, "shards": SHARDS, **settings})
    return Crew(connect_all(chosen), chosen, log.logger())


@contextmanager
def running(crew: Crew) -> Iterator[None]:
    """Run a crew in a thread until the block ends."""
    thread = threading.Thread(target=crew.run)
    thread.start()
    try:
        yield
    finally:
        crew.stop()
        thread.join()


def by_primary(bed: Cluster, shards: int = SHARDS) -> dict[RedisServer, list[int]]:
    """Return which shards each primary serves."""
    served: dict[RedisServer, list[int]] = {}
    for number in range(shards):
        served.setdefault(bed.primary_of(ShardKeys.of("inventory", number, shards).control), []).append(number)
    return served


def test_all_shards_are_swept(cluster: Cluster, client: RedisCluster, log: Log) -> None:
    """One pass expires what is due on every shard, whichever primary serves it."""
    backlogs = [Backlog(client, shop.keys) for shop in shops_of(client)]
    for backlog in backlogs:
        backlog.add(25)

    tick = crew_of(cluster, log, batch_size=10).run_once()

    assert len(by_primary(cluster)) == 3
    assert (25 * SHARDS, 0) == (tick.expired, tick.errors), log.entries
    for backlog in backlogs:
        backlog.assert_expired_once()


def test_a_checkout_and_a_crew_agree(cluster: Cluster, client: RedisCluster, log: Log) -> None:
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
    crew = crew_of(cluster, log)
    while expired < len(products):
        expired += crew.run_once().expired

    assert {(8, 1)} == {shop.counters(product_id) for product_id, shop in products.items()}
    for product_id, shop in products.items():
        assert (shop.status(f"o3:{product_id}"), shop.status(f"o4:{product_id}")) == ("Expired", "Active")


def test_a_message_wakes_its_shard(cluster: Cluster, client: RedisCluster, log: Log) -> None:
    """A reservation sooner than all before it is expired at once, though its worker slept for a day."""
    shop = shops_of(client)[shard_of("mug", SHARDS)]
    shop.stock("mug", 10)

    with running(crew_of(cluster, log, interval="24h")):
        wait_until(lambda: all(client.zcard(shop.keys.workers) for shop in shops_of(client)))
        wait_until(lambda: listeners(cluster, shop.keys.wake))
        Reservations(client, shards=SHARDS).reserve("o1", "mug", 2, timedelta(milliseconds=30))
        wait_until(lambda: log.of("reservation_expired"))

    assert "Expired" == shop.status("o1:mug")
    assert (10, 0) == shop.counters("mug")


def listeners(bed: Cluster, channel: str) -> int:
    """Count who listens on a channel, on whichever node."""
    return sum(node.client().pubsub_numsub(channel)[0][1] for node in bed.nodes)


def test_one_log_line_starts_and_stops_a_crew(cluster: Cluster, client: RedisCluster, log: Log) -> None:
    """However many threads work, the start is told of once and the end once, with the sum of what all did."""
    for shop in shops_of(client):
        shop.stock("mug", 0, 2)
        for _ in range(2):
            shop.hold("mug", 1, 1000)
    crew = crew_of(cluster, log)

    with running(crew):
        wait_until(lambda: len(log.of("reservation_expired")) == 2 * SHARDS)

    assert [SHARDS] == [entry["shards"] for entry in log.of("job_started")]
    assert [2 * SHARDS] == [entry["expired"] for entry in log.of("job_stopped")]
    assert {crew.id} == {entry["worker"] for entry in log.entries}
    workers = [client.zrange(shop.keys.workers, 0, -1) for shop in shops_of(client)]
    assert [[crew.id.encode()]] * SHARDS == workers


def test_a_bug_in_one_thread_ends_the_crew(cluster: Cluster, client: RedisCluster, log: Log) -> None:
    """A thread that dies takes the process with it, for its supervisor to see: none goes on with a shard unserved."""
    crew = crew_of(cluster, log)

    def fail() -> None:
        raise LookupError("surprise")

    crew._workers[1]._sleep = fail  # type: ignore[method-assign]

    with pytest.raises(LookupError):
        crew.run()
    assert client.zcard(shops_of(client)[0].keys.workers) == 1


@pytest.mark.parametrize("command", EXAMPLES.values())
def test_every_verb(client: RedisCluster, verb: Verb, command: str) -> None:
    """Each verb works on a Cluster, and finds what is on whichever primary; only what it is for is changed."""
    shops = shops_of(client)
    shop = shops[shard_of("mug", SHARDS)]
    shop.stock("mug", 7, 3)
    shop.hold("mug", 3, 4_000_000_000_000, "o1:mug")
    if command.startswith("quarantine"):
        client.zrem(shop.keys.index, "o1:mug")
        client.hset(shop.keys.quarantine, "o1:mug", "reason=stock_missing at=1 score=4000000000000")

    code, out, err = verb(command)

    assert code == (1 if command in ("check --canary", "status") else 0), out + err
    if "release" in command:
        assert (8, 2) == shop.counters("mug")
    else:
        assert (7, 3) == shop.counters("mug")
    if "--dry-run" in command or command in ("status", "pause", "resume --yes"):
        assert [f"shard {number}" for number in range(SHARDS)] == sorted(set(re.findall(r"shard \d", out)))


def test_the_verbs_have_clients_of_a_cluster_too() -> None:
    """Those that do not end by themselves are tried below."""
    assert {"run", "tail", "top", "demo"} == {*VERBS} - {name.removesuffix(" --dry-run") for name in EXAMPLES}


def test_a_check_looks_at_every_primary(cluster: Cluster, verb: Verb) -> None:
    """A check says of each primary what it is, and how the shards are spread over them."""
    code, out, _ = verb("check --json")

    remarks = [json.loads(line) for line in out.splitlines()]
    addresses = {f"127.0.0.1:{primary.port}" for primary in by_primary(cluster)}
    assert (0, set()) == (code, {remark["what"] for remark in remarks if remark["level"] == "failure"})
    assert addresses == {remark["finding"].removesuffix(": primary") for remark in remarks if remark["what"] == "role"}
    [slots] = [remark["finding"] for remark in remarks if remark["what"] == "slots"]
    assert addresses == set(re.findall(r"127\.0\.0\.1:\d+", slots))


def test_an_audit_walks_every_primary(client: RedisCluster, verb: Verb) -> None:
    """What drifted is found and mended on every shard."""
    for shop in shops_of(client):
        shop.stock("mug", 5, 7)
        shop.hold("mug", 3, 4_000_000_000_000, "o1:mug")
        client.zrem(shop.keys.index, "o1:mug")

    code, out, err = verb("audit --repair --yes")

    assert (0, SHARDS, SHARDS) == (code, out.count("not_indexed"), out.count("reserved_differs")), out + err
    for shop in shops_of(client):
        assert ((9, 3), {b"o1:mug": 4_000_000_000_000}) == (shop.counters("mug"), shop.index())


def test_a_canary_flies_on_every_shard(cluster: Cluster, client: RedisCluster, verb: Verb, log: Log) -> None:
    """The hold of a canary comes back on each shard."""
    with running(crew_of(cluster, log)):
        wait_until(lambda: all(client.zcard(shop.keys.workers) for shop in shops_of(client)))
        code, out, err = verb("check --canary")

    assert (0, SHARDS) == (code, out.count(" ms late")), out + err


def test_events_of_all_shards_are_followed(cluster: Cluster, client: RedisCluster) -> None:
    """`tail` reads the streams of all primaries, each event once."""
    settings = Settings(**cluster.settings, shards=SHARDS)
    with connect_all(settings) as servers:
        events = _follow_all(settings, _positions(servers, settings, None))
        for number, shop in enumerate(shops_of(client)):
            expire(client, number, shop)  # type: ignore[arg-type]  # a Cluster takes the same command
        seen: Counter[int] = Counter()
        while seen.total() < SHARDS:
            seen.update(shard for shard, _ in next(events))

    assert dict.fromkeys(range(SHARDS), 1) == seen


def test_top_sees_all_shards(cluster: Cluster, client: RedisCluster) -> None:
    """A picture has the reservations of every primary."""
    for shop in shops_of(client):
        shop.stock("mug", 0, 2)
        for _ in range(2):
            shop.hold("mug", 1, 1000)
    settings = Settings(**cluster.settings, shards=SHARDS)
    with connect_all(settings) as servers:
        picture = Camera(servers, settings).take()

    assert (SHARDS, 2 * SHARDS) == (len(picture.shards), picture.overdue)


def test_a_demo_opens_on_a_cluster(
    cluster: Cluster, client: RedisCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The demo runs on a Cluster, and leaves no key behind."""
    monkeypatch.setattr("expirer.demo._OPEN_S", 1.0)

    code = cli.main(["demo", "--redis-url", cluster.settings["redis_url"], "--redis-cluster", "true"])

    out, err = capsys.readouterr()
    assert (0, True, []) == (code, "Conserved" in out, list(client.scan_iter("*"))), out + err


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

    tick = crew_of(cluster, log, redis_url=f"redis://127.0.0.1:{free_port()},127.0.0.1:{living}/0").run_once()

    assert Tick() == tick, log.entries


def test_no_start_node_is_an_error_of_the_tick(log: Log) -> None:
    """Where no node answers each is named, and the worker waits like for any server."""
    settings = Settings(redis_cluster=True, redis_url="redis://127.0.0.1:1,127.0.0.1:2", shards=2)

    tick = Crew(connect_all(settings), settings, log.logger()).run_once()

    message = log.of("processing_error")[0]["message"]
    assert 2 == tick.errors
    assert ["127.0.0.1:1: ", "127.0.0.1:2: "] == re.findall(r"127\.0\.0\.1:\d: ", message)


def test_a_hung_primary_delays_no_other(server_binary: Path, tmp_path: Path) -> None:
    """While one primary hangs for ever the shards of the others go on expiring, and a stop ends them all."""
    with ExitStack() as stack:
        bed = stack.enter_context(Cluster(server_binary, tmp_path, "--cluster-node-timeout", "60000"))
        client = stack.enter_context(bed.client())
        shops = shops_of(client)
        served = by_primary(bed)
        hanging, *living = served
        for shop in shops:
            shop.stock("mug", 5)
        program = stack.enter_context(
            Program(f"{bed.settings['redis_url']}?socket_timeout=60", redis_cluster=True, shards=SHARDS)
        )
        wait_until(lambda: all(client.zcard(shop.keys.workers) for shop in shops))
        stack.enter_context(hung(hanging))
        numbers = [number for primary in living for number in served[primary]]
        for number in numbers:
            shops[number].stock("mug", 4, 1)
            shops[number].hold("mug", 1, 1000)
            living[0].client().publish(shops[number].keys.wake, "1")

        wait_until(lambda: len(program.of("processing_completed")) == len(numbers))
        program.signal(SIGTERM)
        assert 0 == program.wait(5)

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
        crew = crew_of(own_cluster, log, shards=1, interval="300ms")
        with running(crew):
            wait_until(lambda: client.zcard(shop.keys.workers))
            new = own_cluster.failover(own_cluster.primary_of(shop.keys.control))
            shop.stock("mug", 9, 1)
            shop.hold("mug", 1, 1000)
            wait_until(lambda: log.of("reservation_expired"))

        assert own_cluster.primary_of(shop.keys.control) is new
        assert (10, 0) == shop.counters("mug")
