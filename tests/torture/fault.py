"""A fault, and what a run of it showed."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.torture.checker import Verdict
from tests.torture.clock import ServerClock
from tests.torture.rig import Rig, Sizes
from tests.torture.single import OneServer

EXACT = "exact: nothing lost, nothing doubled"
"""What most faults promise."""


@dataclass(frozen=True, slots=True)
class Host:
    """What the servers must be like for a fault."""

    options: tuple[str, ...] = ()
    rig: type[Rig] = OneServer
    has_clock: bool = False
    """Whether the tests move its clock."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to the workload, again and again, and what is promised."""

    name: str
    title: str
    inject: Callable[[Any], None]
    """Injects it once, into a rig of the host; `rig.turn` says how often it was done before, and `rig.calm` repairs."""
    times: int
    quick_times: int = 2
    """In `make test-all`, where 0 leaves it to the long run."""
    promise: str = EXACT
    host: Host = Host()
    may_lose: bool = False
    """Whether the server itself may forget what it has acknowledged."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run showed."""

    injected: dict[str, int]
    """Name of a fault -> how often."""
    seed: int
    seconds: int
    verdict: Verdict

    def is_kept(self, *, may_lose: bool = False) -> bool:
        """Say whether what was promised is so."""
        return not self.verdict.wrong and (may_lose or not self.verdict.lost)

    def summary(self) -> str:
        """Say it in a line, and what is wrong in some more."""
        verdict = self.verdict
        figures = (
            f"injected {sum(self.injected.values()):,} times in {self.seconds} s; {verdict.steps:,} steps, "
            f"{verdict.unanswered:,} unanswered; {verdict.ended}; {len(verdict.lost)} lost, {len(verdict.wrong)} wrong"
        )
        return "\n  ".join([figures, *verdict.wrong[:10]])


def run(plan: Iterable[Fault], host: Host, binary: Path, seed: int, sizes: Sizes) -> Outcome:
    """Inject one fault after the other under load; check what is left."""
    began_at = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="torture-"))
    clock = ServerClock(folder) if host.has_clock else None
    injected: Counter[str] = Counter()
    with host.rig(binary, folder, seed, sizes, host.options, clock) as rig:
        for fault in plan:
            rig.turn = injected[fault.name]
            fault.inject(rig)
            rig.calm()
            injected[fault.name] += 1
        verdict = rig.settle()
    if not verdict.wrong:
        shutil.rmtree(folder)  # else it has the records, to look at
    return Outcome(dict(injected), seed, round(time.monotonic() - began_at), verdict)
