"""The bed on which the shop is tortured: a server, four workers and eight checkouts, each behind a proxy."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from signal import SIGCONT, SIGTERM
from types import TracebackType
from typing import Self

import redis

from expirer import control
from expirer.control import Control
from expirer.keys import ShardKeys
from tests.inventory import Inventory
from tests.program import DEADLINE_S, Program
from tests.proxy import CLEAR, Proxy, Weather
from tests.servers import RedisServer, free_port
from tests.torture.clock import ServerClock
from tests.torture.judge import Verdict, judge
from tests.torture.record import Stories
from tests.torture.shop import PRODUCTS, STOCKED, Shop

WORKERS = 4
KEYS = ShardKeys.of("inventory")
_SOON_MS = 60_000
_SETTLE_S = 90.0
_START_S = 90.0
"""Twenty programs start at once, maybe on a busy machine."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How long things take: in the long run as they are, in the quick one shorter."""

    timeout_s: float = 5.0
    """Of every socket; five is the program's own."""
    latency_s: float = 2.0
    fleet: int = 20
    entries: int = 1_000_000
    """Fuzzed ones."""


QUICK = Sizes(timeout_s=0.4, latency_s=0.1, fleet=4, entries=7_000)


class Bed:
    """Everything under load from the start of the block to its end."""

    def __init__(
        self, binary: Path, folder: Path, seed: int, sizes: Sizes, *options: str, clock: ServerClock | None = None
    ) -> None:
        self.chance = random.Random(seed)
        self.sizes = sizes
        self.folder = folder
        self.clock = clock
        self.turn = 0
        """How often the fault that strikes has done so before."""
        self.workers: list[Program] = []
        self._binary = binary
        self._options = options
        self._seed = seed
        self._servers = 0
        self._dead: list[str] = []
        self.server = self.new_server()
        self._lines: list[Proxy] = []

    def __enter__(self) -> Self:
        try:
            self._open()
        except BaseException:
            self._close()
            raise
        return self

    def _open(self) -> None:
        self.server.start()
        self.client = self.server.client()
        for product in PRODUCTS:
            Inventory(self.client).stock(product, STOCKED)
        for _ in ("workers", "checkouts"):
            self._lines.append(Proxy(self.server.port).__enter__())
        for _ in range(WORKERS):
            self.start_worker()
        self.shop = Shop(self._url(self._lines[1]), self.folder, self._seed)
        for worker in self.workers:
            self.wait_for(worker)
        self.wait_until(lambda: self.client.xlen(KEYS.events), "an expiry under load")

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        if hasattr(self, "shop"):
            self.shop.kill()
        for worker in self.workers:
            worker.kill()
        for line in self._lines:
            line.__exit__(None, None, None)
        self.server.stop()

    def _url(self, line: Proxy) -> str:
        timeout_s = self.sizes.timeout_s
        return f"{line.url}?socket_timeout={timeout_s}&socket_connect_timeout={timeout_s}"

    def new_server(self) -> RedisServer:
        """Make another server with the same options; it is not started."""
        self._servers += 1
        folder = self.folder / f"server-{self._servers}"
        folder.mkdir()
        environment = self.clock.environment if self.clock else None
        return RedisServer(self._binary, folder, *self._options, port=free_port(), environment=environment)

    def move_to(self, server: RedisServer) -> None:
        """Let everybody go to another server from now on."""
        self.server, self.client = server, server.client()
        for line in self._lines:
            line.port = server.port
            line.cut()

    def start_worker(self) -> Program:
        """Start one more worker."""
        flags = {"--log-level": "warning", "--interval": "2s", "--batch-size": "10", "--events-maxlen": "100000000"}
        worker = Program(self._url(self._lines[0]), *(word for flag in flags.items() for word in flag))
        self.workers.append(worker)
        return worker

    def wait_for(self, worker: Program) -> None:
        """Return once a worker has ticked."""
        name = f":{worker.pid}:".encode()
        self.wait_until(lambda: any(name in id_ for id_ in self.client.zrange(KEYS.workers, 0, -1)), "a tick", _START_S)

    def end_worker(self, worker: Program, *, kill: bool) -> None:
        """Kill a worker, or tell it to stop and see that it does."""
        self.workers.remove(worker)
        if not kill:
            worker.signal(SIGTERM)
            code = worker.wait(self.sizes.timeout_s + DEADLINE_S)
            if code != 0:
                self._dead.append(f"a worker was told to stop, and its exit code is {code}: {worker.lines[-5:]}")
        worker.kill()
        self._dead += [f"a worker says {line}" for line in worker.lines if "Traceback" in line or line[:1] != "{"]

    def wait(self, seconds: float) -> None:
        """Let the load go on for a while."""
        time.sleep(seconds)

    def wait_until(self, condition: Callable[[], object], what: str, patience_s: float = DEADLINE_S) -> None:
        """Return as soon as the condition holds, whatever Redis says meanwhile; fail where it never does."""
        deadline = time.monotonic() + patience_s
        error: Exception | None = None
        while time.monotonic() < deadline:
            try:
                if condition():
                    return
            except redis.RedisError as raised:
                error = raised
            time.sleep(0.005)
        raise AssertionError(f"{what}: it never happened; {error!r}")

    def hold_back(self, seconds: float) -> None:
        """Pause expiry for a while, so that a drain follows."""
        self.client.hset(KEYS.control, "paused", 1)
        self.wait(seconds)
        self.resume()

    def resume(self) -> None:
        """Resume expiry."""
        now = self.client.time()[0] * 1000
        self.client.hset(KEYS.control, mapping=control.resuming("torture", now))  # type: ignore[arg-type]
        self.client.publish(KEYS.wake, "1")

    def pause_by_brake(self) -> bool:
        """Say whether a worker has paused expiry by itself."""
        pause = Control.read(self.client.hmget(KEYS.control, control.FIELDS)).pause  # type: ignore[arg-type]
        return pause is not None and pause.is_brake

    def change(self, weather: Weather, *, cut: bool = False) -> None:
        """Change the weather for workers and checkouts; with `cut` all their connections are cut too."""
        for line in self._lines:
            line.weather = weather
            if cut:
                line.cut()

    @property
    def line(self) -> Proxy:
        """The one of the workers."""
        return self._lines[0]

    def settle(self) -> Verdict:
        """Close the shop, let everything that is due expire, stop the workers; judge."""
        self.change(CLEAR)
        for worker in self.workers:
            worker.signal(SIGCONT)
        self.shop.close(10 * self.sizes.timeout_s + DEADLINE_S)
        self.wait_until(self._is_done, "everything due expires", _SETTLE_S)
        for worker in list(self.workers):
            self.end_worker(worker, kill=False)
        stories = Stories.read(self.folder.glob("*.record"))
        verdict = judge(self.client, [KEYS], dict.fromkeys(PRODUCTS, STOCKED), stories)
        verdict.wrong += self._dead
        return verdict

    def _is_done(self) -> bool:
        soon = self.client.time()[0] * 1000 + _SOON_MS
        return not self.client.zcount(KEYS.index, "-inf", soon)
