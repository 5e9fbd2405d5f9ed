"""A topology of real servers: a Redis Cluster whose primaries die and change places, and whose slots move."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import redis
from redis.cluster import RedisCluster
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from tests.network import OUTSIDE, Place
from tests.program import wait_until
from tests.servers import RedisServer, free_cluster_port
from tests.topology import REPLICATION, Topology, execute, follows, info_of, made, raw, tls_options

_TO_BUS = 10_000
"""From the port of a node to that of its bus."""
_NODE_TIMEOUT_MS = 2000
"""Less would take a busy machine for a dead server."""


class Cluster(Topology):
    """A Redis Cluster of three primaries and three replicas; the n-th replica belongs to the n-th primary."""

    def __init__(self, binary: Path, folder: Path, *options: str, **of_any_topology: Any) -> None:  # noqa: ANN401  # see Topology
        super().__init__(binary, folder, *options, **of_any_topology)
        self.nodes: list[RedisServer] = []

    def start(self) -> None:
        """Start the nodes and join them; return once each says that the Cluster is ok, and all replicas follow."""
        for _ in range(6):
            self._node()
        address = f"127.0.0.1:{self.nodes[0].port}"
        url = f"redis://{address}" if self._tls is None else f"rediss://{address}/0?ssl_ca_certs={self._tls}"
        self.settings = {"redis_cluster": True, "redis_url": url}
        for number, node in enumerate(self.nodes):
            execute(node, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        self._meet(self.nodes[0])
        primaries, replicas = self.nodes[:3], self.nodes[3:]
        share = REDIS_CLUSTER_HASH_SLOTS // 3 + 1
        for number, node in enumerate(primaries):
            slots = range(number * share, min((number + 1) * share, REDIS_CLUSTER_HASH_SLOTS))
            execute(node, "CLUSTER", "ADDSLOTS", *slots)
        wait_until(lambda: all(len(self._rows(node)) == len(self.nodes) for node in self.nodes))
        for primary, replica in zip(primaries, replicas, strict=True):
            self._replicate(replica, primary)
        self.wait_until_ok()
        wait_until(lambda: all(follows(replica) for replica in replicas))
        wait_until(lambda: all(sum("slave" in row[2] for row in self._rows(node)) == 3 for node in self.nodes))

    def is_well(self) -> bool:
        """Say whether all nodes run and say the same of each other, nothing bad, and the replicas follow."""
        views = {self._view(node) for node in self.nodes}
        return len(views) == 1 and all(
            "fail" not in flags and (flags == "master" or follows(self._at(port))) for port, flags, *_ in min(views)
        )

    def primaries(self) -> list[RedisServer]:
        """Return the nodes that serve slots, as a running one has it."""
        return [self._at(_port(row)) for row in self._rows(self._running()[0]) if "master" in row[2] and len(row) > 8]

    def _processes(self) -> Iterable[RedisServer]:
        return self.nodes

    def _view(self, node: RedisServer) -> tuple[tuple[int, str, str, str], ...]:
        rows = self._rows(node)
        return tuple(sorted((_port(row), row[2].removeprefix("myself,"), row[3], " ".join(row[8:])) for row in rows))

    def client(self) -> RedisCluster:
        """Return a new client of the whole Cluster."""
        node = next(node for node in self.nodes if node.runs)
        options = tls_options(self._tls)
        return RedisCluster(host="127.0.0.1", port=node.port, protocol=2, socket_timeout=5, **options)

    def wait_until_ok(self) -> None:
        """Return once each running node says that the Cluster is ok."""
        wait_until(lambda: all(b"cluster_state:ok" in raw(node, "CLUSTER", "INFO") for node in self._running()))

    def primary_of(self, key: str) -> RedisServer:
        """Return the node that serves the slot of a key, as most of the running nodes have it."""
        votes = [self._owner(node, key_slot(key.encode())) for node in self._running()]
        known = [port for port in votes if port is not None]
        return self._at(max(set(known), key=known.count))

    def replica_of(self, primary: RedisServer) -> RedisServer:
        """Return a running replica of a primary, as soon as all know of it."""
        id_ = self.id_of(primary)
        wait_until(lambda: self._followers(id_))
        return self._followers(id_)[0]

    def _followers(self, id_: str) -> list[RedisServer]:
        rows = self._rows(self._running()[0])
        ports = {_port(row) for row in rows if row[3] == id_}
        return [node for node in self._running() if node.port in ports]

    def failover(self, primary: RedisServer) -> RedisServer:
        """Exchange a primary that lives with its replica; return the new one once all know of it."""
        return self._promote(primary)

    def take_over(self, primary: RedisServer) -> RedisServer:
        """Promote the replica of a primary that hangs or is dead at once, rather than after the time-out; return it."""
        return self._promote(primary, "TAKEOVER")

    def wait_for_another(self, primary: RedisServer, key: str) -> RedisServer:
        """Return the new primary of a key, once all running nodes but the old one have one, and are ok."""
        wait_until(lambda: self.primary_of(key) is not primary)
        return self.primary_of(key)

    def add_primary(self) -> RedisServer:
        """Add a primary without slots; return it once all know of it."""
        node = self._node()
        execute(node, "CLUSTER", "SET-CONFIG-EPOCH", len(self.nodes) + 1)
        self._meet(node)
        wait_until(lambda: all(len(self._rows(one)) == len(self.nodes) for one in self._running()))
        wait_until(lambda: b"cluster_state:ok" in raw(node, "CLUSTER", "INFO"))
        return node

    def remove(self, node: RedisServer) -> None:
        """Let all others forget a node without slots, and end it."""
        id_ = self.id_of(node)
        self.nodes.remove(node)
        for other in self._running():
            execute(other, "CLUSTER", "FORGET", id_)
        node.stop()

    def begin_move(self, slot: int, source: RedisServer, target: RedisServer) -> None:
        """Declare a slot as migrating from source to target; no key moves yet."""
        execute(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", self.id_of(source))
        execute(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", self.id_of(target))

    def move_keys(self, source: RedisServer, target: RedisServer, *keys: str | bytes) -> None:
        """Move some keys of a slot that migrates."""
        if keys:
            execute(source, "MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)

    def end_move(self, slot: int, source: RedisServer, target: RedisServer) -> None:
        """Move the keys that are left, and give the slot to the target."""
        while keys := execute(source, "CLUSTER", "GETKEYSINSLOT", slot, 100):
            self.move_keys(source, target, *keys)
        id_ = self.id_of(target)
        for node in (target, source, *(node for node in self._running() if node not in (source, target))):
            with suppress(redis.ResponseError):  # a replica is told by its primary
                execute(node, "CLUSTER", "SETSLOT", slot, "NODE", id_)

    def settle(self, slot: int, node: RedisServer) -> None:
        """Let a node forget that a slot moves, as `redis-cli --cluster fix` does."""
        execute(node, "CLUSTER", "SETSLOT", slot, "STABLE")

    def move(self, slot: int, source: RedisServer, target: RedisServer) -> None:
        """Move a slot, key by key, as redis-cli does."""
        self.begin_move(slot, source, target)
        self.end_move(slot, source, target)

    def hand_over(self, slot: int, source: RedisServer, target: RedisServer) -> None:
        """Move a slot in one step, as Valkey 9 can; return once all know of it."""
        execute(source, "CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", self.id_of(target))
        wait_until(lambda: {target.port} == {self._owner(node, slot) for node in self._running()})

    def id_of(self, node: RedisServer) -> str:
        """Return the name of a node within the Cluster."""
        for one in self._running():
            for row in self._rows(one):
                if f":{node.port}@" in row[1]:
                    return row[0]
        raise LookupError(node.port)

    def _promote(self, primary: RedisServer, *how: str) -> RedisServer:
        replica = self.replica_of(primary)
        execute(replica, "CLUSTER", "FAILOVER", *how)
        wait_until(lambda: info_of(replica).get("role") == "master")
        wait_until(lambda: all(self._has_slots(node, replica) for node in self._running()))
        self.wait_until_ok()
        return replica

    def _has_slots(self, node: RedisServer, primary: RedisServer) -> bool:
        return any(f":{primary.port}@" in row[1] and len(row) > 8 for row in self._rows(node))

    def _node(self) -> RedisServer:
        port = free_cluster_port()
        placed: tuple[str, ...] = ()
        if self._network is not None:
            place = self._network.place(port, port + _TO_BUS)
            port, placed = place.port, (*place.options, *_announcing(place))
        node = RedisServer(
            self._binary, made(self._folder / f"node-{port}"), "--cluster-enabled", "yes",
            "--cluster-node-timeout", str(_NODE_TIMEOUT_MS), *REPLICATION, *self._options, *placed,
            port=port, tls=self._tls,
        )  # fmt: skip
        self.nodes.append(node)
        node.start()
        return node

    def _meet(self, node: RedisServer) -> None:
        for other in self._running():
            if other is not node:
                execute(node, "CLUSTER", "MEET", OUTSIDE, other.port, self._bus_port(other))

    def _bus_port(self, node: RedisServer) -> int:
        return node.port + _TO_BUS if self._network is None else self._network.bus_port(node)

    def _replicate(self, replica: RedisServer, primary: RedisServer) -> None:
        id_ = self.id_of(primary)
        wait_until(lambda: any(row[0] == id_ for row in self._rows(replica)))
        execute(replica, "CLUSTER", "REPLICATE", id_)

    def _rows(self, node: RedisServer) -> list[list[str]]:
        """Return what a node says of each node that it knows, once they have shaken hands."""
        rows = [line.split(" ") for line in raw(node, "CLUSTER", "NODES").decode().splitlines()]
        return [row for row in rows if "handshake" not in row[2] and "noaddr" not in row[2]]

    def _running(self) -> list[RedisServer]:
        return [node for node in self.nodes if node.runs]

    @staticmethod
    def _owner(node: RedisServer, slot: int) -> int | None:
        """Return the port of the primary that serves a slot, as one node has it."""
        ports = [port for start, end, (_, port, *_), *_ in execute(node, "CLUSTER", "SLOTS") if start <= slot <= end]
        return ports[0] if ports else None

    def _at(self, port: int) -> RedisServer:
        return next(node for node in self.nodes if node.port == port)


def _port(row: list[str]) -> int:
    return int(row[1].partition("@")[0].rpartition(":")[2])


def _announcing(place: Place) -> tuple[str, ...]:
    assert place.bus is not None
    ports = ("--cluster-announce-port", str(place.port), "--cluster-announce-bus-port", str(place.bus.own_port))
    return ("--cluster-announce-ip", OUTSIDE, *ports)
