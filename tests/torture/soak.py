"""The faults that promise to lose nothing, at random, for as long as it is wanted."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

from tests.torture.fault import Fault, Host
from tests.torture.faults import FAULTS
from tests.torture.faults.servers import ALWAYS
from tests.torture.single import OneServer

HOST = Host(ALWAYS.options, has_clock=True)
"""Any of them can strike it."""
STRIKERS = [fault for fault in FAULTS.values() if fault.host.bed is OneServer and not fault.may_lose]


def plan(seed: int, minutes: float) -> Iterator[Fault]:
    """Yield faults until the time is over; a seed yields the same ones in the same order."""
    chance = random.Random(seed)
    over_at = time.monotonic() + 60 * minutes
    while time.monotonic() < over_at:
        fault = chance.choice(STRIKERS)
        for _ in range(fault.quick_times):
            yield fault
