"""Runs a small simulated shop: shoppers reserve, pay and leave; the real worker gives their units back."""

from __future__ import annotations

import heapq
import secrets
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from importlib import import_module
from statistics import median
from typing import Any

from pydantic import SecretStr

from expirer.checkout.reservations import InsufficientStock, Refused, Reservations
from expirer.config.address import CONNECTION
from expirer.config.settings import ConfigurationError, Settings
from expirer.connection.errors import location
from expirer.contract import scripts
from expirer.contract.shard import Shard
from expirer.operate.terminal import reporting_errors
from expirer.worker.logs import build_logger
from expirer.worker.wake import WakeListener
from expirer.worker.worker import Worker

STOCKED = {"lamp": 15, "mug": 60, "poster": 90, "tee": 40}
_OPEN_S = 11.0
_SHOPPERS_PER_S = 14
_SHORTEST_HOLD_S, _LONGEST_HOLD_S = 0.8, 3.0
_SETTLE_S = 3.0
"""How long after closing the last reservations may take to end; it waits no longer than it must."""


class Shop:
    """Shoppers on one thread: each reserves, and later pays, releases, extends and pays, or just leaves."""

    def __init__(self, reservations: Reservations) -> None:
        self._reservations = reservations
        self._random = secrets.SystemRandom()
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self.reservation_ids: list[str] = []
        self.counts: Counter[str] = Counter()
        self.units: Counter[tuple[str, str]] = Counter()
        """Product and `sold` or `released` -> units, as the shop counted them itself."""

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
            try:
                if plan == "release":
                    self._reservations.release(order_id, product_id)
                    self.units[product_id, "released"] += quantity
                    return
                if plan == "extend":
                    self._reservations.extend(order_id, product_id, timedelta(seconds=1))
                self._reservations.confirm(order_id, product_id)
                self.units[product_id, "sold"] += quantity
                self.counts["paid"] += 1
            except Refused:  # at the last moment: the worker was faster
                self.counts["too late"] += 1

        self._at(time.monotonic() + hold_s * self._random.uniform(0.2, 1.02), act)


def run(settings: Settings, *, is_embedded: bool) -> int:
    """Run the demo on an embedded Redis, or on that of the settings; return the exit code."""
    kept = () if is_embedded else CONNECTION
    own = {name: field.get_default() for name, field in Settings.model_fields.items() if name not in kept}
    own |= {"namespace": f"expirer-demo-{secrets.token_hex(2)}", "log_level": "warning"}
    with ExitStack() as stack:
        if is_embedded:
            own["redis_url"] = SecretStr(stack.enter_context(_embedded_redis()))
        settings = settings.model_copy(update=own)
        (shard,) = stack.enter_context(reporting_errors(settings)).shards
        for name in ("expire", "reserve", "confirm", "release", "extend"):
            shard.client.script_load(scripts.load(name).text)  # fakeredis hangs up after an error such as NOSCRIPT
        shop = Shop(Reservations.from_settings(shard.client, settings))
        try:
            for product_id, units in STOCKED.items():
                shard.client.hset(shard.keys.stock_prefix + product_id, mapping={"available": units, "reserved": 0})
            _simulate(shard, shop)
            return _report(*_count(shard, shop))
        finally:
            _clean_up(shard, shop)
    return 1


def _simulate(shard: Shard, shop: Shop) -> None:
    where = location(shard.settings)
    _say(f"A small shop on {where}, with a worker.")
    if not shard.settings.redis_sentinels:
        cli = f"redis-cli {'-c ' * shard.settings.redis_cluster}-u {where.partition(',')[0]}"
        _say("Look inside while it runs:")
        _say(f"  {cli} ZRANGE '{shard.keys.index}' 0 -1 WITHSCORES")
        _say(f"  {cli} HGETALL '{shard.keys.stock_prefix}mug'\n")
    log = build_logger(shard.settings)
    worker = Worker(shard, log)
    listener = WakeListener([worker], log)
    listener.start()
    thread = threading.Thread(target=worker.run, name="expirer-worker")
    thread.start()
    try:
        shop.open(lambda second: _print_progress(shard, shop, second))
        _say("Closed. The last reservations end.")
        deadline = time.monotonic() + _SETTLE_S
        while shard.client.zcard(shard.keys.index) and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        listener.stop()
        worker.stop()
        thread.join()


def _print_progress(shard: Shard, shop: Shop, second: int) -> None:
    expired: Any = shard.client.hget(shard.keys.stats, "expired")
    counts = {**shop.counts, "expired": int(expired or 0)}
    words = ("reserved", "paid", "expired", "sold out", "too late")
    _say(f"{second:>3} s   orders " + "   ".join(f"{word} {counts.get(word, 0):>3}" for word in words))


def _count(shard: Shard, shop: Shop) -> tuple[dict[str, dict[str, int]], list[int]]:
    """Return product -> column -> units, and how late each expiry was in ms."""
    lateness_ms = []
    events: Any = shard.client.xrange(shard.keys.events)
    for _, event in events:
        shop.units[event[b"product_id"].decode(), "expired"] += int(event[b"quantity"])
        lateness_ms.append(int(event[b"expired_at"]) - int(event[b"expires_at"]))
    table = {}
    for product_id, stocked in STOCKED.items():
        row: Any = shard.client.hmget(shard.keys.stock_prefix + product_id, ["available", "reserved"])
        counted = {column: shop.units[product_id, column] for column in ("sold", "released", "expired")}
        table[product_id] = {"stocked": stocked, "available": int(row[0]), "reserved": int(row[1]), **counted}
    return table, lateness_ms


def _clean_up(shard: Shard, shop: Shop) -> None:
    names = asdict(shard.keys)
    stock, reservation = names.pop("stock_prefix"), names.pop("reservation_prefix")
    ids = (reservation + id_ for id_ in shop.reservation_ids)
    shard.client.delete(*names.values(), *(stock + product_id for product_id in STOCKED), *ids)


def _report(table: dict[str, dict[str, int]], lateness_ms: list[int]) -> int:
    _say("\nIn units  " + "".join(f"{column:>11}" for column in next(iter(table.values()))))
    for product_id, row in table.items():
        _say(f"{product_id:<10}" + "".join(f"{units:>11}" for units in row.values()))
    if lateness_ms:
        _say(f"\nUnits came back {median(lateness_ms):.0f} ms late (median), {max(lateness_ms)} ms (worst).")
    broken = [name for name, row in table.items() if row["available"] + row["reserved"] + row["sold"] != row["stocked"]]
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


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
