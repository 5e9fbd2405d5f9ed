"""Says before a deployment whether this Redis, these rights and this layout will serve."""

from __future__ import annotations

import json
import secrets
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, astuple, replace
from time import perf_counter
from typing import Any

from redis import Redis
from redis.crc import key_slot
from redis.exceptions import ResponseError

from expirer.config.environment import variable
from expirer.config.settings import Settings
from expirer.connection.connect import Servers
from expirer.connection.errors import GRANT, location, message, redact, remedy
from expirer.connection.server_checks import Check, checks
from expirer.contract import control, scripts
from expirer.contract.clock import worker_clock
from expirer.contract.keys import ShardKeys, shard_keys
from expirer.contract.text import readable
from expirer.operate.scratch import Scratch
from expirer.operate.server import redis_or_say
from expirer.operate.terminal import shown
from expirer.worker.expiry import Expiry

_LARGEST_SKEW_MS = 1000
_SAMPLE = 100
_FAR_FUTURE = 8_000_000_000_000_000
"""Unix ms by which everything is due, and below 2**53."""
_TYPES = {
    "index": "zset",
    "events": "stream",
    "quarantine": "hash",
    "control": "hash",
    "stats": "hash",
    "workers": "zset",
    "about": "hash",
    "operations": "stream",
}
_OF_THE_SCRIPT = ("index", "events", "quarantine", "stats", "workers", "about")
_UNSEEN = ("field_order_id", "field_status", "field_expires_at")
"""Fields under a wrong name that no outcome tells of: their absence is legal."""

_Step = Callable[[Servers, Settings, Sequence[ShardKeys]], Iterator[Check]]


def check(settings: Settings, *, as_json: bool) -> int:
    """Print a line on each thing that matters; return 1 where one is a failure."""
    with redis_or_say(settings) as servers:
        levels: Counter[str] = Counter()
        for remark in _remarks(servers, settings):
            levels[remark.level] += 1
            finding = shown(redact(remark.finding, settings))
            if as_json:
                line = json.dumps({**asdict(remark), "finding": finding})
            else:
                advice = f"; {shown(remark.remedy)}" if remark.remedy else ""
                line = f"{remark.level:<9}{remark.what}: {finding}{advice}"
            sys.stdout.write(f"{line}\n")
        return 1 if levels["failure"] else 0
    return 1


def _remarks(servers: Servers, settings: Settings) -> Iterator[Check]:
    steps: dict[str, _Step] = {
        "connection": _connection,
        "server": _server,
        "clock": _clock,
        "keys": _keys,
        "slots": _slots,
        "rights": _rights,
        "channels": _channels,
        "layout": _layout,
    }
    shards = shard_keys(settings)
    for what, step in steps.items():
        try:
            yield from step(servers, settings, shards)
        except ResponseError as error:
            yield Check("failure", what, message(error, settings), _remedy(error, settings))


def _remedy(error: ResponseError, settings: Settings) -> str:
    if str(error).startswith("WRONGTYPE"):
        return "mend what the line on the keys says"
    return remedy(error, settings) or GRANT


def _connection(servers: Servers, settings: Settings, shards: Sequence[ShardKeys]) -> Iterator[Check]:
    client = servers.shards[0].client
    client.exists(shards[0].control)
    began_at = perf_counter()
    client.exists(shards[0].control)
    took_ms = 1000 * (perf_counter() - began_at)
    yield Check("ok", "connection", f"{location(settings)}, {took_ms:.1f} ms there and back")


def _server(servers: Servers, settings: Settings, _shards: Sequence[ShardKeys]) -> Iterator[Check]:
    for address, client in servers.each().items():
        yield from (_at(address, remark) for remark in _about_server(client, settings))


def _at(address: str, remark: Check) -> Check:
    """Name the server where there are several."""
    return replace(remark, finding=f"{address}: {remark.finding}") if address else remark


def _about_server(client: Redis, settings: Settings) -> Iterator[Check]:
    try:
        info: Any = client.info()
    except ResponseError:
        yield Check("ok", "server", "it hides INFO, so version, role, memory and persistence were not looked at")
        return
    yield from checks(info, settings)
    if "aof_enabled" in info:
        yield _persistence(client, info)


def _persistence(client: Redis, info: dict[str, Any]) -> Check:
    for status in ("aof_last_write_status", "rdb_last_bgsave_status"):
        if info.get(status, "ok") != "ok":
            return Check("warning", "persistence", f"{status} is {info[status]}", "see the server's log and its disk")
    if info["aof_enabled"]:
        return Check("ok", "persistence", "append-only file")
    try:
        saves: Any = client.config_get("save")
    except ResponseError:
        return Check("ok", "persistence", "no append-only file; whether there are snapshots, it hides")
    if any(saves.values()):
        return Check("ok", "persistence", "snapshots: a crash forgets what came after the last one")
    return Check("warning", "persistence", "none", "a restart forgets every reservation: set appendonly yes")


def _clock(servers: Servers, settings: Settings, _shards: Sequence[ShardKeys]) -> Iterator[Check]:
    for address, client in servers.each().items():
        yield _at(address, _about_clock(client, settings))


def _about_clock(client: Redis, settings: Settings) -> Check:
    before = worker_clock()
    try:
        seconds, microseconds = client.time()
    except ResponseError as error:
        if settings.clock == "worker":
            return Check("ok", "clock", "this machine's, as EXPIRER_CLOCK says; the server hides its own")
        return Check("failure", "clock", str(error), "grant TIME, or set EXPIRER_CLOCK=worker")
    skew_ms = round(seconds * 1000 + microseconds / 1000 - (before + worker_clock()) / 2)
    finding = f"the server is {abs(skew_ms):,} ms {'ahead of' if skew_ms >= 0 else 'behind'} this machine"
    if abs(skew_ms) <= _LARGEST_SKEW_MS:
        return Check("ok", "clock", finding)
    if settings.clock == "worker":
        return Check("failure", "clock", finding, "EXPIRER_CLOCK=worker expires by this machine: synchronise both")
    return Check("warning", "clock", finding, "reservations expire by the server: synchronise the one that is wrong")


def _keys(servers: Servers, _settings: Settings, shards: Sequence[ShardKeys]) -> Iterator[Check]:
    wrong = False
    for finding in wrong_types(((shard.client, shard.keys) for shard in servers.shards)):
        wrong = True
        advice = "something else uses that name: look at the address, at EXPIRER_NAMESPACE and EXPIRER_…_KEY"
        yield Check("failure", "keys", finding, advice)
    if not wrong:
        yield Check("ok", "keys", "each is free, or of its type")


def wrong_types(shards: Iterable[tuple[Redis, ShardKeys]], wanted: Iterable[str] = tuple(_TYPES)) -> Iterator[str]:
    """Yield what the keys hold that belong to something else."""
    for client, keys in shards:
        names = [(getattr(keys, name), _TYPES[name]) for name in wanted]
        with client.pipeline(transaction=False) as pipe:
            for name, _ in names:
                pipe.type(name)
            types = pipe.execute()
        for (name, type_), found in zip(names, map(readable, types), strict=True):
            if found not in (type_, "none"):
                yield f"{name} holds a {found} where a {type_} belongs"


def _slots(servers: Servers, _settings: Settings, shards: Sequence[ShardKeys]) -> Iterator[Check]:
    if servers.cluster is not None:
        served = Counter(servers.addresses())
        each = ", ".join(f"{count:,} on {address}" for address, count in served.most_common())
        yield Check("ok", "slots", f"all keys of a shard share one; shards: {each}")
    elif all(len({key_slot(name.encode()) for name in astuple(keys)}) == 1 for keys in shards):
        yield Check("ok", "slots", "all keys of a shard share one")
    else:
        yield Check("ok", "slots", "the keys of this layout do not share one, which only a Redis Cluster minds")


def _rights(servers: Servers, settings: Settings, shards: Sequence[ShardKeys]) -> Iterator[Check]:
    """Expire one reservation of our own on each shard, in a transaction that also removes it: nobody sees it."""
    for client in servers.each().values():
        client.script_load(scripts.load("expire").text)
    for number, (client, keys) in enumerate(((shard.client, shard.keys) for shard in servers.shards)):
        prefix = f"{keys.control.removesuffix('control')}check:{secrets.token_hex(4)}:"
        own = replace(keys, **{name: prefix + name for name in _OF_THE_SCRIPT})
        scratch = Scratch.of("check", settings, number, own)
        is_plain = _is_plain(client, settings, keys)
        with client.pipeline() as transaction:
            pipe: Any = transaction
            pipe.watch(keys.control)
            pipe.hmget(keys.control, *control.FIELDS)
            pipe.multi()
            pipe.hdel(keys.control, prefix)  # it is not there: this tries the right, and changes nothing
            scratch.write(pipe, 1, is_plain=is_plain)
            written = len(pipe.command_stack)
            pipe.execute_command(*Expiry(replace(servers.shards[number], keys=own), "check").command(1))
            scratch.remove(pipe)
            for name in _OF_THE_SCRIPT:
                pipe.pexpire(getattr(own, name), 0)
            reply = pipe.execute(raise_on_error=False)[written]
        if isinstance(reply, ResponseError):
            raise reply
        if reply[3][:1] != [scratch.reservation_id.encode()]:
            finding = f"expire.lua answered {reply!r}"
            yield Check("failure", "rights", finding, "this server runs scripts otherwise than Redis does")
            return
    yield Check("ok", "rights", "expire.lua works on keys of its own, which are removed again")


def _is_plain(client: Redis, settings: Settings, keys: ShardKeys) -> bool:
    """Say whether the product that is due next has a plain counter as its stock."""
    ids: Any = client.zrange(keys.index, 0, 0)
    for id_ in ids:
        reservation: Any = keys.reservation_prefix.encode() + id_
        if client.type(reservation) == b"hash":
            product_ids: Any = client.hmget(reservation, [settings.field_product_id])
            stock: Any = keys.stock_prefix.encode() + (product_ids[0] or b"")
            return client.type(stock) == b"string"
    return False


def _channels(servers: Servers, _settings: Settings, shards: Sequence[ShardKeys]) -> Iterator[Check]:
    names = [name for keys in shards for name in (keys.wake, keys.ticks)]
    client = servers.shards[0].client
    try:
        with client.pubsub() as pubsub:  # type: ignore[no-untyped-call]
            pubsub.subscribe(*names)
            for _ in names:
                pubsub.get_message(timeout=1)
        for name in names:
            client.publish(name, "1")
    except ResponseError as error:
        advice = "grant PUBLISH, SUBSCRIBE and the channels: without, a sooner reservation waits for the interval"
        yield Check("warning", "channels", str(error), advice)
        return
    yield Check("ok", "channels", "it may publish and subscribe")


def _layout(servers: Servers, settings: Settings, shards: Sequence[ShardKeys]) -> Iterator[Check]:
    """Ask expire.lua, with its writes off, what would become of the next reservations if they were due."""
    reasons: Counter[str] = Counter()
    examples: dict[str, str] = {}
    present: set[str] = set()
    active = looked_at = 0
    sampled = settings.model_copy(update={"batch_size": _SAMPLE})
    for shard in servers.shards:
        client, keys = shard.client, shard.keys
        batch = Expiry(replace(shard, settings=sampled), "check", lambda: float(_FAR_FUTURE)).preview()
        looked_at += batch.due
        for id_, reason in batch.quarantined():
            reasons[reason] += 1
            examples.setdefault(reason, id_)
        ids = [reservation.reservation_id for reservation in batch.expired()]
        active += len(ids)
        present |= _fields(client, settings, keys, ids)
    if not looked_at:
        finding = (
            "no reservation is there to try it on; if the shop has some, it writes other keys than the settings name"
        )
        yield Check("ok", "layout", finding)
        return
    if reasons:
        each = ", ".join(f"{count:,} {reason} ({examples[reason]})" for reason, count in reasons.most_common())
        finding = f"of the next {looked_at:,} reservations {reasons.total():,} would be quarantined: {each}"
        if reasons.total() == looked_at:
            advice = "the names do not fit: look at the prefixes and at EXPIRER_FIELD_…"
            yield Check("failure", "layout", finding, advice)
        else:
            yield Check("warning", "layout", finding, "look at them with expirer show, and run expirer audit")
    else:
        yield Check("ok", "layout", f"the next {looked_at:,} reservations fit it")
    for name in _UNSEEN:
        field = getattr(settings, name)
        if field and active and field not in present:
            finding = f"none of the next {active:,} Active reservations has a field {field}"
            advice = f"fine where your inventory has none; else name it in {variable(name)}"
            yield Check("warning", "fields", finding, advice)


def _fields(client: Redis, settings: Settings, keys: ShardKeys, ids: list[str]) -> set[str]:
    """Return which of the fields are there in at least one of the reservations."""
    names = [name for name in (getattr(settings, unseen) for unseen in _UNSEEN) if name]
    if not names:
        return set()
    with client.pipeline(transaction=False) as pipe:
        for id_ in ids:
            pipe.hmget(keys.reservation_prefix + id_, names)
        rows = pipe.execute(raise_on_error=False)
    return {name for row in rows if isinstance(row, list) for name, value in zip(names, row, strict=True) if value}
