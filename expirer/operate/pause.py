"""Holds expiry and lets it go: pause, resume, and what the next batch would do."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import TextIO

from expirer.config.durations import to_ms
from expirer.config.settings import ConfigurationError, Settings
from expirer.contract import control
from expirer.contract.control import Control
from expirer.contract.keys import ShardKeys, shard_keys
from expirer.operate.server import count_overdue, redis_or_say, server_now
from expirer.operate.terminal import confirms, shown, shown_pause, shown_time, who
from expirer.worker.batch import Batch
from expirer.worker.expiry import Expiry


def pause(settings: Settings, duration: timedelta | None, reason: str, shard: int | None) -> int:
    """Pause the shards, or one: nothing expires once this has returned. Return the exit code."""
    with redis_or_say(settings) as servers:
        for number, keys in _chosen(settings, shard):
            client = servers.shards[number].client
            now = server_now(client, settings)
            until = None if duration is None else now + to_ms(duration)
            client.hset(keys.control, mapping=control.pausing(who(), reason, now, until))  # type: ignore[arg-type]
            ends = "until it is resumed" if until is None else f"until {shown_time(until)}"
            overdue = count_overdue(client, settings, keys, now)
            sys.stdout.write(f"shard {number}: paused {ends}; {overdue:,} overdue stay Active, and their units held\n")
        return 0
    return 1


def resume(settings: Settings, shard: int | None, *, is_sure: bool, answers: TextIO | None = None) -> int:
    """Resume the shards, or one, and let go what a brake held, once somebody is sure of it. Return the exit code."""
    with redis_or_say(settings) as servers:
        shards = list(_chosen(settings, shard))
        braked = 0
        for number, keys in shards:
            client = servers.shards[number].client
            pause = Control.read(client.hmget(keys.control, control.FIELDS)).pause  # type: ignore[arg-type]
            overdue = count_overdue(client, settings, keys, server_now(client, settings))
            state = "not paused" if pause is None else f"paused {shown_pause(pause)}"
            if pause is not None and pause.is_brake:
                braked += overdue
            sys.stdout.write(f"shard {number}: {state}; {overdue:,} overdue would expire\n")
        if braked and not is_sure and not confirms(f"Let {braked:,} overdue reservations expire?", answers):
            sys.stdout.flush()
            sys.stderr.write("expirer: a brake holds; look with expirer once --dry-run, then repeat this with --yes\n")
            return 1
        for number, keys in shards:
            client = servers.shards[number].client
            fields = control.resuming(who(), server_now(client, settings))
            client.hset(keys.control, mapping=fields)  # type: ignore[arg-type]
            client.publish(keys.wake, "1")
            sys.stdout.write(f"shard {number}: resumed\n")
        return 0
    return 1


def preview(settings: Settings) -> int:
    """Say what the next batch of each shard would do, pause or not, and write nothing. Return the exit code."""
    with redis_or_say(settings) as servers:
        for shard in servers.shards:
            batch = Expiry(shard, "dry-run").preview()
            counts = batch.counts
            sys.stdout.write(
                f"shard {shard.number}: {batch.due + batch.overdue:,} due; the next batch would expire {counts.expired:,}"
                f" ({counts.units:,} units), skip {counts.skipped:,}, reschedule {counts.rescheduled:,},"
                f" quarantine {counts.quarantined:,}\n"
            )
            sys.stdout.writelines(f"  {line}\n" for line in _outcomes(batch))
        return 0
    return 1


def _outcomes(batch: Batch) -> Iterator[str]:
    for entry in batch.expired():
        what = f"{entry.quantity} of {shown(entry.product_id)}, due {shown_time(entry.expires_at)}"
        yield f"expired      {shown(entry.reservation_id)}  {what}"
    for id_, status in batch.skipped():
        yield f"skipped      {shown(id_)}  status {shown(status)}"
    for id_, expires_at in batch.rescheduled():
        yield f"rescheduled  {shown(id_)}  due {shown_time(expires_at)}"
    for id_, reason in batch.quarantined():
        yield f"quarantined  {shown(id_)}  {reason}"


def _chosen(settings: Settings, shard: int | None) -> list[tuple[int, ShardKeys]]:
    shards = list(enumerate(shard_keys(settings)))
    if shard is None:
        return shards
    if not 0 <= shard < len(shards):
        raise ConfigurationError([f"--shard {shard}: the shards are 0 to {len(shards) - 1}"])
    return [shards[shard]]
