"""Checks what workers and shop have written: the settings of live workers, the index, the next reservations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from expirer.config.durations import to_ms
from expirer.config.environment import variable
from expirer.config.settings import Settings
from expirer.connection.connect import Servers
from expirer.connection.server_checks import Check
from expirer.contract import about
from expirer.contract.shard import Shard
from expirer.contract.text import decode, encode
from expirer.operate.status import read_status
from expirer.worker.batch import Expired
from expirer.worker.expiry import Expiry

_SAMPLE = 100
_FAR_FUTURE = 8e15
"""Unix ms by which everything is due, and below 2**53."""
_SPARE_MS = 3_600_000
"""A record that vanishes so soon after it is due is lost in a short outage."""
_OPTIONAL = ("field_order_id", "field_status", "field_expires_at")
"""Fields whose wrong name shows in no outcome: they may be absent."""


def workers(servers: Servers, settings: Settings) -> Iterator[Check]:
    """Compare what must agree among these settings and those of the live workers."""
    live = {worker.id: worker.about for shard in servers.shards for worker in read_status(shard, counted=0).workers}
    own = about.parse(about.describe(settings).encode())
    differences = about.disagreements([own, *live.values()])
    advice = "give every worker and this command the same settings: else one expires what another still waits for"
    yield from (Check("failure", "workers", difference, advice) for difference in differences)
    if not differences:
        yield Check("ok", "workers", f"{len(live):,} live" + ", with the settings of this command" * bool(live))


def index(servers: Servers, settings: Settings) -> Iterator[Check]:
    """Count the entries that are due in more than a century: they will never expire."""
    states = [read_status(shard, counted=0) for shard in servers.shards]
    found, total = sum(state.never_due for state in states), sum(state.active for state in states)
    if not found:
        yield Check("ok", "index", "each entry falls due within a century")
        return
    shard = servers.shards[next(state.shard for state in states if state.never_due)]
    last: Any = shard.client.zrange(shard.keys.index, -1, -1, withscores=True)
    example = "".join(f" ({decode(id_)}: {score:.0f})" for id_, score in last)
    unit = "seconds" if settings.unit_ms > 1 else "milliseconds"
    advice = f"write ExpiresAt in Unix {unit}, neither in microseconds nor in nanoseconds, or set EXPIRER_SCORE_UNIT"
    finding = f"{found:,} of {total:,} entries will never fall due{example}"
    yield Check("failure" if found == total else "warning", "index", finding, advice)


def layout(servers: Servers, settings: Settings) -> Iterator[Check]:
    """Ask expire.lua, with its writes off, what would become of the next reservations if they were due."""
    reasons: Counter[str] = Counter()
    examples: dict[str, str] = {}
    sampled = active = 0
    present: Counter[str] = Counter()
    """Settings of optional fields: how many reservations have the field."""
    spares: dict[str, int] = {}
    """Reservation id -> how many ms after it is due its time to live ends."""
    for shard in servers.shards:
        some = replace(shard, settings=settings.model_copy(update={"batch_size": _SAMPLE}))
        batch = Expiry(some, "check", lambda: _FAR_FUTURE).preview()
        sampled += batch.due
        for id_, reason in batch.quarantined():
            reasons[reason] += 1
            examples.setdefault(reason, id_)
        entries = list(batch.expired())
        active += len(entries)
        now = shard.now() - to_ms(settings.grace)
        for entry, row, ttl_ms in _read(shard, entries):
            present.update(name for name, value in zip(_OPTIONAL, row, strict=True) if value)
            if ttl_ms >= 0:
                spares[entry.reservation_id] = ttl_ms - (entry.expires_at - now)
    if not sampled:
        finding = "no reservation to try it on; if the shop has some, it writes other keys than the settings name"
        yield Check("ok", "layout", finding)
        return
    yield _fit(sampled, reasons, examples)
    if spares:
        yield _times_to_live(active, spares)
    for name in _OPTIONAL:
        field = getattr(settings, name)
        if field and active and not present[name]:
            finding = f"none of the next {active:,} Active reservations has a field {field}"
            advice = f"fine if your inventory has none; else name it in {variable(name)}"
            yield Check("warning", "fields", finding, advice)


def _read(shard: Shard, entries: list[Expired]) -> Iterator[tuple[Expired, list[bytes | None], int]]:
    """Yield each entry with its optional fields, and its time to live in ms; below 0: it has none."""
    fields = [getattr(shard.settings, name) for name in _OPTIONAL]
    with shard.client.pipeline(transaction=False) as transaction:
        pipe: Any = transaction
        for entry in entries:
            key = shard.keys.reservation_prefix.encode() + encode(entry.reservation_id)
            pipe.hmget(key, fields)
            pipe.pttl(key)
        replies = pipe.execute()
    return zip(entries, replies[::2], replies[1::2], strict=True)


def _fit(sampled: int, reasons: Counter[str], examples: dict[str, str]) -> Check:
    if not reasons:
        return Check("ok", "layout", f"the next {sampled:,} reservations fit it")
    each = ", ".join(f"{count:,} {reason} ({examples[reason]})" for reason, count in reasons.most_common())
    finding = f"of the next {sampled:,} reservations {reasons.total():,} would be quarantined: {each}"
    if reasons.total() == sampled:
        return Check("failure", "layout", finding, "the names do not fit: check the prefixes and EXPIRER_FIELD_…")
    return Check("warning", "layout", finding, "see them with expirer show, and run expirer audit")


def _times_to_live(active: int, spares: dict[str, int]) -> Check:
    soonest = min(spares, key=lambda id_: spares[id_])
    when = f"{spares[soonest] / 1000:,.0f} s after it is due" if spares[soonest] >= 0 else "before it is due"
    finding = (
        f"{len(spares):,} of the next {active:,} Active reservations have a time to live;"
        f" {soonest} vanishes {when}, and its units would never come back"
    )
    advice = "set none while a reservation is Active (PERSIST), or one that ends at least a day after ExpiresAt"
    return Check("failure" if spares[soonest] < _SPARE_MS else "warning", "ttl", finding, advice)
