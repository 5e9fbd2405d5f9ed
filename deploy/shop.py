"""A small shop that never closes: shoppers reserve, then pay, extend or leave; something for expirer to do."""

from __future__ import annotations

import heapq
import random
import secrets
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import cast

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import RedisError

from expirer import InsufficientStock, Refused, Reservations
from expirer.config.settings import ConfigurationError, Settings, load
from expirer.connection.connect import connect
from expirer.connection.errors import location, redact
from expirer.contract.keys import shard_keys, shard_of
from expirer.worker.logs import build_logger

PRODUCTS = {"mug": 8, "tee": 6, "poster": 5, "lamp": 3, "teapot": 3, "vase": 2, "chair": 1, "sofa": 1}
"""How often shoppers want each."""
_DELIVERY = 200
_MOST_UNITS = 3
_ORDERS_PER_HOLD = 500
"""Some 300 reservations are Active then: those who pay do so after half of their hold, on average."""
_RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class Order:
    """What one shopper wants."""

    id: str
    product_id: str
    quantity: int


class Shop:
    """One thread of shoppers; each holds for the default duration.

    No unit is lost, whenever Redis or the shop dies: every step is one script or one transaction, and may be repeated.
    """

    def __init__(self, client: Redis, settings: Settings) -> None:
        self._client = client
        self._settings = settings
        self._reservations = Reservations.from_settings(client, settings)
        self._keys = shard_keys(settings)
        self._log = build_logger(settings)
        self._hold_s = settings.default_duration.total_seconds()
        self._random = random.Random()  # noqa: S311  # a simulation, not a secret
        self._run = secrets.token_hex(2)
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._stops: SimpleQueue[None] = SimpleQueue()
        self._counts: Counter[str] = Counter()
        self._is_down = False

    def stop(self) -> None:
        """Close after the step under way; safe in a signal handler."""
        self._stops.put(None)

    def run(self) -> None:
        """Serve shoppers until it is stopped, through every outage of Redis."""
        self._log.info("shop_opened", redis=location(self._settings), products=len(PRODUCTS), hold_s=self._hold_s)
        for product_id in PRODUCTS:
            self._in(0, partial(self._restock, product_id))
        self._in(0, self._arrive)
        while not self._should_stop(self._later[0][0] - time.monotonic()):
            step = heapq.heappop(self._later)
            try:
                step[2]()
            except (RedisError, OSError) as error:
                heapq.heappush(self._later, step)
                self._log_down(error)
                if self._should_stop(_RETRY_S):
                    break
            else:
                self._log_back()
        self._log.info("shop_closed", **self._counts)

    def _in(self, seconds: float, step: Callable[[], None]) -> None:
        heapq.heappush(self._later, (time.monotonic() + seconds, self._random.getrandbits(64), step))

    def _should_stop(self, within_s: float) -> bool:
        with suppress(Empty):
            self._stops.get(timeout=max(0.0, within_s))
            return True
        return False

    def _arrive(self) -> None:
        (product_id,) = self._random.choices(list(PRODUCTS), weights=list(PRODUCTS.values()))
        self._counts["orders"] += 1
        order = Order(f"{self._run}-{self._counts['orders']}", product_id, self._random.randint(1, _MOST_UNITS))
        self._in(0, partial(self._reserve, order))
        self._in(self._random.expovariate(_ORDERS_PER_HOLD / self._hold_s), self._arrive)

    def _reserve(self, order: Order) -> None:
        try:
            self._reservations.reserve(order.id, order.product_id, order.quantity)
        except InsufficientStock:
            self._counts["sold_out"] += 1
            self._in(0, partial(self._restock, order.product_id))
            return
        except Refused:  # an outage lasted longer than this hold
            self._counts["too_late"] += 1
            return
        plans: list[Callable[[Order], None] | None] = [self._pay, self._extend, self._release, None]
        (plan,) = self._random.choices(plans, weights=[60, 10, 5, 25])
        if plan is not None:
            # Some come at the last moment: then expirer may be faster, and they are refused.
            self._in(self._hold_s * self._random.uniform(0.05, 1.02), partial(plan, order))

    def _pay(self, order: Order) -> None:
        self._end(self._reservations.confirm, order, "paid")

    def _release(self, order: Order) -> None:
        self._end(self._reservations.release, order, "released")

    def _extend(self, order: Order) -> None:
        try:
            self._reservations.extend(order.id, order.product_id, self._settings.default_duration)
        except Refused:
            self._counts["too_late"] += 1
            return
        self._in(self._hold_s * self._random.uniform(0.05, 1.02), partial(self._pay, order))

    def _end(self, step: Callable[[str, str], object], order: Order, how: str) -> None:
        try:
            step(order.id, order.product_id)
        except Refused:
            how = "too_late"
        self._counts[how] += 1

    def _restock(self, product_id: str) -> None:
        """Add a delivery of what is sold out; the field `stocked` sums them, beside the counters of the contract."""
        key = self._keys[shard_of(product_id, len(self._keys))].stock_prefix + product_id

        def add(pipe: Pipeline) -> None:
            available = cast("bytes | None", pipe.hget(key, "available"))
            pipe.multi()
            if int(available or 0) < _MOST_UNITS:
                pipe.hincrby(key, "available", _DELIVERY)
                pipe.hincrby(key, "reserved", 0)
                pipe.hincrby(key, "stocked", _DELIVERY)

        self._client.transaction(add, key)

    def _log_down(self, error: Exception) -> None:
        if not self._is_down:
            self._is_down = True
            message = redact(str(error), self._settings)
            self._log.warning("redis_is_down", error=type(error).__name__, message=message)

    def _log_back(self) -> None:
        if self._is_down:
            self._is_down = False
            self._log.info("redis_is_back")


def main() -> int:
    """Run the shop until SIGTERM or SIGINT; return the exit code: 2 for a wrong configuration."""
    try:
        settings = load()
        shop = Shop(connect(settings), settings)
    except (ConfigurationError, ValueError) as error:
        sys.stderr.write(f"shop: {error}\n")
        return 2
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: shop.stop())
    shop.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
