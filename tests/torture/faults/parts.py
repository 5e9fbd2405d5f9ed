"""What happens when the network parts servers from each other, while workers and checkouts reach all of them.

That is the worst place for them to stand: a primary that has lost its island's vote still takes what they write.
"""

from __future__ import annotations

from tests.topology import info_of
from tests.torture.fault import Fault, Host
from tests.torture.faults.servers import AGREES
from tests.torture.faults.topologies import PATIENT
from tests.torture.several import Clustered, Several, Watched


def part_node(rig: Clustered) -> None:
    """Part the primary of a shard from all other nodes until its replica has been elected, and for a while more."""
    key, primary = rig.a_primary_to_lose()
    rig.wait(rig.chance.uniform(0.3, 1))
    rig.network.part(primary)
    rig.wait_until(lambda: rig.topology.primary_of(key) is not primary, "another primary")
    _heal(rig)


def part_replica(rig: Clustered) -> None:
    """Part a replica from all other nodes for longer than their time-out."""
    rig.network.part(rig.topology.replica_of(rig.a_primary()))
    rig.wait(6)
    _heal(rig)


def part_primary(rig: Watched) -> None:
    """Part the primary and a Sentinel from the others; two primaries take writes until some seconds after the end."""
    primary, sentinel = rig.topology.primary(), rig.chance.choice(rig.topology.sentinels)
    rig.wait(rig.chance.uniform(0.3, 1))
    rig.network.part(primary, sentinel)
    rig.wait_until(
        lambda: any(info_of(one).get("role") == "master" for one in rig.topology.servers if one is not primary),
        "another primary",
    )
    _heal(rig)


def part_sentinel(rig: Watched) -> None:
    """Part a Sentinel from everybody for longer than it takes to call them down."""
    rig.network.part(rig.chance.choice(rig.topology.sentinels))
    rig.wait(4)
    _heal(rig)


def _heal(rig: Several) -> None:
    """Let everything pass again after a while; what was kept back arrives, or is lost with its connection."""
    rig.wait(rig.chance.uniform(0.5, 3))
    rig.network.clear(cut=rig.chance.random() < 0.5)


FAULTS = (
    Fault(
        "cluster-parts",
        "Cluster: a primary parted from all other nodes; its replica is elected while clients still reach both; healed",
        part_node,
        times=20,
        quick_times=1,
        promise=AGREES,
        host=Host(rig=Clustered),
        may_lose=True,
    ),
    Fault(
        "replica-parts",
        "Cluster: a replica parted from all other nodes for longer than their time-out; healed",
        part_replica,
        times=20,
        quick_times=0,
        host=PATIENT,
    ),
    Fault(
        "sentinel-parts",
        "Sentinels: the primary and a Sentinel parted from the others, two primaries take writes; healed",
        part_primary,
        times=20,
        quick_times=0,
        promise=AGREES,
        host=Host(rig=Watched),
        may_lose=True,
    ),
    Fault(
        "bounded-parts",
        "the same with `min-replicas-to-write 1` and `min-replicas-max-lag 3`",
        part_primary,
        times=20,
        quick_times=0,
        promise=AGREES,
        host=Host(("--min-replicas-to-write", "1", "--min-replicas-max-lag", "3"), rig=Watched),
        may_lose=True,
    ),
    Fault(
        "lone-sentinels",
        "Sentinels: one of them parted from everybody; healed",
        part_sentinel,
        times=20,
        quick_times=0,
        host=Host(rig=Watched),
    ),
)
