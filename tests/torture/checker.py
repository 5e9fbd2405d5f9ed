"""Compares what the checkouts know with what Redis holds, and what Redis holds with itself."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import redis

from expirer.contract.keys import ShardKeys
from tests.torture.history import History, ReservationHistory

_FIELDS = ("product_id", "quantity", "status", "expires_at")
_ENDED_BY = {"Confirmed": "confirm", "Released": "release"}
_TOTALS = ("expired", "units", "skipped", "rescheduled", "quarantined")
_CHUNK = 1000


@dataclass(slots=True)
class Verdict:
    """What was found; `lost` and `wrong` say what of which reservation, product or total."""

    steps: int
    unanswered: int
    ended: dict[str, int]
    """Status -> reservations."""
    lost: list[str] = field(default_factory=list)
    """What Redis acknowledged, and does not know any more."""
    wrong: list[str] = field(default_factory=list)
    """What in Redis does not agree with itself, or was never asked for."""


@dataclass(frozen=True, slots=True)
class Held:
    """A reservation in Redis."""

    product_id: str
    quantity: int
    status: str
    expires_at: int


Shards = Sequence[tuple[redis.Redis, ShardKeys]]
"""A client for each, and its keys."""


def check(shards: Shards, stocked: Mapping[str, int], history: History) -> Verdict:
    """Check everything, once nobody writes any more."""
    held: dict[str, Held] = {}
    wrong: list[str] = []
    events: dict[str, list[dict[str, str]]] = {}
    for client, keys in shards:
        held_there, events_there = dict(_reservations(client, keys)), _events(client, keys)
        wrong += _disagreements(client, keys, held_there, events_there)
        held |= held_there
        events |= events_there
    wrong += _miscounted(shards, stocked, held)
    wrong += _unfounded(held, history)
    lost = list(_forgotten(held, events, history))
    ended = Counter(one.status for one in held.values())
    return Verdict(history.steps, history.unanswered, dict(ended), lost, wrong)


def _reservations(client: redis.Redis, keys: ShardKeys) -> Iterator[tuple[str, Held]]:
    prefix = keys.reservation_prefix
    names = list(set(client.scan_iter(match=f"{prefix}*", count=_CHUNK)))
    for start in range(0, len(names), _CHUNK):
        chunk = names[start : start + _CHUNK]
        with client.pipeline(transaction=False) as pipe:
            for key in chunk:
                pipe.hmget(key, _FIELDS)
            for key, row in zip(chunk, pipe.execute(), strict=True):
                product, quantity, status, expires_at = (value.decode() for value in row)
                yield key.decode().removeprefix(prefix), Held(product, int(quantity), status, int(expires_at))


def _events(client: redis.Redis, keys: ShardKeys) -> dict[str, list[dict[str, str]]]:
    events: defaultdict[str, list[dict[str, str]]] = defaultdict(list)
    last = "-"
    while rows := _decoded(client.xrange(keys.events, last, count=_CHUNK)):
        for _, event in rows:
            events[event["reservation_id"]].append(event)
        last = f"({rows[-1][0]}"
    return dict(events)


def _disagreements(
    client: redis.Redis, keys: ShardKeys, held: Mapping[str, Held], events: Mapping[str, list[dict[str, str]]]
) -> Iterator[str]:
    index = {_decoded(id_): score for id_, score in client.zscan_iter(keys.index, count=_CHUNK)}
    for id_, one in held.items():
        listed = [(event["product_id"], event["quantity"], event["expires_at"]) for event in events.get(id_, [])]
        expected = [(one.product_id, str(one.quantity), str(one.expires_at))] if one.status == "Expired" else []
        if listed != expected:
            yield f"{id_} is {one.status}, and its events are {listed}"
        if any(int(event["expired_at"]) < one.expires_at for event in events.get(id_, [])):
            yield f"{id_} expired before its own ExpiresAt"
        if index.get(id_) != (one.expires_at if one.status == "Active" else None):
            yield f"{id_} is {one.status}, held until {one.expires_at}, and its score is {index.get(id_)}"
    yield from (f"{id_} is in the index, and there is no such reservation" for id_ in index.keys() - held.keys())
    yield from (f"{id_} has an event, and there is no such reservation" for id_ in events.keys() - held.keys())
    yield from (f"{_decoded(id_)} is in quarantine" for id_ in client.hkeys(keys.quarantine))


def _miscounted(shards: Shards, stocked: Mapping[str, int], held: Mapping[str, Held]) -> Iterator[str]:
    units: Counter[tuple[str, str]] = Counter()
    for one in held.values():
        units[one.product_id, one.status] += one.quantity
    counted: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    for client, keys in shards:
        for product in stocked:
            stock = _decoded(client.hgetall(keys.stock_prefix + product))
            counted.update({f"{product}:{name}": int(value) for name, value in stock.items()})
        found_there = zip(_TOTALS, client.hmget(keys.stats, _TOTALS), strict=True)
        totals.update({name: int(float(total)) for name, total in found_there if total is not None})
    for product, stocked_once in stocked.items():
        stock_units = stocked_once * len(shards)  # each has its own, and one of them is used
        active, sold = units[product, "Active"], units[product, "Confirmed"]
        expected = (stock_units - active - sold, active)
        found = (counted[f"{product}:available"], counted[f"{product}:reserved"])
        if found != expected:
            yield f"{product} has (available, reserved) {found}, and its reservations say {expected}"
    expired = [one.quantity for one in held.values() if one.status == "Expired"]
    due = {"expired": len(expired), "units": sum(expired), "skipped": 0, "rescheduled": 0, "quarantined": 0}
    found_totals = {name: totals[name] for name in due}
    if found_totals != due:
        yield f"the totals are {found_totals}, and the reservations say {due}"


def _unfounded(held: Mapping[str, Held], history: History) -> Iterator[str]:
    now_ms = time.time() * 1000
    nobody = ReservationHistory("", 0)
    for id_, one in held.items():
        reservation = history.of.get(id_, nobody)
        if "reserve" not in reservation.tried or (reservation.product_id, reservation.quantity) != (
            one.product_id,
            one.quantity,
        ):
            yield f"{id_} was never reserved like this: {one}"
        if one.status not in ("Active", "Expired") and _ENDED_BY.get(one.status) not in reservation.tried:
            yield f"{id_} is {one.status}, and nobody asked for it"
        if one.status == "Expired" and one.expires_at > now_ms:
            yield f"{id_} is Expired, and by this machine's clock it is held until {one.expires_at}"


def _forgotten(held: Mapping[str, Held], events: Mapping[str, list[dict[str, str]]], history: History) -> Iterator[str]:
    for id_, reservation in history.of.items():
        acknowledged, one = reservation.acknowledged, held.get(id_)
        if one is None:
            if acknowledged:
                yield f"{id_} was acknowledged as {sorted(acknowledged)}, and is gone"
            continue
        if others := acknowledged - {"Active", one.status}:
            yield f"{id_} was acknowledged as {sorted(others)}, and is {one.status}"
        if one.expires_at < reservation.held_until:
            yield f"{id_} was acknowledged as held until {reservation.held_until}, and is until {one.expires_at}"
        if any(int(event["expired_at"]) < reservation.held_until for event in events.get(id_, [])):
            yield f"{id_} was acknowledged as held until {reservation.held_until}, and expired before"


def _decoded(value: Any) -> Any:  # noqa: ANN401  # whatever Redis answers
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, dict):
        return {_decoded(name): _decoded(one) for name, one in value.items()}
    return [_decoded(one) for one in value] if isinstance(value, list | tuple) else value
