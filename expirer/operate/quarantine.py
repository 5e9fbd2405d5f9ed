"""Repairs what could not be expired: puts it back into the index, releases its units, or gives up on it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from expirer.config.durations import to_ms
from expirer.config.settings import ConfigurationError, Settings
from expirer.connection.connect import Servers
from expirer.contract import scripts
from expirer.contract.clock import unix_ms, worker_clock
from expirer.contract.numbers import integer
from expirer.contract.reasons import read_entry
from expirer.contract.shard import Shard
from expirer.contract.text import decode, encode, printable
from expirer.operate.inspect import show as show_reservation
from expirer.operate.terminal import confirms, format_time, reporting_errors, who, write_json
from expirer.worker.logs import build_logger

_SLICE = 100
_REFUSALS = {
    "not_found": "it is not in quarantine",
    "ended": "it is {status}, so it holds no units: drop the entry",
    "different": "its reservation is of another product than --product says",
    "record_gone": "there is no such reservation any more: it may have been sold, and then it holds no units. Drop the"
    " entry, and let expirer audit --repair recount; only if it was reservation_missing from the start does --force"
    " release its units",
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
        for shard, id_, known in _entries(servers.shards, reason):
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
        if any(_is_quarantined(shard, encode(reservation_id)) for shard in servers.shards):
            return show_reservation(settings, reservation_id, as_json=as_json)
        sys.stderr.write(f"expirer: {printable(reservation_id)}: {_REFUSALS['not_found']}\n")
    return 1


def requeue(settings: Settings, ids: list[str], reason: str | None, *, is_all: bool) -> int:
    """Put entries back into the index, where the next tick judges them again; return 1 if one could not be."""
    if bool(ids) + bool(reason) + is_all != 1:
        raise ConfigurationError(["quarantine requeue takes ids, or --reason, or --all"])
    with reporting_errors(settings) as servers:
        quarantine = Quarantine(servers, settings)
        found = ((shard, id_) for shard, id_, _ in _entries(servers.shards, reason))
        for shard, id_ in quarantine.find(ids) if ids else found:
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
        for shard, id_ in quarantine.find([reservation_id]):
            quarantine.release(shard, id_, quantity, encode(product_id or ""), is_forced=is_forced)
        return quarantine.report()
    return 1


def drop(settings: Settings, ids: list[str], *, is_sure: bool) -> int:
    """Remove entries without changing any counter; return 1 if one is not there."""
    with reporting_errors(settings) as servers:
        if not is_sure and not confirms(f"Remove {len(ids):,} entries from the quarantine? No counter changes."):
            sys.stderr.write("expirer: see expirer quarantine list, then repeat this with --yes\n")
            return 1
        quarantine = Quarantine(servers, settings)
        for shard, id_ in quarantine.find(ids):
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

    def find(self, ids: Iterable[str]) -> Iterator[tuple[Shard, bytes]]:
        """Yield each id with the shard whose quarantine or index has it; refuse the ids that no shard has."""
        for id_ in map(encode, ids):
            quarantined = (shard for shard in self._shards if _is_quarantined(shard, id_))
            indexed = (shard for shard in self._shards if _is_indexed(shard, id_))
            shard = next(chain(quarantined, indexed), None)
            if shard is None:
                self._refuse(id_, _REFUSALS["not_found"])
            else:
                yield shard, id_

    def requeue(self, shard: Shard, id_: bytes) -> None:
        """Put an entry back into the index."""
        keys = shard.keys
        names = [keys.index, keys.reservation_prefix.encode() + id_, keys.quarantine, keys.operations]
        code, score = _call(shard, "requeue", names, [id_, self._settings.field_expires_at, self._by])
        if code in _REFUSALS:
            self._refuse(id_, _REFUSALS[code])
            return
        self._done[code] += 1
        if code == "requeued":
            expires_at = unix_ms(float(score), self._settings.unit_ms)
            self._log.info("reservation_requeued", reservation_id=decode(id_), expires_at=expires_at, by=self._by)

    def release(self, shard: Shard, id_: bytes, quantity: int, product: bytes, *, is_forced: bool = False) -> None:
        """Release units of an entry; 0: remove it, and change no counter."""
        client: Any = shard.client
        keys, settings = shard.keys, self._settings
        key = keys.reservation_prefix.encode() + id_
        kind = client.type(key)
        if not product and kind == b"hash":
            product = client.hget(key, settings.field_product_id) or b""
        if quantity and not product and (kind != b"none" or is_forced):
            self._refuse(id_, "its reservation names no product: say which with --product")
            return
        names = [keys.index, key, keys.stock_prefix.encode() + product, keys.quarantine, keys.events, keys.operations]
        arguments = [
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
        ]
        code, status, available, reserved = _call(shard, "resolve", names, arguments)
        log = self._log.bind(reservation_id=decode(id_), product_id=decode(product))
        if code == "released":
            counters = {"available": integer(available), "reserved": integer(reserved)}
            known = {name: value for name, value in counters.items() if value is not None}
            log.warning("reservation_released", quantity=quantity, **known, by=self._by)
        elif code == "dropped":
            log.warning("reservation_dropped", by=self._by)
        else:
            self._refuse(id_, _REFUSALS.get(code, code).format(status=status))
            return
        self._done[code] += 1

    def report(self) -> int:
        """Wake the workers if something was requeued, and print what was done in numbers; return the exit code."""
        if self._done["requeued"]:
            for shard in self._shards:
                shard.client.publish(shard.keys.wake, "1")
        counts = ", ".join(f"{count:,} {name}" for name, count in self._done.items() if count)
        sys.stdout.write(f"{counts or 'nothing to do'}\n")
        return 1 if self._done["refused"] else 0

    def _refuse(self, id_: bytes, why: str) -> None:
        sys.stderr.write(f"expirer: {printable(f'{decode(id_)}: {why}')}\n")
        self._done["refused"] += 1


def _call(shard: Shard, script: str, keys: list[Any], arguments: list[Any]) -> list[str]:
    reply: Any = shard.client.register_script(scripts.load(script).text)(keys, arguments)
    return [decode(value) for value in reply]


def _is_quarantined(shard: Shard, id_: bytes) -> bool:
    client: Any = shard.client
    return bool(client.hexists(shard.keys.quarantine, id_))


def _is_indexed(shard: Shard, id_: bytes) -> bool:
    client: Any = shard.client
    return client.zscore(shard.keys.index, id_) is not None


def _entries(shards: Iterable[Shard], reason: str | None) -> Iterator[tuple[Shard, bytes, dict[str, Any]]]:
    """Yield (shard, reservation id, entry) of every entry, or of those with one reason."""
    for shard in shards:
        client: Any = shard.client
        for id_, value in client.hscan_iter(shard.keys.quarantine, count=_SLICE):
            entry = read_entry(value)
            if reason in (None, entry["reason"]):
                yield shard, id_, entry
