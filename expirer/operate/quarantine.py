"""Mends what could not be expired: puts it back into the index, frees its units by hand, or gives up on it."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from redis import Redis
from structlog.typing import FilteringBoundLogger

from expirer.config.durations import to_ms
from expirer.config.settings import ConfigurationError, Settings
from expirer.connection.connect import Servers
from expirer.contract import scripts
from expirer.contract.clock import unix_ms, worker_clock
from expirer.contract.keys import ShardKeys
from expirer.contract.reasons import parsed
from expirer.contract.text import readable
from expirer.operate.inspect import show as show_reservation
from expirer.operate.server import redis_or_say
from expirer.operate.terminal import confirms, shown, shown_time, who
from expirer.worker.logs import build_logger

_SLICE = 100


def list_(settings: Settings, reason: str | None, *, as_json: bool) -> int:
    """Print every quarantine entry, and how many there are of each reason; return the exit code."""
    with redis_or_say(settings) as servers:
        reasons: Counter[str] = Counter()
        for shard in servers.shards:
            number, client, keys = shard.number, shard.client, shard.keys
            for id_, entry in _entries(client, keys, reason):
                known = parsed(entry)
                reasons[known["reason"]] += 1
                if as_json:
                    sys.stdout.write(json.dumps({"shard": number, "reservation_id": readable(id_), **known}) + "\n")
                else:
                    since = "" if known["at"] is None else f" since {shown_time(known['at'])}"
                    sys.stdout.write(f"{shown(readable(id_))}  {shown(known['reason'])}{since}\n")
        if not as_json:
            each = ", ".join(f"{count:,} {shown(name)}" for name, count in reasons.most_common())
            sys.stdout.write(f"{reasons.total():,} in quarantine{': ' * bool(each)}{each}\n")
        return 0
    return 1


def show(settings: Settings, reservation_id: str, *, as_json: bool) -> int:
    """Print everything that is known of an entry, and what to do; return 1 where it is not in quarantine."""
    with redis_or_say(settings) as servers:
        name: Any = reservation_id.encode(errors="surrogateescape")
        shards = ((shard.client, shard.keys) for shard in servers.shards)
        if any(client.hexists(keys.quarantine, name) for client, keys in shards):
            return show_reservation(settings, reservation_id, as_json=as_json)
        sys.stderr.write(f"expirer: {shown(reservation_id)}: it is not in quarantine\n")
    return 1


def requeue(settings: Settings, ids: list[str], reason: str | None, *, is_all: bool) -> int:
    """Put entries back into the index, where the next tick judges them anew; return 1 where one could not be."""
    if bool(ids) + bool(reason) + is_all != 1:
        raise ConfigurationError(["quarantine requeue takes ids, or --reason, or --all"])
    with redis_or_say(settings) as servers:
        desk = _Desk(servers, settings)
        wanted: Iterable[tuple[_Shard | None, bytes]] = map(desk.find, ids) if ids else desk.all(reason)
        for shard, id_ in wanted:
            desk.requeue(shard, id_)
        return desk.close()
    return 1


def release(settings: Settings, reservation_id: str, quantity: int, product_id: str | None) -> int:
    """Free units of one entry, as many as are stated; return 1 where that is refused, and nothing was changed."""
    if quantity < 1:
        raise ConfigurationError([f"--quantity {quantity}: an entry holds at least one unit; to free none, drop it"])
    with redis_or_say(settings) as servers:
        desk = _Desk(servers, settings)
        shard, id_ = desk.find(reservation_id)
        desk.settle(shard, id_, quantity, product_id)
        return desk.close()
    return 1


def drop(settings: Settings, ids: list[str], *, is_sure: bool, answers: TextIO | None = None) -> int:
    """Give up on entries: their units stay where they are counted now; return 1 where one is not there."""
    with redis_or_say(settings) as servers:
        question = f"Give up on {len(ids):,} quarantined reservations? No counter is touched."
        if not is_sure and not confirms(question, answers):
            sys.stderr.write("expirer: look with expirer quarantine list, then repeat this with --yes\n")
            return 1
        desk = _Desk(servers, settings)
        for shard, id_ in map(desk.find, ids):
            desk.settle(shard, id_, 0, None)
        return desk.close()
    return 1


_Shard = tuple[Redis, ShardKeys]


class _Desk:
    """Where entries are mended, each by one script; what was done is logged, counted and said at the end."""

    def __init__(self, servers: Servers, settings: Settings) -> None:
        self.done: Counter[str] = Counter()
        self._settings = settings
        self._shards: list[_Shard] = list((shard.client, shard.keys) for shard in servers.shards)
        self._log: FilteringBoundLogger = build_logger(settings)
        self._by = who()
        self._requeue = servers.shards[0].client.register_script(scripts.load("requeue").text)
        self._settle = servers.shards[0].client.register_script(scripts.load("resolve").text)
        self._requeued: dict[str, _Shard] = {}
        """By the channel on which their workers are told."""

    def find(self, reservation_id: str) -> tuple[_Shard | None, bytes]:
        """Return the shard whose quarantine has the id, or the one whose index has it; None: neither."""
        id_ = reservation_id.encode(errors="surrogateescape")
        name: Any = id_
        for client, keys in self._shards:
            if client.hexists(keys.quarantine, name):
                return (client, keys), id_
        for client, keys in self._shards:
            if client.zscore(keys.index, name) is not None:
                return (client, keys), id_
        return None, id_

    def all(self, reason: str | None) -> Iterator[tuple[_Shard, bytes]]:
        """Yield every entry, or those of one reason."""
        for client, keys in self._shards:
            for id_, _ in _entries(client, keys, reason):
                yield (client, keys), id_

    def requeue(self, shard: _Shard | None, id_: bytes) -> None:
        """Put an entry back into the index."""
        if shard is None:
            return self._refuse(id_, "it is neither in quarantine nor in the index")
        client, keys = shard
        code, score = self._call(
            client,
            self._requeue,
            [keys.index, keys.reservation_prefix.encode() + id_, keys.quarantine, keys.operations],
            [id_, self._settings.field_expires_at, self._by],
        )
        if code == "score_unknown":
            return self._refuse(id_, "nothing says when it is due: set its expires_at, then repeat this")
        self.done[code] += 1
        if code == "requeued":
            self._requeued[keys.wake] = shard
            expires_at = unix_ms(float(score), self._settings.unit_ms)
            self._log.info("reservation_requeued", reservation_id=readable(id_), expires_at=expires_at, by=self._by)
        return None

    def settle(self, shard: _Shard | None, id_: bytes, quantity: int, product_id: str | None) -> None:
        """Free units of an entry; 0 gives up on it."""
        if shard is None:
            return self._refuse(id_, "it is not in quarantine")
        client, keys = shard
        settings = self._settings
        key: Any = keys.reservation_prefix.encode() + id_
        product: Any = (product_id or "").encode(errors="surrogateescape")
        if not product and client.type(key) == b"hash":
            product = client.hget(key, settings.field_product_id) or b""
        if quantity and not product:
            return self._refuse(id_, "its reservation names no product: say which with --product")
        code, status, available, reserved = self._call(
            client,
            self._settle,
            [
                keys.index,
                key,
                keys.stock_prefix.encode() + product,
                keys.quarantine,
                keys.events,
                keys.operations,
            ],
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
                0,
            ],
        )
        log = self._log.bind(reservation_id=readable(id_), product_id=readable(product))
        if code == "released":
            counters = {"available": available, "reserved": reserved}
            known = {name: int(value) for name, value in counters.items() if value}
            log.warning("reservation_released", quantity=quantity, **known, by=self._by)
        elif code == "dropped":
            log.warning("reservation_dropped", by=self._by)
        else:
            return self._refuse(id_, _REFUSALS.get(code, code).format(status=shown(status)))
        self.done[code] += 1
        return None

    def close(self) -> int:
        """Tell the workers, and say what was done in numbers; return the exit code."""
        for channel, (client, _) in self._requeued.items():
            client.publish(channel, "1")
        names = [name for name in ("requeued", "released", "dropped", "unchanged", "refused") if self.done[name]]
        counts = ", ".join(f"{self.done[name]:,} {name}" for name in names)
        sys.stdout.write(f"{counts or 'nothing to do'}\n")
        return 1 if self.done["refused"] else 0

    def _refuse(self, id_: bytes, why: str) -> None:
        sys.stderr.write(f"expirer: {shown(readable(id_))}: {why}\n")
        self.done["refused"] += 1

    @staticmethod
    def _call(client: Redis, script: Any, keys: list[Any], arguments: list[Any]) -> list[str]:  # noqa: ANN401  # redis-py's Script
        return [readable(value) for value in script(keys=keys, args=arguments, client=client)]


_REFUSALS = {
    "not_found": "it is not in quarantine",
    "ended": "it is {status}: its units are not held any more; drop the entry",
    "different": "its reservation is of another product than --product says",
    "stock_missing": "stock_missing: there is no such product",
    "reserved_too_small": "reserved_too_small: fewer units are reserved than that; recount with expirer audit",
}
"""What the codes of resolve.lua mean; the others speak for themselves."""


def _entries(client: Redis, keys: ShardKeys, reason: str | None) -> Iterator[tuple[bytes, bytes]]:
    entries: Any = client.hscan_iter(keys.quarantine, count=_SLICE)
    for id_, entry in entries:
        if reason is None or parsed(entry)["reason"] == reason:
            yield id_, entry
