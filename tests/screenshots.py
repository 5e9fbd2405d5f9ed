"""Takes the pictures of the page in the README: `python -m tests.screenshots`, about two minutes.

The shop, its workers and every figure are real; only the hour is not. A point of its history is taken
every quarter of a second instead of every ten.
"""

from __future__ import annotations

import base64
import random
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from expirer.checkout.reservations import Refused, Reservations
from expirer.config.settings import Settings
from expirer.connection.connect import Servers, connect, connect_all
from expirer.contract.clock import worker_clock
from expirer.contract.control import pausing, resuming
from expirer.contract.keys import shard_keys
from expirer.web.charts import HOUR_MS, PERIOD_MS
from expirer.web.page import CSP, Page, render
from expirer.web.watch import Watch
from expirer.worker.wake import WakeListener
from expirer.worker.worker import Worker
from tests.browser import Browser, Site
from tests.conftest import Log
from tests.servers import RedisServer, find_server
from tests.tools import find_tool

IMAGES = Path(__file__).parent.parent / "docs" / "images"
PRODUCTS = ("lamp-oak", "mug-blue", "mug-white", "notebook", "poster-a1", "poster-a2", "tee-l-black", "tee-m-black")
LOOKS = HOUR_MS // PERIOD_MS
STEP_S = 0.25


class Shop:
    """A shop with two workers, and somebody who pauses it."""

    def __init__(self, url: str) -> None:
        self._settings = Settings(redis_url=url)
        self._client = connect(self._settings)
        (self._keys,) = shard_keys(self._settings)
        self._reservations = Reservations.from_settings(self._client, self._settings)
        self._random = random.Random(7)
        self._orders = 48_000
        self._workers = [Worker(connect_all(self._settings).shards[0], Log().logger()) for _ in range(2)]
        self._watch = Watch(Servers.of(self._client, self._settings).shards, Log().logger())
        for product_id in (*PRODUCTS, "vase"):
            self._client.hset(self._keys.stock_prefix + product_id, mapping={"available": 90_000, "reserved": 0})

    def open(self) -> tuple[Page, Page]:
        """Return the page after an hour, and a little later, when the shop is paused."""
        threads = [threading.Thread(target=worker.run) for worker in self._workers]
        listeners = [WakeListener([worker], Log().logger()) for worker in self._workers]
        for thread, listener in zip(threads, listeners, strict=True):
            thread.start()
            listener.start()
        self._reserve("vase", timedelta(seconds=12))
        self._client.delete(self._keys.stock_prefix + "vase")  # as a careless import does
        for number in range(LOOKS):
            if number == LOOKS * 4 // 9:
                self._pause("stock count")
            elif number == LOOKS // 2:
                self._client.hset(self._keys.control, mapping=resuming("ann@shop-1", int(worker_clock())))  # type: ignore[arg-type]
                self._client.publish(self._keys.wake, "1")
            self._serve()
        well = self._page()
        self._pause("payment outage")
        for _ in range(LOOKS // 9):
            self._serve()
        paused = self._page()
        for worker, thread, listener in zip(self._workers, threads, listeners, strict=True):
            listener.stop()
            worker.stop()
            thread.join()
        return well, paused

    def _serve(self) -> None:
        """Let some shoppers in, of whom most leave without a word, and look."""
        for _ in range(self._random.randint(2, 9)):
            order_id, product_id = self._reserve(
                self._random.choice(PRODUCTS), timedelta(seconds=0.1 + self._random.expovariate(1 / 10))
            )
            if self._random.random() < 0.3:
                with suppress(Refused):
                    self._reservations.confirm(order_id, product_id)
        time.sleep(STEP_S)
        self._watch.read()

    def _reserve(self, product_id: str, duration: timedelta) -> tuple[str, str]:
        self._orders += 1
        order_id = f"order-{self._orders}"
        self._reservations.reserve(order_id, product_id, self._random.randint(1, 3), duration)
        return order_id, product_id

    def _pause(self, reason: str) -> None:
        row = pausing("ann@shop-1", reason, int(worker_clock()), int(worker_clock()) + 900_000)
        self._client.hset(self._keys.control, mapping=row)  # type: ignore[arg-type]

    def _page(self) -> Page:
        time.sleep(3)  # a page is seldom of this very moment
        reading = self._watch.reading
        points = [replace(point, at=reading.at - PERIOD_MS * n) for n, point in enumerate(reversed(reading.points))]
        reading = replace(reading, points=tuple(reversed(points)))
        return Page(Settings(redis_url="redis://redis:6379/0"), reading, int(worker_clock()))


def take(browser: Browser, site: Site, page: Page, name: str, **screen: object) -> None:
    """Write a picture of what a screen shows of a page, without what is below its edge."""
    site.html = render(page)
    browser.look(site.url, **screen)  # type: ignore[arg-type]
    picture = browser.driver.execute_cdp_cmd("Page.captureScreenshot", {"optimizeForSpeed": False})
    (IMAGES / name).write_bytes(base64.b64decode(picture["data"]))


def _main() -> None:
    binary, chromium, driver = find_server(), find_tool("chromium"), find_tool("chromedriver")
    if binary is None or chromium is None or driver is None:
        sys.exit("this needs a redis-server, chromium and chromedriver: make test installs them")
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(binary, Path(folder))
        server.start()
        try:
            well, paused = Shop(server.url).open()
        finally:
            server.stop()
        with Site(CSP) as site, Browser(chromium, driver, Path(folder) / "profile") as browser:
            take(browser, site, well, "page-desktop-light.png")
            phone = {"width": 390, "height": 844, "scheme": "dark"}
            take(browser, site, paused, "page-phone-dark.png", **phone)


if __name__ == "__main__":
    _main()
