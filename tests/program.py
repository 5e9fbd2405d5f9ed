"""The real program in a process of its own, and a backlog for it to work through."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from signal import SIG_IGN, SIG_UNBLOCK, Signals, getsignal, pthread_sigmask, signal
from types import TracebackType
from typing import Any, Self

from expirer.config.environment import variable
from expirer.contract.keys import ShardKeys
from tests.inventory import Inventory

DEADLINE_S = 50.0
"""How long a test waits for what should happen at once, on a busy machine too, before it calls it broken.

Less than the default interval: what only the next look would find is broken.
"""


def wait_until(condition: Callable[[], object], deadline_s: float = DEADLINE_S) -> None:
    """Return as soon as the condition holds; fail where it never does."""
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.002)


def let_children_be_stopped() -> None:
    """Have children start with default signals: in the background of a script SIGINT is ignored, by nohup SIGHUP.

    A child inherits what its parent ignores or blocks, and not what its parent handles; this process goes on as before.
    """
    pthread_sigmask(SIG_UNBLOCK, (Signals.SIGINT, Signals.SIGHUP, Signals.SIGTERM))
    for number in (Signals.SIGINT, Signals.SIGHUP):
        if getsignal(number) == SIG_IGN:
            signal(number, lambda *_: None)


def variables(settings: Mapping[str, object]) -> dict[str, str]:
    """Return the environment of a program with these settings."""
    return {variable(name): str(value) for name, value in settings.items()}


class Program:
    """`expirer run`, or another command, against a URL, killed when the block ends; its log is read as it comes."""

    def __init__(self, url: str, *flags: str, command: str = "run", **settings: object) -> None:
        # What coverage measures subprocesses by stays in the environment.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("EXPIRER_")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "expirer", command, *flags],
            env={**environment, **variables({"redis_url": url, **settings})},
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        self.lines: list[str] = []
        self._entries: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        self._has_changed = threading.Condition()
        self._is_over = False
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """The id of its process."""
        return self._process.pid

    def of(self, event: str) -> list[dict[str, Any]]:
        """Return the entries of one event so far."""
        with self._has_changed:
            return list(self._entries[event])

    def wait_for(self, event: str, count: int = 1) -> dict[str, Any]:
        """Return the n-th entry of an event as soon as it is logged; fail where it never is."""
        entries = self._entries[event]
        with self._has_changed:
            self._has_changed.wait_for(lambda: len(entries) >= count or self._is_over, DEADLINE_S)
            assert len(entries) >= count, f"no {event} in {self.lines[-20:]}"
            return entries[count - 1]

    def limit_files(self, count: int) -> None:
        """Let it have no more open files than these from now on."""
        resource.prlimit(self.pid, resource.RLIMIT_NOFILE, (count, 4096))

    def signal(self, number: Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def wait(self, timeout_s: float = DEADLINE_S) -> int:
        """Return the exit code once the program has ended, and its log is complete."""
        code = self._process.wait(timeout_s)
        self._reader.join(DEADLINE_S)
        return code

    def kill(self) -> None:
        """End it with SIGKILL, if it still runs."""
        self._process.kill()
        self.wait()

    def _read(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            for line in lines:
                entry = json.loads(line) if line.startswith("{") else {"event": "not JSON"}
                with self._has_changed:
                    self.lines.append(line)
                    self._entries[entry["event"]].append(entry)
                    self._has_changed.notify_all()
        with self._has_changed:
            self._is_over = True
            self._has_changed.notify_all()


class Backlog:
    """Overdue reservations of a few products, and the proof that each of them expired exactly once."""

    PRODUCTS = ("mug", "tea", "pot")
    OVERDUE_SINCE = 1_700_000_000_000

    def __init__(self, client: Any, keys: ShardKeys | None = None) -> None:  # noqa: ANN401  # of a server, or of a Cluster
        self.shop = Inventory(client, keys)
        self.stocked: Counter[str] = Counter(dict.fromkeys(self.PRODUCTS, 0))
        self._client = client
        self._ids: list[str] = []

    def add(self, count: int) -> None:
        """Reserve, long overdue."""
        with self._client.pipeline() as pipe:
            shop = Inventory(pipe, self.shop.keys)
            for n in range(len(self._ids), len(self._ids) + count):
                product, quantity = self.PRODUCTS[n % 3], 1 + n % 4
                id_ = shop.hold(product, quantity, self.OVERDUE_SINCE + n, id_=f"o{n}:{product}")
                pipe.hincrby(shop.keys.stock_prefix + product, "available", 0)
                pipe.hincrby(shop.keys.stock_prefix + product, "reserved", quantity)
                self._ids.append(id_)
                self.stocked[product] += quantity
            pipe.execute()

    def expired(self) -> list[str]:
        """Return the reservation ids in the stream of events, sorted."""
        entries: list[tuple[bytes, dict[bytes, bytes]]] = self._client.xrange(self.shop.keys.events)
        return sorted(fields[b"reservation_id"].decode() for _, fields in entries)

    def left(self) -> int:
        """Return how many are in the index still."""
        left: int = self._client.zcard(self.shop.keys.index)
        return left

    def assert_conserved(self) -> None:
        """Assert the conservation law, and that the events are those of the Expired reservations."""
        with self._client.pipeline() as pipe:
            for id_ in self._ids:
                pipe.hmget(self.shop.keys.reservation_prefix + id_, ["product_id", "quantity", "status"])
            rows = pipe.execute()
        held: Counter[str] = Counter()
        ended = []
        for id_, (product, quantity, status) in zip(self._ids, rows, strict=True):
            if status == b"Expired":
                ended.append(id_)
            else:
                held[product.decode()] += int(quantity)

        assert sorted(ended) == self.expired()
        assert len(self._ids) - len(ended) == self.left()
        for product, stocked in self.stocked.items():
            assert (stocked - held[product], held[product]) == self.shop.counters(product)

    def assert_expired_once(self) -> None:
        """Assert that nothing is left, and that counters, events and totals are exact."""
        totals: dict[bytes, bytes] = self._client.hgetall(self.shop.keys.stats)

        assert self.left() == 0
        self.assert_conserved()
        assert (len(self._ids), self.stocked.total()) == (int(totals[b"expired"]), int(totals[b"units"]))
