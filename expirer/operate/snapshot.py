"""What `top` looks at: one picture of all shards in a few cheap reads."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from statistics import median
from typing import Any

from redis import Redis

from expirer.config.durations import to_ms
from expirer.config.settings import Settings
from expirer.connection.connect import Servers
from expirer.contract.control import Pause
from expirer.contract.keys import ShardKeys
from expirer.contract.text import readable
from expirer.operate.server import server_now
from expirer.operate.status import ShardStatus, look_at

SAMPLE = 1000
"""Reservations, those that are due first, from which the products are counted; and events, the newest."""
_SLICE = 100
_LONGEST_LATENESS_MS = 10_000
"""Of the oldest overdue, beyond which a shard is not healthy: as `status` has it."""


@dataclass(frozen=True, slots=True)
class Product:
    """The units of a product within the sample."""

    id: str
    held: int
    overdue: int


@dataclass(frozen=True, slots=True)
class Picture:
    """How all shards were at a moment; times are in ms, Unix ms where they are moments."""

    now: int
    shards: list[ShardStatus]
    overdue_units: int
    """Within the sample."""
    sampled: int
    products: list[Product]
    """Most overdue first, then most held."""
    rate: float | None
    """Expired per second since the last picture; None: this is the first."""
    lateness: tuple[int, int] | None
    """Median and worst of what expired since the last picture; None: nothing did."""

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
        """How many of each shard are in the sample, where it has so many."""
        return _share(len(self.shards))

    @property
    def is_partial(self) -> bool:
        """Whether more is overdue than is in the sample: then `overdue_units` is a least."""
        return any(shard.overdue > self.share for shard in self.shards)

    @property
    def pauses(self) -> list[tuple[Pause, list[int]]]:
        """Each pause with the shards that it holds: those that one hand paused together are one."""
        together: dict[tuple[str, str, int | None], tuple[Pause, list[int]]] = {}
        for shard in self.shards:
            pause = shard.paused
            if pause is not None:
                together.setdefault((pause.by, pause.reason, pause.until), (pause, []))[1].append(shard.shard)
        return list(together.values())

    @property
    def workers(self) -> list[dict[str, Any]]:
        """Each worker as the shard saw it that it ticked last on; the last to tick first."""
        latest: dict[str, dict[str, Any]] = {}
        for shard in self.shards:
            for worker in shard.workers:
                if worker["last_tick"] > latest.get(worker["id"], worker)["last_tick"] or worker["id"] not in latest:
                    latest[worker["id"]] = worker
        return sorted(latest.values(), key=lambda worker: -worker["last_tick"])


class Camera:
    """Takes one picture after the other; each raises RedisError where Redis fails."""

    def __init__(self, servers: Servers, settings: Settings) -> None:
        self._settings = settings
        self._shards = list(((shard.client, shard.keys) for shard in servers.shards))
        self._expired: tuple[int, float] | None = None
        """The total of the last picture, and when it was taken (monotonic seconds)."""
        self._last_events: dict[str, bytes] = {}

    def take(self) -> Picture:
        """Look at every shard once."""
        now = server_now(self._shards[0][0], self._settings)
        held: Counter[str] = Counter()
        overdue: Counter[str] = Counter()
        late_ms: list[int] = []
        sampled = 0
        for client, keys in self._shards:
            sampled += self._count_products(client, keys, now, held, overdue)
            late_ms += self._lateness(client, keys)
        shards = [
            look_at(client, self._settings, number, keys, _LONGEST_LATENESS_MS, counted=0)
            for number, (client, keys) in enumerate(self._shards)
        ]
        products = [Product(id_, units, overdue[id_]) for id_, units in held.items()]
        return Picture(
            now=now,
            shards=shards,
            overdue_units=overdue.total(),
            sampled=sampled,
            products=sorted(products, key=lambda product: (-product.overdue, -product.held, product.id)),
            rate=self._rate(sum(shard.totals.get("expired", 0) for shard in shards)),
            lateness=(round(median(late_ms)), max(late_ms)) if late_ms else None,
        )

    def _count_products(
        self, client: Redis, keys: ShardKeys, now: int, held: Counter[str], overdue: Counter[str]
    ) -> int:
        settings = self._settings
        cutoff = (now - to_ms(settings.grace)) / settings.unit_ms
        entries: Any = client.zrange(keys.index, 0, _share(len(self._shards)) - 1, withscores=True)
        for start in range(0, len(entries), _SLICE):
            some = entries[start : start + _SLICE]
            with client.pipeline(transaction=False) as pipe:
                for id_, _ in some:
                    key: Any = keys.reservation_prefix.encode() + id_
                    pipe.hmget(key, [settings.field_product_id, settings.field_quantity])
                rows = pipe.execute(raise_on_error=False)
            for (_, score), row in zip(some, rows, strict=True):
                product_id, quantity = row if isinstance(row, list) else (None, None)
                if product_id and quantity and quantity.isdigit():
                    name = readable(product_id)
                    held[name] += int(quantity)
                    overdue[name] += int(quantity) * (score < cutoff)
        return len(entries)

    def _lateness(self, client: Redis, keys: ShardKeys) -> list[int]:
        if not self._settings.events_maxlen:
            return []
        last = self._last_events.get(keys.events)
        since: Any = b"-" if last is None else b"(" + last
        events: Any = client.xrevrange(keys.events, "+", since, count=1 if last is None else SAMPLE)
        if events:
            self._last_events[keys.events] = events[0][0]
        if last is None:
            self._last_events.setdefault(keys.events, b"0-0")
            return []
        grace_ms = to_ms(self._settings.grace)
        times = [(fields.get(b"expired_at", b""), fields.get(b"expires_at", b"")) for _, fields in events]
        return [int(at) - int(due) - grace_ms for at, due in times if at.isdigit() and due.isdigit()]

    def _rate(self, expired: int) -> float | None:
        before, self._expired = self._expired, (expired, time.monotonic())
        if before is None:
            return None
        return max(expired - before[0], 0) / max(self._expired[1] - before[1], 0.001)


def _share(shards: int) -> int:
    return max(SAMPLE // shards, 1)
