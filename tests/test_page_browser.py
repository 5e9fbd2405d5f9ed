"""The page at `/` as a real browser shows it: on a phone and on a desk, by day and by night."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import redis
from selenium.webdriver.common.keys import Keys

from expirer.config.settings import Settings
from expirer.connection.connect import Servers
from expirer.contract.clock import worker_clock
from expirer.contract.control import pausing
from expirer.contract.reasons import ADVICE
from expirer.web.format import span
from expirer.web.page import CSP, Page, render
from expirer.web.watch import Watch
from expirer.worker.worker import Worker
from tests.browser import Browser, Site
from tests.conftest import Log, Tool
from tests.inventory import Inventory
from tests.program import Program, wait_until
from tests.servers import RedisServer, free_port
from tests.views import HOSTILE, change, hostile, scenes

pytestmark = pytest.mark.slow

SCENES = scenes()
CONTRASTS = """
const bright = color => {
  const parts = color.match(/[\\d.]+/g).slice(0, 3).map(part => part / 255);
  const [r, g, b] = parts.map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = element => {
  for (; element; element = element.parentElement) {
    const color = getComputedStyle(element).backgroundColor;
    if (!/, 0\\)$/.test(color)) return color;
  }
  throw new Error("nothing is behind it");
};
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || element.closest("svg")) continue;
  const [light, dark] = [getComputedStyle(element).color, behind(element)].map(bright).sort((a, b) => b - a);
  found.push([(light + 0.05) / (dark + 0.05), walker.currentNode.data.trim()]);
}
return found;
"""
"""Of every text: its contrast as WCAG counts it, and the text."""


@pytest.fixture(scope="module")
def browser(tool: Tool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Start a real browser."""
    with Browser(tool("chromium"), tool("chromedriver"), tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """Serve a page."""
    with Site(CSP) as site:
        yield site


def test_it_shows_what_redis_holds(browser: Browser, site: Site, server_client: redis.Redis) -> None:
    """Of a real shop with a real worker the page shows what expired, is reserved, was refused and is late."""
    shop = Inventory(server_client)
    now = int(worker_clock())
    servers = Servers.of(server_client, Settings())
    worker = Worker(servers.shards[0], Log().logger())
    watch = Watch(servers.shards, Log().logger())
    shop.stock("mug", 10, 9)
    shop.hold("mug", 2, now - 1000)
    shop.hold("mug", 3, now + 3_600_000)
    shop.hold("tee", 1, now - 1000, status="Odd")
    watch.read()
    worker.tick()
    server_client.hset(shop.keys.control, mapping=pausing("ann@shop-1", "payment outage", now))  # type: ignore[arg-type]
    shop.hold("mug", 4, now - 60_000, "o9:mug")
    watch.read()

    site.html = render(Page(Settings(), watch.reading, watch.reading.at, is_still=True))
    browser.look(site.url)

    tiles = dict(zip(browser.texts(".now dt"), browser.texts(".now dt + dd"), strict=True))
    events: Any = server_client.xrange(shop.keys.events)
    [(_, event)] = events
    assert span(int(event[b"expired_at"]) - now + 1000).split() == tiles.pop("Lateness, median").split()
    assert float(tiles.pop("Expired per second")) > 0
    assert {"Overdue": "1", "Active": "2", "In quarantine": "1", "Live workers": "1"} == tiles
    assert ["Paused"] == browser.texts("h1")
    assert "Paused by ann@shop-1 since" in browser.texts("header li")[0]
    assert ["mug 7 4"] == browser.texts("#products ~ table tbody tr")
    assert browser.texts("#workers ~ table tbody tr")[0].startswith(f"{worker.id} ")
    assert browser.texts("#totals ~ table tbody tr")[:2] == ["reservations expired 1", "units given back 2"]
    assert browser.texts("#quarantine ~ table tbody tr")[0].startswith("o2:tee status_unknown ")
    assert [ADVICE["status_unknown"]] == browser.texts(".reasons dd")
    shop.assert_conserved({"mug": 19})


def test_the_program_serves_it(browser: Browser, own_server: RedisServer) -> None:
    """The page that `expirer web` serves is shown under its policy, and says so when Redis is away."""
    port = free_port()

    def says(headline: str) -> bool:
        browser.look(f"http://localhost:{port}/?still")
        return browser.texts("h1") == [headline]

    with Program(own_server.url, "--http-port", str(port), command="web") as program:
        program.wait_for("http_started")
        browser.complaints()
        wait_until(lambda: says("Not healthy"))
        own_server.stop()
        wait_until(lambda: says("Cannot read Redis"))
        assert [] == browser.complaints()


@pytest.mark.parametrize("scene", SCENES)
def test_it_asks_for_nothing_and_complains_of_nothing(browser: Browser, site: Site, scene: str) -> None:
    """Under its policy a page loads itself only, no icon either, and the console stays empty."""
    site.html = render(replace(SCENES[scene], is_still=True))
    site.asked.clear()
    browser.requests()
    browser.complaints()
    browser.look(site.url)

    assert ["/behind/a/proxy/"] == site.asked
    assert {site.url} == {url for url in browser.requests() if not url.startswith("data:")}
    assert [] == browser.complaints()
    assert "Roboto" in browser.run("return getComputedStyle(document.body).fontFamily")


@pytest.mark.parametrize("error", [*HOSTILE[:2], ""])
def test_strangers_texts_do_nothing(browser: Browser, site: Site, error: str) -> None:
    """What looks like markup is seen as it stands in Redis, and does nothing."""
    site.html = render(replace(change(hostile(), error=error), is_still=True))
    browser.look(site.url)

    ids = browser.texts("#quarantine ~ table tbody th")
    assert list(HOSTILE[:4]) == ids[:4]
    assert r"abc\xe2\x80\xaedcba\xe2\x81\xa6 \x1b[2J\x00\x0a" == ids[4]
    assert "expirer, inventory" in browser.run("return document.title")
    assert 0 == browser.run("return document.querySelectorAll('script, img, base, iframe, object, form').length")
    assert [] == browser.complaints()


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize(("width", "letters"), [(360, ""), (390, ""), (768, ""), (1280, ""), (360, "monospace")])
def test_no_screen_is_too_narrow(browser: Browser, site: Site, scene: str, width: int, letters: str) -> None:
    """Nothing reaches beyond the edge of a phone's screen, or any other, also with the widest letters of a machine."""
    site.html = render(replace(SCENES[scene], is_still=True))
    browser.look(site.url, width=width)
    if letters:  # wider than any proportional font that a browser falls back to
        browser.run(
            "for (const e of document.querySelectorAll('*'))"
            f" {{ e.style.fontFamily = '{letters}'; e.style.letterSpacing = '0.06em'; }}"
        )

    assert (width, width) == tuple(
        browser.run("return [document.documentElement.clientWidth, document.documentElement.scrollWidth]")
    )
    right = "return Math.max(...[...document.querySelectorAll('body *')].map(e => e.getBoundingClientRect().right))"
    assert browser.run(right) <= width + 0.5


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_read(browser: Browser, site: Site, scene: str, scheme: str) -> None:
    """By day and by night every text has a contrast of 4.5 at least to what is behind it."""
    site.html = render(replace(SCENES[scene], is_still=True))
    browser.look(site.url, scheme=scheme)

    paper = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert {"light": "rgb(255, 255, 255)", "dark": "rgb(15, 18, 22)"}[scheme] == paper
    contrasts = browser.run(CONTRASTS)
    assert len(contrasts) > 5
    assert [] == [(contrast, text) for contrast, text in contrasts if contrast < 4.5]


def test_it_refreshes_itself(browser: Browser, site: Site) -> None:
    """The page on the screen becomes the newest by itself."""
    site.html = render(SCENES["healthy"]).replace(
        'http-equiv="refresh" content="10"', 'http-equiv="refresh" content="1"'
    )
    browser.look(site.url)
    site.html = render(SCENES["away"])

    wait_until(lambda: browser.run("return document.title").startswith("Cannot read Redis"))


def test_it_can_be_used_by_keyboard(browser: Browser, site: Site) -> None:
    """Tab reaches every link in the order they are seen; each shows its focus, and stays below the prefix."""
    site.html = render(replace(SCENES["late"], is_still=True))
    browser.look(site.url)
    reached = []
    for _ in range(3):
        browser.driver.switch_to.active_element.send_keys(Keys.TAB)
        focus = "const e = document.activeElement; return [e.href, getComputedStyle(e).outlineStyle]"
        reached.append(tuple(browser.run(focus)))

    assert [(site.url + path, "solid") for path in ("?", "#quarantine", "metrics")] == reached


def test_a_chart_can_be_heard(browser: Browser, site: Site) -> None:
    """A chart is an image with a name and a description for those who hear the page."""
    site.html = render(replace(SCENES["healthy"], is_still=True))
    browser.look(site.url)
    tree = json.dumps(browser.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {}))

    assert '"value": "Overdue reservations, in the last hour Last 0, at most 420 at 21:04:32\\u00a0UTC."' in tree
