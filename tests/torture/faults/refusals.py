"""What makes a server refuse, and what makes it forget its scripts."""

from __future__ import annotations

from tests import faults as refusals
from tests.torture.fault import Fault
from tests.torture.faults.servers import EVERY_SECOND
from tests.torture.rig import Rig
from tests.torture.single import OneServer


def fill_memory(rig: Rig) -> None:
    """Leave a server no memory for a while."""
    with refusals.full(rig.a_client()):
        rig.wait(rig.chance.uniform(0.2, 1))
    rig.wait(0.3)


def demote(rig: Rig) -> None:
    """Make the primary a replica of a server that is not there, for a while."""
    with refusals.replica(rig.a_client()):
        rig.wait(rig.chance.uniform(0.2, 1))
    rig.wait(0.3)


def fill_disk(rig: OneServer) -> None:
    """Leave no room on the disk for a while; start the server again where it has ended by that."""
    with refusals.full_disk(rig.client):
        rig.wait(rig.chance.uniform(0, 0.5))
        if rig.server.pid is None:
            rig.server.start()
    rig.wait(0.3)


def flush_scripts(rig: Rig) -> None:
    """Let a server forget every script."""
    rig.a_client().script_flush()
    rig.wait(rig.chance.uniform(0, 0.1))


FAULTS = (
    Fault("memory", "no memory left (`noeviction`)", fill_memory, times=50),
    Fault("disk", "no room on the disk for the append-only file", fill_disk, times=20, host=EVERY_SECOND),
    Fault("read-only", "the primary made a replica, and primary again", demote, times=50),
    Fault("scripts", "every script flushed", flush_scripts, times=500, quick_times=20),
)
