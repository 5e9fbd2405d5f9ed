"""Repairs what could not be expired: puts it back into the index, releases its units, or gives up on it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from expirer.config.durations import to_ms
from expirer.config.settings import ConfigurationError, Settings
from expirer.connection.connect import Servers
from expirer.contract import scripts
from expirer.contract.clock import unix_ms, worker_clock
from expirer.contract.numbers import integer
from expirer.contract.reasons import parsed
from expirer.contract.shard import Shard
from expirer.contract.text import decode, encode, printable
from expirer.operate.inspect import show as show_reservation
from expirer.operate.output import write_json
from expirer.operate.server import reporting_errors
from expirer.operate.terminal import confirms, format_time, who
from expirer.worker.logs import build_logger

_SLICE = 100
_OUTCOMES = ("requeued", "released", "dropped", "unchanged", "refused")
_GONE = (
    "there is no such reservation any more: it may have been sold, and then it holds no units. Drop the entry, and let"
    " expirer audit --repair recount; only if it was reservation_missing from the start does --force release its units"
)
_REFUSALS = {
    "not_found": "it is not in quarantine",
    "ended": "it is {status}, so it holds no units: drop the entry",
    "different": "its reservation is of another product than --product says",
    "record_gone": _GONE,
    "score_unknown": "nothing says when it is due: set its expires_at, then repeat this",
    "stock_missing": "stock_missing: there is no such product",
    "reserved_too_small": "reserved_too_small: fewer units are reserved than that; recount with expirer audit",
}
"""What the codes of the scripts mean; the others speak for themselves."""


def list_(settings: Settings, reason: str | None, *, as_json: bool) -> int:
    """Print every quarantine entry, and how many there are of each reason; return the exit code."""
    with reporting_errors(settings) as servers:
        reasons: Counter[str] = Counter()
        waiting = 0
        for shard, id_, entry in _entries(servers.shards, reason):
            known = parsed(entry)
            reasons[known["reason"]] += 1
            waiting += known["retry"] is not None
            if as_json:
                write_json({"shard": shard.number, "reservation_id": id_, **known})
                continue
            since = "" if known["at"] is None else f" since {format_time(known['at'])}"
            waits = "" if known["retry"] is None else ", waiting, tried again"
            sys.stdout.write(printable(f"{decode(id_)}  {known['reason']}{since}{waits}") + "\n")
        if not as_json:
            each = ", ".join(f"{count:,} {printable(name)}" for name, count in reasons.most_common())
            waits = f"; {waiting:,} waiting, tried again" if waiting else ""
            sys.stdout.write(f"{reasons.total():,} in quarantine{': ' * bool(each)}{each}{waits}\n")
        return 0
    return 1


def show(settings: Settings, reservation_id: str, *, as_json: bool) -> int:
    """Print everything that is known of an entry, and what to do; return 1 if it is not in quarantine."""
    with reporting_errors(settings) as servers:
        if any(_has(shard, encode(reservation_id)) for shard in servers.shards):
            return show_reservation(settings, reservation_id, as_json=as_json)
        sys.stderr.write(f"expirer: {printable(reservation_id)}: it is not in quarantine\n")
    return 1


def requeue(settings: Settings, ids: list[str], reason: str | None, *, is_all: bool) -> int:
    """Put entries back into the index, where the next tick judges them again; return 1 if one could not be."""
    if bool(ids) + bool(reason) + is_all != 1:
        raise ConfigurationError(["quarantine requeue takes ids, or --reason, or --all"])
    with reporting_errors(settings) as servers:
        quarantine = Quarantine(servers, settings)
        wanted = map(quarantine.find, ids) if ids else ((one, id_) for one, id_, _ in _entries(servers.shards, reason))
        for shard, id_ in wanted:
            quarantine.requeue(shard, id_)
        return quarantine.report()
    return 1


def release(
    settings: Settings, reservation_id: str, quantity: int, product_id: str | None, *, is_forced: bool = False
) -> int:
    """Release the stated number of units of one entry; return 1 if that is refused, and nothing was changed."""
    if quantity < 1:
        raise ConfigurationError([f"--quantity {quantity}: an entry holds at least one unit; to release none, drop it"])
    with reporting_errors(settings) as servers:
        quarantine = Quarantine(servers, settings)
        product = encode(product_id or "")
        quarantine.release(*quarantine.find(reservation_id), quantity, product, is_forced=is_forced)
        return quarantine.report()
    return 1


def drop(settings: Settings, ids: list[str], *, is_sure: bool, answers: TextIO | None = None) -> int:
    """Remove entries without changing any counter; return 1 if one is not there."""
    with reporting_errors(settings) as servers:
        question = f"Remove {len(ids):,} entries from the quarantine? No counter changes."
        if not is_sure and not confirms(question, answers):
            sys.stderr.write("expirer: see expirer quarantine list, then repeat this with --yes\n")
            return 1
        quarantine = Quarantine(servers, settings)
        for shard, id_ in map(quarantine.find, ids):
            quarantine.release(shard, id_, 0, b"")
        return quarantine.report()
    return 1


class Quarantine:
    """The quarantines of all shards: each entry is repaired by one script, and what was done is logged and counted."""

    def __init__(self, servers: Servers, settings: Settings) -> None:
        self._shards = servers.shards
        self._settings = settings
        self._log = build_logger(settings)
        self._by = who()
        self._done: Counter[str] = Counter()
        self._to_wake: dict[int, Shard] = {}

    def find(self, reservation_id: str) -> tuple[Shard | None, bytes]:
        """Return the shard whose quarantine has the id, or whose index has it; None: neither."""
        id_ = encode(reservation_id)
        for has in (_has, _has_indexed):
            for shard in self._shards:
                if has(shard, id_):
                    return shard, id_
        return None, id_

    def requeue(self, shard: Shard | None, id_: bytes) -> None:
        """Put an entry back into the index."""
        if shard is None:
            return self._refuse(id_, "it is neither in quarantine nor in the index")
        keys = shard.keys
        names = [keys.index, keys.reservation_prefix.encode() + id_, keys.quarantine, keys.operations]
        code, score = _call(shard, "requeue", names, [id_, self._settings.field_expires_at, self._by])
        if code in _REFUSALS:
            return self._refuse(id_, _REFUSALS[code])
        self._done[code] += 1
        if code == "requeued":
            self._to_wake[shard.number] = shard
            expires_at = unix_ms(float(score), self._settings.unit_ms)
            self._log.info("reservation_requeued", reservation_id=decode(id_), expires_at=expires_at, by=self._by)
        return None

    def release(
        self, shard: Shard | None, id_: bytes, quantity: int, product: bytes, *, is_forced: bool = False
    ) -> None:
        """Release units of an entry; 0: remove it, and change no counter."""
        if shard is None:
            return self._refuse(id_, _REFUSALS["not_found"])
        client: Any = shard.client
        keys, settings = shard.keys, self._settings
        key = keys.reservation_prefix.encode() + id_
        kind = client.type(key)
        if not product and kind == b"hash":
            product = client.hget(key, settings.field_product_id) or b""
        if quantity and not product and (kind != b"none" or is_forced):
            return self._refuse(id_, "its reservation names no product: say which with --product")
        stock = keys.stock_prefix.encode() + product
        code, status, available, reserved = _call(
            shard,
            "resolve",
            [keys.index, key, stock, keys.quarantine, keys.events, keys.operations],
            [
                id_,
                product,
                quantity,
                self._by,
                int(worker_clock()) if settings.clock == "worker" else "",
                -1 if settings.retention is None else to_ms(settings.retention),
                settings.events_maxlen,
                settings.field_order_id,
                settings.field_product_id,
                settings.field_status,
                settings.field_available,
                settings.field_reserved,
                settings.status_active,
                settings.status_expired,
                settings.unit_ms,
                int(is_forced),
            ],
        )
        log = self._log.bind(reservation_id=decode(id_), product_id=decode(product))
        if code == "released":
            counters = {"available": integer(available), "reserved": integer(reserved)}
            known = {name: value for name, value in counters.items() if value is not None}
            log.warning("reservation_released", quantity=quantity, **known, by=self._by)
        elif code == "dropped":
            log.warning("reservation_dropped", by=self._by)
        else:
            return self._refuse(id_, _REFUSALS.get(code, code).format(status=status))
        self._done[code] += 1
        return None

    def report(self) -> int:
        """Wake the workers of what was requeued, and print what was done in numbers; return the exit code."""
        for shard in self._to_wake.values():
            shard.client.publish(shard.keys.wake, "1")
        counts = ", ".join(f"{self._done[name]:,} {name}" for name in _OUTCOMES if self._done[name])
        sys.stdout.write(f"{counts or 'nothing to do'}\n")
        return 1 if self._done["refused"] else 0

    def _refuse(self, id_: bytes, why: str) -> None:
        sys.stderr.write(f"expirer: {printable(f'{decode(id_)}: {why}')}\n")
        self._done["refused"] += 1


def _call(shard: Shard, script: str, keys: list[Any], arguments: list[Any]) -> list[str]:
    reply: Any = shard.client.register_script(scripts.load(script).text)(keys, arguments)
    return [decode(value) for value in reply]


def _has(shard: Shard, id_: bytes) -> bool:
    client: Any = shard.client
    return bool(client.hexists(shard.keys.quarantine, id_))


def _has_indexed(shard: Shard, id_: bytes) -> bool:
    client: Any = shard.client
    return client.zscore(shard.keys.index, id_) is not None


def _entries(shards: Iterable[Shard], reason: str | None) -> Iterator[tuple[Shard, bytes, bytes]]:
    """Yield (shard, reservation id, entry) of every entry, or of those with one reason."""
    for shard in shards:
        client: Any = shard.client
        for id_, entry in client.hscan_iter(shard.keys.quarantine, count=_SLICE):
            if reason is None or parsed(entry)["reason"] == reason:
                yield shard, id_, entry
