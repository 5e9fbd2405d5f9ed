"""Makes a hold of its own on each shard, and waits for a live worker to expire it."""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

from redis import Redis

from expirer.config.durations import to_ms
from expirer.config.settings import Settings
from expirer.contract import control
from expirer.contract.clock import unix_ms
from expirer.contract.control import Control
from expirer.contract.keys import ShardKeys
from expirer.contract.text import readable
from expirer.operate.scratch import Scratch
from expirer.operate.server import is_live, redis_or_say, server_now
from expirer.operate.terminal import shown, shown_pause, shown_time

_LIFE_MS = 500
"""The worker must sleep and wake for it, as for any other."""
_PATIENCE_S = 5.0
"""Beyond the interval, in which a worker looks whatever message was lost."""
_LEFT_MS = 86_400_000
"""After this time its product goes by itself, should this process be killed."""
_POLL_S = 0.01
_RECENT = 1000
"""Events among which its own is looked for."""


def canary(settings: Settings, *, as_json: bool) -> int:
    """Print how late each hold came back; return 0 where all did, else 1."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with redis_or_say(settings) as servers:
        shards = list(enumerate((shard.client, shard.keys) for shard in servers.shards))
        for number, (client, keys) in shards:
            obstacle = _obstacle(client, settings, keys)
            if obstacle:
                sys.stderr.write(f"expirer: shard {number}: {obstacle}; no hold was made\n")
                return 1
        canaries = [_Canary(client, settings, number, keys) for number, (client, keys) in shards]
        try:
            return _fly(settings, canaries, as_json=as_json)
        finally:
            for one in canaries:
                one.remove()
    return 1


def _obstacle(client: Redis, settings: Settings, keys: ShardKeys) -> str:
    """Return why nothing would expire now; empty: nothing stands in the way."""
    now = server_now(client, settings)
    pause = Control.read(client.hmget(keys.control, control.FIELDS)).pause  # type: ignore[arg-type]
    if pause is not None and (pause.until is None or pause.until > now):
        return f"paused {shown_pause(pause)}"
    last: Any = client.zrange(keys.workers, -1, -1, withscores=True)
    if not last:
        return "no live worker"
    if not is_live(settings, last[0][1], now):
        return f"no live worker: the last tick was at {shown_time(unix_ms(last[0][1], 1))}"
    return ""


def _fly(settings: Settings, canaries: list[_Canary], *, as_json: bool) -> int:
    for one in canaries:
        one.set()
    patience_s = _LIFE_MS / 1000 + settings.interval.total_seconds() + _PATIENCE_S
    deadline = time.monotonic() + patience_s
    waiting, code = list(canaries), 0
    while waiting:
        time.sleep(_POLL_S)
        is_over = time.monotonic() > deadline
        for one in list(waiting):
            result = one.look()
            if result is None and is_over:
                result = _Result(one.number, f"no worker expired it within {patience_s:.0f} s")
            if result is not None:
                waiting.remove(one)
                code = 1 if result.lateness_ms is None else code
                line = json.dumps(asdict(result)) if as_json else f"shard {result.shard}: {result.finding}"
                sys.stdout.write(f"{line}\n")
                sys.stdout.flush()
    return code


@dataclass(frozen=True, slots=True)
class _Result:
    shard: int
    finding: str
    lateness_ms: int | None = None
    """None: its unit did not come back."""


class _Canary:
    """The hold on one shard."""

    def __init__(self, client: Redis, settings: Settings, number: int, keys: ShardKeys) -> None:
        self.number = number
        self._client = client
        self._settings = settings
        self._keys = keys
        self._scratch = Scratch.of("canary", settings, number, keys)
        self._due_at = 0
        """Unix ms; a whole second where the layout counts in seconds."""

    def set(self) -> None:
        """Write it, in one transaction, and tell the workers as a checkout does."""
        settings, now = self._settings, server_now(self._client, self._settings)
        score = math.ceil((now + _LIFE_MS - to_ms(settings.grace)) / settings.unit_ms)
        self._due_at = score * settings.unit_ms + to_ms(settings.grace)
        with self._client.pipeline() as pipe:
            self._scratch.write(pipe, score)
            pipe.pexpire(self._scratch.stock, _LEFT_MS)
            pipe.publish(self._keys.wake, f"{now} {score * settings.unit_ms}")
            pipe.execute()

    def look(self) -> _Result | None:
        """Return what became of it; None: nothing yet."""
        id_, settings = self._scratch.reservation_id, self._settings
        if self._client.zscore(self._keys.index, id_) is not None:
            return None
        now = server_now(self._client, settings)
        entry: Any = self._client.hget(self._keys.quarantine, id_)
        if entry is not None:
            return _Result(self.number, f"quarantined: {shown(readable(entry))}")
        counter: Any = self._client.hget(self._scratch.stock, settings.field_available or settings.field_reserved)
        if counter != (b"1" if settings.field_available else b"0"):
            return _Result(self.number, "its unit did not come back: something else takes entries out of the index")
        expired_at: Any = self._client.hget(self._scratch.reservation, "expired_at")
        lateness_ms = int(expired_at or now) - self._due_at
        return _Result(self.number, f"expired {lateness_ms:,} ms late", lateness_ms)

    def remove(self) -> None:
        """Remove every trace but the totals, whatever became of it."""
        id_ = self._scratch.reservation_id
        events: Any = self._client.xrevrange(self._keys.events, count=_RECENT)
        with self._client.pipeline() as pipe:
            self._scratch.remove(pipe)
            pipe.zrem(self._keys.index, id_)
            pipe.hdel(self._keys.quarantine, id_)
            for event, fields in events:
                if fields.get(b"reservation_id") == id_.encode():
                    pipe.xdel(self._keys.events, event)
            pipe.execute()
