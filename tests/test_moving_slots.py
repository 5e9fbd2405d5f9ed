"""What the program promises while a slot of a Cluster is moved, key by key: it waits, and does nothing by halves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.crc import key_slot

from expirer import cli
from expirer.config.settings import Settings
from expirer.connection.connect import connect_all
from expirer.contract.keys import ShardKeys
from expirer.operate.inventory_scan import InventoryScan
from expirer.operate.recount import Recount
from expirer.worker.batch import Tick
from expirer.worker.worker import Worker
from tests.cluster import Cluster
from tests.conftest import Log
from tests.inventory import Inventory
from tests.program import Backlog, Program, wait_until
from tests.servers import RedisServer
from tests.topology import execute, wait_for_replicas

pytestmark = pytest.mark.slow

KEYS = ShardKeys.of("inventory")
SLOT = key_slot(KEYS.control.encode())
LATER = 4_000_000_000_000


@pytest.fixture(scope="module")
def topology(server_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Run a Cluster whose slots move."""
    with Cluster(server_binary, tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


class Move:
    """The slot of the shop on its way from one primary to another; it has arrived when the test is over."""

    def __init__(self, topology: Cluster) -> None:
        self._topology = topology
        self.source = topology.primary_of(KEYS.control)
        self.target = next(node for node in topology.nodes[:3] if node is not self.source)
        self.shop = Inventory(self.source.client())
        self._is_under_way = False

    def begin(self) -> None:
        """Declare the move."""
        self._topology.begin_move(SLOT, self.source, self.target)
        self._is_under_way = True

    def take(self, *keys: str) -> None:
        """Move some keys."""
        self._topology.move_keys(self.source, self.target, *keys)

    def end(self) -> None:
        """Move the others, and close the move; the shop is on the target then."""
        if self._is_under_way:
            self._topology.end_move(SLOT, self.source, self.target)
            self._is_under_way = False
        self.shop = Inventory(self.target.client())

    def contents(self) -> list[dict[bytes, Any]]:
        """Return every key with its bytes, on both nodes."""
        return [self._contents(node) for node in (self.source, self.target)]

    @staticmethod
    def _contents(node: RedisServer) -> dict[bytes, Any]:
        client: Any = node.client()
        keys = client.execute_command("CLUSTER", "GETKEYSINSLOT", SLOT, 1000)
        with client.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.execute_command("ASKING")
                pipe.dump(key)
            return dict(zip(keys, pipe.execute()[1::2], strict=True))


@pytest.fixture
def move(topology: Cluster) -> Iterator[Move]:
    """Return a move that has not begun, of a slot that is empty."""
    with topology.client() as client:
        client.flushall(target_nodes=client.PRIMARIES)
    move = Move(topology)
    yield move
    move.end()


@pytest.fixture
def worker(topology: Cluster, log: Log) -> Worker:
    """Return a worker for the Cluster."""
    return Worker(connect_all(Settings(**topology.settings)).shards[0], log.logger())


def fill(shop: Inventory, client: redis.Redis) -> None:
    """Write a shop in which every key of the contract is there, so that a server misses none that is declared."""
    shop.stock("mug", 7, 3)
    for number in range(3):
        shop.hold("mug", 1, 1000 + number, f"o{number}:mug")
    shop.hold("mug", 1, LATER, "later:mug")
    shop.stock("mug", 6, 4)
    client.hset(KEYS.quarantine, "old:mug", "reason=stock_missing at=1 score=1")
    client.hset(KEYS.control, mapping={"paused": 0})
    client.xadd(KEYS.events, {"reservation_id": "old:tee"})


STAGES = {
    "declared": [],
    "a reservation": [KEYS.reservation_prefix + "o1:mug"],
    "the stock": [KEYS.stock_prefix + "mug"],
    "the reservations": [f"{KEYS.reservation_prefix}o{number}:mug" for number in range(3)],
    "the index": [KEYS.index],
    "the quarantine": [KEYS.quarantine],
    "the pause switch": [KEYS.control],
    "the totals": [KEYS.stats],
}
"""What has arrived at the target."""


@pytest.mark.parametrize("stage", STAGES)
def test_a_moving_slot_is_left_alone(move: Move, worker: Worker, log: Log, stage: str) -> None:
    """Whatever has moved already, nothing expires, nothing is quarantined and no key changes until all is moved."""
    worker.tick()  # writes its heartbeat, and the totals once something has expired
    fill(move.shop, move.source.client())
    move.source.client().hset(KEYS.stats, "expired", 0)
    move.begin()
    move.take(*STAGES[stage])
    before = move.contents()

    ticks = [worker.tick(), worker.tick()]

    assert [Tick(errors=1)] * 2 == ticks
    assert before == move.contents()
    assert {True} == {"moved" in entry["message"] for entry in log.of("processing_error")}, log.entries
    move.end()
    wait_until(lambda: not worker.tick().errors)
    assert [b"Expired"] * 3 == [
        move.shop.client.hget(f"{KEYS.reservation_prefix}o{number}:mug", "status") for number in range(3)
    ]
    assert ((9, 1), {b"later:mug": LATER}) == (move.shop.counters("mug"), move.shop.index())
    assert {"old:mug": "stock_missing"} == move.shop.quarantine()


def test_an_index_that_is_emptied_and_written_again_is_not_lost(move: Move, worker: Worker) -> None:
    """A batch that would empty the index and put a rescheduled entry back does not fail between the two."""
    fill(move.shop, move.source.client())
    worker.tick()
    for id_ in move.shop.index():
        move.source.client().zrem(KEYS.index, id_)
    move.shop.hold("mug", 1, LATER, "extended:mug")
    move.source.client().zadd(KEYS.index, {"extended:mug": 1000})
    move.begin()

    assert Tick(errors=1) == worker.tick()
    assert {b"extended:mug": 1000} == move.shop.index()
    move.end()
    wait_until(lambda: worker.tick().rescheduled)
    assert {b"extended:mug": LATER} == move.shop.index()


def test_a_quarantine_that_is_emptied_and_written_again_is_not_lost(move: Move, worker: Worker) -> None:
    """A batch that would empty the quarantine and write to it again does not fail after units have moved."""
    fill(move.shop, move.source.client())
    worker.tick()
    move.shop.stock("mug", 8, 2)
    move.shop.hold("mug", 1, 1000, "sound:mug")
    move.source.client().delete(KEYS.quarantine)
    move.source.client().hset(KEYS.quarantine, "sound:mug", "reason=stock_missing at=1 score=1000")
    move.shop.hold("mug", "two", 1000, "poison:mug")
    move.begin()

    assert Tick(errors=1) == worker.tick()
    assert ((8, 2), "Active") == (move.shop.counters("mug"), move.shop.status("sound:mug"))
    move.end()
    wait_until(lambda: worker.tick().expired)
    assert ((9, 1), {"poison:mug": "quantity_invalid"}) == (move.shop.counters("mug"), move.shop.quarantine())


@pytest.mark.parametrize(
    "command",
    ["quarantine release old:mug --quantity 1 --product mug", "quarantine requeue old:mug", "audit --repair --yes"],
)
def test_a_command_that_repairs_does_nothing_by_halves(
    topology: Cluster, move: Move, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """While the slot is on its way a command that repairs says so in one line, exit 1, and changes nothing."""
    fill(move.shop, move.source.client())
    move.begin()
    move.take(KEYS.quarantine, KEYS.reservation_prefix + "o1:mug")
    before = move.contents()

    code = cli.main([*command.split(), "--redis-cluster", "true", "--redis-url", topology.settings["redis_url"]])

    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("expirer: ")]
    assert (1, 1) == (code, len(lines)), lines
    assert before == move.contents()


def test_a_primary_that_is_lost_in_a_move_loses_no_unit(own_cluster: Cluster, log: Log) -> None:
    """Promoted in the middle of a move, a replica knows nothing of it: what has gone ahead is quarantined.

    With servers that tell their replicas of a move the shard is left alone instead. Either way
    `redis-cli --cluster fix` brings the keys together, and a requeue brings back what was quarantined.
    """
    worker = Worker(connect_all(Settings(**own_cluster.settings)).shards[0], log.logger())
    move = Move(own_cluster)
    fill(move.shop, move.source.client())
    move.begin()
    ahead = KEYS.reservation_prefix + "o1:mug"
    move.take(ahead)
    wait_for_replicas(move.source, 1)
    move.source.stop()
    new = own_cluster.take_over(move.source)
    shop = Inventory(new.client())

    for _ in range(3):
        worker.tick()
    assert shop.quarantine().get("o1:mug", "reservation_missing") == "reservation_missing"
    own_cluster.settle(SLOT, new)
    own_cluster.move_keys(move.target, new, ahead)
    own_cluster.settle(SLOT, move.target)
    arguments = ["--redis-cluster", "true", "--redis-url", f"redis://127.0.0.1:{new.port}"]
    assert 0 == cli.main(["quarantine", "requeue", "--reason", "reservation_missing", *arguments])
    wait_until(lambda: shop.status("o1:mug") == "Expired" or not worker.tick())

    assert ((9, 1), {b"later:mug": LATER}) == (shop.counters("mug"), shop.index())
    assert {"old:mug": "stock_missing"} == shop.quarantine()


def test_an_audit_ends_where_its_shard_moves_away(topology: Cluster, move: Move) -> None:
    """An audit that listened on the old server judges nothing on the new one, where it may have missed a write."""
    fill(move.shop, move.source.client())
    settings = Settings(**topology.settings)
    with connect_all(settings) as servers, closing(InventoryScan(servers)) as scan:
        move.begin()
        move.end()

        with pytest.raises(redis.RedisError, match="repeat the audit"):
            Recount(scan, servers.shards[0], b"mug").read()


def test_the_next_tick_but_one_goes_to_the_new_primary(move: Move, worker: Worker, log: Log) -> None:
    """After a slot has moved one tick learns it, and the next expires; nothing is lost between them."""
    worker.tick()
    fill(move.shop, move.source.client())
    move.begin()
    move.end()

    ticks = [worker.tick(), worker.tick()]

    assert [(1, 0), (0, 3)] == [(tick.errors, tick.expired) for tick in ticks]
    [error] = log.of("processing_error")
    assert f"slot {SLOT} is served by 127.0.0.1:{move.target.port} now" in error["message"]


def test_a_slot_goes_back_and_forth_in_a_drain(topology: Cluster, move: Move) -> None:
    """While its slot moves there and back again, several times, a drain goes on between, and each expires once."""
    there, back = move.source, move.target
    backlog = Backlog(move.source.client())
    backlog.add(3000)
    with Program(
        topology.settings["redis_url"], "--batch-size", "10", "--max-rate", "1000", redis_cluster=True
    ) as program:
        for _ in range(3):
            program.wait_for("reservation_expired", len(program.of("reservation_expired")) + 1)
            shift(topology, there, back)
            there, back = back, there
        backlog = at(there, backlog)
        wait_until(lambda: not backlog.left())

    assert [] == program.of("concurrency_conflict")
    backlog.assert_expired_once()
    if there is move.source:
        topology.move(SLOT, there, back)


def test_a_slot_that_is_handed_over_in_one_step_is_never_between(topology: Cluster, move: Move) -> None:
    """Where a server hands a slot over whole (Valkey 9) a drain goes on until it has gone, then where it is now."""
    try:
        execute(move.source, "CLUSTER", "GETSLOTMIGRATIONS")
    except redis.ResponseError:
        pytest.skip("this server moves a slot key by key")
    backlog = Backlog(move.source.client())
    backlog.add(3000)
    with Program(
        topology.settings["redis_url"], "--batch-size", "10", "--max-rate", "50", redis_cluster=True
    ) as program:
        program.wait_for("reservation_expired")
        topology.hand_over(SLOT, move.source, move.target)
        error = program.wait_for("processing_error")
        program.wait_for("processing_recovered")

    assert f"slot {SLOT} is served by 127.0.0.1:{move.target.port} now" in error["message"]
    assert 1 == len(program.of("processing_error"))
    at(move.target, backlog).assert_conserved()
    topology.hand_over(SLOT, move.target, move.source)


def shift(topology: Cluster, source: RedisServer, target: RedisServer) -> None:
    """Move the slot slowly: a few keys at a time."""
    topology.begin_move(SLOT, source, target)
    client: Any = source.client()
    while keys := client.execute_command("CLUSTER", "GETKEYSINSLOT", SLOT, 50):
        topology.move_keys(source, target, *keys)
    topology.end_move(SLOT, source, target)


def at(node: RedisServer, backlog: Backlog) -> Backlog:
    """Return the same backlog, looked at on another node."""
    moved = Backlog(node.client())
    moved.stocked, moved._ids = backlog.stocked, backlog._ids
    return moved
