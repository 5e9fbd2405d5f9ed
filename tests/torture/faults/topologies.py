"""What happens to a Cluster, and to a primary that Sentinels watch over."""

from __future__ import annotations

from tests.torture.fault import Fault, Host
from tests.torture.faults.servers import AGREES
from tests.torture.several import Clustered, Watched


def move_slot(rig: Clustered) -> None:
    """Move the slot of a shard to another primary in the middle of a drain, and back."""
    slot, source = rig.a_slot()
    target = rig.chance.choice([node for node in rig.topology.primaries() if node is not source])
    for one, other in ((source, target), (target, source)):
        rig.begin_drain()
        rig.topology.begin_move(slot, one, other)
        rig.wait(rig.chance.uniform(0, 0.2))
        rig.topology.end_move(slot, one, other)
    rig.wait(0.3)


def add_and_remove(rig: Clustered) -> None:
    """Add a primary that takes the slot of a shard, then give the slot back and remove it."""
    slot, source = rig.a_slot()
    node = rig.topology.add_primary()
    rig.begin_drain()
    rig.topology.move(slot, source, node)
    rig.wait(rig.chance.uniform(0.3, 1))
    rig.begin_drain()
    rig.topology.move(slot, node, source)
    rig.topology.remove(node)
    rig.wait(0.3)


def swap(rig: Clustered) -> None:
    """Exchange the primary of a shard with its replica, as for an upgrade."""
    _, primary = rig.a_primary_to_lose()
    rig.begin_drain()
    rig.topology.failover(primary)
    rig.wait(1)


def kill_node(rig: Clustered) -> None:
    """Kill the primary of a shard; its replica takes over, and the dead one comes back as a replica."""
    key, primary = rig.a_primary_to_lose()
    rig.wait(rig.chance.uniform(0.3, 1))
    primary.stop()
    rig.wait_until(lambda: rig.topology.primary_of(key) is not primary, "another primary")
    rig.wait(0.5)
    primary.start()


def kill_primary(rig: Watched) -> None:
    """Kill the primary; the Sentinels promote a replica, and the dead one comes back as a replica."""
    primary = rig.topology.primary()
    rig.wait(rig.chance.uniform(0.3, 1))
    primary.stop()
    rig.topology.wait_for_another(primary)
    rig.wait(0.5)
    primary.start()


# A busy machine must not make a node seem dead: then a replica that lags would take over, and may lose.
_CALM = Host(("--cluster-node-timeout", "30000"), rig=Clustered)
PATIENT = Host(("--cluster-node-timeout", "5000"), rig=Clustered)
"""The same where a node must be promoted again within a minute, or be missed by others."""

FAULTS = (
    Fault(
        "slots",
        "Cluster: the slot of a shard moved away and back, key by key, in a drain",
        move_slot,
        times=20,
        host=_CALM,
    ),
    Fault(
        "nodes",
        "Cluster: a node added, given a shard's slot, emptied and removed",
        add_and_remove,
        times=10,
        quick_times=1,
        host=_CALM,
    ),
    Fault(
        "swaps",
        "Cluster: a primary exchanged with its replica (`CLUSTER FAILOVER`)",
        swap,
        times=20,
        quick_times=1,
        host=PATIENT,
    ),
    Fault(
        "cluster-kills",
        "Cluster: a primary killed with -9, its replica takes over",
        kill_node,
        times=20,
        quick_times=0,
        promise=AGREES,
        host=Host(rig=Clustered),
        may_lose=True,
    ),
    Fault(
        "sentinel-kills",
        "Sentinels: the primary killed with -9, a replica is promoted",
        kill_primary,
        times=20,
        quick_times=0,
        promise=AGREES,
        host=Host(rig=Watched),
        may_lose=True,
    ),
)
