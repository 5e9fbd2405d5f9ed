"""Samples all shards in a few cheap reads, for `top` and the page."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from expirer.config.durations import to_ms
from expirer.contract.control import Pause
from expirer.contract.numbers import integer
from expirer.contract.shard import Shard
from expirer.contract.text import decode
from expirer.operate.records import read_records
from expirer.operate.status import ShardStatus, WorkerStatus, read_status

_SAMPLE = 1000
"""Of this many reservations, the next in the index, the products are counted; as many events are read, the newest."""


@dataclass(frozen=True, slots=True)
class Product:
    """The units of a product within the sample."""

    id: str
    held: int
    overdue: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All shards at a moment; times are in ms, Unix ms if they are moments."""

    now: int
    shards: list[ShardStatus]
    overdue_units: int
    """Within the sample."""
    sampled: int
    products: list[Product]
    """Most overdue first, then most held."""
    rate: float | None
    """Expired per second since the last snapshot; None: this is the first."""
    lateness: tuple[int, int] | None
    """Median and worst of what expired since the last snapshot; None: nothing did."""

    @property
    def active(self) -> int:
        """Reservations in the index."""
        return sum(shard.active for shard in self.shards)

    @property
    def overdue(self) -> int:
        """Reservations that are due and not expired."""
        return sum(shard.overdue for shard in self.shards)

    @property
    def oldest_overdue_ms(self) -> int:
        """Age of the oldest; 0: nothing is overdue."""
        return max(shard.oldest_overdue_ms for shard in self.shards)

    @property
    def quarantined(self) -> int:
        """Entries in quarantine."""
        return sum(shard.quarantined for shard in self.shards)

    @property
    def share(self) -> int:
        """How many reservations of each shard the sample has, at most."""
        return _share(len(self.shards))

    @property
    def is_partial(self) -> bool:
        """Whether more is overdue than is in the sample: then `overdue_units` is a minimum."""
        return any(shard.overdue > self.share for shard in self.shards)

    @property
    def pauses(self) -> list[tuple[Pause, list[int]]]:
        """Each pause or brake with its shards; shards that one person paused together share one."""
        together: dict[Pause, tuple[Pause, list[int]]] = {}
        for shard in self.shards:
            if shard.paused is not None:
                alike = replace(shard.paused, since=None)
                together.setdefault(alike, (shard.paused, []))[1].append(shard.shard)
        return list(together.values())

    @property
    def workers(self) -> list[WorkerStatus]:
        """Each worker as its last tick, on whichever shard, has it: the live ones first, then the gone."""
        known = (worker for shard in self.shards for worker in (*shard.workers, *shard.gone))
        latest = {worker.id: worker for worker in sorted(known, key=lambda worker: worker.last_tick)}
        return sorted(latest.values(), key=lambda worker: (not worker.is_live, -worker.last_tick))

    @property
    def gone_count(self) -> int:
        """Workers that are not live on a shard: the most that any shard has."""
        return max(shard.gone_count for shard in self.shards)


class Sampler:
    """Takes one snapshot after the other, and knows what happened between two."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = shards
        self._expired: tuple[int, float] | None = None
        """The total of the last snapshot, and when it was taken (monotonic seconds)."""
        self._last_events: dict[int, bytes] = {}

    def sample(self) -> Snapshot:
        """Read every shard once; raise RedisError if Redis fails."""
        held: Counter[bytes] = Counter()
        overdue: Counter[bytes] = Counter()
        late_ms: list[int] = []
        sampled = 0
        shards = []
        for shard in self._shards:
            shards.append(read_status(shard, counted=0))
            cutoff = float(shard.cutoff(shards[-1].now))
            for row in read_records(shard, _share(len(self._shards))):
                sampled += 1
                if row.product_id and row.units:
                    held[row.product_id] += row.units
                    overdue[row.product_id] += row.units * (row.score < cutoff)
            late_ms += self._lateness(shard)
        products = [Product(decode(id_), units, overdue[id_]) for id_, units in held.items()]
        return Snapshot(
            now=shards[0].now,
            shards=shards,
            overdue_units=overdue.total(),
            sampled=sampled,
            products=sorted(products, key=lambda product: (-product.overdue, -product.held, product.id)),
            rate=self._rate(sum(shard.totals.get("expired", 0) for shard in shards)),
            lateness=(round(median(late_ms)), max(late_ms)) if late_ms else None,
        )

    def _lateness(self, shard: Shard) -> list[int]:
        """Return how late each reservation was that expired since the last snapshot, ms."""
        if not shard.settings.events_maxlen:
            return []
        last = self._last_events.get(shard.number)
        since: Any = b"-" if last is None else b"(" + last
        events: Any = shard.client.xrevrange(shard.keys.events, "+", since, count=1 if last is None else _SAMPLE)
        self._last_events[shard.number] = events[0][0] if events else last or b"0-0"
        if last is None:
            return []
        grace_ms = to_ms(shard.settings.grace)
        times = ((integer(row.get(b"expired_at"), 0), integer(row.get(b"expires_at"), 0)) for _, row in events)
        return [max(at - due - grace_ms, 0) for at, due in times if at is not None and due is not None]

    def _rate(self, expired: int) -> float | None:
        before, self._expired = self._expired, (expired, time.monotonic())
        if before is None:
            return None
        return max(expired - before[0], 0) / max(self._expired[1] - before[1], 0.001)


def _share(shards: int) -> int:
    return max(_SAMPLE // shards, 1)
