"""What a page may have to show: shops that are well, held, broken, and full of strangers' texts."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from expirer.control import Pause
from expirer.observe.history import Point
from expirer.observe.page import View
from expirer.observe.quarantine import Entry, Quarantine
from expirer.operate.picture import Picture, Product
from expirer.operate.status import ShardStatus
from expirer.settings import Settings

NOW = 1_795_469_462_000
HOSTILE = (
    "<script>document.title='taken'</script>",
    "\"><img src=x onerror=document.title='taken'>",
    "'+alert(1)+'{{ 7 * 7 }}",
    "abc\u202edcba\u2066 \x1b[2J\x00\n",
    "order-" + "9" * 10_000,
    "שלום:ספל",
    "e\u0301\u0302\u0303\u0304\u0305\u0306\u0307\u0308" * 12,
    "商品" * 60,
    "",
    "  two  spaces  ",
    "</style></title><base href=//example.org>",
)


def shard(number: int = 0, *problems: str, paused: Pause | None = None, **values: Any) -> ShardStatus:  # noqa: ANN401
    """Make the state of a shard with two live workers and one that has gone."""
    workers = [
        {"id": f"shop-{name}:7:ab1{name}", "last_tick": NOW - ago_ms, "version": "0.1.0", "skew_ms": skew_ms}
        for name, ago_ms, skew_ms in ((0, 1500, 3), (1, 1800, -12), (2, 7_400_000, None))
    ]
    totals = {"expired": 48_213, "units": 101_877, "skipped": 12, "rescheduled": 3, "quarantined": 4, "batches": 9120}
    state = ShardStatus(number, 2043, 0, 0, 0, NOW + 14_000, 0, paused, workers, totals, list(problems))
    return replace(state, **values)


def hour() -> tuple[Point, ...]:
    """Make an hour with a backlog in it, and minutes without an answer."""
    points = []
    for n in range(360):
        backlog = max(0, 420 - 9 * abs(n - 200)) if n >= 190 else 0
        late = (4 + n % 5 + backlog * 30, 9 + n * 7 % 40 + backlog * 41)
        rate = 12 + 6 * math.sin(n / 30) + backlog / 10
        if not 100 <= n < 118:
            points.append(Point(NOW - (359 - n) * 10_000, backlog, None if n % 40 < 3 else late, rate))
    return tuple(points)


PRODUCTS = [
    Product(name, held, overdue)
    for name, held, overdue in (
        ("mug", 61, 2), ("poster-a2", 140, 0), ("tee-m-black", 90, 0), ("lamp", 31, 0), ("notebook", 22, 0),
    )
]  # fmt: skip


def view(*shards: ShardStatus, **values: Any) -> View:  # noqa: ANN401
    """Make a view of some shards, one that is well where none is given; `values` replace what it has."""
    states = list(shards) or [shard()]
    picture = Picture(NOW, states, 5 * sum(state.overdue for state in states), 1000, PRODUCTS, 12.5, (4, 23))
    settings = Settings(redis_url="redis://:secret@redis:6379/0", shards=len(states))
    return replace(
        View(settings, "shop-0:7:ab10", NOW + 1200, NOW, picture, Quarantine(), hour()),
        **values,
    )


def quarantine(count: int) -> Quarantine:
    """Make a quarantine of entries with two reasons."""
    reasons = ["stock_missing", "reserved_too_small"]
    entries = [Entry(f"order-{n}:mug", 0, reasons[n % 3 == 1], NOW - 60_000 * n) for n in range(count)]
    return Quarantine(tuple(entries[:20]), (("stock_missing", count - count // 3), ("reserved_too_small", count // 3)), count)


def scenes() -> dict[str, View]:
    """Make one view of each kind."""
    by_ann = Pause("ann@shop-1", "payment outage", NOW - 600_000, NOW + 1_200_000)
    many = [shard(n, active=2000 + n * 37) for n in range(13)]
    many += [
        shard(13, paused=by_ann, overdue=120, oldest_overdue_ms=590_000),
        shard(14, "no live worker", overdue=17, oldest_overdue_ms=4100, quarantined=2),
        shard(15, "the brake holds", paused=Pause("shop-0:7:ab10", "brake: 812 overdue", NOW - 9000, None), overdue=812, oldest_overdue_ms=9100),
    ]
    empty = shard(0, "no live worker", active=0, next_expires_at=None, workers=[], totals={})
    bad = [Entry(text, 0, text, None if n % 2 else NOW - n) for n, text in enumerate(HOSTILE)]
    hostile = shard(0, paused=Pause(HOSTILE[0], HOSTILE[3], NOW, 10**18), quarantined=len(bad), overdue=3, oldest_overdue_ms=10**15)
    hostile.workers[0]["id"], hostile.workers[1]["version"] = HOSTILE[4], HOSTILE[1]
    strange = view(hostile, quarantine=Quarantine(tuple(bad), tuple((text, 1) for text in HOSTILE), len(bad)))
    assert strange.picture is not None
    strange.picture.products[:] = PRODUCTS
    strange = replace(strange, picture=replace(strange.picture, products=[Product(text, 7**n, n) for n, text in enumerate(HOSTILE)]))
    return {
        "healthy": view(),
        "late": view(shard(0, "the oldest overdue is too old", overdue=1204, oldest_overdue_ms=73_000, quarantined=31), quarantine=quarantine(31)),
        "paused": view(shard(paused=by_ann, overdue=37, oldest_overdue_ms=588_000)),
        "away": view(error="Error 111 connecting to redis:6379. Connection refused.", silent_since=NOW - 95_000),
        "waiting": view(picture=None, points=()),
        "never": view(picture=None, points=(), error="Error -2 connecting to redis:6379. Name or service not known.", silent_since=NOW - 7000),
        "shards": view(*many, quarantine=quarantine(2)),
        "empty": replace(view(empty, points=hour()[-1:]), picture=Picture(NOW, [empty], 0, 0, [], None, None)),
        "hostile": strange,
    }
