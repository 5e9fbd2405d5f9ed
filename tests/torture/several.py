"""Beds with several servers: Sentinels with a primary and two replicas, and a Cluster of three and three."""

from __future__ import annotations

from typing import Any

from redis.crc import key_slot

from expirer.connect import connect_all
from expirer.keys import shard_keys
from expirer.settings import Settings
from tests.beds import Replicated
from tests.cluster import Cluster
from tests.servers import RedisServer
from tests.torture.bed import Bed

_SHARDS = 4
"""Each of the products has a shard of its own, on a primary of its own."""


class Watched(Bed):
    """A primary that Sentinels watch over."""

    def build(self) -> None:
        """Start the servers."""
        self.house = Replicated(self._binary, self.folder, *self._options)
        self.house.start()
        _meet(self)

    def tear_down(self) -> None:
        """End every server."""
        self.house.stop()

    def settings(self, *, of_workers: bool) -> dict[str, Any]:  # noqa: ARG002  # both ask the Sentinels
        """Return the Sentinels."""
        return {**self.house.settings, "redis_url": self.with_timeouts("redis://localhost")}


class Clustered(Bed):
    """A Cluster; the slots of the shop may move."""

    def build(self) -> None:
        """Start the nodes."""
        self.house = Cluster(self._binary, self.folder, *self._options)
        self.house.start()
        _meet(self)

    def tear_down(self) -> None:
        """End every node."""
        self.house.stop()

    def settings(self, *, of_workers: bool) -> dict[str, Any]:  # noqa: ARG002  # both know the nodes
        """Return the addresses of all nodes that run."""
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.house.nodes if node.runs)
        return {"redis_cluster": True, "shards": _SHARDS, "redis_url": self.with_timeouts(f"redis://{hosts}")}

    def a_slot(self) -> tuple[int, RedisServer]:
        """Return the slot of one of the shards, and its primary."""
        key = self.chance.choice(self.shards)[1].index
        return key_slot(key.encode()), self.house.primary_of(key)


def _meet(bed: Bed) -> None:
    settings = Settings(**bed.settings(of_workers=False))
    bed.shards = list(zip(connect_all(settings).shards, shard_keys(settings), strict=True))
