"""Reads Redis every ten seconds, so that no request has to: the snapshot, the quarantine, the figures."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from redis.exceptions import RedisError
from structlog.typing import FilteringBoundLogger

from expirer.connection.errors import describe, redact
from expirer.contract.clock import worker_clock
from expirer.contract.reasons import read_entry
from expirer.contract.shard import Shard
from expirer.contract.text import decode
from expirer.operate.snapshot import Sampler, Snapshot
from expirer.operate.status import ShardStatus
from expirer.web.charts import HOUR_MS, PERIOD_MS, Point
from expirer.web.metrics import Figures, read_figures

_PERIOD_S = PERIOD_MS / 1000
_STALE_MS = 3 * PERIOD_MS
"""What was read longer ago is not the present."""
_STUCK_S = 300.0
"""Every read ends by a time-out long before."""
_NEWEST = 20
"""Entries of the quarantine that are shown."""
_COUNTED = 1000
"""Entries of all shards together that are read."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A reservation that could not be expired."""

    id: str
    reason: str
    since: int | None
    """Unix ms; None: a person wrote it."""


@dataclass(frozen=True, slots=True)
class Quarantine:
    """The newest 20 of the entries that were read, and how many of them have each reason."""

    entries: tuple[Entry, ...] = ()
    reasons: tuple[tuple[str, int], ...] = ()
    """The most frequent first."""
    counted: int = 0


@dataclass(frozen=True, slots=True)
class Reading:
    """What is known of the inventory; moments are Unix ms by this machine's clock."""

    at: int
    """When the snapshot was taken; before the first one, when the watch began."""
    snapshot: Snapshot | None = None
    quarantine: Quarantine = field(default_factory=Quarantine)
    """As it was at that snapshot."""
    points: tuple[Point, ...] = ()
    """Of the last hour, the oldest first."""
    error: str = ""
    """Why there is no newer snapshot, without secrets."""

    def is_old(self, now: int) -> bool:
        """Say whether the snapshot is not the present: an error says so, or Redis hangs."""
        return bool(self.error) or now - self.at > _STALE_MS


class Watch:
    """Keeps what was read last. One thread reads; any thread may look, and never waits for Redis."""

    def __init__(self, shards: Sequence[Shard], log: FilteringBoundLogger) -> None:
        self._shards = shards
        self._log = log
        self._sampler = Sampler(shards)
        self._figures = Figures()
        self._read_s = time.monotonic()
        """When the figures were read, or the watch began, monotonic seconds."""
        self.reading = Reading(int(worker_clock()))

    def read(self) -> None:
        """Read Redis once; raise nothing, or the last reading would pass for the present."""
        log, before, settings = self._log, self.reading, self._shards[0].settings
        try:
            self._figures = read_figures(self._shards)
            self._read_s = time.monotonic()
            snapshot = self._sampler.sample()
            quarantine = read_quarantine(self._shards, snapshot.shards)
        except (RedisError, OSError) as error:
            self.reading = replace(before, error=describe(error, settings))
            if not before.error:
                log.warning("cannot_read_redis", message=self.reading.error)
        except Exception as error:
            self.reading = replace(before, error=redact(f"{type(error).__name__}: {error}", settings))
            if not before.error:
                log.exception("web_error")
        else:
            now = int(worker_clock())
            point = Point(now, snapshot.overdue, snapshot.lateness, snapshot.rate)
            points = (*before.points, point)[-HOUR_MS // PERIOD_MS :]
            self.reading = Reading(now, snapshot, quarantine, points)

    def run(self) -> None:
        """Read for ever; if a read takes long, the server rests as long, up to a period."""
        while True:
            began_s = time.monotonic()
            self.read()
            took_s = time.monotonic() - began_s
            time.sleep(max(_PERIOD_S - took_s, min(took_s, _PERIOD_S)))

    def figures(self) -> Figures:
        """Return the last figures; none if they are not those of now."""
        return self._figures if time.monotonic() - self._read_s < _STALE_MS / 1000 else Figures()

    def why_not_alive(self) -> str:
        """Say how long nothing was read; empty: the loop is well, whatever Redis does."""
        age_s = time.monotonic() - self._read_s
        return f"nothing has been read for {age_s:.0f} s" if age_s > _STUCK_S else ""

    def why_not_ready(self) -> str:
        """Say why the page does not show the present; empty: it does."""
        reading = self.reading
        if reading.is_old(int(worker_clock())):
            return f"cannot read Redis: {reading.error or 'no answer'}"
        return "" if reading.snapshot else "Redis has not answered yet"


def read_quarantine(shards: Sequence[Shard], states: Sequence[ShardStatus]) -> Quarantine:
    """Read up to 1,000 entries, an equal share of each shard that has some; RedisError if Redis fails."""
    waiting = [shard for shard, state in zip(shards, states, strict=True) if state.quarantined]
    entries = []
    for shard in waiting:
        scan = shard.client.hscan_iter(shard.keys.quarantine, count=100)
        for id_, value in islice(scan, max(_COUNTED // len(waiting), 1)):
            known = read_entry(value)
            entries.append(Entry(decode(id_), known["reason"], known["at"]))
    return Quarantine(
        entries=tuple(sorted(entries, key=lambda entry: (-(entry.since or 0), entry.id))[:_NEWEST]),
        reasons=tuple(Counter(entry.reason for entry in entries).most_common()),
        counted=len(entries),
    )
