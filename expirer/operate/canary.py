"""Makes a reservation of its own on each shard, and waits for a live worker to expire it."""

from __future__ import annotations

import math
import signal
import sys
import time
from typing import Any, TypeAlias

from expirer.config.durations import to_ms
from expirer.config.settings import Settings
from expirer.contract.clock import unix_ms
from expirer.contract.numbers import integer
from expirer.contract.shard import Shard
from expirer.contract.text import decode, printable
from expirer.operate.scratch import Scratch
from expirer.operate.terminal import format_pause, format_time, reporting_errors, write_json

_LIFE_MS = 500
"""The worker must sleep and wake for it, as for any other."""
_PATIENCE_S = 5.0
"""Beyond the interval, after which a worker ticks whatever message was lost."""
_LEFT_MS = 86_400_000
"""After this time its product goes by itself, should this process be killed."""
_POLL_S = 0.01
_RECENT = 1000
"""Events among which its own is looked for."""

_Finding: TypeAlias = tuple[str, int | None]
"""What became of it, and how late its unit came back in ms; None: it did not."""


def canary(settings: Settings, *, as_json: bool) -> int:
    """Print how late each reservation came back; return 0 if all did, else 1."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with reporting_errors(settings) as servers:
        for shard in servers.shards:
            obstacle = _obstacle(shard)
            if obstacle:
                sys.stderr.write(f"expirer: shard {shard.number}: {obstacle}; no reservation was made\n")
                return 1
        canaries = [_Canary("canary", shard) for shard in servers.shards]
        try:
            return _wait(settings, canaries, as_json=as_json)
        finally:
            for one in canaries:
                one.clean_up()
    return 1


def _obstacle(shard: Shard) -> str:
    """Return why nothing would expire now; empty: nothing prevents it."""
    client: Any = shard.client
    now = shard.now()
    pause = shard.pause(now)
    if pause is not None:
        return f"{'braked' if pause.is_brake else 'paused'} {format_pause(pause)}"
    ticks = [tick for _, tick in client.zrange(shard.keys.workers, 0, -1, withscores=True)]
    if any(shard.is_live(tick, now) for tick in ticks):
        return ""
    last = f": the last tick was at {format_time(unix_ms(max(ticks), 1))}" if ticks else ""
    return f"no live worker{last}"


def _wait(settings: Settings, canaries: list[_Canary], *, as_json: bool) -> int:
    for one in canaries:
        one.reserve()
    patience_s = _LIFE_MS / 1000 + settings.interval.total_seconds() + _PATIENCE_S
    too_late: _Finding = (f"no worker expired it within {patience_s:.0f} s", None)
    deadline = time.monotonic() + patience_s
    waiting, code = canaries, 0
    while waiting:
        time.sleep(_POLL_S)
        is_over = time.monotonic() > deadline
        found = {one: one.read() or (too_late if is_over else None) for one in waiting}
        waiting = [one for one, result in found.items() if result is None]
        for number, result in ((one.shard.number, result) for one, result in found.items() if result):
            finding, lateness_ms = result
            code = 1 if lateness_ms is None else code
            if as_json:
                write_json({"shard": number, "finding": finding, "lateness_ms": lateness_ms})
            else:
                sys.stdout.write(f"shard {number}: {finding}\n")
        sys.stdout.flush()
    return code


class _Canary(Scratch):
    due_at = 0
    """Unix ms; a whole second if the layout counts in seconds."""

    def reserve(self) -> None:
        """Write it in one transaction, and wake the workers as a checkout does."""
        settings, now = self.shard.settings, self.shard.now()
        score = math.ceil((now + _LIFE_MS - to_ms(settings.grace)) / settings.unit_ms)
        self.due_at = score * settings.unit_ms + to_ms(settings.grace)
        with self.shard.client.pipeline() as pipe:
            self.write(pipe, score)
            pipe.pexpire(self.stock, _LEFT_MS)
            pipe.publish(self.shard.keys.wake, f"{now} {score * settings.unit_ms}")
            pipe.execute()

    def read(self) -> _Finding | None:
        """Return what became of it; None: nothing yet."""
        client: Any = self.shard.client
        settings, keys = self.shard.settings, self.shard.keys
        score, entry = client.zscore(keys.index, self.id), client.hget(keys.quarantine, self.id)
        if entry is not None:
            return f"quarantined: {printable(decode(entry))}", None
        if score is not None:
            return None
        now = self.shard.now()
        counter = client.hget(self.stock, settings.field_available or settings.field_reserved)
        if counter != (b"1" if settings.field_available else b"0"):
            return "its unit did not come back: something else takes entries out of the index", None
        expired_at = integer(client.hget(self.reservation, "expired_at"))
        lateness_ms = (now if expired_at is None else expired_at) - self.due_at
        return f"expired {lateness_ms:,} ms late", lateness_ms

    def clean_up(self) -> None:
        """Remove every trace but the totals, whatever became of it."""
        keys, client = self.shard.keys, self.shard.client
        events: Any = client.xrevrange(keys.events, count=_RECENT)
        with client.pipeline() as pipe:
            self.remove(pipe)
            pipe.zrem(keys.index, self.id)
            pipe.hdel(keys.quarantine, self.id)
            for event, fields in events:
                if fields.get(b"reservation_id") == self.id.encode():
                    pipe.xdel(keys.events, event)
            pipe.execute()
