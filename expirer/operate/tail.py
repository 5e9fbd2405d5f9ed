"""Follows the streams of events, like tail -f."""

from __future__ import annotations

import re
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from redis import Redis
from redis.exceptions import AskError, BusyLoadingError, ClusterDownError, TryAgainError
from redis.exceptions import ConnectionError as NoConnection
from redis.exceptions import TimeoutError as TooLate

from expirer.config.durations import parse_duration, to_ms
from expirer.config.settings import ConfigurationError, Settings
from expirer.connection.connect import Servers
from expirer.connection.errors import location
from expirer.contract.shard import Shard
from expirer.contract.text import decode, printable
from expirer.operate.output import Event, read_event, write_json
from expirer.operate.server import error_line, reporting_errors
from expirer.operate.terminal import format_time

_BLOCK_MS = 1000
_COUNT = 500
_RETRY_S = 1.0
_PASSING = (NoConnection, TooLate, BusyLoadingError, AskError, ClusterDownError, TryAgainError)
"""Errors that end without a person."""


@dataclass(slots=True)
class _Stream:
    """The events of one shard, and the id after which they are read."""

    shard: Shard
    position: str


def tail(settings: Settings, start: str | None, *, as_json: bool) -> int:
    """Print events as they are written, until SIGTERM or SIGINT; return the exit code."""
    if settings.events_maxlen == 0:
        raise ConfigurationError(["EXPIRER_EVENTS_MAXLEN is 0, so no events are written that could be followed"])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with reporting_errors(settings) as servers:
        for shard, event in follow(servers, start):
            if as_json:
                others = {name: value for name, value in event.fields.items() if name not in ("shard", "id")}
                write_json({"shard": shard.number, "id": event.id, **others})
            else:
                sys.stdout.write(f"{_line(shard, event)}\n")
            sys.stdout.flush()
    return 1


def follow(servers: Servers, start: str | None) -> Iterator[tuple[Shard, Event]]:
    """Yield the events of every shard from `start` on, for ever; waits for a server that is away."""
    by_client: defaultdict[Redis, list[_Stream]] = defaultdict(list)
    for stream in _positions(servers, start):
        by_client[stream.shard.client].append(stream)
    away: set[Redis] = set()
    # The servers are asked in turn; none is waited for while another has more.
    wait_ms: int | None = None
    while True:
        found = False
        for client, streams in by_client.items():
            for shard, event in _read(client, streams, wait_ms, away):
                found = True
                yield shard, event
        wait_ms = None if found else _BLOCK_MS // len(by_client)


def _read(
    client: Redis, streams: list[_Stream], wait_ms: int | None, away: set[Redis]
) -> Iterator[tuple[Shard, Event]]:
    """Yield what is new in the streams of one server."""
    settings = streams[0].shard.settings
    positions: Any = {stream.shard.keys.events: stream.position for stream in streams}
    try:
        answer: Any = client.xread(positions, count=_COUNT, block=wait_ms)
    except _PASSING as error:
        if client not in away:
            sys.stderr.write(f"expirer: {error_line(error, settings)}; waiting for it\n")
        away.add(client)
        time.sleep(_RETRY_S)
        return
    if client in away:
        sys.stderr.write(f"expirer: {location(settings)}: it is back\n")
        away.remove(client)
    named = {stream.shard.keys.events.encode(): stream for stream in streams}
    for name, entries in answer:
        stream = named[name]
        for entry in entries:
            yield stream.shard, read_event(entry)
        stream.position = decode(entries[-1][0])


def _positions(servers: Servers, start: str | None) -> list[_Stream]:
    """Return each stream with the id after which it is read."""
    if start is not None:
        first = _first(servers.shards[0], start)
        return [_Stream(shard, first) for shard in servers.shards]
    streams = []
    for shard in servers.shards:
        last: Any = shard.client.xrevrange(shard.keys.events, count=1)
        streams.append(_Stream(shard, decode(last[0][0]) if last else "0"))
    return streams


def _first(shard: Shard, start: str) -> str:
    if start == "start":
        return "0"
    if re.fullmatch(r"[0-9]{11,16}(-[0-9]{1,19})?", start):
        return _before(start)
    try:
        duration = parse_duration(start)
    except ValueError:
        raise ConfigurationError([f"--from {start}: a duration such as 10m, `start`, or an id of the stream"]) from None
    return _before(str(max(shard.now() - to_ms(duration), 1)))


def _before(id_: str) -> str:
    """Return the id just below; XREAD leaves out the id that it is given."""
    ms, _, number = id_.partition("-")
    return f"{ms}-{int(number) - 1}" if number.strip("0") else f"{int(ms) - 1}-{2**64 - 1}"


def _line(shard: Shard, event: Event) -> str:
    due, expired_at = event.fields.get("expires_at"), event.fields.get("expired_at")
    late = ""
    if isinstance(due, int) and isinstance(expired_at, int):
        late = f", {max(expired_at - due - to_ms(shard.settings.grace), 0):,} ms late"
    names = ("quantity", "product_id", "reservation_id")
    quantity, product_id, id_ = (printable(str(event.fields.get(name, "?"))) for name in names)
    where = f"shard {shard.number}  " if shard.settings.shards > 1 else ""
    return f"{where}{format_time(event.written_at)}  {id_}  {quantity} of {product_id}{late}"
