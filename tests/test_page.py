"""What the page at `/` says, and that nothing in Redis can make it say or do anything else."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import fakeredis
import pytest
import redis

from expirer import __version__
from expirer.config.settings import Settings
from expirer.connection.connect import Servers
from expirer.contract.clock import worker_clock
from expirer.contract.control import Pause
from expirer.contract.keys import shard_keys
from expirer.operate.status import ShardStatus
from expirer.web.charts import Point, Scale, _decades, _linear, charts
from expirer.web.format import cut, figure, moment, span
from expirer.web.metrics import InventoryCollector
from expirer.web.page import CSP, Page, render
from expirer.web.watch import Entry, Quarantine, Watch, read_quarantine
from expirer.worker.http import Request
from expirer.worker.prometheus import metrics_route
from tests.conftest import Log
from tests.inventory import Inventory
from tests.views import BY_ANN, HOSTILE, NOW, change, hostile, hour, page, scenes, shard

SCENES = scenes()
ASKED = Request("GET", "/metrics", "", {})


class Html(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.parts: list[str] = []
        self.style = ""
        self.feed(html)
        self.text = re.sub(r"\s+", " ", " ".join(self.parts))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep an element."""
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        """Keep text."""
        if self.elements and self.elements[-1][0] == "style" and not self.style:
            self.style = data
        else:
            self.parts.append(data)

    def values(self, attribute: str) -> set[str | None]:
        """Return every value of an attribute."""
        return {attributes[attribute] for _, attributes in self.elements if attribute in attributes}


def text_of(seen: Page) -> str:
    """Return the text of a page, white space made one."""
    return Html(render(seen)).text


def page_of(watch: Watch) -> Page:
    """Return the page of what was read last."""
    return Page(Settings(), watch.reading, watch.reading.at)


@pytest.mark.parametrize(
    ("scene", "says"),
    [
        ("healthy", "Healthy Nothing is overdue."),
        ("late", "Not healthy The oldest overdue is too old The workers do not keep up."),
        ("late", "31 in quarantine , which a person must repair."),
        ("paused", "Paused Paused by ann@shop-1 since 21:21:02 UTC until 21:51:02 UTC payment outage"),
        ("shards", "Not healthy Shard 14: no live worker Nothing expires."),
        ("shards", "Shard 15: braked A worker has paused this by itself."),
        ("shards", "Shard 13 paused by ann@shop-1 since 21:21:02 UTC until 21:51:02 UTC payment outage"),
        ("shards", "Shard 15 braked by shop-0:7:ab10 since 21:30:53 UTC until resumed 812 overdue"),
        ("away", "Cannot read Redis For 1 min 36 s: Error 111 connecting to redis:6379. Connection refused."),
        ("away", "All figures below are old."),
        ("away", "Figures of 21:31:02 UTC, 1 min 36 s old."),
        ("away", "As it was at 21:31:02 UTC"),
        ("waiting", "Waiting for Redis No answer yet"),
        (
            "never",
            "Cannot read Redis For 1.2 s: Error -2 connecting. Name or service not known. There are no figures yet.",
        ),
        ("empty", "Not healthy No live worker Nothing expires."),
        ("empty", "No units are held."),
        ("empty", "No worker has ticked."),
    ],
)
def test_the_verdict_stands_first(scene: str, says: str) -> None:
    """What is wrong, who pauses and why, and how old the figures are, is said in words."""
    assert says in text_of(SCENES[scene])


def test_every_figure_is_there() -> None:
    """Overdue, lateness, rate, totals, workers, products and quarantine stand on the page as they were taken."""
    text = text_of(SCENES["late"])

    for said in (
        "Overdue 1,204 1,204 units or more, the oldest for 1 min 13 s",
        "Lateness, median 4 ms 23 ms at worst",
        "Expired per second 12.5 48,213 in all",
        "Active 2,043 next due 21:31:16 UTC",
        "Live workers 2 1 gone",
        "21 stock_missing restore the product, or check EXPIRER_STOCK_PREFIX; then requeue",
        "10 reserved_too_small recount with expirer audit --repair; then requeue",
        "The newest 20 of 31 Reservation Reason Since order-0:mug stock_missing 21:31:02 UTC",
        "mug 1,265 1,204",
        "shop-0:7:ab10 1.5 s ago 0.1.0 3 ms behind",
        "shop-1:7:ab11 1.8 s ago 0.1.0 12 ms ahead",
        "shop-2:7:ab12 2 h 3 min ago: gone 0.1.0 ?",
        "units given back 101,877",
        f"expirer {__version__}.",
    ):
        assert said in text


def test_shards_have_a_row_each() -> None:
    """With several shards each has a row, the sick first, then the busy; one alone has none."""
    html = Html(render(SCENES["shards"]))
    rows = html.text.partition("Quaran\xadtined ")[2].split()

    assert "15 braked 2,043 812 9.1 s 0 14 no live worker 2,043 17 4.1 s 0 13 paused" in " ".join(rows)
    assert "Overdue 949" in html.text
    assert "Shards" not in text_of(SCENES["healthy"])
    assert "64 of 1,000" in text_of(page(*(shard(number) for number in range(1000))))


def test_pauses_of_many_shards() -> None:
    """Where some shards are paused the verdict says how many; of many different pauses five stand there."""
    alike = page(shard(0, paused=BY_ANN), shard(1, paused=BY_ANN), shard(2))
    others = page(*(shard(number, paused=Pause("", "", None, NOW + number)) for number in range(40)))

    assert "Paused in 2 of 3 shards Shards 0, 1 paused by ann@shop-1" in text_of(alike)
    assert "All shards: no live worker" in text_of(page(*(shard(number, "no live worker") for number in range(9))))
    assert "8 shards: no live worker" in text_of(page(shard(8), *(shard(n, "no live worker") for n in range(8))))
    assert "Paused Shard 0 paused by nobody named until 21:31:02 UTC no reason" in text_of(others)
    assert 5 == text_of(others).count("nobody named")
    assert "And 35 more pauses" in text_of(others)


def test_a_hanging_server_is_no_present() -> None:
    """Where a picture is old, though no error says so yet, that is the verdict."""
    assert "Healthy" in text_of(page(at=NOW - 20_000))
    assert "Cannot read Redis For 41.2 s: no answer All figures below are old." in text_of(page(at=NOW - 40_000))


def test_without_events_there_is_no_lateness() -> None:
    """Where expiry writes no events that is said, and no chart pretends punctuality."""
    text = text_of(page(settings=Settings(events_maxlen=0)))

    assert "Lateness, median ? no events are written" in text
    assert "worst" not in text


@pytest.mark.parametrize("seen", [hostile(), change(hostile(), error="")], ids=["away", "paused"])
def test_strangers_texts_stay_text(seen: Page) -> None:
    """Whatever is in Redis is shown as text: no element or attribute comes of it, no control character is left."""
    source = render(seen)
    html = Html(source)

    assert {tag for tag, _ in html.elements} <= {tag for tag, _ in Html(render(SCENES["late"])).elements} | {"circle"}
    assert not [name for _, attributes in html.elements for name in attributes if name.startswith("on")]
    for text in HOSTILE[:4]:
        assert text in html.text
    assert r"abc\xe2\x80\xaedcba\xe2\x81\xa6 \x1b[2J\x00\x0a" in html.text
    assert "(empty)" in html.text
    assert {letter for letter in source if not letter.isprintable()} == {"\n", "\xa0"}


def test_long_texts_are_cut() -> None:
    """An id of ten thousand letters ends in an ellipsis after what anybody would read."""
    html = render(hostile())

    assert "order-" + "9" * 113 + "…" in html
    assert "9" * 300 not in html
    assert len(html) < 100_000


@pytest.mark.parametrize("scene", SCENES)
def test_it_needs_nothing_from_elsewhere(scene: str) -> None:
    """A page refers to itself and its neighbours only, by relative addresses: it works behind any prefix."""
    html = Html(render(SCENES[scene]))

    assert html.values("href") <= {"data:,", "metrics", "?still", "#quarantine"}
    assert html.values("src") | html.values("style") == set()
    assert "script" not in {tag for tag, _ in html.elements}


@pytest.mark.parametrize("scene", SCENES)
def test_the_policy_allows_its_style_only(scene: str) -> None:
    """The one style element is the one whose hash stands in the policy, byte for byte."""
    style = Html(render(SCENES[scene])).style

    assert f"style-src 'sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}';" in CSP
    assert CSP.startswith("default-src 'none'; ")


@pytest.mark.parametrize("scene", SCENES)
def test_it_can_be_read_aloud(scene: str) -> None:
    """Language, one first heading, none left out; a scope for every table head, a name for every section and chart."""
    html = Html(render(SCENES[scene]))
    names = html.values("id")
    headings = [int(tag[1]) for tag, _ in html.elements if re.fullmatch("h[1-6]", tag)]

    assert ("html", {"lang": "en"}) in html.elements
    assert (1, 1) == (headings[0], headings.count(1))
    assert all(after - before <= 1 for before, after in pairwise(headings))
    assert all(attributes.get("scope") in ("col", "row") for tag, attributes in html.elements if tag == "th")
    for tag, attributes in html.elements:
        if tag == "section" or attributes.get("role") == "img":
            assert set((attributes["aria-labelledby"] or "").split()) <= names
        if tag == "svg":
            assert "aria-hidden" in attributes or "aria-labelledby" in attributes
    assert (
        max(Counter(attributes["id"] for _, attributes in html.elements if "id" in attributes).values(), default=1) == 1
    )


def test_no_secret_is_shown() -> None:
    """The address of Redis stands there without the password."""
    assert all("secret" not in render(seen) for seen in SCENES.values())
    assert "redis://redis:6379/0" in text_of(SCENES["healthy"])


def test_it_refreshes_itself_until_it_is_stopped() -> None:
    """A page refreshes itself; one that was stopped does not, and has a link that starts it again."""
    moving, still = Html(render(page())), Html(render(page(is_still=True)))

    assert ("meta", {"http-equiv": "refresh", "content": "10"}) in moving.elements
    assert "refresh" not in still.values("http-equiv")
    assert "?" in still.values("href")


def test_charts_are_drawn_in_steps() -> None:
    """A curve has a step for each point, breaks where nothing is known, and shows whatever is more than nothing."""
    at = [NOW - 3_590_000, NOW - 3_580_000, NOW - 3_500_000, NOW - 10_000, NOW]
    points = [Point(moment, overdue, None, None) for moment, overdue in zip(at, (0, 1, 700, 350, 0), strict=True)]

    [overdue, lateness, rate] = charts(points, NOW, has_events=True)

    assert ("1,000", "500", "0") == overdue.scale.marks
    assert "Last 0, at most 700 at 20:32:42\xa0UTC." == overdue.words
    area = "M0.0 100V100H1.0V98H2.0V100ZM9.0 100V30H10.0V100ZM358.0 100V65H359.0V100H360.0V100Z"
    assert {"overdue": area} == overdue.curves
    assert overdue.gaps == [("2.0", "8.0"), ("10.0", "349.0")]
    assert ("Nothing expired.", "Nothing expired.") == (lateness.words, rate.words)


@pytest.mark.parametrize(
    ("scale", "most", "marks"),
    [
        (_linear, 0, ("1", "0.5", "0")),
        (_linear, 0.3, ("0.5", "0.25", "0")),
        (_linear, 5, ("5", "2.5", "0")),
        (_linear, 6, ("10", "5", "0")),
        (_linear, 1_000_000, ("1,000,000", "500,000", "0")),
        (_decades, 0, ("10 ms", "1 ms")),
        (_decades, 10, ("10 ms", "1 ms")),
        (_decades, 10_001, ("100 s", "10 s", "1 s", "100 ms", "10 ms", "1 ms")),
        (_decades, 10**8, ("100,000 s", "1,000 s", "10 s", "100 ms", "1 ms")),
    ],
)
def test_a_scale_ends_with_a_round_figure(scale: Callable[[float], Scale], most: float, marks: tuple[str, ...]) -> None:
    """The upper edge is a round figure, few marks say what is below it, and whatever is more than 0 is seen."""
    drawn = scale(most)

    assert marks == drawn.marks
    assert (0, 100) == (drawn.grid[0], drawn.grid[-1])
    assert (100, 98) == (drawn.y(0), drawn.y(0.000001))
    assert 0 <= drawn.y(most)


def test_an_outage_hides_no_milliseconds() -> None:
    """Lateness is drawn by powers of ten: beside ten seconds ten milliseconds have a height of their own."""
    assert [75, 50, 0] == [_decades(10_000).y(ms) for ms in (10, 100, 10_000)]


def test_charts_end_an_hour_ago() -> None:
    """What is older than an hour is not drawn, and what a clock puts into the future neither."""
    points = [Point(at, 9, None, None) for at in (NOW - 3_600_001, NOW + 1)]

    assert "No figures." == charts(points, NOW, has_events=True)[0].words


@pytest.mark.parametrize(
    ("expected", "actual"),
    [
        ("0\xa0ms", span(0)),
        ("999\xa0ms", span(999)),
        ("59.9\xa0s", span(59_999)),
        ("1\xa0min 0\xa0s", span(60_000)),
        ("2\xa0h 3\xa0min", span(7_400_000)),
        ("1,000\xa0d 1\xa0h", span(86_403_600_000)),
        ("21:31:02\xa0UTC", moment(NOW, NOW)),
        ("2026-11-24 21:31:02\xa0UTC", moment(NOW + 86_400_000, NOW)),
        ("9007199254740992\xa0ms", moment(2**53, NOW)),
        ("1,234", figure(1234)),
        ("12.5", figure(12.51)),
        ("0.1", figure(0.1)),
        ("100", figure(100.4)),
        ("0", figure(0.0)),
        ("mug", cut("mug")),
        ("\\x00" * 29 + "\\x0…", cut("\0" * 10_000)),
        ("a" * 120, cut("a" * 120)),
        ("a" * 119 + "…", cut("a" * 121)),
    ],
)
def test_words(expected: str, actual: str) -> None:
    """Figures, times and texts stand there as people read them."""
    assert expected == actual


def states(*counts: int) -> list[ShardStatus]:
    """Make shards with so many entries in quarantine."""
    return [shard(number, quarantined=count) for number, count in enumerate(counts)]


def test_the_quarantine_tells_reasons_and_the_newest(client: redis.Redis) -> None:
    """Of all entries the reasons are counted, and the newest 20 shown; what a person wrote has no time."""
    shops = [Inventory(client, keys) for keys in shard_keys(Settings(shards=2))]
    for n in range(30):
        client.hset(shops[n % 2].keys.quarantine, f"o{n}:mug", f"reason=stock_missing at={NOW + n} score=1")
    client.hset(shops[0].keys.quarantine, b"\xff", "look at this")

    seen = read_quarantine(Servers.of(client, Settings(shards=2)).shards, states(16, 15))

    assert (("stock_missing", 30), ("look at this", 1)) == seen.reasons
    assert [Entry(f"o{n}:mug", "stock_missing", NOW + n) for n in range(29, 9, -1)] == list(seen.entries)
    assert 31 == seen.counted
    assert read_quarantine(Servers.of(client, Settings(shards=2)).shards, states(1, 0)).counted == 16
    assert Quarantine() == read_quarantine(Servers.of(client, Settings(shards=2)).shards, states(0, 0))


def test_a_large_quarantine_is_read_in_part(server_client: redis.Redis) -> None:
    """Of many entries about 1,000 are read, in slices of about 100, however many there are."""
    keys = Inventory(server_client).keys
    entries = {f"o{n}:mug": "reason=stock_missing at=1 score=1" for n in range(5000)}
    server_client.hset(keys.quarantine, mapping=entries)  # type: ignore[arg-type]
    server_client.config_resetstat()

    seen = read_quarantine(Servers.of(server_client, Settings()).shards, states(5000))

    stats = server_client.info("commandstats")
    assert 1000 == seen.counted
    assert stats["cmdstat_hscan"]["calls"] <= 12
    assert set(stats) <= {"cmdstat_hscan", "cmdstat_info", "cmdstat_config|resetstat"}


def test_a_missing_right_is_said_everywhere(server_client: redis.Redis, log: Log) -> None:
    """If the user may not read a shard the page, /readyz and the log say NOPERM and the command, and the figures go."""
    with _user(server_client, "-zcount") as client:
        watch = Watch(Servers.of(client, Settings()).shards, log.logger())
        watch.read()
        watch.read()

    [entry] = log.of("cannot_read_redis")
    for text in (text_of(page_of(watch)), watch.why_not_ready(), entry["message"]):
        assert "zcount" in text
    assert ((), False) == (watch.figures().shards, watch.figures().is_up)
    assert "" == watch.why_not_alive()


def test_a_watch_shows_what_it_read(client: redis.Redis, log: Log) -> None:
    """Each reading adds a point to the hour and becomes the page, with the quarantine of that moment."""
    shop = Inventory(client)
    shop.hold("mug", 2, int(worker_clock()) - 1000)
    client.hset(shop.keys.quarantine, "o9:mug", "reason=stock_missing at=1 score=1")
    watch = Watch(Servers.of(client, Settings()).shards, log.logger())
    before, trouble = watch.reading, watch.why_not_ready()
    watch.read()
    watch.read()
    seen = watch.reading

    assert (None, (), "Redis has not answered yet") == (before.snapshot, before.points, trouble)
    assert seen.snapshot is not None
    assert (1, [1, 1], 1) == (seen.snapshot.overdue, [point.overdue for point in seen.points], seen.quarantine.counted)
    assert ("", "") == (seen.error, watch.why_not_ready())
    assert "1 in quarantine" in text_of(page_of(watch))


def test_the_points_are_an_hour(fake_server: fakeredis.FakeServer, log: Log) -> None:
    """Of more than an hour of points the newest remain, in their order."""
    watch = Watch(Servers.of(fakeredis.FakeRedis(server=fake_server), Settings()).shards, log.logger())
    watch.reading = replace(watch.reading, points=tuple(Point(n, 0, None, None) for n in range(360)))
    watch.read()

    assert [*range(1, 360), watch.reading.at] == [point.at for point in watch.reading.points]


def test_a_watch_outlives_an_outage(fake_server: fakeredis.FakeServer, log: Log) -> None:
    """While Redis is away the last reading stays, with the error and its age; then there is a new one."""
    watch = Watch(Servers.of(fakeredis.FakeRedis(server=fake_server), Settings()).shards, log.logger())
    watch.read()
    first = watch.reading
    fake_server.connected = False
    watch.read()
    away = watch.reading
    fake_server.connected = True
    watch.read()

    assert first == replace(away, error="")
    assert away.error
    assert away.is_old(away.at)
    assert ("", 2) == (watch.reading.error, len(watch.reading.points))


def test_no_failure_ends_a_watch(monkeypatch: pytest.MonkeyPatch, log: Log) -> None:
    """What is no error of Redis is shown as well, and no error shows the password."""
    settings = Settings(redis_url="redis://:hunter2@redis:6379/0")
    watch = Watch(Servers.of(fakeredis.FakeRedis(), settings).shards, log.logger())
    for failure, error in (
        (OverflowError("too much"), "OverflowError: too much"),
        (redis.ConnectionError("no hunter2"), "redis://redis:6379/0: no ***"),
        (redis.TimeoutError(), "redis://redis:6379/0: TimeoutError"),
    ):
        monkeypatch.setattr("expirer.operate.snapshot.Sampler.sample", _raising(failure))
        watch.read()

        assert error == watch.reading.error


@pytest.mark.parametrize("digits", [16, 309, 4301])
def test_no_number_breaks_the_page(client: redis.Redis, log: Log, digits: int) -> None:
    """A quantity that no script accepts, a total and a time of as many digits leave the page and the figures whole."""
    shop = Inventory(client)
    huge = "9" * digits
    shop.stock("mug", 0, 1)
    id_ = shop.hold("mug", 1, int(worker_clock()) - 60_000)
    client.hset(shop.keys.reservation_prefix + id_, "quantity", huge)
    client.hset(shop.keys.stats, mapping={"expired": huge, "units": "²", b"\x1b[2J\xff": "7"})
    client.hset(shop.keys.control, mapping={"paused": 1, "until": huge, "since": huge})
    client.hset(shop.keys.about, "w1", f"version={huge} skew_ms={huge}")
    client.zadd(shop.keys.workers, {"w1": 1e300})
    client.xadd(shop.keys.events, {"expired_at": huge, "expires_at": "1"})
    client.hset(shop.keys.quarantine, "o9:mug", f"reason=stock_missing at={huge} score=1")
    watch = Watch(Servers.of(client, Settings()).shards, log.logger())
    watch.read()
    client.xadd(shop.keys.events, {"expired_at": huge, "expires_at": "1"})
    watch.read()

    assert "" == watch.reading.error
    assert "1 in quarantine" in text_of(page_of(watch))
    assert watch.figures().is_up
    assert b"expirer_shard_overdue_reservations" in metrics_route(InventoryCollector(watch.figures))(ASKED).body


@contextmanager
def _user(client: redis.Redis, *rules: str) -> Iterator[redis.Redis]:
    """Connect as a user who has every right but some."""
    client.execute_command("ACL", "SETUSER", "reader", "reset", "on", ">pw", "~*", "&*", "+@all", *rules)  # type: ignore[no-untyped-call]
    path = client.connection_pool.connection_kwargs["path"]
    try:
        with redis.Redis.from_url(f"unix://reader:pw@{path}", protocol=2) as reader:
            yield reader
    finally:
        client.execute_command("ACL", "DELUSER", "reader")  # type: ignore[no-untyped-call]


def _raising(failure: Exception) -> Callable[[object], None]:
    def take(_: object) -> None:
        raise failure

    return take


def test_every_page_is_drawn() -> None:
    """No reading makes the page fail: of an hour, of a moment, of none."""
    for points in ((), hour()[:1], hour()):
        for seen in SCENES.values():
            assert render(change(seen, points=points)).endswith("</html>\n")
