"""Says before a deployment whether this Redis, its permissions and this layout will serve."""

from __future__ import annotations

import secrets
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from time import perf_counter
from typing import Any

from redis import Redis
from redis.exceptions import ResponseError

from expirer.config.settings import Settings
from expirer.connection.connect import Servers
from expirer.connection.errors import GRANT, location, message, redact, remedy
from expirer.connection.server_checks import Check, checks
from expirer.contract import control, scripts
from expirer.contract.clock import worker_clock
from expirer.contract.keys import ShardKeys
from expirer.contract.shard import Shard
from expirer.contract.text import decode, printable
from expirer.operate import inventory_checks
from expirer.operate.scratch import Scratch
from expirer.operate.terminal import reporting_errors, write_json
from expirer.worker.expiry import Expiry

_LARGEST_SKEW_MS = 1000
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


def check(settings: Settings, *, as_json: bool) -> int:
    """Print a line on each thing that matters; return 1 if one is a failure."""
    with reporting_errors(settings) as servers:
        levels: Counter[str] = Counter()
        for one in _all(servers, settings):
            levels[one.level] += 1
            finding = printable(redact(one.finding, settings))
            if as_json:
                write_json(asdict(replace(one, finding=finding)))
                continue
            advice = f"; {printable(one.remedy)}" if one.remedy else ""
            sys.stdout.write(f"{one.level:<9}{one.what}: {finding}{advice}\n")
        return 1 if levels["failure"] else 0
    return 1


def _all(servers: Servers, settings: Settings) -> Iterator[Check]:
    own = (_connection, _server, _keys, _slots, _rights, _channels)
    for step in (*own, inventory_checks.workers, inventory_checks.index, inventory_checks.layout):
        what = step.__name__.removeprefix("_")
        try:
            yield from step(servers, settings)
        except ResponseError as error:
            is_type = str(error).startswith("WRONGTYPE")
            advice = "see the line on the keys" if is_type else remedy(error, settings) or GRANT
            yield Check("failure", what, message(error, settings), advice)


def _connection(servers: Servers, settings: Settings) -> Iterator[Check]:
    shard = servers.shards[0]
    shard.client.exists(shard.keys.control)
    began_at = perf_counter()
    shard.client.exists(shard.keys.control)
    took_ms = 1000 * (perf_counter() - began_at)
    yield Check("ok", "connection", f"{location(settings)}, {took_ms:.1f} ms there and back")


def _server(servers: Servers, settings: Settings) -> Iterator[Check]:
    for address, client in servers.each().items():
        for one in _about_server(client, settings):
            yield replace(one, finding=f"{address}: {one.finding}") if address else one


def _about_server(client: Redis, settings: Settings) -> Iterator[Check]:
    try:
        info: Any = client.info()
    except ResponseError:
        yield Check("ok", "server", "it hides INFO: version, role, memory and persistence are unknown")
    else:
        yield from checks(info, settings)
        if "aof_enabled" in info:
            yield _persistence(client, info)
    yield _clock(client, settings)


def _persistence(client: Redis, info: dict[str, Any]) -> Check:
    for status in ("aof_last_write_status", "rdb_last_bgsave_status"):
        if info.get(status, "ok") != "ok":
            return Check("warning", "persistence", f"{status} is {info[status]}", "see the server's log and its disk")
    if info["aof_enabled"]:
        return Check("ok", "persistence", "append-only file")
    try:
        saves: Any = client.config_get("save")
    except ResponseError:
        return Check("ok", "persistence", "no append-only file; it hides whether there are snapshots")
    if any(saves.values()):
        return Check("ok", "persistence", "snapshots: a crash loses what came after the last one")
    return Check("warning", "persistence", "none", "a restart loses every reservation: set appendonly yes")


def _clock(client: Redis, settings: Settings) -> Check:
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


def _keys(servers: Servers, _settings: Settings) -> Iterator[Check]:
    findings = [finding for shard in servers.shards for finding in wrong_types(shard.client, shard.keys)]
    advice = "something else uses that name: check the address, EXPIRER_NAMESPACE and EXPIRER_…_KEY"
    yield from (Check("failure", "keys", finding, advice) for finding in findings)
    if not findings:
        yield Check("ok", "keys", "each is free, or of its type")


def wrong_types(client: Redis, keys: ShardKeys, wanted: Iterable[str] = tuple(_TYPES)) -> Iterator[str]:
    """Yield what the keys of a shard hold that belongs to something else."""
    names = [(getattr(keys, name), _TYPES[name]) for name in wanted]
    with client.pipeline(transaction=False) as pipe:
        for name, _ in names:
            pipe.type(name)
        types = pipe.execute()
    for (name, type_), found in zip(names, map(decode, types), strict=True):
        if found not in (type_, "none"):
            yield f"{name} holds a {found} where a {type_} belongs"


def _slots(servers: Servers, _settings: Settings) -> Iterator[Check]:
    served = Counter(servers.addresses())
    if served:  # in a Cluster
        each = ", ".join(f"{count:,} on {address}" for address, count in served.most_common())
        yield Check("ok", "slots", f"all keys of a shard share one; shards: {each}")


def _rights(servers: Servers, _settings: Settings) -> Iterator[Check]:
    """Expire one reservation of our own on each shard, in a transaction that also removes it: nobody sees it."""
    for client in servers.each().values():
        client.script_load(scripts.load("expire").text)
    for shard in servers.shards:
        prefix = f"{shard.keys.control.removesuffix('control')}check:{secrets.token_hex(4)}:"
        own = replace(shard, keys=replace(shard.keys, **{name: prefix + name for name in _OF_THE_SCRIPT}))
        scratch = Scratch("check", own)
        is_plain = _is_plain(shard)
        with shard.client.pipeline() as transaction:
            pipe: Any = transaction
            pipe.watch(shard.keys.control)
            pipe.hmget(shard.keys.control, *control.FIELDS)
            pipe.multi()
            pipe.hdel(shard.keys.control, prefix)  # it is not there: this tries the right, and changes nothing
            scratch.write(pipe, 1, is_plain=is_plain)
            written = len(pipe.command_stack)
            pipe.execute_command(*Expiry(own, "check").command(1))
            scratch.remove(pipe)
            for name in _OF_THE_SCRIPT:
                pipe.pexpire(getattr(own.keys, name), 0)
            reply = pipe.execute(raise_on_error=False)[written]
        if isinstance(reply, ResponseError):
            raise reply
        if reply[3][:1] != [scratch.id.encode()]:
            finding = f"expire.lua answered {reply!r}"
            yield Check("failure", "rights", finding, "this server runs scripts otherwise than Redis does")
            return
    yield Check("ok", "rights", "expire.lua works on keys of its own, which are removed again")


def _is_plain(shard: Shard) -> bool:
    """Say whether the product that is due next has a plain counter as its stock."""
    client: Any = shard.client
    for id_ in client.zrange(shard.keys.index, 0, 0):
        key = shard.keys.reservation_prefix.encode() + id_
        if client.type(key) == b"hash":
            product_id = client.hmget(key, [shard.settings.field_product_id])[0] or b""
            return bool(client.type(shard.keys.stock_prefix.encode() + product_id) == b"string")
    return False


def _channels(servers: Servers, _settings: Settings) -> Iterator[Check]:
    names = [name for shard in servers.shards for name in (shard.keys.wake, shard.keys.ticks)]
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
