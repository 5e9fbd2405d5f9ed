"""Beds with several servers: Sentinels with a primary and two replicas, and a Cluster of three and three."""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from contextlib import ExitStack
from typing import Any

import redis
from redis.crc import key_slot

from expirer.config.settings import Settings
from expirer.connection.connect import connect_all
from tests.cluster import Cluster
from tests.network import Network
from tests.proxy import CLEAR, Conditions
from tests.servers import RedisServer
from tests.topology import Replicated, Topology, execute
from tests.torture.rig import Rig

_SHARDS = 4
"""Each of the products has a shard of its own, on a primary of its own."""
_FORGOTTEN_AFTER = 4.5
"""Node time-outs: Redis 7.0.15 may take an election that a node has won within four for a new one, and fail."""


class Several(Rig):
    """Servers with a network between them that may part; there is always a primary to break."""

    topology: Topology

    def build(self) -> None:
        """Start the servers."""
        self._running = ExitStack()
        self.network = self._running.enter_context(Network(self._binary))
        self._running.enter_context(self._topology())
        settings = Settings(**self.settings(of_workers=False))
        self.shards = [(shard.client, shard.keys) for shard in connect_all(settings).shards]

    def tear_down(self) -> None:
        """End every server, then the network."""
        self._running.close()

    @abstractmethod
    def _topology(self) -> Topology:
        """Make the servers; set `topology`."""

    @abstractmethod
    def a_primary(self) -> RedisServer:
        """Return a primary at random, as of now."""

    def a_client(self) -> redis.Redis:
        """Return a client of a primary."""
        return self.a_primary().client()

    def change(self, conditions: Conditions, *, cut: bool = False) -> None:
        """Change the conditions for all who call a primary, but not on its bus; one primary at a time."""
        self.network.clear()
        if conditions != CLEAR:
            line = self.network.line_to(self.a_primary())
            line.conditions = conditions
            if cut:
                line.cut()

    def calm(self) -> None:
        """Let everything pass again; return once all servers are as they should be."""
        self.network.clear()
        self.wait_until(self.topology.is_well, "all is well again")


class Watched(Several):
    """A primary that Sentinels watch over."""

    def _topology(self) -> Topology:
        self.topology: Replicated = Replicated(self._binary, self.folder, *self._options, network=self.network)
        return self.topology

    def settings(self, *, of_workers: bool) -> dict[str, Any]:
        """Return the Sentinels; about half of the workers know one only, which may be parted with the old primary."""
        sentinels = self.topology.settings["redis_sentinels"].split(",")
        if of_workers:
            sentinels = self.chance.sample(sentinels, self.chance.choice((1, 3)))
        known = {"redis_sentinels": ",".join(sentinels), "redis_url": self.with_timeouts("redis://localhost")}
        return {**self.topology.settings, **known}

    def a_primary(self) -> RedisServer:
        """Return the primary."""
        return self.topology.primary()


class Clustered(Several):
    """A Cluster; the slots of the shards may move."""

    def _topology(self) -> Topology:
        self.topology: Cluster = Cluster(self._binary, self.folder, *self._options, network=self.network)
        self._primaries: list[RedisServer] = []
        self._promoted_at: dict[RedisServer, float] = {}
        return self.topology

    def settings(self, *, of_workers: bool) -> dict[str, Any]:  # noqa: ARG002  # both know the nodes
        """Return the addresses of all nodes that run."""
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.topology.nodes if node.runs)
        return {"redis_cluster": True, "shards": _SHARDS, "redis_url": self.with_timeouts(f"redis://{hosts}")}

    def a_slot(self) -> tuple[int, RedisServer]:
        """Return the slot of one of the shards, and its primary."""
        key = self.chance.choice(self.shards)[1].index
        return key_slot(key.encode()), self.topology.primary_of(key)

    def a_primary(self) -> RedisServer:
        """Return the primary of one of the shards."""
        return self.a_slot()[1]

    def a_primary_to_lose(self) -> tuple[str, RedisServer]:
        """Return a key of one of the shards, and its primary, once the replica of that may be promoted."""
        key = self.chance.choice(self.shards)[1].index
        primary = self.topology.primary_of(key)
        replica = self.topology.replica_of(primary)
        timeout_s = int(execute(replica, "CONFIG", "GET", "cluster-node-timeout")[1]) / 1000
        at = self._promoted_at.get(replica, -math.inf) + _FORGOTTEN_AFTER * timeout_s
        self.wait(max(0, at - time.monotonic()))
        return key, primary

    def calm(self) -> None:
        """Let everything pass again; return once all nodes are as they should be."""
        super().calm()
        primaries = self.topology.primaries()
        self._promoted_at |= dict.fromkeys(set(primaries) - set(self._primaries), time.monotonic())
        self._primaries = primaries
