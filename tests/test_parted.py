"""What the program promises where the network parts a primary, so that two take writes for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from expirer.config.settings import Settings
from expirer.connection.connect import connect
from tests.beds import Replicated, info_of
from tests.inventory import Inventory
from tests.network import Network
from tests.program import Program, wait_until
from tests.servers import RedisServer
from tests.weather import linux_only

pytestmark = linux_only


class Parted:
    """A primary that is about to be parted from the others, with a Sentinel that goes on naming it."""

    def __init__(self, bed: Replicated, network: Network) -> None:
        self.bed = bed
        self.old = bed.primary()
        self._network = network

    def part(self) -> RedisServer:
        """Part it; return the primary that the other Sentinels promote and name."""
        self._network.part(self.old, self.bed.sentinels[0])
        return self.bed.wait_for_another(self.old, self.bed.sentinels[1:])


@pytest.fixture
def parted(server_binary: Path, tmp_path: Path) -> Iterator[Parted]:
    """Run Sentinels and servers whose network parts."""
    with ExitStack() as stack:
        network = stack.enter_context(Network(server_binary))
        yield Parted(stack.enter_context(Replicated(server_binary, tmp_path, network=network)), network)


def test_most_of_the_sentinels_decide(parted: Parted) -> None:
    """A new connection goes to the primary that most of the Sentinels name, whichever is asked first."""
    new = parted.part()
    settings = Settings(**parted.bed.settings)

    ports = {connect(settings).config_get("port")["port"] for _ in range(3)}

    assert "master" == info_of(parted.old)["role"]
    assert {new.client().config_get("port")["port"]} == ports


def test_a_primary_that_was_given_up_is_left(parted: Parted) -> None:
    """A worker on a connection that stands works on the new primary while the old one takes writes still."""
    shop = Inventory(parted.old.client())
    with Program("redis://", interval="10m", **parted.bed.settings):
        wait_until(lambda: shop.client.zcard(shop.keys.workers))
        new = Inventory(parted.part().client())
        new.stock("mug", 9, 1)
        new.hold("mug", 1, 1000)
        wait_until(lambda: new.counters("mug") == (10, 0))

        assert "master" == info_of(parted.old)["role"]
