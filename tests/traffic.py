"""Live traffic in a process of its own: shoppers who reserve, confirm and release, and a worker that expires."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Self

import redis

from expirer.checkout.reservations import Refused, Reservations
from expirer.config.settings import Settings
from expirer.connection.connect import Servers
from expirer.worker.worker import Worker
from tests.conftest import Log
from tests.inventory import Inventory

PRODUCTS = ("mug", "tee", "pot")
STOCKED = 500


class Traffic:
    """Traffic on three products from the start of the block to its end; then `steps` counts what was done."""

    def __init__(self, url: str, seed: int) -> None:
        self._command = [sys.executable, "-m", "tests.traffic", url, str(seed)]
        self.steps: Counter[str] = Counter()

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "under way\n"
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._process.send_signal(signal.SIGTERM)
            self.steps.update(json.loads(self._process.communicate(timeout=30)[0]))
        finally:
            self._process.kill()
            self._process.wait()


def _shop(
    client: redis.Redis, rng: random.Random, number: int, steps: Counter[str], is_over: Callable[[], bool]
) -> None:
    reservations = Reservations(client)
    held: list[tuple[str, str]] = []
    serial = 0
    while not is_over():
        serial += 1
        name = f"s{number}-{serial}", rng.choice(PRODUCTS)
        try:
            reservations.reserve(*name, rng.randint(1, 3), timedelta(milliseconds=rng.choice([5, 50, 60_000])))
            steps["reserved"] += 1
            held.append(name)
            if len(held) > 60:
                ended = held.pop(rng.randrange(len(held)))
                (reservations.release if rng.random() < 0.99 else reservations.confirm)(*ended)
                steps["ended"] += 1
        except Refused:
            steps["refused"] += 1
        if steps["reserved"] == 200:
            sys.stdout.write("under way\n")
            sys.stdout.flush()
            steps["reserved"] += 1


def _main(url: str, seed: str) -> None:
    steps: Counter[str] = Counter()
    is_stopped = threading.Event()
    parent = os.getppid()

    def is_over() -> bool:
        return is_stopped.is_set() or os.getppid() != parent  # a test that was killed cannot stop this

    client = redis.Redis.from_url(url, protocol=2)
    for product_id in PRODUCTS:
        Inventory(client).stock(product_id, STOCKED)
    worker = Worker(Servers.of(client, Settings()).shards[0], Log().logger())

    def expire() -> None:
        while not is_over():
            steps["expired"] += worker.tick().expired

    threads = [
        threading.Thread(target=_shop, args=(client, random.Random(int(seed)), int(seed), steps, is_over)),
        threading.Thread(target=expire),
    ]
    signal.signal(signal.SIGTERM, lambda *_: is_stopped.set())
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.stdout.write(json.dumps(steps))


if __name__ == "__main__":
    _main(*sys.argv[1:])
