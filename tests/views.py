"""What a page may have to show: shops that are well, paused, broken, away, and full of strangers' texts."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from expirer.config.settings import Settings
from expirer.contract.control import Pause
from expirer.operate.snapshot import Product, Snapshot
from expirer.operate.status import BRAKED, NO_LIVE_WORKER, TOO_OLD, ShardStatus, WorkerStatus
from expirer.web.charts import PERIOD_MS, Point
from expirer.web.page import Page
from expirer.web.watch import Entry, Quarantine, Reading

NOW = 1_795_469_462_000
BY_ANN = Pause("ann@shop-1", "payment outage", NOW - 600_000, NOW + 1_200_000)
BRAKE = Pause("shop-0:7:ab10", "812 overdue", NOW - 9000, is_brake=True)
HOSTILE = (
    "<script>document.title='taken'</script>",
    "\"><img src=x onerror=document.title='taken'>",
    "</style></title><base href=//example.org>",
    "'+alert(1)+'{{ 7 * 7 }}",
    "abc\u202edcba\u2066 \x1b[2J\x00\n",
    "order-" + "9" * 10_000,
    "שלום:ספל",
    "e\u0301\u0302\u0303\u0304\u0305\u0306\u0307\u0308" * 12,
    "商品" * 60,
    "",
)


def shard(number: int = 0, *problems: str, **values: Any) -> ShardStatus:  # noqa: ANN401
    """Make the state of a shard with two live workers and one that has gone; `values` replace what it has."""
    workers = [
        WorkerStatus(f"shop-{name}:7:ab1{name}", NOW - ago_ms, "0.1.0", skew_ms, is_live=ago_ms < 10_000)
        for name, ago_ms, skew_ms in ((0, 1500, 3), (1, 1800, -12), (2, 7_400_000, None))
    ]
    totals = {"expired": 48_213, "units": 101_877, "skipped": 12, "rescheduled": 3, "quarantined": 4, "batches": 9120}
    state = ShardStatus(
        number,
        active=2043,
        next_expires_at=NOW + 14_000,
        workers=workers[:2],
        gone=workers[2:],
        gone_count=1,
        totals=totals,
        problems=problems,
        now=NOW,
    )
    return replace(state, **values)


def hour() -> tuple[Point, ...]:
    """Make an hour with a backlog half way, minutes without an answer, and times when nothing expired."""
    points = []
    for n in range(360):
        backlog = max(0, 420 - 9 * abs(n - 200)) if n >= 190 else 0
        late = (4 + n % 5 + backlog * 30, 9 + n * 7 % 40 + backlog * 41)
        rate = 12 + 6 * math.sin(n / 30) + backlog / 10
        if not 100 <= n < 118:
            points.append(Point(NOW - (359 - n) * PERIOD_MS, backlog, None if n % 40 < 3 else late, rate))
    return tuple(points)


def page(*shards: ShardStatus, products: list[Product] | None = None, **values: Any) -> Page:  # noqa: ANN401
    """Make a page of some shards, or of one that is well; `values` replace what it or its reading has."""
    states = list(shards) or [shard()]
    overdue = sum(state.overdue for state in states)
    if products is None:
        products = [
            Product("mug", 61 + overdue, overdue),
            *(Product(name, 20, 0) for name in ("poster-a2", "tee-m", "lamp")),
        ]
    snapshot = Snapshot(NOW, states, overdue, 1000, products, 12.5, (4, 23))
    settings = Settings(redis_url="redis://:secret@redis:6379/0", shards=len(states))
    of_the_page = {name: values.pop(name) for name in ("settings", "is_still") if name in values}
    reading = replace(Reading(NOW, snapshot, points=hour()), **values)
    return replace(Page(settings, reading, NOW + 1200), **of_the_page)


def change(page: Page, **values: Any) -> Page:  # noqa: ANN401
    """Return the page with another reading: `values` replace what it has."""
    return replace(page, reading=replace(page.reading, **values))


def scenes() -> dict[str, Page]:
    """Make one page of each kind."""
    waiting = tuple(Entry(f"order-{n}:mug", "stock_missing", NOW - 60_000 * n) for n in range(20))
    sick = [
        shard(13, paused=BY_ANN, overdue=120, oldest_overdue_ms=590_000),
        shard(14, NO_LIVE_WORKER, overdue=17, oldest_overdue_ms=4100),
        shard(15, BRAKED, paused=BRAKE, overdue=812, oldest_overdue_ms=9100),
    ]
    nothing = shard(0, NO_LIVE_WORKER, active=0, next_expires_at=None, workers=[], gone=[], gone_count=0, totals={})
    empty = page(nothing, products=[], points=(Point(NOW, 0, None, None),))
    assert empty.reading.snapshot is not None
    return {
        "healthy": page(),
        "late": page(
            shard(0, TOO_OLD, overdue=1204, oldest_overdue_ms=73_000, quarantined=31),
            quarantine=Quarantine(waiting, (("stock_missing", 21), ("reserved_too_small", 10)), 31),
        ),
        "paused": page(shard(paused=BY_ANN, overdue=37, oldest_overdue_ms=588_000)),
        "shards": page(*(shard(n, active=2000 + n * 37) for n in range(13)), *sick),
        "away": page(error="Error 111 connecting to redis:6379. Connection refused.", at=NOW - 95_000),
        "waiting": page(snapshot=None, points=()),
        "never": page(snapshot=None, points=(), error="Error -2 connecting. Name or service not known."),
        "empty": change(empty, snapshot=replace(empty.reading.snapshot, rate=None, lateness=None)),
        "hostile": hostile(),
    }


def hostile() -> Page:
    """Make a page in which every text of a stranger is hostile, and every figure is too large."""
    workers = [WorkerStatus(text, 2**53, text, 10**14, is_live=True) for text in HOSTILE]
    return page(
        shard(
            paused=Pause(HOSTILE[0], HOSTILE[4], 10**18, 10**18),
            workers=workers,
            quarantined=len(HOSTILE),
            active=10**15,
            overdue=10**15,
            oldest_overdue_ms=10**15,
            next_expires_at=2**53,
            totals=dict.fromkeys(("expired", "units", "batches"), 2**53),
        ),
        products=[Product(text, 2**53, 2**53) for text in HOSTILE],
        quarantine=Quarantine(
            tuple(Entry(text, text, None) for text in HOSTILE), tuple((text, 1) for text in HOSTILE), len(HOSTILE)
        ),
        error=HOSTILE[0] + HOSTILE[5],
    )
