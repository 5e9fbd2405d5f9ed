"""What every command of the operator owes on a Redis Cluster: it finds what is on whichever primary."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from redis.cluster import RedisCluster

from expirer import cli
from expirer.commands import COMMANDS
from expirer.config.settings import Settings
from expirer.connection.connect import connect_all
from expirer.contract.keys import shard_of
from expirer.operate.snapshot import Sampler
from tests.cluster import Cluster
from tests.conftest import Log
from tests.program import wait_until
from tests.test_cluster import SHARDS, by_primary, shops_of, workers_of
from tests.test_every_command import EXAMPLES
from tests.test_tail import expire, following

pytestmark = pytest.mark.slow

RunCommand = Callable[..., tuple[int, str, str]]


@pytest.fixture
def client(cluster: Cluster) -> Iterator[RedisCluster]:
    """Connect to the shared Cluster, emptied."""
    with cluster.client() as client:
        yield client


@pytest.fixture
def run_command(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> RunCommand:
    """Return a function that runs a command line against the Cluster: exit code, standard output and error."""

    def run(command: str, shards: int = SHARDS) -> tuple[int, str, str]:
        url = cluster.settings["redis_url"]
        code = cli.main([*command.split(), "--redis-url", url, "--redis-cluster", "true", "--shards", str(shards)])
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize("command", EXAMPLES.values())
def test_every_command(client: RedisCluster, run_command: RunCommand, command: str) -> None:
    """Each command works on a Cluster, and finds what is on whichever primary; only what it is for is changed."""
    shops = shops_of(client)
    shop = shops[shard_of("mug", SHARDS)]
    shop.stock("mug", 7, 3)
    shop.hold("mug", 3, 4_000_000_000_000, "o1:mug")
    if command.startswith("quarantine"):
        client.zrem(shop.keys.index, "o1:mug")
        client.hset(shop.keys.quarantine, "o1:mug", "reason=stock_missing at=1 score=4000000000000")

    code, out, err = run_command(command)

    assert code == (1 if command in ("check --canary", "status") else 0), out + err
    if "release" in command:
        assert (8, 2) == shop.counters("mug")
    else:
        assert (7, 3) == shop.counters("mug")
    if "--dry-run" in command or command in ("status", "pause", "resume --yes"):
        assert [f"shard {number}" for number in range(SHARDS)] == sorted(set(re.findall(r"shard \d", out)))


def test_the_commands_have_clients_of_a_cluster_too() -> None:
    """Those that do not end by themselves are tried below; reshard is refused."""
    assert {"run", "tail", "top", "demo", "reshard", "web"} == {*COMMANDS} - {
        name.removesuffix(" --dry-run") for name in EXAMPLES
    }


def test_a_check_looks_at_every_primary(cluster: Cluster, run_command: RunCommand) -> None:
    """A check says of each primary what it is, and how the shards are spread over them."""
    code, out, _ = run_command("check --json")

    remarks = [json.loads(line) for line in out.splitlines()]
    addresses = {f"127.0.0.1:{primary.port}" for primary in by_primary(cluster)}
    assert (0, set()) == (code, {remark["what"] for remark in remarks if remark["level"] == "failure"})
    assert addresses == {remark["finding"].removesuffix(": primary") for remark in remarks if remark["what"] == "role"}
    [slots] = [remark["finding"] for remark in remarks if remark["what"] == "slots"]
    assert addresses == set(re.findall(r"127\.0\.0\.1:\d+", slots))


def test_an_audit_walks_every_primary(client: RedisCluster, run_command: RunCommand) -> None:
    """What drifted is found and mended on every shard."""
    for shop in shops_of(client):
        shop.stock("mug", 5, 7)
        shop.hold("mug", 3, 4_000_000_000_000, "o1:mug")
        client.zrem(shop.keys.index, "o1:mug")

    code, out, err = run_command("audit --repair --yes")

    assert (0, SHARDS, SHARDS) == (code, out.count("not_indexed"), out.count("reserved_differs")), out + err
    for shop in shops_of(client):
        assert ((9, 3), {b"o1:mug": 4_000_000_000_000}) == (shop.counters("mug"), shop.index())


def test_a_canary_flies_on_every_shard(
    cluster: Cluster, client: RedisCluster, run_command: RunCommand, log: Log
) -> None:
    """The hold of a canary comes back on each shard."""
    with workers_of(cluster, log).running():
        wait_until(lambda: all(client.zcard(shop.keys.workers) for shop in shops_of(client)))
        code, out, err = run_command("check --canary")

    assert (0, SHARDS) == (code, out.count(" ms late")), out + err


def test_events_of_all_shards_are_followed(cluster: Cluster, client: RedisCluster) -> None:
    """`tail` reads the streams of all primaries, each event once."""
    url = cluster.settings["redis_url"]
    for number, shop in enumerate(shops_of(client)):
        expire(client, number, shop)  # type: ignore[arg-type]  # a Cluster takes the same command
    flags = ("--redis-cluster", "true", "--shards", str(SHARDS), "--from", "start", "--json")
    with following(url, *flags) as follower:
        wait_until(lambda: len(follower.lines) == SHARDS)
        for number, shop in enumerate(shops_of(client)):
            expire(client, number + 10, shop)  # type: ignore[arg-type]
        wait_until(lambda: len(follower.lines) == 2 * SHARDS)

    shards = Counter(json.loads(line)["shard"] for line in follower.lines)
    assert (dict.fromkeys(range(SHARDS), 2), []) == (shards, follower.errors)


def test_top_sees_all_shards(cluster: Cluster, client: RedisCluster) -> None:
    """A snapshot has the reservations of every primary."""
    for shop in shops_of(client):
        shop.stock("mug", 0, 2)
        for _ in range(2):
            shop.hold("mug", 1, 1000)
    settings = Settings(**cluster.settings, shards=SHARDS)
    with connect_all(settings) as servers:
        snapshot = Sampler(servers.shards).sample()

    assert (SHARDS, 2 * SHARDS) == (len(snapshot.shards), snapshot.overdue)


def test_a_demo_opens_on_a_cluster(
    cluster: Cluster, client: RedisCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The demo runs on a Cluster, and leaves no key behind."""
    monkeypatch.setattr("expirer.demo._OPEN_S", 1.0)

    code = cli.main(["demo", "--redis-url", cluster.settings["redis_url"], "--redis-cluster", "true"])

    out, err = capsys.readouterr()
    assert (0, True, []) == (code, "Conserved" in out, list(client.scan_iter("*"))), out + err
