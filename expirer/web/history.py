"""How it has been in the last hour."""

from __future__ import annotations

from dataclasses import dataclass

from expirer.operate.snapshot import Picture

PERIOD_MS = 10_000
HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class Point:
    """How all shards were at a moment."""

    at: int
    """Unix ms by this machine's clock."""
    overdue: int
    lateness: tuple[int, int] | None
    """Median and worst in ms of what expired since the point before; None: nothing did."""
    rate: float | None
    """Expired per second since the point before; None: there is none."""


class History:
    """A ring of points, one every 10 seconds for an hour; any thread may read it."""

    def __init__(self) -> None:
        self.points: tuple[Point, ...] = ()
        """The oldest first."""

    def add(self, picture: Picture, at: int) -> None:
        """Take note of a picture that was taken at a moment, Unix ms."""
        point = Point(at, picture.overdue, picture.lateness, picture.rate)
        self.points = (*self.points, point)[-HOUR_MS // PERIOD_MS :]
