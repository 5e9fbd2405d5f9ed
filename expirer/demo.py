"""Runs a small simulated shop: shoppers reserve, pay and leave; the real worker gives their units back."""

from __future__ import annotations

import heapq
import secrets
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from importlib import import_module
from statistics import median
from typing import cast

from pydantic import SecretStr
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from expirer.checkout.reservations import InsufficientStock, Refused, Reservations
from expirer.config.address import CONNECTION
from expirer.config.settings import ConfigurationError, Settings
from expirer.connection.connect import connect, connect_all
from expirer.connection.errors import location, redact
from expirer.contract import scripts
from expirer.contract.keys import ShardKeys, shard_keys
from expirer.worker.logs import build_logger
from expirer.worker.wake import WakeListener
from expirer.worker.worker import Worker

STOCKED = {"lamp": 15, "mug": 60, "poster": 90, "tee": 40}
_OPEN_S = 11.0
_SHOPPERS_PER_S = 14
_SHORTEST_HOLD_S, _LONGEST_HOLD_S = 0.8, 3.0
_SETTLE_S = 3.0
"""How long after closing the last reservations may take to end; it waits no longer than it must."""


@dataclass(frozen=True, slots=True)
class Row:
    """One product at the end, in units; `sold` and `released` are what the shop counted itself."""

    product_id: str
    stocked: int
    available: int
    reserved: int
    sold: int
    released: int
    expired: int

    @property
    def is_conserved(self) -> bool:
        """Whether no unit was lost or doubled."""
        return self.available + self.reserved + self.sold == self.stocked


class Shop:
    """Shoppers on one thread: each reserves, and later pays, releases, extends and pays, or just leaves."""

    def __init__(self, reservations: Reservations) -> None:
        self._reservations = reservations
        self._random = secrets.SystemRandom()
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self.reservation_ids: list[str] = []
        self.counts: Counter[str] = Counter()
        self.sold: Counter[str] = Counter()
        self.released: Counter[str] = Counter()

    def open(self, on_second: Callable[[int], None]) -> None:
        """Let shoppers in for some seconds, then let everyone inside finish."""
        start = time.monotonic()
        for number in range(int(_OPEN_S * _SHOPPERS_PER_S)):
            self._at(start + number / _SHOPPERS_PER_S, partial(self._arrive, number))
        for second in range(1, int(_OPEN_S) + 1):
            self._at(start + second, partial(on_second, second))
        while self._later:
            moment, _, act = heapq.heappop(self._later)
            time.sleep(max(0.0, moment - time.monotonic()))
            act()

    def _at(self, moment: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._later, (moment, self._random.getrandbits(64), act))

    def _arrive(self, number: int) -> None:
        order_id, product_id = f"order-{number}", self._random.choice(list(STOCKED))
        quantity = self._random.randint(1, 3)
        self.reservation_ids.append(f"{order_id}:{product_id}")  # before it exists: a stop may come at any moment
        hold_s = self._random.uniform(_SHORTEST_HOLD_S, _LONGEST_HOLD_S)
        try:
            self._reservations.reserve(order_id, product_id, quantity, timedelta(seconds=hold_s))
        except InsufficientStock:
            self.counts["sold out"] += 1
            return
        self.counts["reserved"] += 1
        (plan,) = self._random.choices(["pay", "leave", "release", "extend"], weights=[35, 45, 10, 10])
        if plan == "leave":
            return

        def act() -> None:
            # A shopper who pays at the last moment may be too late: the worker was faster.
            with suppress(Refused):
                if plan == "release":
                    self._reservations.release(order_id, product_id)
                    self.released[product_id] += quantity
                    return
                if plan == "extend":
                    self._reservations.extend(order_id, product_id, timedelta(seconds=1))
                self._reservations.confirm(order_id, product_id)
                self.sold[product_id] += quantity
                self.counts["paid"] += 1
                return
            self.counts["too late"] += 1

        self._at(time.monotonic() + hold_s * self._random.uniform(0.2, 1.02), act)


def run(settings: Settings, *, is_embedded: bool) -> int:
    """Run the demo on an embedded Redis, or on that of the settings; return the exit code."""
    namespace = f"expirer-demo-{secrets.token_hex(2)}"
    defaults = {name: field.get_default() for name, field in Settings.model_fields.items() if name not in CONNECTION}
    settings = settings.model_copy(update=defaults | {"namespace": namespace, "log_level": "warning"})
    if not is_embedded:
        return _run_on(settings)
    with _embedded_redis() as url:
        own = {name: Settings.model_fields[name].get_default() for name in CONNECTION} | {"redis_url": SecretStr(url)}
        return _run_on(settings.model_copy(update=own))


def _run_on(settings: Settings) -> int:
    client = connect(settings)
    client.set_retry(Retry(NoBackoff(), 3))  # every step of a shop may be repeated
    (keys,) = shard_keys(settings)
    shop = Shop(Reservations.from_settings(client, settings))
    try:
        for name in ("expire", "reserve", "confirm", "release", "extend"):
            client.script_load(scripts.load(name).text)  # fakeredis hangs up after an error such as NOSCRIPT
        try:
            for product_id, units in STOCKED.items():
                client.hset(keys.stock_prefix + product_id, mapping={"available": units, "reserved": 0})
            _simulate(client, settings, keys, shop)
            rows, lateness_ms = _count(client, keys, shop)
        finally:
            _clean_up(client, keys, shop)
    except RedisError as error:
        sys.stderr.write(f"expirer: {location(settings)}: {redact(str(error), settings)}\n")
        return 1
    return _report(rows, lateness_ms)


def _simulate(client: Redis, settings: Settings, keys: ShardKeys, shop: Shop) -> None:
    _say(f"A small shop on {location(settings)}, with a worker.")
    _say("Look inside while it runs:")
    _say(f"  {_redis_cli(settings)} ZRANGE '{keys.index}' 0 -1 WITHSCORES")
    _say(f"  {_redis_cli(settings)} HGETALL '{keys.stock_prefix}mug'\n")
    log = build_logger(settings)
    worker = Worker(connect_all(settings).shards[0], log)
    listener = WakeListener([worker], log)
    listener.start()
    thread = threading.Thread(target=worker.run, name="expirer-worker")
    thread.start()
    try:
        shop.open(lambda second: _print_progress(client, keys, shop, second))
        _say("Closed. The last reservations end.")
        deadline = time.monotonic() + _SETTLE_S
        while client.zcard(keys.index) and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        listener.stop()
        worker.stop()
        thread.join()


def _print_progress(client: Redis, keys: ShardKeys, shop: Shop, second: int) -> None:
    expired = int(cast("bytes", client.hget(keys.stats, "expired") or b"0"))
    counts = shop.counts | Counter({"expired": expired})
    words = ("reserved", "paid", "expired", "sold out", "too late")
    _say(f"{second:>3} s   orders " + "   ".join(f"{word} {counts[word]:>3}" for word in words))


def _count(client: Redis, keys: ShardKeys, shop: Shop) -> tuple[list[Row], list[int]]:
    """Return a row per product, and how late each expiry was in ms."""
    expired: Counter[str] = Counter()
    lateness_ms = []
    for _, event in cast("list[tuple[bytes, dict[bytes, bytes]]]", client.xrange(keys.events)):
        expired[event[b"product_id"].decode()] += int(event[b"quantity"])
        lateness_ms.append(int(event[b"expired_at"]) - int(event[b"expires_at"]))
    rows = []
    for product_id, stocked in STOCKED.items():
        counters = cast("list[bytes]", client.hmget(keys.stock_prefix + product_id, ["available", "reserved"]))
        counts = (of_product[product_id] for of_product in (shop.sold, shop.released, expired))
        rows.append(Row(product_id, stocked, *map(int, counters), *counts))
    return rows, lateness_ms


def _clean_up(client: Redis, keys: ShardKeys, shop: Shop) -> None:
    client.delete(
        keys.index,
        keys.events,
        keys.quarantine,
        keys.stats,
        keys.workers,
        keys.about,
        *(keys.stock_prefix + product_id for product_id in STOCKED),
        *(keys.reservation_prefix + reservation_id for reservation_id in shop.reservation_ids),
    )


def _report(rows: list[Row], lateness_ms: list[int]) -> int:
    columns = ("stocked", "available", "reserved", "sold", "released", "expired")
    _say("\nIn units  " + "".join(f"{column:>11}" for column in columns))
    for row in rows:
        _say(f"{row.product_id:<10}" + "".join(f"{getattr(row, column):>11}" for column in columns))
    if lateness_ms:
        _say(f"\nUnits came back {median(lateness_ms):.0f} ms late (median), {max(lateness_ms)} ms (worst).")
    broken = [row.product_id for row in rows if not row.is_conserved]
    if broken:
        _say(f"BROKEN: available + reserved + sold differs from what was stocked: {', '.join(broken)}")
        return 1
    _say("Conserved: available + reserved + sold is what was stocked, for every product.")
    return 0


@contextmanager
def _embedded_redis() -> Iterator[str]:
    """Run fakeredis over TCP on a free loopback port; yield its URL."""
    try:
        server = import_module("fakeredis").TcpFakeServer(("127.0.0.1", 0))
    except ImportError:
        raise ConfigurationError(
            ["the embedded demo needs fakeredis: pip install 'expirer[demo]', or give --redis-url"]
        ) from None
    server.daemon_threads = True
    # With Nagle's algorithm an answer in two parts waits 40 ms for the client's acknowledgement of the first.
    server.RequestHandlerClass.disable_nagle_algorithm = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"redis://127.0.0.1:{server.server_address[1]}/0"
    finally:
        server.shutdown()
        server.server_close()


def _redis_cli(settings: Settings) -> str:
    if settings.redis_sentinels:
        return "redis-cli (of the primary)"
    where = location(settings).partition(",")[0]
    return f"redis-cli -c -u {where}" if settings.redis_cluster else f"redis-cli -u {where}"


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
