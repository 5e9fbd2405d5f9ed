"""What `expirer top` reads, and how it lays that out on a screen of any size."""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import redis

from expirer.config.settings import Settings
from expirer.connection.connect import Servers
from expirer.contract.clock import worker_clock
from expirer.contract.control import Pause
from expirer.contract.keys import ShardKeys
from expirer.operate.screen import Page, _chart, _columns, lines
from expirer.operate.snapshot import Product, Sampler, Snapshot
from expirer.operate.status import BRAKED, ShardStatus, WorkerStatus
from tests.inventory import Inventory

NOW = 1_795_469_462_000


def shard(number: int, *problems: str, paused: Pause | None = None) -> ShardStatus:
    """Make the state of a shard with two workers."""
    workers = [WorkerStatus(f"shop-{name}:7:abcd", NOW - 1500, "0.1.0", 3, is_live=True) for name in range(2)]
    return ShardStatus(number, 2000, 12 + number, 4500, 0, None, 1, paused, workers, {"expired": 9}, list(problems))


def page(shards: list[ShardStatus], products: int = 3, name: str = "mug") -> Page:
    """Make what was seen in a while."""
    many = [Product(f"{name}-{number}", 90 - number, 9) for number in range(products)]
    seen = Page("redis://redis:6379/0")
    for _ in range(500):
        seen.add(Snapshot(NOW, shards, 36, 1000, many, 12.5, (2, 8)))
    return seen


def test_a_screen_of_80_by_24() -> None:
    """An operator with one shard sees everything on 80 columns and 24 lines."""
    screen = lines(page([shard(0)]), 80, 24)

    assert screen == [
        "expirer top  redis://redis:6379/0           2026-11-23 21:31:02.000 UTC  q: quit",
        "healthy",
        "",
        "active       2,000, 1 quarantined",
        "overdue      12, 36 units, the oldest for 4.500 s",
        "expired      12.5 per second, lateness 2 ms median, 8 ms worst",
        "",
        f"overdue      {'█' * 56} at most 12",
        f"lateness     {'█' * 54} at most 8 ms",
        "",
        "PRODUCT (of the 1,000 due first)                        UNITS HELD       OVERDUE",
        "mug-0                                                           90             9",
        "mug-1                                                           89             9",
        "mug-2                                                           88             9",
        "",
        "WORKER                                     LAST TICK       VERSION         CLOCK",
        "shop-0:7:abcd                              1.5 s ago         0.1.0         -3 ms",
        "shop-1:7:abcd                              1.5 s ago         0.1.0         -3 ms",
    ]


@pytest.mark.parametrize("size", [(80, 24), (40, 10), (10, 3), (1, 1), (200, 60)])
@pytest.mark.parametrize("name", ["mug", "größe", "商品" * 40, "e\u0301" * 70, "\x1b[2J\n"])
def test_every_size_is_kept(size: tuple[int, int], name: str) -> None:
    """Whatever is shown, no line is wider and there are no more of them than the screen has; no control character."""
    paused = Pause(by="ann", reason=name, since=NOW, until=None)
    for seen in (page([shard(n, "no live worker", paused=paused) for n in range(40)], 99, name), Page("redis://x")):
        seen.error = name
        screen = lines(seen, *size)

        assert len(screen) <= size[1]
        assert max(map(_columns, screen)) <= size[0]
        assert all(line.isprintable() for line in screen)


def test_a_chart_shows_the_newest() -> None:
    """A chart is scaled to the most there was, shows anything above nothing, and ends with the newest."""
    values = [0, 1, 700, 350, 0]

    assert _chart("overdue", values, "", 34, "_12345678") == "overdue      _184_ at most 700"
    assert _chart("overdue", values, "", 27, "_12345678") == "overdue      4_ at most 700"
    assert _chart("overdue", [0, 0], " ms", 40, "_12345678") == "overdue      __ at most 0 ms"
    assert _chart("overdue", values, "", 5, "_12345678") == "overdue       at most 700"


def test_the_shard_with_a_problem_comes_first() -> None:
    """With many shards the state names the one with a problem, and its line comes before the busy ones."""
    screen = lines(page([*(shard(number) for number in range(15)), shard(15, BRAKED)]), 80, 24)

    assert screen[1] == "shard 15 braked"
    assert lines(page([shard(number, "no live worker") for number in range(3)]), 80, 24)[1] == "no live worker"
    [title] = [number for number, line in enumerate(screen) if line.startswith("SHARD")]
    assert [line.split()[:2] for line in screen[title + 1 : title + 3]] == [["15", "braked"], ["14", "healthy"]]
    assert any(line.startswith("PRODUCT") for line in screen)
    assert any(line.startswith("WORKER") for line in screen)


def test_a_pause_is_shown() -> None:
    """Who pauses, and why, stands on the screen."""
    paused = Pause(by="ann", reason="payment outage", since=None, until=None)

    assert "paused       shard 0 by ann until resumed: payment outage" in lines(page([shard(0, paused=paused)]), 80, 24)


def test_without_unicode_it_is_drawn_in_ascii() -> None:
    """Where the terminal has no Unicode the charts are ASCII."""
    assert all(line.isascii() for line in lines(page([shard(0)]), 80, 24, is_unicode=False))


def test_an_outage_keeps_the_last_snapshot() -> None:
    """While there is no answer that is said with its time, above the last snapshot."""
    seen = page([shard(0)])
    seen.error, seen.silent_since = "Connection refused", time.monotonic() - 12

    screen = lines(seen, 80, 24)

    assert screen[1] == "no answer for 12 s: Connection refused"
    assert "active       2,000, 1 quarantined" in screen
    assert seen.snapshot is not None
    seen.add(replace(seen.snapshot, rate=None, lateness=None))
    assert lines(seen, 80, 24)[1] == "healthy"
    assert "expired      ? per second, lateness none" in lines(seen, 80, 24)


def test_a_hanging_server_is_no_present(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a snapshot is old, though no error says so yet, that stands where the state would."""
    seen, nothing = page([shard(0)]), Page("redis://x")
    for after_s, states in ((2, ["healthy", "waiting for an answer"]), (7, ["no answer for 7 s"] * 2)):
        seen.silent_since = nothing.silent_since = 1000
        monkeypatch.setattr("expirer.operate.screen.time", SimpleNamespace(monotonic=lambda now=1000 + after_s: now))

        assert states == [lines(one, 80, 24)[1] for one in (seen, nothing)]


def test_a_pause_keeps_its_reason() -> None:
    """On 80 columns a pause has its reason, however long the name; of today's end the time is enough."""
    until = NOW + 60_000
    for by, name in (("ann@shop-1", "ann@shop-1"), ("ann" * 99, "ann" * 8), ("", "nobody named")):
        paused = Pause(by, "outage", since=NOW, until=until)

        screen = lines(page([shard(0, paused=paused)]), 80, 24)

        assert screen[6] == f"paused       shard 0 by {name} until 21:32:02.000 UTC: outage"[:80]
    later = Pause("ann", "outage", since=NOW, until=until + 86_400_000)
    assert "until 2026-11-24 21:32:02.000 UTC: outage" in lines(page([shard(0, paused=later)]), 80, 24)[6]


def test_a_pause_is_not_healthy() -> None:
    """The state says which shards are paused, which excuses every backlog."""
    paused = Pause("ann", "", since=None, until=None)

    assert lines(page([shard(0, paused=paused), shard(1)]), 80, 24)[1] == "shard 0 paused"


def test_many_pauses_leave_room() -> None:
    """Shards that were paused together are one line, and of different pauses three stand there."""
    one = Pause("ann", "outage", since=None, until=None)
    together = lines(page([shard(number, paused=one) for number in range(40)]), 80, 24)
    others = [shard(number, paused=replace(one, reason=str(number))) for number in range(40)]

    assert [line for line in together if "ann" in line] == ["paused       40 shards by ann until resumed: outage"]
    screen = lines(page(others), 80, 24)
    assert sum("ann" in line for line in screen) == 3
    assert "             and 37 more pauses" in screen
    assert any(line.startswith("WORKER") for line in screen)


def test_what_is_cut_is_said() -> None:
    """A table that does not fit says how many of how many rows it shows; of a sample its units are a least."""
    screen = lines(page([replace(shard(number), overdue=100) for number in range(40)], 99), 80, 24)

    assert any(line.startswith("SHARD 4/40 ") for line in screen)
    assert any(line.startswith("PRODUCT (of the first 25 of each shard) 3/99 ") for line in screen)
    assert any("36 units or more" in line for line in screen)


def test_a_number_is_never_cut() -> None:
    """A number that is too wide for its column is rounded; cut, it would be another number."""
    worker = WorkerStatus("w", NOW, "0.1.0", 2**53, is_live=True)
    seen = page([replace(shard(0), workers=[worker])])
    assert seen.snapshot is not None
    seen.add(replace(seen.snapshot, products=[Product("mug", 2**53, 123_456_789)]))

    screen = [line.split() for line in lines(seen, 80, 24)]
    assert ["mug", "9.01e+15", "123,456,789"] in screen
    assert ["w", "0.0", "s", "ago", "0.1.0", "-9.01e+15", "ms"] in screen


def test_without_events_there_is_no_lateness() -> None:
    """Where expiry writes no events that is said; `none` would look like punctuality."""
    seen = page([shard(0)])
    assert seen.snapshot is not None
    seen.has_events = False
    seen.add(replace(seen.snapshot, lateness=None))

    assert "expired      12.5 per second, lateness no events" in lines(seen, 80, 24)


@pytest.mark.parametrize(("text", "columns"), [("e\u0301", 1), ("\u2764\ufe0f", 1), ("\u0915\u0940", 2), ("茶", 2)])
def test_columns_are_those_of_a_terminal(text: str, columns: int) -> None:
    """A mark above a letter takes no column, an East Asian letter two."""
    assert columns == _columns(text)


def test_products_are_counted_among_those_due_first(server_client: redis.Redis) -> None:
    """Units held and overdue are summed per product over the next 1,000 of all shards; a damaged one counts nothing."""
    shops = [Inventory(server_client, ShardKeys.of("inventory", number, 2)) for number in range(2)]
    now = int(worker_clock())
    shops[0].hold("tee", 3, now - 5000)
    shops[0].hold("tee", 4, now + 60_000)
    shops[1].hold("mug", 2, now - 5000)
    shops[1].hold("mug", "two", now - 5000)
    server_client.set(shops[1].keys.reservation_prefix + "o9:mug", "x")
    server_client.zadd(shops[1].keys.index, {"o9:mug": now - 5000})
    for _ in range(600):
        shops[1].hold("pot", 1, now + 120_000)

    snapshot = Sampler(Servers.of(server_client, Settings(shards=2)).shards).sample()

    assert snapshot.products == [Product("tee", 7, 3), Product("mug", 2, 2), Product("pot", 497, 0)]
    assert (snapshot.sampled, snapshot.overdue_units, snapshot.overdue, snapshot.active) == (502, 5, 4, 605)
    assert (snapshot.rate, snapshot.lateness) == (None, None)


def test_rate_and_lateness_are_those_since_the_last_snapshot(server_client: redis.Redis) -> None:
    """What expired between two snapshots gives the rate and the lateness, less the grace; what was before, neither."""
    keys = Inventory(server_client).keys

    def expire(late_ms: int) -> None:
        server_client.xadd(keys.events, {"expires_at": 1000, "expired_at": 1000 + late_ms})
        server_client.hincrby(keys.stats, "expired", 1)

    for settings in (Settings(), Settings(grace="2ms"), Settings(events_maxlen=0)):
        server_client.flushall()
        sampler = Sampler(Servers.of(server_client, settings).shards)
        expire(10_000)
        sampler.sample()
        for late_ms in (5, 9, 12):
            expire(late_ms)
        snapshot = sampler.sample()

        grace_ms = 2 if settings.grace else 0
        assert snapshot.lateness == ((9 - grace_ms, 12 - grace_ms) if settings.events_maxlen else None)
        assert snapshot.rate is not None
        assert snapshot.rate > 0
        assert sampler.sample().rate == 0
        assert sampler.sample().lateness is None


def test_the_first_event_of_all_counts(server_client: redis.Redis) -> None:
    """Where there was no event at the first snapshot, the first one that comes is counted."""
    sampler = Sampler(Servers.of(server_client, Settings()).shards)
    sampler.sample()
    server_client.xadd(Inventory(server_client).keys.events, {"expires_at": 1000, "expired_at": 1004})

    assert sampler.sample().lateness == (4, 4)
