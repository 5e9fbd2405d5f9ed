"""What makes a server refuse, and what makes it forget its scripts."""

from __future__ import annotations

from tests import weather
from tests.torture.bed import Bed
from tests.torture.fault import Fault
from tests.torture.faults.servers import EVERY_SECOND
from tests.torture.single import OneServer


def fill_memory(bed: Bed) -> None:
    """Leave a server no memory for a while."""
    with weather.full(bed.a_client()):
        bed.wait(bed.chance.uniform(0.2, 1))
    bed.wait(0.3)


def demote(bed: Bed) -> None:
    """Make the primary a replica of a server that is not there, for a while."""
    with weather.replica(bed.a_client()):
        bed.wait(bed.chance.uniform(0.2, 1))
    bed.wait(0.3)


def fill_disk(bed: OneServer) -> None:
    """Leave no room on the disk for a while; start the server again where it has ended by that."""
    with weather.full_disk(bed.client):
        bed.wait(bed.chance.uniform(0, 0.5))
        if bed.server.pid is None:
            bed.server.start()
    bed.wait(0.3)


def flush_scripts(bed: Bed) -> None:
    """Let a server forget every script."""
    bed.a_client().script_flush()
    bed.wait(bed.chance.uniform(0, 0.1))


FAULTS = (
    Fault("memory", "no memory left (`noeviction`)", fill_memory, times=50),
    Fault("disk", "no room on the disk for the append-only file", fill_disk, times=20, host=EVERY_SECOND),
    Fault("read-only", "the primary made a replica, and primary again", demote, times=50),
    Fault("scripts", "every script flushed", flush_scripts, times=500, quick_times=20),
)
