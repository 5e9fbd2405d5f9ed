"""Random faults, for as long as it is wanted."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.torture.fault import EXACT, Fault, Host
from tests.torture.faults import FAULTS
from tests.torture.faults.servers import AGREES, ALWAYS
from tests.torture.faults.topologies import PATIENT
from tests.torture.several import Watched
from tests.torture.single import OneServer


@dataclass(frozen=True, slots=True)
class Soak:
    """Faults at random, where, and what is promised."""

    title: str
    host: Host
    """Every one of the faults can be injected there."""
    faults: Sequence[Fault]
    promise: str = AGREES
    may_lose: bool = True

    def plan(self, seed: int, minutes: float) -> Iterator[Fault]:
        """Yield faults until the time is over; a seed yields the same ones in the same order."""
        chance = random.Random(seed)
        over_at = time.monotonic() + 60 * minutes
        while time.monotonic() < over_at:
            fault = chance.choice(self.faults)
            for _ in range(max(1, fault.quick_times)):
                yield fault


def _named(*names: str) -> tuple[Fault, ...]:
    return tuple(FAULTS[name] for name in names)


_ANYWHERE = _named(
    "kills", "stops", "crowds", "writers", "holes", "half-open", "latency", "slow", "flapping", "memory", "scripts"
)

SOAKS = {
    "soak": Soak(
        "those of one server that promise to be exact, at random",
        Host(ALWAYS.options, has_clock=True),
        [fault for fault in FAULTS.values() if fault.host.rig is OneServer and not fault.may_lose],
        EXACT,
        may_lose=False,
    ),
    "soak-cluster": Soak(
        "Cluster: every fault of it, at random: processes, network, memory, slots, nodes, kills and partitions",
        PATIENT,
        (*_ANYWHERE, *_named("slots", "nodes", "swaps", "cluster-kills", "cluster-parts", "replica-parts")),
    ),
    "soak-sentinels": Soak(
        "Sentinels: every fault of theirs, at random: processes, network, memory, kills and partitions",
        Host(rig=Watched),
        (*_ANYWHERE, *_named("read-only", "sentinel-kills", "sentinel-parts", "lone-sentinels")),
    ),
}
