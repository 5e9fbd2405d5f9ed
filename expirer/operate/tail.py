"""Follows the streams of events, like tail -f."""

from __future__ import annotations

import re
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

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
from expirer.operate.records import read_event
from expirer.operate.terminal import error_line, format_time, reporting_errors, write_json

_BLOCK_MS = 1000
_COUNT = 500
_RETRY_S = 1.0
_PASSING = (NoConnection, TooLate, BusyLoadingError, AskError, ClusterDownError, TryAgainError)
"""Errors that end without a person."""


class Event(NamedTuple):
    """An event of a shard; its fields may be anybody's."""

    shard: Shard
    id: str
    fields: dict[str, int | str]


def tail(settings: Settings, start: str | None, *, as_json: bool) -> int:
    """Print events as they are written, until SIGTERM or SIGINT; return the exit code."""
    if settings.events_maxlen == 0:
        raise ConfigurationError(["EXPIRER_EVENTS_MAXLEN is 0, so no events are written that could be followed"])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with reporting_errors(settings) as servers:
        for event in follow(servers, start):
            if as_json:
                own = {"shard": event.shard.number, "id": event.id}  # names that a stranger's fields may have, too
                write_json(own | event.fields | own)
            else:
                sys.stdout.write(f"{printable(_line(event))}\n")
            sys.stdout.flush()
    return 1


def follow(servers: Servers, start: str | None) -> Iterator[Event]:
    """Yield the events of every shard from `start` on, for ever; waits for a server that is away."""
    shards = {shard.keys.events: shard for shard in servers.shards}
    positions = _positions(servers, start)
    away: set[Redis] = set()
    # The servers are asked in turn; none is waited for while another has more.
    wait_ms: int | None = None
    while True:
        found = False
        for client, names in positions.items():
            for name, entry in _read(client, names, wait_ms, away, servers.shards[0].settings):
                found = True
                yield Event(shards[name], *read_event(entry))
        wait_ms = None if found else _BLOCK_MS // len(positions)


def _read(
    client: Redis, positions: dict[str, str], wait_ms: int | None, away: set[Redis], settings: Settings
) -> Iterator[tuple[str, tuple[bytes, dict[bytes, bytes]]]]:
    """Yield what is new in the streams of one server: stream and entry."""
    after: Any = positions
    try:
        answer: Any = client.xread(after, count=_COUNT, block=wait_ms)
    except _PASSING as error:
        if client not in away:
            sys.stderr.write(f"expirer: {error_line(error, settings)}; waiting for it\n")
        away.add(client)
        time.sleep(_RETRY_S)
        return
    if client in away:
        sys.stderr.write(f"expirer: {location(settings)}: it is back\n")
        away.remove(client)
    for stream, entries in answer:
        name = stream.decode()
        yield from ((name, entry) for entry in entries)
        positions[name] = decode(entries[-1][0])


def _positions(servers: Servers, start: str | None) -> dict[Redis, dict[str, str]]:
    """Return for each server its streams, each with the id after which it is read."""
    positions: defaultdict[Redis, dict[str, str]] = defaultdict(dict)
    first = None if start is None else _first(servers.shards[0], start)
    for shard in servers.shards:
        name = shard.keys.events
        last: Any = shard.client.xrevrange(name, count=1) if first is None else []
        positions[shard.client][name] = decode(last[0][0]) if last else first or "0"
    return positions


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


def _line(event: Event) -> str:
    settings, fields = event.shard.settings, event.fields
    due, expired_at = fields.get("expires_at"), fields.get("expired_at")
    late = ""
    if isinstance(due, int) and isinstance(expired_at, int):
        late = f", {max(expired_at - due - to_ms(settings.grace), 0):,} ms late"
    quantity, product_id, id_ = (fields.get(name, "?") for name in ("quantity", "product_id", "reservation_id"))
    where = f"shard {event.shard.number}  " if settings.shards > 1 else ""
    return f"{where}{format_time(int(event.id.partition('-')[0]))}  {id_}  {quantity} of {product_id}{late}"
