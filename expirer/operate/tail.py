"""Follows the streams of events, like tail -f."""

from __future__ import annotations

import json
import re
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from queue import Queue
from typing import Any

from redis import Redis
from redis.exceptions import AskError, BusyLoadingError, ClusterDownError, TryAgainError
from redis.exceptions import ConnectionError as NoConnection
from redis.exceptions import TimeoutError as TooLate

from expirer.config.durations import parse_duration, to_ms
from expirer.config.settings import ConfigurationError, Settings
from expirer.connection.connect import Servers
from expirer.connection.errors import location
from expirer.contract.text import readable
from expirer.operate.server import redis_or_say, server_now, trouble
from expirer.operate.terminal import shown, shown_time

_BLOCK_MS = 1000
_COUNT = 500
_RETRY_S = 1.0
_WEATHER = (NoConnection, TooLate, BusyLoadingError, AskError, ClusterDownError, TryAgainError)
"""What passes by itself."""

_Events = list[tuple[int, tuple[bytes, Any]]]
"""Each with its shard."""


@dataclass(slots=True)
class _Stream:
    """The events of one shard, and the id after which they are read."""

    shard: int
    client: Redis
    name: str
    position: str


def tail(settings: Settings, start: str | None, *, as_json: bool) -> int:
    """Print events as they are written, until SIGTERM or SIGINT; return the exit code."""
    if settings.events_maxlen == 0:
        raise ConfigurationError(["EXPIRER_EVENTS_MAXLEN is 0, so no events are written that could be followed"])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with redis_or_say(settings) as servers:
        for events in _follow_all(settings, _positions(servers, settings, start)):
            for shard, event in events:
                sys.stdout.write((_json if as_json else _line)(settings, shard, event) + "\n")
            sys.stdout.flush()
    return 1


def _positions(servers: Servers, settings: Settings, start: str | None) -> list[_Stream]:
    """Return each stream with the id after which it is read."""
    shards = list(enumerate((shard.client, shard.keys) for shard in servers.shards))
    if start is not None:
        first = _first(servers.shards[0].client, settings, start)
        return [_Stream(number, client, keys.events, first) for number, (client, keys) in shards]
    streams = []
    for number, (client, keys) in shards:
        last: Any = client.xrevrange(keys.events, count=1)
        streams.append(_Stream(number, client, keys.events, readable(last[0][0]) if last else "0"))
    return streams


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


def _follow_all(settings: Settings, streams: list[_Stream]) -> Iterator[_Events]:
    """Yield what is written to any of the streams; raise what ends the reading of one."""
    by_client: defaultdict[Redis, list[_Stream]] = defaultdict(list)
    for stream in streams:
        by_client[stream.client].append(stream)
    if len(by_client) == 1:
        yield from _follow(settings, streams)
    news: Queue[_Events | Exception] = Queue(maxsize=1)  # who reads slowly is waited for

    def follow(some: list[_Stream]) -> None:
        try:
            for events in _follow(settings, some):
                news.put(events)
        except Exception as error:  # noqa: BLE001  # it is raised where it can be told
            news.put(error)

    for some in by_client.values():
        threading.Thread(target=follow, args=(some,), daemon=True).start()
    while True:
        events = news.get()
        if isinstance(events, Exception):
            raise events
        yield events


def _follow(settings: Settings, streams: list[_Stream]) -> Iterator[_Events]:
    """Yield what is written to the streams of one client."""
    client = streams[0].client
    named = {stream.name.encode(): stream for stream in streams}
    is_away = False
    while True:
        positions: Any = {stream.name: stream.position for stream in streams}
        try:
            answer: Any = client.xread(positions, count=_COUNT, block=_BLOCK_MS)
        except _WEATHER as error:
            if not is_away:
                sys.stderr.write(f"expirer: {trouble(error, settings)}; waiting for it\n")
            is_away = True
            time.sleep(_RETRY_S)
            continue
        if is_away:
            sys.stderr.write(f"expirer: {location(settings)}: it is back\n")
            is_away = False
        for name, events in answer:
            stream = named[name]
            yield [(stream.shard, event) for event in events]
            stream.position = readable(events[-1][0])


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
