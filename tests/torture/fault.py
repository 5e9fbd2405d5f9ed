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

from tests.torture.bed import Bed, Sizes
from tests.torture.clock import ServerClock
from tests.torture.judge import Verdict
from tests.torture.single import OneServer

EXACT = "exact: nothing lost, nothing doubled"
"""What most faults promise."""


@dataclass(frozen=True, slots=True)
class Host:
    """What the servers must be like for a fault to strike them."""

    options: tuple[str, ...] = ()
    bed: type[Bed] = OneServer
    has_clock: bool = False
    """Whether the tests move its clock."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to the shop, again and again, and what is promised."""

    name: str
    title: str
    strike: Callable[[Any], None]
    """Strikes a bed of the host once; `bed.turn` says how often it was done before, and `bed.calm` repairs."""
    times: int
    quick_times: int = 2
    """In `make test`, where 0 leaves it to the long run."""
    promise: str = EXACT
    host: Host = Host()
    may_lose: bool = False
    """Whether the server itself may forget what it has acknowledged."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run showed."""

    struck: dict[str, int]
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
            f"struck {sum(self.struck.values()):,} times in {self.seconds} s; {verdict.steps:,} steps, "
            f"{verdict.unanswered:,} unanswered; {verdict.ended}; {len(verdict.lost)} lost, {len(verdict.wrong)} wrong"
        )
        return "\n  ".join([figures, *verdict.wrong[:10]])


def run(plan: Iterable[Fault], host: Host, binary: Path, seed: int, sizes: Sizes) -> Outcome:
    """Let faults strike one after the other under load; judge."""
    began_at = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="torture-"))
    clock = ServerClock(folder) if host.has_clock else None
    struck: Counter[str] = Counter()
    with host.bed(binary, folder, seed, sizes, host.options, clock) as bed:
        for fault in plan:
            bed.turn = struck[fault.name]
            fault.strike(bed)
            bed.calm()
            struck[fault.name] += 1
        verdict = bed.settle()
    if not verdict.wrong:
        shutil.rmtree(folder)  # else it has the records, to look at
    return Outcome(dict(struck), seed, round(time.monotonic() - began_at), verdict)
