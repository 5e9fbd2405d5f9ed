"""Follows the streams of events, like tail -f."""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

from redis import Redis
from redis.exceptions import BusyLoadingError
from redis.exceptions import ConnectionError as NoConnection
from redis.exceptions import TimeoutError as TooLate

from expirer.connect import location, redact
from expirer.keys import shard_keys
from expirer.operate.server import redis_or_say, server_now
from expirer.operate.terminal import shown, shown_time
from expirer.settings import ConfigurationError, Settings
from expirer.texts import readable
from expirer.times import parse_duration, to_ms

_BLOCK_MS = 1000
_COUNT = 500
_RETRY_S = 1.0
_WEATHER = (NoConnection, TooLate, BusyLoadingError)
"""What passes by itself."""


def tail(settings: Settings, start: str | None, *, as_json: bool) -> int:
    """Print events as they are written, until SIGTERM or SIGINT; return the exit code."""
    if settings.events_maxlen == 0:
        raise ConfigurationError(["EXPIRER_EVENTS_MAXLEN is 0, so no events are written that could be followed"])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with redis_or_say(settings) as client:
        positions = _positions(client, settings, start)
        for shard, event in _follow(client, settings, positions):
            sys.stdout.write((_json if as_json else _line)(settings, shard, event) + "\n")
    return 1


def _positions(client: Redis, settings: Settings, start: str | None) -> dict[str, str]:
    """Return for each stream the id after which it is read."""
    names = [keys.events for keys in shard_keys(settings)]
    if start is None:
        last: list[Any] = [client.xrevrange(name, count=1) for name in names]
        return {name: readable(events[0][0]) if events else "0" for name, events in zip(names, last, strict=True)}
    return dict.fromkeys(names, _first(client, settings, start))


def _first(client: Redis, settings: Settings, start: str) -> str:
    if start == "start":
        return "0"
    if re.fullmatch(r"\d{11,16}(-\d{1,19})?", start):
        return _before(start)
    try:
        duration: Any = parse_duration(start)
    except ValueError:
        raise ConfigurationError([f"--from {start}: a duration such as 10m, `start`, or an id of the stream"]) from None
    return _before(str(max(server_now(client, settings) - to_ms(duration), 1)))


def _before(id_: str) -> str:
    """Return the id after which the reading begins, so that the one given is among what is read."""
    ms, _, number = id_.partition("-")
    return f"{ms}-{int(number) - 1}" if number.strip("0") else f"{int(ms) - 1}-{2**64 - 1}"


def _follow(client: Redis, settings: Settings, positions: dict[str, str]) -> Iterator[tuple[int, tuple[bytes, Any]]]:
    numbers = {name.encode(): number for number, name in enumerate(positions)}
    is_away = False
    while True:
        try:
            answer: Any = client.xread(positions, count=_COUNT, block=_BLOCK_MS)  # type: ignore[arg-type]
        except _WEATHER as error:
            if not is_away:
                said = shown(redact(str(error), settings))
                sys.stderr.write(f"expirer: {location(settings)}: {said}; waiting for it\n")
            is_away = True
            time.sleep(_RETRY_S)
            continue
        if is_away:
            sys.stderr.write(f"expirer: {location(settings)}: it is back\n")
            is_away = False
        for name, events in answer:
            for event in events:
                yield numbers[name], event
            positions[readable(name)] = readable(events[-1][0])
        sys.stdout.flush()


def _fields(event: tuple[bytes, Any]) -> dict[str, Any]:
    id_, fields = event
    known = {readable(name): readable(value) for name, value in fields.items()}
    numbers = ("quantity", "expires_at", "expired_at")
    return {"id": readable(id_)} | {
        name: int(value) if name in numbers and re.fullmatch(r"\d{1,16}", value) else value
        for name, value in known.items()
    }


def _json(_settings: Settings, shard: int, event: tuple[bytes, Any]) -> str:
    return json.dumps({"shard": shard, **_fields(event)})


def _line(settings: Settings, shard: int, event: tuple[bytes, Any]) -> str:
    fields = _fields(event)
    written_at = int(fields["id"].partition("-")[0])
    due, expired_at = fields.get("expires_at"), fields.get("expired_at")
    late = ""
    if isinstance(due, int) and isinstance(expired_at, int):
        late = f", {expired_at - due - to_ms(settings.grace):,} ms late"
    quantity, product_id, id_ = (
        shown(str(fields.get(name, "?"))) for name in ("quantity", "product_id", "reservation_id")
    )
    where = f"shard {shard}  " if settings.shards > 1 else ""
    return f"{where}{shown_time(written_at)}  {id_}  {quantity} of {product_id}{late}"
