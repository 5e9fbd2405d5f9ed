"""Checks what workers and shop have written: the settings of live workers, the index, the next reservations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from expirer.config.durations import LONGEST, to_ms
from expirer.config.environment import variable
from expirer.config.settings import Settings
from expirer.connection.connect import Servers
from expirer.connection.server_checks import Check
from expirer.contract import about
from expirer.contract.numbers import MAX
from expirer.contract.shard import Shard
from expirer.contract.text import decode, encode
from expirer.worker.batch import Expired
from expirer.worker.expiry import Expiry

_SAMPLE = 100
_FAR_FUTURE = 8_000_000_000_000_000
"""Unix ms by which everything is due, and below 2**53."""
_SPARE_MS = to_ms(timedelta(hours=1))
"""A record that vanishes so soon after it is due is lost in a short outage."""
_OPTIONAL = ("field_order_id", "field_status", "field_expires_at")
"""Fields whose wrong name shows in no outcome: they may be absent."""


def workers(servers: Servers, settings: Settings) -> Iterator[Check]:
    """Compare what must agree among these settings and those of the live workers."""
    live: dict[bytes, dict[str, str]] = {}
    for shard in servers.shards:
        client: Any = shard.client
        now, abouts = shard.now(), client.hgetall(shard.keys.about)
        for worker, tick in client.zrange(shard.keys.workers, 0, -1, withscores=True):
            if shard.is_live(tick, now):
                live[worker] = about.parse(abouts.get(worker, b""))
    own = about.parse(about.describe(settings).encode())
    differences = about.disagreements([own, *live.values()])
    advice = "give every worker and this command the same settings: else one expires what another still waits for"
    yield from (Check("failure", "workers", difference, advice) for difference in differences)
    if not differences:
        yield Check("ok", "workers", f"{len(live):,} live" + ", with the settings of this command" * bool(live))


def index(servers: Servers, settings: Settings) -> Iterator[Check]:
    """Count the entries that are due in more than a century: they will never expire."""
    found = total = 0
    example = ""
    for shard in servers.shards:
        client: Any = shard.client
        never = min(shard.now() + to_ms(LONGEST), MAX) / settings.unit_ms
        found += client.zcount(shard.keys.index, never, "+inf")
        total += client.zcard(shard.keys.index)
        for id_, score in client.zrangebyscore(shard.keys.index, never, "+inf", 0, 1, withscores=True):
            example = example or f"{decode(id_)}: {score:.0f}"
    if not found:
        yield Check("ok", "index", "each entry falls due within a century")
        return
    unit = "seconds" if settings.unit_ms > 1 else "milliseconds"
    advice = f"write ExpiresAt in Unix {unit}, neither in microseconds nor in nanoseconds, or set EXPIRER_SCORE_UNIT"
    finding = f"{found:,} of {total:,} entries will never fall due ({example})"
    yield Check("failure" if found == total else "warning", "index", finding, advice)


@dataclass(frozen=True, slots=True)
class _Record:
    id: str
    fields: set[str]
    """Which of the optional ones it has."""
    spare_ms: int | None
    """How long after it is due its time to live ends; None: it has none."""


def layout(servers: Servers, settings: Settings) -> Iterator[Check]:
    """Ask expire.lua, with its writes off, what would become of the next reservations if they were due."""
    reasons: Counter[str] = Counter()
    examples: dict[str, str] = {}
    records: list[_Record] = []
    sampled = 0
    for shard in servers.shards:
        some = replace(shard, settings=settings.model_copy(update={"batch_size": _SAMPLE}))
        batch = Expiry(some, "check", lambda: float(_FAR_FUTURE)).preview()
        sampled += batch.due
        for id_, reason in batch.quarantined():
            reasons[reason] += 1
            examples.setdefault(reason, id_)
        records += _read_records(shard, list(batch.expired()))
    if not sampled:
        finding = "no reservation to try it on; if the shop has some, it writes other keys than the settings name"
        yield Check("ok", "layout", finding)
        return
    yield _fit(sampled, reasons, examples)
    yield from _times_to_live(records)
    for name in _OPTIONAL:
        field = getattr(settings, name)
        if field and records and not any(field in record.fields for record in records):
            finding = f"none of the next {len(records):,} Active reservations has a field {field}"
            advice = f"fine if your inventory has none; else name it in {variable(name)}"
            yield Check("warning", "fields", finding, advice)


def _read_records(shard: Shard, entries: list[Expired]) -> Iterator[_Record]:
    settings, now = shard.settings, shard.now()
    names = [settings.field_product_id, *filter(None, (getattr(settings, name) for name in _OPTIONAL))]
    with shard.client.pipeline(transaction=False) as transaction:
        pipe: Any = transaction
        for entry in entries:
            key = shard.keys.reservation_prefix.encode() + encode(entry.reservation_id)
            pipe.hmget(key, names)
            pipe.pttl(key)
        replies = pipe.execute()
    for entry, row, ttl_ms in zip(entries, replies[::2], replies[1::2], strict=True):
        fields = {name for name, value in zip(names, row, strict=True) if value}
        left_ms = entry.expires_at + to_ms(settings.grace) - now
        yield _Record(entry.reservation_id, fields, ttl_ms - left_ms if ttl_ms >= 0 else None)


def _fit(sampled: int, reasons: Counter[str], examples: dict[str, str]) -> Check:
    if not reasons:
        return Check("ok", "layout", f"the next {sampled:,} reservations fit it")
    each = ", ".join(f"{count:,} {reason} ({examples[reason]})" for reason, count in reasons.most_common())
    finding = f"of the next {sampled:,} reservations {reasons.total():,} would be quarantined: {each}"
    if reasons.total() == sampled:
        return Check("failure", "layout", finding, "the names do not fit: check the prefixes and EXPIRER_FIELD_…")
    return Check("warning", "layout", finding, "see them with expirer show, and run expirer audit")


def _times_to_live(records: list[_Record]) -> Iterator[Check]:
    spares = {record.id: record.spare_ms for record in records if record.spare_ms is not None}
    if spares:
        soonest = min(spares, key=lambda id_: spares[id_])
        is_lost = spares[soonest] < _SPARE_MS
        when = f"{spares[soonest] / 1000:,.0f} s after it is due" if spares[soonest] >= 0 else "before it is due"
        finding = (
            f"{len(spares):,} of the next {len(records):,} Active reservations have a time to live;"
            f" {soonest} vanishes {when}, and its units would never come back"
        )
        advice = "set none while a reservation is Active (PERSIST), or one that ends at least a day after ExpiresAt"
        yield Check("failure" if is_lost else "warning", "ttl", finding, advice)
