"""What every part shares: sizes, systems, and datasets that are made once and loaded from snapshots."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TypeVar

from benchmarks.figures import Round
from benchmarks.servers import running
from benchmarks.shop import Hold, holds, raw_commands, write_contract
from benchmarks.sizes import Sizes
from benchmarks.systems import System

_Case = TypeVar("_Case")
_DAY_MS = 24 * 60 * 60 * 1000


@dataclass(frozen=True, slots=True)
class Bench:
    """One run of the benchmarks; `folder` is thrown away at its end."""

    folder: Path
    sizes: Sizes
    systems: dict[str, System]
    began_ms: int = field(default_factory=lambda: time.time_ns() // 1_000_000)

    def overdue(self, count: int) -> Iterator[Hold]:
        """Make holds that fell due yesterday, one a millisecond."""
        return holds(range(self.began_ms - _DAY_MS, self.began_ms - _DAY_MS + count))

    def active(self, count: int) -> Iterator[Hold]:
        """Make holds that fall due tomorrow."""
        return holds(range(self.began_ms + _DAY_MS, self.began_ms + _DAY_MS + count), prefix="a")

    def snapshot(self, overdue: int = 0, active: int = 0) -> Path:
        """Return a snapshot of a shop with so many overdue reservations, and so many that are not due."""
        path = self.folder / f"{overdue}-{active}.rdb"
        if not path.exists():
            with running() as server:
                write_contract(server, chain(self.overdue(overdue), self.active(active)))
                server.save(path)
        return path

    def system_snapshot(self, system: System, count: int) -> Path:
        """Return a snapshot of a system that has so much overdue work."""
        path = self.folder / f"{system.name}-{count}.rdb".replace(" ", "-")
        if not path.exists():
            with running() as server:
                system.seed(server, list(self.overdue(count)))
                server.save(path)
        return path

    def raw_file(self, count: int) -> Path:
        """Return a file with the plain commands that expire the first so many overdue reservations."""
        path = self.folder / f"{count}.resp"
        if not path.exists():
            with path.open("wb") as output:
                output.writelines(raw_commands(self.overdue(count), self.began_ms))
        return path


@dataclass(frozen=True, slots=True)
class Ratio:
    """A column that compares a figure with that of another case of the same round."""

    figure: str
    title: str
    baseline: Callable[[str], str]
    """Case -> the case that it is compared with."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part: `run` measures one round of it.

    Args:
        units: figure -> its unit, in the order of the table's columns.
        method: how it is measured, for the reader of the results.
        is_absolute: counts and memory, for which one round is enough.
        has_peers: it compares other systems, which are installed for it.

    """

    name: str
    title: str
    method: str
    units: dict[str, str]
    run: Callable[[Bench, int], Round]
    ratio: Ratio | None = None
    chart: str = ""
    is_absolute: bool = False
    has_peers: bool = False


def say(text: str) -> None:
    """Print what is happening now."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")


def rotated(items: list[_Case], turn: int) -> list[_Case]:
    """Begin each round with another case, so that none is always first."""
    turn %= len(items)
    return items[turn:] + items[:turn]
