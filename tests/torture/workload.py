"""The load: eight checkouts in a process of their own that reserve, extend, confirm and release, and record it all."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import redis

from expirer.config.settings import Settings
from expirer.connection.connect import connect_all
from expirer.contract.keys import shard_of
from tests.checkouts import LuaCheckout, PlainCheckout
from tests.program import DEADLINE_S
from tests.torture.history import Recorder, Step

PRODUCTS = ("mug", "tea", "pot")
STOCKED = 10_000_000
"""More than any run sells."""
CHECKOUTS = 8
LONG_MS = 30 * 60 * 1000
"""A hold that outlives every run; only a clock that is believed wrongly ends it."""

_PACE_S = 0.04
"""Most time between two steps of a checkout: all together do some 300 a second, and leave the machine to the faults."""
_AFTER_AN_ERROR_S = 0.05
_SHORT_MS = 1500


class Workload:
    """The process; every checkout records into a file of its own in the folder."""

    def __init__(self, settings: Mapping[str, Any], folder: Path, seed: int) -> None:
        self._command = [sys.executable, "-m", "tests.torture.workload", json.dumps(settings), str(folder), str(seed)]
        self._opened = 0
        self.open()

    def open(self) -> None:
        """Start the process; each has order ids of its own."""
        self._opened += 1
        self._process = subprocess.Popen([*self._command, str(self._opened)], env=dict(os.environ))

    def close(self, patience_s: float) -> None:
        """Let every checkout finish its step; fail where one failed."""
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(patience_s)
        assert code == 0, f"a checkout failed: the workload's exit code is {code}"

    def kill(self) -> None:
        """End the process with SIGKILL."""
        self._process.kill()
        self._process.wait(DEADLINE_S)


class _Checkout:
    def __init__(self, settings: Settings, path: Path, number: int, chance: random.Random, recent: deque[Step]) -> None:
        # These clients never repeat a command by themselves: what is repeated is recorded as a step of its own.
        self._shards = [
            PlainCheckout(shard.client, shard.keys) if number % 2 else LuaCheckout(shard.client, settings.shards)
            for shard in connect_all(settings).shards
        ]
        self._record = Recorder(path)
        self._name = path.stem
        self._serials = itertools.count(1)
        self._chance = chance
        self._recent = recent

    def work(self, is_over: threading.Event) -> None:
        step = self._next_step()
        while not is_over.wait(self._chance.uniform(0, _PACE_S)):
            self._record.began(step)
            try:
                checkout = self._shards[shard_of(step.product_id, len(self._shards))]
                self._record.answered(
                    checkout.step(step.operation, step.order_id, step.product_id, step.quantity, step.ms)
                )
            except (redis.RedisError, OSError):
                is_over.wait(_AFTER_AN_ERROR_S)
                if self._chance.random() < 0.5:
                    continue  # as a client may: every step is safe to repeat
            step = self._next_step()

    def _next_step(self) -> Step:
        chance = self._chance
        if not self._recent or chance.random() < 0.45:
            ms = LONG_MS if chance.random() < 0.05 else chance.randint(1, _SHORT_MS)
            order_id = f"{self._name}-{next(self._serials)}"
            made = Step("reserve", order_id, chance.choice(PRODUCTS), chance.randint(1, 3), ms)
            self._recent.append(made)
            return made
        one = chance.choice(self._recent)
        operation = chance.choice(("extend", "confirm", "release"))
        return Step(operation, one.order_id, one.product_id, one.quantity, chance.randint(1, _SHORT_MS))


def _main(settings: str, folder: str, seed: str, opened: str) -> None:
    is_over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: is_over.set())
    recent: deque[Step] = deque(maxlen=200)
    with ThreadPoolExecutor(CHECKOUTS) as threads:
        checkouts = [
            threads.submit(
                _Checkout(
                    Settings(**json.loads(settings)),
                    Path(folder) / f"c{n}.{opened}.history",
                    n,
                    random.Random(f"{seed} {n} {opened}"),
                    recent,
                ).work,
                is_over,
            )
            for n in range(CHECKOUTS)
        ]
        for checkout in checkouts:
            checkout.result()


if __name__ == "__main__":
    _main(*sys.argv[1:])
