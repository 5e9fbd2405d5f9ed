"""Reads the state of every shard in a few cheap commands, and says whether expiry is healthy."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from typing import Any

from redis.exceptions import RedisError, ResponseError

from expirer.config.durations import LONGEST, to_ms
from expirer.config.settings import Settings
from expirer.connection.errors import PRIMARY, describe
from expirer.contract import about, control
from expirer.contract.clock import unix_ms, worker_clock
from expirer.contract.control import Control, Pause
from expirer.contract.numbers import integer
from expirer.contract.shard import Shard
from expirer.contract.text import decode, printable
from expirer.operate.records import read_records
from expirer.operate.terminal import format_pause, format_time, reporting_errors, write_json

HEALTHY = "healthy"
NO_LIVE_WORKER, BRAKED, TOO_OLD = "no live worker", "braked", "the oldest overdue is too old"
"""Problems."""
_TOTALS = ("expired", "units", "skipped", "rescheduled", "quarantined", "batches")
"""Running totals of a shard; quarantined also by reason, as `quarantined:<reason>`."""
_MAX_LATENESS_MS = 10_000
"""As the default of the command's --max-lateness."""
_COUNTED = 10_000
"""Of at most this many overdue reservations, the oldest, the units are summed; more would be a scan."""
_TRIED = 100
"""Entries, the next in the index, whose time to live is read."""
_MARGIN_MS = 60_000
"""A reservation that stays this much longer than its hold is expired before Redis deletes it."""
_GONE = 3
"""Gone workers that are named, the last to tick; each run of a CronJob leaves one for a day."""


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """What a worker last wrote about itself on one shard."""

    id: str
    last_tick: int
    """Unix ms."""
    version: str | None
    skew_ms: int | None
    """How far the server is ahead of it."""
    is_live: bool
    about: Mapping[str, str] = field(default_factory=dict)
    """Its settings, too, in which all workers must agree."""


@dataclass(frozen=True, slots=True)
class ShardStatus:
    """One shard at one moment; times and ages are in ms, Unix ms if they are moments."""

    shard: int
    active: int = 0
    overdue: int = 0
    oldest_overdue_ms: int = 0
    """Age of the oldest; 0: nothing is overdue."""
    overdue_units: int = 0
    """Of the oldest 10,000 overdue at most."""
    next_expires_at: int | None = None
    """Of the first that is not due yet."""
    quarantined: int = 0
    paused: Pause | None = None
    """What stops expiry: a person's pause while it lasts, else the brake."""
    workers: Sequence[WorkerStatus] = ()
    """The live ones, the last to tick first."""
    totals: Mapping[str, int] = field(default_factory=dict)
    problems: Sequence[str] = ()
    gone: Sequence[WorkerStatus] = ()
    """The last to tick of those that are not live."""
    gone_count: int = 0
    never_due: int = 0
    """Entries of the index whose time is more than a century ahead."""
    now: int = 0
    """The time that decided what is due."""
    skew_ms: int = 0
    """How far `now` is ahead of this machine's clock."""

    @property
    def state(self) -> str:
        """The problems, and whether a person has paused the shard; `healthy` without either."""
        is_paused = self.paused is not None and not self.paused.is_brake
        return "; ".join([*self.problems, *["paused"] * is_paused]) or HEALTHY


def status(settings: Settings, max_lateness: timedelta, *, as_json: bool) -> int:
    """Print the state of every shard; return 0 if all are healthy, else 1."""
    with reporting_errors(settings) as servers:
        shards = []
        for shard in servers.shards:
            try:
                seen = read_status(shard, to_ms(max_lateness))
                shards.append(replace(seen, problems=[*seen.problems, *_vanishing(shard, seen.now)]))
            except (RedisError, OSError) as error:
                if not settings.redis_cluster:
                    raise
                problem = f"no answer: {describe(error, settings)}"  # the other primaries may be well
                shards.append(ShardStatus(shard.number, problems=[problem]))
        is_healthy = not any(shard.problems for shard in shards)
        skew_ms = max((shard.skew_ms for shard in shards), key=abs)
        if as_json:
            rows = [{"state": shard.state, **asdict(shard)} for shard in shards]
            write_json({"healthy": is_healthy, "clock_skew_ms": skew_ms, "shards": rows})
        else:
            sys.stdout.writelines(f"{line}\n" for line in _lines(shards, skew_ms))
        return 0 if is_healthy else 1
    return 1


def read_status(shard: Shard, max_lateness_ms: int = _MAX_LATENESS_MS, counted: int = _COUNTED) -> ShardStatus:
    """Read one shard; sum the units of `counted` overdue reservations at most. RedisError if Redis fails."""
    settings, keys = shard.settings, shard.keys
    here = int(worker_clock())
    now = shard.now()
    cutoff = shard.cutoff(now)
    far = (now + to_ms(LONGEST)) / settings.unit_ms
    with shard.client.pipeline() as pipe:
        pipe.zcard(keys.index)
        pipe.zcount(keys.index, "-inf", f"({cutoff}")
        pipe.zcount(keys.index, f"{far:.0f}", "+inf")
        pipe.zrange(keys.index, 0, 0, withscores=True)
        pipe.zrangebyscore(keys.index, cutoff, "+inf", 0, 1, withscores=True)
        pipe.hmget(keys.control, list(control.FIELDS))
        pipe.zrange(keys.workers, 0, -1, withscores=True)
        pipe.hgetall(keys.about)
        pipe.hgetall(keys.stats)
        pipe.hlen(keys.quarantine)
        active, overdue, never_due, oldest, after, row, ticks, abouts, totals, quarantined = pipe.execute()
    age = now - to_ms(settings.grace) - unix_ms(oldest[0][1], settings.unit_ms) if overdue else 0
    state = Control.read(row)
    halt = state.halt(now)
    workers = [_worker(shard, now, tick, abouts) for tick in reversed(ticks)]
    live = [worker for worker in workers if worker.is_live]
    problems = about.disagreements(worker.about for worker in live)
    if not live:
        problems.append(NO_LIVE_WORKER)
        with suppress(ResponseError):  # a host may hide it
            info: Any = shard.client.info("replication")
            problems += [f"this is a replica: {PRIMARY}"] * (info.get("role") == "slave")
    if state.brake is not None:
        problems.append(BRAKED)
    if halt is None and age > max_lateness_ms:
        problems.append(TOO_OLD)
    return ShardStatus(
        shard=shard.number,
        active=active,
        overdue=overdue,
        oldest_overdue_ms=age,
        overdue_units=sum(row.units for row in read_records(shard, min(overdue, counted)) if row.score < float(cutoff)),
        next_expires_at=unix_ms(after[0][1], settings.unit_ms) if after else None,
        quarantined=quarantined,
        paused=halt,
        workers=live,
        totals=_totals(totals),
        problems=problems,
        gone=[worker for worker in workers if not worker.is_live][:_GONE],
        gone_count=len(workers) - len(live),
        never_due=never_due,
        now=now,
        skew_ms=now - here,
    )


def _vanishing(shard: Shard, now: int) -> list[str]:
    """Return a problem if Redis deletes reservations, by their time to live, about when they fall due."""
    rows = [row for row in read_records(shard, _TRIED) if row.is_active]
    with suppress(ResponseError), shard.client.pipeline(transaction=False) as pipe:  # without the right nobody knows
        for row in rows:
            pipe.pttl(shard.keys.reservation_prefix.encode() + row.id)
        late_ms = to_ms(shard.settings.grace) + _MARGIN_MS
        lasts = zip(rows, pipe.execute(), strict=True)
        if count := sum(0 < ttl < max(row.expires_at - now, 0) + late_ms for row, ttl in lasts):
            return [f"Redis deletes {count} of the next {len(rows)} reservations when they fall due: raise their TTL"]
    return []


def _worker(shard: Shard, now: int, tick: tuple[bytes, float], abouts: Mapping[bytes, bytes]) -> WorkerStatus:
    id_, last_tick = tick
    words = about.parse(abouts.get(id_, b""))
    skew_ms, is_live = integer(words.get("skew_ms")), shard.is_live(last_tick, now)
    return WorkerStatus(decode(id_), unix_ms(last_tick, 1), words.get("version"), skew_ms, is_live, words)


def _totals(row: Mapping[bytes, bytes]) -> dict[str, int]:
    """Read the running totals; the hash also has the bookkeeping of the script."""
    known = ((decode(name), integer(value, least=0)) for name, value in row.items())
    return {name: total for name, total in known if total is not None and name.partition(":")[0] in _TOTALS}


def _lines(shards: Sequence[ShardStatus], skew_ms: int) -> Iterator[str]:
    for shard in shards:
        age_s = shard.oldest_overdue_ms / 1000
        more = "" if shard.overdue <= _COUNTED else f" in the oldest {_COUNTED:,}"
        label = "braked" if shard.paused is not None and shard.paused.is_brake else "paused"
        totals = ", ".join(f"{printable(name)} {total:,}" for name, total in shard.totals.items())
        yield f"shard {shard.shard}: {printable(shard.state)}"
        yield f"  active       {shard.active:,}"
        yield f"  overdue      {shard.overdue:,}, {shard.overdue_units:,} units{more}, the oldest for {age_s:,.3f} s"
        yield f"  next expiry  {'none' if shard.next_expires_at is None else format_time(shard.next_expires_at)}"
        if shard.never_due:
            yield f"  never due    {shard.never_due:,}, with a time more than a century ahead"
        yield f"  quarantined  {shard.quarantined:,}"
        yield f"  {label}       {'no' if shard.paused is None else format_pause(shard.paused)}"
        yield f"  totals       {totals or 'none'}"
        yield from (f"  worker       {_worker_line(worker)}" for worker in shard.workers)
        yield from (f"  gone worker  {_worker_line(worker)}" for worker in shard.gone)
        if shard.gone_count > len(shard.gone):
            yield f"               and {shard.gone_count - len(shard.gone):,} more that have gone"
    if len(shards) > 1:
        overdue, units = sum(shard.overdue for shard in shards), sum(shard.overdue_units for shard in shards)
        oldest = max(shard.oldest_overdue_ms for shard in shards)
        yield (
            f"all: {sum(shard.active for shard in shards):,} active; {overdue:,} overdue, {units:,} units,"
            f" the oldest for {oldest / 1000:,.3f} s; {sum(shard.quarantined for shard in shards):,} quarantined"
        )
    yield f"clock: the server is {abs(skew_ms):,} ms {'ahead of' if skew_ms >= 0 else 'behind'} this machine"


def _worker_line(worker: WorkerStatus) -> str:
    skew_ms = worker.skew_ms
    clock = "" if skew_ms is None else f", its clock {abs(skew_ms):,} ms {'behind' if skew_ms >= 0 else 'ahead'}"
    version = printable(worker.version or "?")
    return f"{printable(worker.id)}, version {version}, last tick {format_time(worker.last_tick)}{clock}"
