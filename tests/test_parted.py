"""What the program promises if the network parts a primary, so that two take writes for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults import linux_only
from tests.inventory import Inventory
from tests.network import Network
from tests.program import Program, wait_until
from tests.servers import RedisServer
from tests.topology import Replicated, info_of

pytestmark = [linux_only, pytest.mark.slow]


class Parted:
    """A primary that is about to be parted from the others, with a Sentinel that goes on naming it."""

    def __init__(self, topology: Replicated, network: Network) -> None:
        self.topology = topology
        self.old = topology.primary()
        self._network = network

    def part(self) -> RedisServer:
        """Part it; return the primary that the other Sentinels promote and name."""
        self._network.part(self.old, self.topology.sentinels[0])
        return self.topology.wait_for_another(self.old, self.topology.sentinels[1:])


@pytest.fixture
def parted(server_binary: Path, tmp_path: Path) -> Iterator[Parted]:
    """Run Sentinels and servers whose network parts."""
    with ExitStack() as stack:
        network = stack.enter_context(Network(server_binary))
        yield Parted(stack.enter_context(Replicated(server_binary, tmp_path, network=network)), network)


def test_a_primary_that_was_replaced_is_left(parted: Parted) -> None:
    """A worker that asks the other Sentinels works on the new primary while the old one still takes writes."""
    shop = Inventory(parted.old.client())
    others = {"redis_sentinels": ",".join(f"127.0.0.1:{one.port}" for one in parted.topology.sentinels[1:])}
    with Program("redis://", interval="10m", **{**parted.topology.settings, **others}):
        wait_until(lambda: shop.client.zcard(shop.keys.workers))
        new = Inventory(parted.part().client())
        new.stock("mug", 9, 1)
        new.hold("mug", 1, 1000)
        wait_until(lambda: new.counters("mug") == (10, 0))

        assert "master" == info_of(parted.old)["role"]
