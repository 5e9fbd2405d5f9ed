"""Looks at every shard in a few cheap reads, and says whether expiry is healthy."""

from __future__ import annotations

import json
import re
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from redis import Redis
from redis.exceptions import RedisError, ResponseError

from expirer.config.durations import to_ms
from expirer.config.settings import Settings
from expirer.connection.errors import PRIMARY, describe
from expirer.contract import control
from expirer.contract.clock import unix_ms
from expirer.contract.control import Control, Pause
from expirer.contract.keys import ShardKeys
from expirer.contract.text import readable
from expirer.operate.server import count_overdue, is_live, redis_or_say, server_now
from expirer.operate.terminal import shown, shown_pause, shown_time

_COUNTED = 10_000
"""Units of so many overdue reservations are summed, the oldest; more would be a scan."""
_SLICE = 100


@dataclass(frozen=True, slots=True)
class ShardStatus:
    """What one shard looks like; times and ages are in ms, Unix ms where they are moments."""

    shard: int
    active: int
    overdue: int
    oldest_overdue_ms: int
    """Age of the oldest; 0: nothing is overdue."""
    overdue_units: int
    """Of the oldest 10,000 overdue at most."""
    next_expires_at: int | None
    quarantined: int
    paused: Pause | None
    workers: list[dict[str, Any]]
    """The last to tick first: `id`, `last_tick`, `version`, and `skew_ms`: how far the server is ahead of it."""
    totals: dict[str, int]
    problems: list[str]


def status(settings: Settings, max_lateness: timedelta, *, as_json: bool) -> int:
    """Print the state of every shard; return 0 where all are healthy, else 1."""
    with redis_or_say(settings) as servers:
        shards, skew_ms = [], 0
        for shard in servers.shards:
            number, client, keys = shard.number, shard.client, shard.keys
            try:
                here = time.time_ns() // 1_000_000
                skew_ms = server_now(client, settings) - here
                shards.append(look_at(client, settings, number, keys, to_ms(max_lateness)))
            except (RedisError, OSError) as error:
                if servers.cluster is None:
                    raise
                shards.append(_unknown(number, f"no answer: {describe(error, settings)}"))  # the others may be well
        is_healthy = not any(shard.problems for shard in shards)
        if as_json:
            whole = {"healthy": is_healthy, "clock_skew_ms": skew_ms, "shards": [asdict(shard) for shard in shards]}
            sys.stdout.write(json.dumps(whole) + "\n")
        else:
            sys.stdout.writelines(f"{line}\n" for line in _lines(shards, skew_ms))
        return 0 if is_healthy else 1
    return 1


def look_at(  # noqa: PLR0913, PLR0917  # one shard, and what is asked of it
    client: Redis, settings: Settings, number: int, keys: ShardKeys, max_lateness_ms: int, counted: int = _COUNTED
) -> ShardStatus:
    """Look at one shard; sum the units of so many overdue at most. RedisError where Redis fails."""
    now = server_now(client, settings)
    overdue = count_overdue(client, settings, keys, now)
    oldest: Any = client.zrange(keys.index, 0, 0, withscores=True)
    after: Any = client.zrange(keys.index, overdue, overdue, withscores=True)
    unit_ms = settings.unit_ms
    grace_ms = to_ms(settings.grace)
    age = now - grace_ms - unix_ms(oldest[0][1], unit_ms) if overdue and oldest else 0
    pause = Control.read(client.hmget(keys.control, control.FIELDS)).pause  # type: ignore[arg-type]
    if pause is not None and pause.until is not None and pause.until <= now:
        pause = None
    workers = _workers(client, keys)
    totals: Any = client.hgetall(keys.stats)
    problems = []
    if not any(is_live(settings, worker["last_tick"], now) for worker in workers):
        problems.append("no live worker")
        if _is_replica(client):
            problems.append(f"this is a replica: {PRIMARY}")
    if pause is not None and pause.is_brake:
        problems.append("the brake holds")
    if pause is None and age > max_lateness_ms:
        problems.append("the oldest overdue is too old")
    return ShardStatus(
        shard=number,
        active=client.zcard(keys.index),
        overdue=overdue,
        oldest_overdue_ms=age,
        overdue_units=_units(client, settings, keys, min(overdue, counted)),
        next_expires_at=unix_ms(after[0][1], unit_ms) if after else None,
        quarantined=client.hlen(keys.quarantine),
        paused=pause,
        workers=workers,
        totals={name.decode(): int(value) for name, value in totals.items() if value.isdigit()},
        problems=problems,
    )


def _unknown(number: int, problem: str) -> ShardStatus:
    return ShardStatus(
        shard=number,
        active=0,
        overdue=0,
        oldest_overdue_ms=0,
        overdue_units=0,
        next_expires_at=None,
        quarantined=0,
        paused=None,
        workers=[],
        totals={},
        problems=[problem],
    )


def _is_replica(client: Redis) -> bool:
    with suppress(ResponseError):  # a host may hide it
        info: Any = client.info("replication")
        return bool(info.get("role") == "slave")
    return False


def _workers(client: Redis, keys: ShardKeys) -> list[dict[str, Any]]:
    ticks: Any = client.zrange(keys.workers, 0, -1, withscores=True)
    about: Any = client.hgetall(keys.about)
    workers = []
    for id_, last in reversed(ticks):
        said = dict(re.findall(r"(\w+)=(\S+)", readable(about.get(id_, b""))))
        skew_ms = said.get("skew_ms", "")
        workers.append(
            {
                "id": shown(readable(id_)),
                "last_tick": unix_ms(last, 1),
                "version": shown(said["version"]) if "version" in said else None,
                "skew_ms": int(skew_ms) if re.fullmatch(r"-?\d{1,15}", skew_ms) else None,
            }
        )
    return workers


def _units(client: Redis, settings: Settings, keys: ShardKeys, count: int) -> int:
    """Sum the quantities of the oldest so many; what is no number, quarantine will tell of."""
    units = 0
    for start in range(0, count, _SLICE):
        ids: Any = client.zrange(keys.index, start, min(start + _SLICE, count) - 1)
        with client.pipeline(transaction=False) as pipe:
            for id_ in ids:
                pipe.hmget(keys.reservation_prefix.encode() + id_, [settings.field_quantity])
            rows = pipe.execute(raise_on_error=False)
        units += sum(int(row[0]) for row in rows if isinstance(row, list) and row[0] and row[0].isdigit())
    return units


def _lines(shards: list[ShardStatus], skew_ms: int) -> list[str]:
    lines = []
    for shard in shards:
        age_s = shard.oldest_overdue_ms / 1000
        more = "" if shard.overdue <= _COUNTED else f" in the oldest {_COUNTED:,}"
        lines += [
            f"shard {shard.shard}: {'; '.join(shard.problems) or 'healthy'}",
            f"  active       {shard.active:,}",
            f"  overdue      {shard.overdue:,}, {shard.overdue_units:,} units{more}, the oldest for {age_s:,.3f} s",
            f"  next expiry  {'none' if shard.next_expires_at is None else shown_time(shard.next_expires_at)}",
            f"  quarantined  {shard.quarantined:,}",
            f"  paused       {'no' if shard.paused is None else shown_pause(shard.paused)}",
            f"  totals       {', '.join(f'{name} {total:,}' for name, total in shard.totals.items()) or 'none'}",
        ]
        lines += [f"  worker       {_shown_worker(worker)}" for worker in shard.workers]
    if len(shards) > 1:
        overdue, units = sum(shard.overdue for shard in shards), sum(shard.overdue_units for shard in shards)
        oldest = max(shard.oldest_overdue_ms for shard in shards)
        lines.append(
            f"all: {sum(shard.active for shard in shards):,} active; {overdue:,} overdue, {units:,} units,"
            f" the oldest for {oldest / 1000:,.3f} s; {sum(shard.quarantined for shard in shards):,} quarantined"
        )
    lines.append(f"clock: the server is {abs(skew_ms):,} ms {'ahead of' if skew_ms >= 0 else 'behind'} this machine")
    return lines


def _shown_worker(worker: dict[str, Any]) -> str:
    skew_ms = worker["skew_ms"]
    clock = "" if skew_ms is None else f", its clock {abs(skew_ms):,} ms {'behind' if skew_ms >= 0 else 'ahead'}"
    return f"{worker['id']}, version {worker['version'] or '?'}, last tick {shown_time(worker['last_tick'])}{clock}"
