"""What happens to a Cluster, and to a primary that Sentinels watch over."""

from __future__ import annotations

from tests.torture.fault import Fault, Host
from tests.torture.faults.servers import AGREES
from tests.torture.several import Clustered, Watched


def move_slot(bed: Clustered) -> None:
    """Move the slot of a shard to another primary in the middle of a drain, and back."""
    slot, source = bed.a_slot()
    target = bed.chance.choice([node for node in bed.house.primaries() if node is not source])
    for one, other in ((source, target), (target, source)):
        bed.begin_drain()
        bed.house.begin_move(slot, one, other)
        bed.wait(bed.chance.uniform(0, 0.2))
        bed.house.end_move(slot, one, other)
    bed.wait(0.3)


def add_and_remove(bed: Clustered) -> None:
    """Add a primary that takes the slot of a shard, then give the slot back and remove it."""
    slot, source = bed.a_slot()
    node = bed.house.add_primary()
    bed.begin_drain()
    bed.house.move(slot, source, node)
    bed.wait(bed.chance.uniform(0.3, 1))
    bed.begin_drain()
    bed.house.move(slot, node, source)
    bed.house.remove(node)
    bed.wait(0.3)


def swap(bed: Clustered) -> None:
    """Exchange the primary of a shard with its replica, as for an upgrade."""
    _, primary = bed.a_primary_to_lose()
    bed.begin_drain()
    bed.house.failover(primary)
    bed.wait(1)


def kill_node(bed: Clustered) -> None:
    """Kill the primary of a shard; its replica takes over, and the dead one comes back as a replica."""
    key, primary = bed.a_primary_to_lose()
    bed.wait(bed.chance.uniform(0.3, 1))
    primary.stop()
    bed.wait_until(lambda: bed.house.primary_of(key) is not primary, "another primary")
    bed.wait(0.5)
    primary.start()


def kill_primary(bed: Watched) -> None:
    """Kill the primary; the Sentinels promote a replica, and the dead one comes back as a replica."""
    primary = bed.house.primary()
    bed.wait(bed.chance.uniform(0.3, 1))
    primary.stop()
    bed.house.wait_for_another(primary)
    bed.wait(0.5)
    primary.start()


# A busy machine must not make a node seem dead: then a replica that lags would take over, and may lose.
_CALM = Host(("--cluster-node-timeout", "30000"), bed=Clustered)
PATIENT = Host(("--cluster-node-timeout", "5000"), bed=Clustered)
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
        host=Host(bed=Clustered),
        may_lose=True,
    ),
    Fault(
        "sentinel-kills",
        "Sentinels: the primary killed with -9, a replica is promoted",
        kill_primary,
        times=20,
        quick_times=0,
        promise=AGREES,
        host=Host(bed=Watched),
        may_lose=True,
    ),
)
