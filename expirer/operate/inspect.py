"""Looks at single reservations: which are due next, and everything that is known of one."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from redis import Redis

from expirer.config.durations import to_ms
from expirer.config.settings import Settings
from expirer.contract.clock import unix_ms
from expirer.contract.keys import ShardKeys, shard_of
from expirer.contract.reasons import ADVICE, parsed
from expirer.contract.text import readable
from expirer.operate.server import redis_or_say, server_now
from expirer.operate.terminal import shown, shown_time

_SLICE = 100
_MOST = 10_000
"""Entries of a shard that are looked at; more would be a scan."""
_EVENT_MS = 1000
"""An event is written in the moment of the expiry, which the server may round."""


def pending(
    settings: Settings, product_id: str | None, due_within: timedelta | None, limit: int, *, as_json: bool
) -> int:
    """Print the Active reservations that fall due next, the soonest of each shard first. Return the exit code."""
    with redis_or_say(settings) as servers:
        latest = None if due_within is None else server_now(servers.shards[0].client, settings) + to_ms(due_within)
        found = 0
        for shard in servers.shards:
            number, client, keys = shard.number, shard.client, shard.keys
            if product_id is not None and shard_of(product_id, settings.shards) != number:
                continue
            for row in _rows(client, settings, keys, product_id, latest):
                if found == limit:
                    return 0
                found += 1
                if as_json:
                    sys.stdout.write(json.dumps({"shard": number, **row}) + "\n")
                else:
                    what = f"{row['quantity']} of {row['product_id']}, due {shown_time(row['expires_at'])}"
                    sys.stdout.write(f"{row['reservation_id']}  {what}\n")
        if not found and not as_json:
            sys.stdout.write(f"none among the next {_MOST:,} of each shard\n")
        return 0
    return 1


def show(settings: Settings, reservation_id: str, *, as_json: bool) -> int:
    """Print everything that is known of a reservation; return 1 where nothing is."""
    with redis_or_say(settings) as servers:
        for shard in servers.shards:
            number, client, keys = shard.number, shard.client, shard.keys
            known = _known(client, settings, keys, reservation_id.encode(errors="surrogateescape"))
            if known is None:
                continue
            if as_json:
                sys.stdout.write(json.dumps({"shard": number, **known}) + "\n")
            else:
                sys.stdout.writelines(f"{line}\n" for line in _lines(number, keys, reservation_id, known))
            return 0
        sys.stderr.write(f"expirer: {shown(reservation_id)}: no reservation, index entry or quarantine entry\n")
    return 1


def _lines(number: int, keys: ShardKeys, reservation_id: str, known: dict[str, Any]) -> Iterator[str]:
    yield f"shard {number}, {shown(keys.reservation_prefix + reservation_id)}"
    for part in ("fields", "event"):
        yield from (f"  {part}: {name} {value}" for name, value in known[part].items())
    due = known["expires_at"]
    yield f"  index: {'not in it' if due is None else f'due {shown_time(due)}'}"
    yield f"  quarantine: {known['quarantine'] or 'not in it'}"
    if known["advice"]:
        yield f"  advice: {known['advice']}"


def _rows(
    client: Redis, settings: Settings, keys: ShardKeys, product_id: str | None, latest: int | None
) -> Iterator[dict[str, Any]]:
    for start in range(0, _MOST, _SLICE):
        entries: Any = client.zrange(keys.index, start, start + _SLICE - 1, withscores=True)
        with client.pipeline(transaction=False) as pipe:
            for id_, _ in entries:
                key: Any = keys.reservation_prefix.encode() + id_
                pipe.hmget(key, [settings.field_product_id, settings.field_quantity])
            fields = pipe.execute(raise_on_error=False)
        for (id_, score), row in zip(entries, fields, strict=True):
            expires_at = unix_ms(score, settings.unit_ms)
            if latest is not None and expires_at >= latest:
                return
            product, quantity = (None, None) if isinstance(row, Exception) else row
            if product_id is None or product == product_id.encode(errors="surrogateescape"):
                yield {
                    "reservation_id": _text(id_),
                    "product_id": _text(product or b"?"),
                    "quantity": _text(quantity or b"?"),
                    "expires_at": expires_at,
                }
        if len(entries) < _SLICE:
            return


def _known(client: Redis, settings: Settings, keys: ShardKeys, id_: bytes) -> dict[str, Any] | None:
    key: Any = keys.reservation_prefix.encode() + id_
    member: Any = id_
    kind: Any = client.type(key)
    row: Any = client.hgetall(key) if kind == b"hash" else {}
    score = client.zscore(keys.index, member)
    entry: Any = client.hget(keys.quarantine, member)
    if kind == b"none" and score is None and entry is None:
        return None
    fields = {_text(name): _text(value) for name, value in row.items()}
    if kind not in (b"hash", b"none"):
        fields = {"type": f"{_text(kind)} where a hash belongs"}
    return {
        "fields": fields,
        "event": _event(client, keys, id_, fields.get("expired_at", "")),
        "expires_at": None if score is None else unix_ms(score, settings.unit_ms),
        "quarantine": None if entry is None else _text(entry),
        "advice": None if entry is None else ADVICE.get(parsed(entry)["reason"]),
    }


def _event(client: Redis, keys: ShardKeys, id_: bytes, expired_at: str) -> dict[str, str]:
    if not expired_at.isdigit():
        return {}
    around = int(expired_at)
    events: Any = client.xrange(keys.events, max(around - _EVENT_MS, 0), around + _EVENT_MS, _MOST)
    for event_id, fields in events:
        if fields.get(b"reservation_id") == id_:
            return {"id": _text(event_id), **{_text(name): _text(value) for name, value in fields.items()}}
    return {}


def _text(value: bytes) -> str:
    return shown(readable(value))
