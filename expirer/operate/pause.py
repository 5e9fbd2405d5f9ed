"""Pauses and resumes expiry, and shows what the next batch would do."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from redis.exceptions import RedisError, WatchError

from expirer.config.durations import to_ms
from expirer.config.settings import ConfigurationError, Settings
from expirer.connection.connect import Servers
from expirer.contract import control
from expirer.contract.control import Control
from expirer.contract.shard import Shard
from expirer.contract.text import printable
from expirer.operate.terminal import confirms, format_pause, format_time, reporting_errors, who
from expirer.worker.batch import Batch
from expirer.worker.expiry import Expiry


def pause(settings: Settings, duration: timedelta | None, reason: str, shard: int | None) -> int:
    """Pause all shards, or one: nothing expires once this has returned. Return the exit code."""
    with reporting_errors(settings) as servers:
        for one in _chosen(servers, shard):
            now = one.now()
            until = None if duration is None else now + to_ms(duration)
            fields: Any = control.pausing(who(), reason, now, until)
            one.client.hset(one.keys.control, mapping=fields)
            ends = "until it is resumed" if until is None else f"until {format_time(until)}"
            brake = "; the brake stays on" if one.control().brake else ""
            overdue = f"{one.count_overdue(now):,} overdue stay Active"
            sys.stdout.write(f"shard {one.number}: paused {ends}{brake}; {overdue}, and their units reserved\n")
        return 0
    return 1


def resume(settings: Settings, shard: int | None, *, is_sure: bool) -> int:
    """End pause and brake of all shards, or of one, as they were shown; a brake only if a person confirms it.

    Return the exit code.
    """
    with reporting_errors(settings) as servers:
        seen = [(one, one.control()) for one in _chosen(servers, shard)]
        braked = 0
        for one, found in seen:
            now = one.now()
            overdue = one.count_overdue(now)
            braked += overdue if found.brake else 0
            sys.stdout.write(f"shard {one.number}: {_describe(found, now)}; {overdue:,} overdue would expire\n")
        question = f"Release the brake, and let {braked:,} overdue reservations expire?"
        if any(found.brake for _, found in seen) and not is_sure and not confirms(question):
            sys.stdout.flush()
            sys.stderr.write("expirer: the brake is on; see expirer once --dry-run, then repeat this with --yes\n")
            return 1
        outcomes = [_resume(one, found) for one, found in seen]
        return 0 if all(outcomes) else 1
    return 1


def _describe(found: Control, now: int) -> str:
    """Return what stops a shard, or would at the end of a pause."""
    pause = found.pause if found.halt(now) is found.pause else None
    states = (("paused", pause), ("braked", found.brake))
    return ", ".join(f"{state} {format_pause(one)}" for state, one in states if one) or "not paused"


def _resume(shard: Shard, shown: Control) -> bool:
    """Resume a shard whose control key is still as it was shown; say so, and return whether it is."""
    key = shard.keys.control
    with shard.client.pipeline() as transaction:
        pipe: Any = transaction
        pipe.watch(key)
        is_as_shown = Control.read(pipe.hmget(key, control.FIELDS)) == shown
        pipe.multi()
        pipe.hset(key, mapping=control.resuming(who(), shard.now()))
        try:
            if is_as_shown:
                pipe.execute()
        except WatchError as error:
            if not is_conflict(error):
                raise
            is_as_shown = False
    if not is_as_shown:
        sys.stdout.flush()
        sys.stderr.write(f"expirer: shard {shard.number}: its control key changed meanwhile, look again: not resumed\n")
        return False
    shard.client.publish(shard.keys.wake, "1")
    sys.stdout.write(f"shard {shard.number}: resumed\n")
    return True


def is_conflict(error: Exception) -> bool:
    """Say whether somebody wrote a watched key; redis-py reports a lost connection in the same way."""
    return isinstance(error, WatchError) and not isinstance(error.__context__, RedisError)


def preview(settings: Settings) -> int:
    """Show what the next batch of each shard would do, even if it is paused; write nothing. Return the exit code."""
    with reporting_errors(settings) as servers:
        for shard in servers.shards:
            batch = Expiry(shard, "dry-run").preview()
            counts = batch.counts
            sys.stdout.write(
                f"shard {shard.number}: {batch.due + batch.overdue:,} due; the next batch would expire"
                f" {counts.expired:,} ({counts.units:,} units), skip {counts.skipped:,},"
                f" reschedule {counts.rescheduled:,}, quarantine {counts.quarantined:,}\n"
            )
            sys.stdout.writelines(f"  {printable(line)}\n" for line in _outcomes(batch))
        return 0
    return 1


def _outcomes(batch: Batch) -> Iterator[str]:
    for entry in batch.expired():
        what = f"{entry.quantity} of {entry.product_id}, due {format_time(entry.expires_at)}"
        yield f"expired      {entry.reservation_id}  {what}"
    for id_, status in batch.skipped():
        yield f"skipped      {id_}  status {status}"
    for id_, expires_at in batch.rescheduled():
        yield f"rescheduled  {id_}  due {format_time(expires_at)}"
    for id_, reason in batch.quarantined():
        yield f"quarantined  {id_}  {reason}"


def _chosen(servers: Servers, number: int | None) -> tuple[Shard, ...]:
    shards = servers.shards
    if number is None:
        return shards
    if not 0 <= number < len(shards):
        raise ConfigurationError([f"--shard {number}: the shards are 0 to {len(shards) - 1}"])
    return (shards[number],)
