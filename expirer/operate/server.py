"""The server as the verbs of the operator meet it: a client, its time, what is overdue."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from redis import Redis
from redis.exceptions import RedisError

from expirer.config.durations import to_ms
from expirer.config.settings import Settings
from expirer.connection.connect import Servers, connect_all
from expirer.connection.errors import describe, location
from expirer.contract.clock import worker_clock
from expirer.contract.keys import ShardKeys
from expirer.operate.terminal import shown

LATE_TICK_MS = 5000
"""A worker whose last tick is older than the interval by this much is not there."""


@contextmanager
def redis_or_say(settings: Settings) -> Iterator[Servers]:
    """Give the clients; an error of Redis is one line on standard error, and the block ends."""
    with connect_all(settings) as servers:
        try:
            yield servers
        except (RedisError, OSError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            sys.stderr.write(f"expirer: {trouble(error, settings)}\n")


def trouble(error: Exception, settings: Settings) -> str:
    """Return where Redis is, and what an error says."""
    where, text = location(settings), describe(error, settings)
    return shown(text if text.startswith(where) else f"{where}: {text}")


def server_now(client: Redis, settings: Settings) -> int:
    """Return the time that decides what is due, Unix ms."""
    if settings.clock == "worker":
        return int(worker_clock())
    seconds, microseconds = client.time()
    return seconds * 1000 + microseconds // 1000


def count_overdue(client: Redis, settings: Settings, keys: ShardKeys, now: int) -> int:
    """Count the reservations of a shard that are due at `now`."""
    cutoff = (now - to_ms(settings.grace)) / settings.unit_ms
    return client.zcount(keys.index, "-inf", f"({cutoff:.6f}")


def is_live(settings: Settings, last_tick: float, now: int) -> bool:
    """Say whether a worker is there that ticked last at `last_tick`; both are Unix ms."""
    return now - last_tick <= to_ms(settings.interval) + LATE_TICK_MS
