"""Whether the worker lives, and whether it is ready: each answer names what is wrong."""

from __future__ import annotations

import time
from collections.abc import Iterator

from redis import Redis
from redis.exceptions import NoPermissionError, RedisError

from expirer.config.settings import Settings
from expirer.connection.connect import Servers, connect_all
from expirer.connection.errors import describe
from expirer.operate.server import LATE_TICK_MS
from expirer.operate.terminal import shown
from expirer.worker.tally import ShardCounts, Tally


def why_not_alive(tally: Tally) -> str:
    """Say how long the loop has been away longer than it can be; empty: it is well.

    What counts is that the loop moves. A Redis that is away is met, logged and tried again by a loop that is well.
    """
    now = time.monotonic()
    late_s = [now - shard.due_back_s for shard in tally.shards() if shard.due_back_s]
    if not late_s or max(late_s) < 0:
        return ""
    return f"the loop should have come back {max(late_s):.0f} s ago"


def ping(settings: Settings) -> str:
    """Connect anew and ask each server; return why one does not answer, empty: all do."""
    try:
        with connect_all(settings) as servers:
            for client in servers.each().values():
                client.ping()
    except (RedisError, OSError) as error:
        return f"Redis: {describe(error, settings)}"
    return ""


def refused_keys(servers: Servers, settings: Settings) -> list[str]:
    """Name the patterns of keys that a user may not use, of the first shard where there are some: Redis names none.

    Nothing where EXISTS is refused, or Redis is away.
    """
    for client, keys in ((shard.client, shard.keys) for shard in servers.shards):
        whole = (keys.index, keys.events, keys.quarantine, keys.control, keys.stats, keys.workers, keys.about)
        patterns = {name: name for name in whole}
        patterns |= {prefix: f"{prefix}*" for prefix in (keys.reservation_prefix, keys.stock_prefix)}
        try:
            if refused := [pattern for name, pattern in patterns.items() if _is_refused(client, name)]:
                return refused
        except (RedisError, OSError):
            return []
    return []


def _is_refused(client: Redis, key: str) -> bool:
    try:
        client.exists(key)
    except NoPermissionError as error:
        return "key" in str(error)
    return False


def why_not_ready(tally: Tally, settings: Settings, redis_trouble: str) -> list[str]:
    """Say what is in the way, one line each; empty: nothing."""
    if tally.is_stopping:
        return ["the worker is about to stop"]
    troubles = [redis_trouble] if redis_trouble else []
    return [*troubles, *_late_shards(tally, settings)]


def _late_shards(tally: Tally, settings: Settings) -> Iterator[str]:
    now = time.monotonic()
    longest_s = settings.interval.total_seconds() + LATE_TICK_MS / 1000
    for number, shard in enumerate(tally.shards()):
        if trouble := _trouble(shard, now, longest_s):
            yield f"shard {number}: {trouble}"


def _trouble(shard: ShardCounts, now: float, longest_s: float) -> str:
    if shard.failures:
        ticks = f"{shard.failures} ticks" if shard.failures > 1 else "tick"
        return f"the last {ticks} failed: {shown(shard.why)}"
    if not shard.succeeded_s:
        return "no tick yet"
    age_s = now - shard.succeeded_s
    return f"the last tick was {age_s:.0f} s ago" if age_s > longest_s else ""
