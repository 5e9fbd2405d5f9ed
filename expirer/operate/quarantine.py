"""Mends what could not be expired: puts it back into the index, frees its units by hand, or gives up on it."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from redis import Redis
from structlog.typing import FilteringBoundLogger

from expirer import scripts
from expirer.keys import ShardKeys, shard_keys
from expirer.logs import build_logger
from expirer.operate.look import show as show_reservation
from expirer.operate.reasons import parsed
from expirer.operate.server import redis_or_say
from expirer.operate.terminal import confirms, shown, shown_time, who
from expirer.settings import ConfigurationError, Settings
from expirer.texts import readable
from expirer.times import to_ms, unix_ms, worker_clock

_SLICE = 100


def list_(settings: Settings, reason: str | None, *, as_json: bool) -> int:
    """Print every quarantine entry, and how many there are of each reason; return the exit code."""
    with redis_or_say(settings) as client:
        reasons: Counter[str] = Counter()
        for number, keys in enumerate(shard_keys(settings)):
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
    with redis_or_say(settings) as client:
        name: Any = reservation_id.encode(errors="surrogateescape")
        if any(client.hexists(keys.quarantine, name) for keys in shard_keys(settings)):
            return show_reservation(settings, reservation_id, as_json=as_json)
        sys.stderr.write(f"expirer: {shown(reservation_id)}: it is not in quarantine\n")
    return 1


def requeue(settings: Settings, ids: list[str], reason: str | None, *, is_all: bool) -> int:
    """Put entries back into the index, where the next tick judges them anew; return 1 where one could not be."""
    if bool(ids) + bool(reason) + is_all != 1:
        raise ConfigurationError(["quarantine requeue takes ids, or --reason, or --all"])
    with redis_or_say(settings) as client:
        desk = _Desk(client, settings)
        wanted: Iterable[tuple[ShardKeys | None, bytes]] = map(desk.find, ids) if ids else desk.all(reason)
        for keys, id_ in wanted:
            desk.requeue(keys, id_)
        for keys in shard_keys(settings) if desk.done["requeued"] else ():
            client.publish(keys.wake, "1")
        return desk.close()
    return 1


def release(settings: Settings, reservation_id: str, quantity: int, product_id: str | None) -> int:
    """Free units of one entry, as many as are stated; return 1 where that is refused, and nothing was changed."""
    if quantity < 1:
        raise ConfigurationError([f"--quantity {quantity}: an entry holds at least one unit; to free none, drop it"])
    with redis_or_say(settings) as client:
        desk = _Desk(client, settings)
        keys, id_ = desk.find(reservation_id)
        desk.settle(keys, id_, quantity, product_id)
        return desk.close()
    return 1


def drop(settings: Settings, ids: list[str], *, is_sure: bool, answers: TextIO | None = None) -> int:
    """Give up on entries: their units stay where they are counted now; return 1 where one is not there."""
    with redis_or_say(settings) as client:
        question = f"Give up on {len(ids):,} quarantined reservations? No counter is touched."
        if not is_sure and not confirms(question, answers):
            sys.stderr.write("expirer: look with expirer quarantine list, then repeat this with --yes\n")
            return 1
        desk = _Desk(client, settings)
        for keys, id_ in map(desk.find, ids):
            desk.settle(keys, id_, 0, None)
        return desk.close()
    return 1


class _Desk:
    """Where entries are mended, each by one script; what was done is logged, counted and said at the end."""

    def __init__(self, client: Redis, settings: Settings) -> None:
        self.done: Counter[str] = Counter()
        self._client = client
        self._settings = settings
        self._shards = shard_keys(settings)
        self._log: FilteringBoundLogger = build_logger(settings)
        self._by = who()
        self._requeue = client.register_script(scripts.load("requeue").text)
        self._settle = client.register_script(scripts.load("settle").text)

    def find(self, reservation_id: str) -> tuple[ShardKeys | None, bytes]:
        """Return the shard whose quarantine has the id, or the one whose index has it; None: neither."""
        id_ = reservation_id.encode(errors="surrogateescape")
        name: Any = id_
        for keys in self._shards:
            if self._client.hexists(keys.quarantine, name):
                return keys, id_
        for keys in self._shards:
            if self._client.zscore(keys.index, name) is not None:
                return keys, id_
        return None, id_

    def all(self, reason: str | None) -> Iterator[tuple[ShardKeys, bytes]]:
        """Yield every entry, or those of one reason."""
        for keys in self._shards:
            for id_, _ in _entries(self._client, keys, reason):
                yield keys, id_

    def requeue(self, keys: ShardKeys | None, id_: bytes) -> None:
        """Put an entry back into the index."""
        if keys is None:
            return self._refuse(id_, "it is neither in quarantine nor in the index")
        code, score = self._call(
            self._requeue,
            [keys.index, keys.reservation_prefix.encode() + id_, keys.quarantine, keys.operations],
            [id_, self._settings.field_expires_at, self._by],
        )
        if code == "score_unknown":
            return self._refuse(id_, "nothing says when it is due: set its expires_at, then repeat this")
        self.done[code] += 1
        if code == "requeued":
            expires_at = unix_ms(float(score), self._settings.unit_ms)
            self._log.info("reservation_requeued", reservation_id=readable(id_), expires_at=expires_at, by=self._by)
        return None

    def settle(self, keys: ShardKeys | None, id_: bytes, quantity: int, product_id: str | None) -> None:
        """Free units of an entry; 0 gives up on it."""
        if keys is None:
            return self._refuse(id_, "it is not in quarantine")
        settings = self._settings
        key: Any = keys.reservation_prefix.encode() + id_
        product: Any = (product_id or "").encode(errors="surrogateescape")
        if not product and self._client.type(key) == b"hash":
            product = self._client.hget(key, settings.field_product_id) or b""
        if quantity and not product:
            return self._refuse(id_, "its reservation names no product: say which with --product")
        code, status, available, reserved = self._call(
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
        """Say what was done in numbers; return the exit code."""
        names = [name for name in ("requeued", "released", "dropped", "unchanged", "refused") if self.done[name]]
        counts = ", ".join(f"{self.done[name]:,} {name}" for name in names)
        sys.stdout.write(f"{counts or 'nothing to do'}\n")
        return 1 if self.done["refused"] else 0

    def _refuse(self, id_: bytes, why: str) -> None:
        sys.stderr.write(f"expirer: {shown(readable(id_))}: {why}\n")
        self.done["refused"] += 1

    @staticmethod
    def _call(script: Any, keys: list[Any], arguments: list[Any]) -> list[str]:  # noqa: ANN401  # redis-py's Script
        return [readable(value) for value in script(keys=keys, args=arguments)]


_REFUSALS = {
    "not_found": "it is not in quarantine",
    "ended": "it is {status}: its units are not held any more; drop the entry",
    "different": "its reservation is of another product than --product says",
    "stock_missing": "stock_missing: there is no such product",
    "reserved_too_small": "reserved_too_small: fewer units are reserved than that; recount with expirer audit",
}
"""What the codes of settle.lua mean; the others speak for themselves."""


def _entries(client: Redis, keys: ShardKeys, reason: str | None) -> Iterator[tuple[bytes, bytes]]:
    entries: Any = client.hscan_iter(keys.quarantine, count=_SLICE)
    for id_, entry in entries:
        if reason is None or parsed(entry)["reason"] == reason:
            yield id_, entry
