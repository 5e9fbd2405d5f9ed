"""Shows single reservations: which are due next, and everything that is known of one."""

from __future__ import annotations

import heapq
import sys
from collections.abc import Iterator
from datetime import timedelta
from itertools import islice, takewhile
from typing import Any

from redis.exceptions import RedisError

from expirer.config.durations import to_ms
from expirer.config.settings import Settings
from expirer.contract.clock import unix_ms
from expirer.contract.keys import shard_of
from expirer.contract.numbers import integer
from expirer.contract.reasons import ADVICE, read_entry
from expirer.contract.shard import Shard
from expirer.contract.text import decode, encode, printable
from expirer.operate.records import number_or_text, read_event, read_records
from expirer.operate.terminal import format_time, reporting_errors, write_json

_MOST = 10_000
"""Entries of a shard that are read; more would be a scan."""
_EVENT_MS = 1000
"""An event is written in the moment of the expiry, which the server may round."""


def pending(
    settings: Settings, product_id: str | None, due_within: timedelta | None, limit: int, *, as_json: bool
) -> int:
    """Print the Active reservations that fall due next, the soonest first. Return the exit code."""
    product = None if product_id is None else encode(product_id)
    with reporting_errors(settings) as servers:
        latest = None if due_within is None else servers.shards[0].now() + to_ms(due_within)
        shards = servers.shards if product is None else [servers.shards[shard_of(product, settings.shards)]]
        rows = heapq.merge(*(read_records(shard, _MOST) for shard in shards), key=lambda row: row.expires_at)
        soon = takewhile(lambda row: latest is None or row.expires_at < latest, rows)
        row = None
        for row in islice((row for row in soon if product in (None, row.product_id)), limit):
            quantity = None if row.quantity is None else number_or_text(row.quantity)
            if as_json:
                known = {"shard": row.shard.number, "reservation_id": row.id, "product_id": row.product_id}
                write_json({**known, "quantity": quantity, "expires_at": row.expires_at})
                continue
            name = "?" if row.product_id is None else decode(row.product_id)
            what = f"{'?' if quantity is None else quantity} of {name}, due {format_time(row.expires_at)}"
            sys.stdout.write(printable(f"{decode(row.id)}  {what}") + "\n")
        if row is None and not as_json:
            sys.stdout.write(f"none among the next {_MOST:,} of each shard\n")
        return 0
    return 1


def show(settings: Settings, reservation_id: str, *, as_json: bool) -> int:
    """Print everything that is known of a reservation; return 1 if nothing is."""
    id_ = encode(reservation_id)
    with reporting_errors(settings) as servers:
        for shard in servers.shards:
            known = _known(shard, id_)
            if known is None:
                continue
            if as_json:
                write_json({"shard": shard.number, **known})
            else:
                sys.stdout.writelines(f"{printable(line)}\n" for line in _lines(shard, id_, known))
            return 0
        sys.stderr.write(f"expirer: {printable(decode(id_))}: no reservation, index entry or quarantine entry\n")
    return 1


def _lines(shard: Shard, id_: bytes, known: dict[str, Any]) -> Iterator[str]:
    yield f"shard {shard.number}, {shard.keys.reservation_prefix}{decode(id_)}"
    for part in ("fields", "event"):
        yield from (f"  {part}: {name} {value}" for name, value in known[part].items())
    due = known["expires_at"]
    yield f"  index: {'not in it' if due is None else f'due {format_time(due)}'}"
    yield f"  quarantine: {known['quarantine'] or 'not in it'}"
    if known["advice"]:
        yield f"  advice: {known['advice']}"


def _known(shard: Shard, id_: bytes) -> dict[str, Any] | None:
    """Read everything at one moment; None: there is no trace of it."""
    keys = shard.keys
    key: Any = keys.reservation_prefix.encode() + id_
    member: Any = id_
    with shard.client.pipeline() as pipe:
        pipe.type(key)
        pipe.zscore(keys.index, member)
        pipe.hget(keys.quarantine, member)
        pipe.hgetall(key)
        *replies, row = pipe.execute(raise_on_error=False)
    is_hash = replies[0] in (b"hash", b"none")
    for reply in (*replies, *[row] * is_hash):
        if isinstance(reply, RedisError):
            raise reply
    kind, score, entry = replies
    if (kind, score, entry) == (b"none", None, None):
        return None
    if is_hash:
        fields = {decode(name): decode(value) for name, value in row.items()}
    else:
        fields = {"type": f"{decode(kind)} where a hash belongs"}
    return {
        "fields": fields,
        "event": _event(shard, id_, fields.get("expired_at")),
        "expires_at": None if score is None else unix_ms(score, shard.settings.unit_ms),
        "quarantine": None if entry is None else decode(entry),
        "advice": None if entry is None else ADVICE.get(read_entry(entry)["reason"]),
    }


def _event(shard: Shard, id_: bytes, expired_at: str | None) -> dict[str, int | str]:
    around = integer(expired_at, least=0)
    if around is None:
        return {}
    events: Any = shard.client.xrange(shard.keys.events, max(around - _EVENT_MS, 0), around + _EVENT_MS, _MOST)
    for entry in events:
        if entry[1].get(b"reservation_id") == id_:
            event_id, fields = read_event(entry)
            own = {"id": event_id}  # a name that a stranger's field may have, too
            return own | fields | own
    return {}
