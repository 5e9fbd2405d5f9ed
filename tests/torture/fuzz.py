"""Hostile entries: random types, sizes, encodings and numbers, each of which must end in one known place, untouched."""

from __future__ import annotations

import random
import re
import shutil
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from signal import SIGTERM
from typing import Any

import redis

from expirer.contract.keys import ShardKeys
from tests.program import DEADLINE_S, Program, wait_until
from tests.servers import RedisServer
from tests.torture.checker import Verdict
from tests.torture.fault import Outcome

_KEYS = ShardKeys.of("inventory")
_NAMES = ("index", "events", "quarantine", "stats", "workers", "about", "control")
_WORKERS = 4
_CHUNK = 20_000
_OVERDUE = 1_700_000_000_000
_LATER = 4_000_000_000_000
_MAX = 2**53
_HELD = 10**12

_GOOD = (b"mug", "größe\n".encode(), b"\xff\x00 {}:*", b"")
_BAD: dict[bytes, dict[str, object]] = {
    b"word": {"available": "many", "reserved": 9},
    b"half": {"available": "1.5", "reserved": 9},
    b"huge": {"available": _MAX + 1, "reserved": 9},
    b"nan": {"available": 0, "reserved": "nan"},
    b"lone": {"available": 0},
    b"short": {"available": 0, "reserved": 0},
    b"debt": {"available": 0, "reserved": -(10**15)},
    b"brim": {"available": _MAX, "reserved": 9},
    b"ghost": {},
}
"""Counters that no reservation can be given back to."""
_TIMES = (b"tomorrow", b"", b"1e12", b"-1", b" 1700000000000", b"9" * 400, b"0x18bcfe56800", b"nan", b"1.7.0")
_QUANTITIES = (
    b"",
    b"0",
    b"-1",
    b"007",
    b"+1",
    b"1.0",
    b"1e0",
    b" 1",
    b"1\x00",
    b"inf",
    b"\xd9\xa3",
    b"%d" % (_MAX + 1),
)
_STATUSES = (b"", b"PENDING", b"active", b"Active ", b"\xff\x00", b"Active\x00", b"0")

_OF_ANOTHER_TYPE: tuple[Callable[[Any, Any], object], ...] = (
    lambda client, key: client.set(key, "x"),
    lambda client, key: client.rpush(key, "x"),
    lambda client, key: client.sadd(key, "x"),
    lambda client, key: client.zadd(key, {"x": 1}),
    lambda client, key: client.xadd(key, {"x": "x"}),
    lambda client, key: client.hset(key, "x", "x"),
)
_IS_HASH = 5


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the index: what its key holds, and how it must end."""

    id: bytes
    score: float
    fields: dict[bytes, bytes]
    kind: int | None
    """Its key holds another type; -1: nothing."""
    end: str
    """`expired`, `skipped`, `rescheduled` or `quarantined`."""


def _entry(chance: random.Random, n: int) -> Entry:
    id_ = b"%d " % n + chance.randbytes(chance.choice((0, 0, 3, 30, 300)) if n % 1000 else 30_000)
    score = chance.choice((_OVERDUE, _OVERDUE + n, _OVERDUE + 0.5, 1, -2, -1e300, float("-inf"), 0, 5e10))
    if chance.random() < 0.03:
        kind = chance.randrange(-1, _IS_HASH)
        return Entry(id_, score, {}, kind, "quarantined")
    ended = tuple((word, "skipped") for word in (b"Confirmed", b"Released", b"Expired"))
    status, status_end = _drawn(chance, _STATUSES, (*((b"Active", ""),) * 9, *ended))
    time_, time_end = _drawn(
        chance,
        _TIMES,
        (
            *((None, ""),) * 3,
            *((b"%d" % _OVERDUE, ""), (b"%d.5" % _OVERDUE, ""), (b"0", ""), (b"%d" % _LATER, "rescheduled")),
            *((b"9" * 24, "rescheduled"), (b"%d" % (_OVERDUE // 1000), "quarantined")),
        ),
    )
    product, product_end = _drawn(chance, (*_BAD, chance.randbytes(40), b"list"), tuple((one, "") for one in _GOOD))
    quantity, quantity_end = _drawn(chance, _QUANTITIES, tuple((b"%d" % units, "") for units in range(1, 9)))
    fields = {b"product_id": product, b"quantity": quantity, b"status": status, b"expires_at": time_}
    if chance.random() < 0.2:
        fields[chance.randbytes(8)] = chance.randbytes(chance.choice((0, 10, 1000)))
    present = {name: value for name, value in fields.items() if value is not None}
    return Entry(id_, score, present, None, status_end or time_end or product_end or quantity_end or "expired")


def _drawn(
    chance: random.Random, bad: tuple[bytes, ...], good: tuple[tuple[bytes | None, str], ...]
) -> tuple[bytes | None, str]:
    """Draw a value and how an entry with it must end, empty where it is sound."""
    return (chance.choice(bad), "quarantined") if chance.random() < 0.05 else chance.choice(good)


def run(binary: Path, seed: int, entries: int) -> Outcome:
    """Let four workers loose on that many hostile entries, some at a time; check how each ended."""
    began_at = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    server = RedisServer(binary, folder)
    verdict = Verdict(0, 0, {})
    ends: Counter[str] = Counter()
    flags = ("--interval", "500ms", "--log-level", "error", "--events-maxlen", "100000000")
    with ExitStack() as stack:
        stack.callback(server.stop)
        server.start()
        client = stack.enter_context(server.client())
        workers = [stack.enter_context(Program(server.url, *flags)) for _ in range(_WORKERS)]
        wait_until(lambda: client.zcard(_KEYS.workers) == _WORKERS)
        size = min(_CHUNK, entries // len(_NAMES))
        for turn, start in enumerate(range(0, entries, size)):
            chance = random.Random(f"{seed} {turn}")
            some = [_entry(chance, n) for n in range(start, start + size)]
            _write(client, some)
            _with_another_type(client, workers, _NAMES[turn % len(_NAMES)], chance)
            client.publish(_KEYS.wake, "1")
            wait_until(lambda: _is_done(client))
            verdict.wrong += _check(client, some)
            ends.update(entry.end for entry in some)
            client.flushall()
        for worker in workers:
            worker.signal(SIGTERM)
            if (code := worker.wait(DEADLINE_S)) != 0:
                verdict.wrong.append(f"a worker was told to stop, its exit code is {code}: {worker.lines[-5:]}")
            verdict.wrong += [line for line in worker.lines if "Traceback" in line]
    shutil.rmtree(folder)
    verdict.ended = dict(ends)
    verdict.steps = ends.total()
    return Outcome({"fuzz": ends.total()}, seed, round(time.monotonic() - began_at), verdict)


def _is_done(client: redis.Redis) -> bool:
    """Say whether every entry has its end; make what is tried again older, so that no run waits a minute for it."""
    watching: Any = client.pipeline()
    with watching as pipe, suppress(redis.WatchError):
        pipe.watch(_KEYS.quarantine)
        rows: Any = pipe.hgetall(_KEYS.quarantine)
        notes = {id_: re.sub(rb" at=\d+", b" at=1", entry) for id_, entry in rows.items() if b" retry=" in entry}
        if not notes:
            return not client.zcount(_KEYS.index, "-inf", _LATER - 1)
        pipe.multi()
        pipe.hset(_KEYS.quarantine, mapping=notes)
        pipe.execute()
    return False


def _with_another_type(client: redis.Redis, workers: list[Program], name: str, chance: random.Random) -> None:
    """Let a key of the contract hold another type until every worker has met it, and put it back."""
    key, aside = getattr(_KEYS, name), "aside"
    kinds = [kind for kind in _OF_ANOTHER_TYPE if kind is not _OF_ANOTHER_TYPE[_sound(name)]]
    met = [len(worker.of("processing_error")) for worker in workers]
    with client.pipeline() as pipe:
        pipe.rename(key, aside)  # refused where there is none
        chance.choice(kinds)(pipe, key)
        pipe.execute(raise_on_error=False)
    wait_until(lambda: all(len(one.of("processing_error")) > before for one, before in zip(workers, met, strict=True)))
    with client.pipeline() as pipe:
        pipe.delete(key)
        pipe.rename(aside, key)
        pipe.execute(raise_on_error=False)


def _sound(name: str) -> int:
    return {"index": 3, "workers": 3, "events": 4}.get(name, _IS_HASH)


def _write(client: redis.Redis, entries: list[Entry]) -> None:
    stock, prefix = _KEYS.stock_prefix.encode(), _KEYS.reservation_prefix.encode()
    with client.pipeline(transaction=False) as pipe:
        # Nothing is due before everything is written.
        pipe.hset(_KEYS.control, "paused", 1)
        for product in _GOOD:
            pipe.hset(stock + product, mapping={"available": 0, "reserved": _HELD})
        for product, counters in _BAD.items():
            if counters:
                pipe.hset(stock + product, mapping=counters)  # type: ignore[arg-type]
        pipe.rpush(stock + b"list", "x")
        for entry in entries:
            if entry.kind is None:
                pipe.hset(prefix + entry.id, mapping=entry.fields)  # type: ignore[arg-type]
            elif entry.kind >= 0:
                _OF_ANOTHER_TYPE[entry.kind](pipe, prefix + entry.id)
            pipe.zadd(_KEYS.index, {entry.id: entry.score})
        pipe.delete(_KEYS.control)
        pipe.execute()


def _check(client: redis.Redis, entries: list[Entry]) -> Iterator[str]:
    index: Any = dict(client.zrange(_KEYS.index, 0, -1, withscores=True))  # type: ignore[arg-type]
    quarantine: Any = client.hgetall(_KEYS.quarantine)
    events: defaultdict[bytes, list[tuple[bytes, bytes]]] = defaultdict(list)
    rows: Any = client.xrange(_KEYS.events)
    for _, event in rows:
        events[event[b"reservation_id"]].append((event[b"product_id"], event[b"quantity"]))
    for entry, fields in zip(entries, _hashes(client, entries), strict=True):
        found = (entry.id in index, entry.id in quarantine, events.get(entry.id, []))
        sold = (entry.fields.get(b"product_id", b""), entry.fields.get(b"quantity", b""))
        wanted = {
            "expired": (False, False, [sold]),
            "skipped": (False, False, []),
            "rescheduled": (True, False, []),
            "quarantined": (False, True, []),
        }[entry.end]
        kept = dict(entry.fields)
        if entry.end == "expired":
            fields.pop(b"expired_at", None)
            kept[b"status"] = b"Expired"
        if (found, fields) != (wanted, kept):
            yield f"{entry}: (in the index, in quarantine, events) {found}, fields {fields}"
    yield from _miscounted(client, entries)


def _hashes(client: redis.Redis, entries: list[Entry]) -> Iterator[dict[bytes, bytes]]:
    prefix = _KEYS.reservation_prefix.encode()
    with client.pipeline(transaction=False) as pipe:
        for entry in entries:
            pipe.hgetall(prefix + entry.id)
        for row in pipe.execute(raise_on_error=False):
            yield row if isinstance(row, dict) else {}


def _miscounted(client: redis.Redis, entries: list[Entry]) -> Iterator[str]:
    stock = _KEYS.stock_prefix.encode()
    back: Counter[bytes] = Counter()
    ends = Counter(entry.end for entry in entries)
    for entry in entries:
        if entry.end == "expired":
            back[entry.fields[b"product_id"]] += int(entry.fields[b"quantity"])
    expected: dict[bytes, dict[str, object]] = {
        product: {"available": back[product], "reserved": _HELD - back[product]} for product in _GOOD
    }
    for product, counters in (expected | _BAD).items():
        found: Any = client.hgetall(stock + product)
        if found != {name.encode(): str(value).encode() for name, value in counters.items()}:
            yield f"{product!r} has {found}, and should have {counters}"
    totals: Any = client.hgetall(_KEYS.stats)
    counted = {name: int(totals.get(name.encode(), 0)) for name in ends}
    # What is tried again is rescheduled each time.
    if any(counted[name] != ends[name] for name in ends if name != "rescheduled" or counted[name] < ends[name]):
        yield f"the totals are {counted}, and should be {dict(ends)}"
