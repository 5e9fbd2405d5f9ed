"""One shard of an inventory as a value: its number, its keys, a client of the server that serves it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from redis import Redis

from expirer.config.durations import to_ms
from expirer.config.settings import Settings
from expirer.contract.clock import worker_clock
from expirer.contract.control import FIELDS, Control, Pause
from expirer.contract.keys import ShardKeys

LATE_TICK_MS = 5000
"""A worker is live until its last tick is older than its interval by this much; none has ticked this far ahead."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard. Every method asks Redis, and raises RedisError if Redis fails."""

    number: int
    keys: ShardKeys
    client: Redis
    settings: Settings

    def now(self) -> int:
        """Return the time that decides what is due, Unix ms."""
        if self.settings.clock == "worker":
            return int(worker_clock())
        seconds, microseconds = self.client.time()
        return seconds * 1000 + microseconds // 1000

    def control(self) -> Control:
        """Read the control key."""
        row: Any = self.client.hmget(self.keys.control, list(FIELDS))
        return Control.read(row)

    def pause(self, now: int) -> Pause | None:
        """Return what stops expiry at `now`, Unix ms: a pause or a brake; None: expiry runs."""
        return self.control().halt(now)

    def cutoff(self, now: int) -> str:
        """Return the score below which a reservation is due at `now`, Unix ms."""
        return f"{(now - to_ms(self.settings.grace)) / self.settings.unit_ms:.6f}"

    def count_overdue(self, now: int) -> int:
        """Count the reservations that are due at `now`, Unix ms, and have not expired."""
        return self.client.zcount(self.keys.index, "-inf", f"({self.cutoff(now)}")

    def is_live(self, last_tick: float, now: int) -> bool:
        """Say whether a worker that last ticked at `last_tick` is live at `now`; both are Unix ms."""
        return -LATE_TICK_MS <= now - last_tick <= to_ms(self.settings.interval) + LATE_TICK_MS
