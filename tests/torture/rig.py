"""The rig of every fault: four workers and eight checkouts, on servers of some topology."""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGCONT, SIGTERM
from types import TracebackType
from typing import Any, Self

import redis

from expirer.contract import control
from expirer.contract.keys import ShardKeys
from tests.inventory import Inventory
from tests.program import DEADLINE_S, Program
from tests.proxy import Conditions
from tests.torture.checker import Verdict, check
from tests.torture.clock import ServerClock
from tests.torture.history import History
from tests.torture.workload import PRODUCTS, STOCKED, Workload

WORKERS = 4
_SOON_MS = 60_000
_PATIENCE_S = 90.0
"""For what should happen at once, on a machine that does much else."""
_BACKLOG_S = 0.3


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


class Rig(ABC):
    """Everything under load from the start of the block to its end."""

    def __init__(
        self, binary: Path, folder: Path, seed: int, sizes: Sizes, options: Sequence[str], clock: ServerClock | None
    ) -> None:
        self.chance = random.Random(seed)
        self.sizes = sizes
        self.folder = folder
        self.clock = clock
        self.turn = 0
        """How often the fault that strikes has done so before."""
        self.workers: list[Program] = []
        self.shards: list[tuple[redis.Redis, ShardKeys]] = []
        """A client of our own for each shard, and its keys."""
        self._binary = binary
        self._options = options
        self._seed = seed
        self._complaints: list[str] = []

    @abstractmethod
    def build(self) -> None:
        """Start the servers, and set `shards`."""

    @abstractmethod
    def tear_down(self) -> None:
        """End every server."""

    @abstractmethod
    def settings(self, *, of_workers: bool) -> dict[str, Any]:
        """Return how workers, or checkouts, reach the servers: names and values of Settings."""

    @abstractmethod
    def a_client(self) -> redis.Redis:
        """Return a client of a server that takes writes."""

    @abstractmethod
    def change(self, conditions: Conditions, *, cut: bool = False) -> None:
        """Change the conditions on the line to a server; with `cut` the connections to it are cut too."""

    @abstractmethod
    def calm(self) -> None:
        """Let everything pass again; return once all servers are as they should be."""

    def __enter__(self) -> Self:
        try:
            self.build()
            self._open()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._close()

    def _open(self) -> None:
        for client, keys in self.shards:
            for product in PRODUCTS:
                Inventory(client, keys).stock(product, STOCKED)
        for _ in range(WORKERS):
            self.start_worker()
        self.workload = Workload(self.settings(of_workers=False), self.folder, self._seed)
        for worker in self.workers:
            self.wait_for(worker)
        self.wait_until(lambda: any(client.xlen(keys.events) for client, keys in self.shards), "an expiry under load")

    def _close(self) -> None:
        if hasattr(self, "workload"):
            self.workload.kill()
        for worker in self.workers:
            worker.kill()
        self.tear_down()

    def with_timeouts(self, url: str) -> str:
        """Return a URL with the time-outs of every socket."""
        return f"{url}?socket_timeout={self.sizes.timeout_s}&socket_connect_timeout={self.sizes.timeout_s}"

    def start_worker(self) -> Program:
        """Start one more worker."""
        flags = {"log_level": "warning", "interval": "2s", "batch_size": "10", "events_maxlen": "100000000"}
        settings = {**self.settings(of_workers=True), **flags}
        url = settings.pop("redis_url", "redis://localhost")
        words = (word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value)))
        worker = Program(url, *words)
        self.workers.append(worker)
        return worker

    def wait_for(self, worker: Program) -> None:
        """Return once a worker has ticked."""
        name = f":{worker.pid}:".encode()

        def has_ticked() -> bool:
            return all(any(name in id_ for id_ in client.zrange(keys.workers, 0, -1)) for client, keys in self.shards)

        self.wait_until(has_ticked, "a tick")

    def end_worker(self, worker: Program, *, kill: bool) -> None:
        """Kill a worker, or tell it to stop and see that it does."""
        self.workers.remove(worker)
        if not kill:
            worker.signal(SIGTERM)
            code = worker.wait(self.sizes.timeout_s + DEADLINE_S)
            if code != 0:
                self._complaints.append(f"a worker was told to stop, its exit code is {code}: {worker.lines[-5:]}")
        worker.kill()
        self._complaints += [f"a worker says {line}" for line in worker.lines if "Traceback" in line or line[:1] != "{"]

    def wait(self, seconds: float) -> None:
        """Let the load go on for a while."""
        time.sleep(seconds)

    def wait_until(self, condition: Callable[[], object], what: str) -> None:
        """Return as soon as the condition holds, whatever Redis says meanwhile; fail where it never does."""
        deadline = time.monotonic() + _PATIENCE_S
        error: Exception | None = None
        while time.monotonic() < deadline:
            try:
                if condition():
                    return
            except redis.RedisError as raised:
                error = raised
            time.sleep(0.005)
        raise AssertionError(f"{what}: it never happened; {error!r}")

    def begin_drain(self) -> None:
        """Pause expiry for a while, and resume it; return at a random moment of the drain that follows."""
        self._write_all({"paused": 1})
        self.wait(_BACKLOG_S)
        self.resume()
        self.wait(self.chance.uniform(0, 0.03))

    def resume(self) -> None:
        """Resume expiry."""
        self._write_all(control.resuming("torture", int(time.time() * 1000)))

    def _write_all(self, fields: Mapping[str, str | int]) -> None:
        for client, keys in self.shards:

            def write(client: redis.Redis = client, keys: ShardKeys = keys) -> bool:
                client.hset(keys.control, mapping=fields)  # type: ignore[arg-type]
                client.publish(keys.wake, "1")
                return True

            self.wait_until(write, "a pause or its end")

    def settle(self) -> Verdict:
        """End the workload, let everything that is due expire, stop the workers; check what is left."""
        self.calm()
        for worker in self.workers:
            worker.signal(SIGCONT)
        self.workload.close(10 * self.sizes.timeout_s + DEADLINE_S)
        self.wait_until(lambda: not any(map(_has_work, self.shards)), "everything due expires")
        for worker in list(self.workers):
            self.end_worker(worker, kill=False)
        history = History.read(self.folder.glob("*.history"))
        verdict = check(self.shards, dict.fromkeys(PRODUCTS, STOCKED), history)
        verdict.wrong += self._complaints
        return verdict


def _has_work(shard: tuple[redis.Redis, ShardKeys]) -> bool:
    client, keys = shard
    return client.zcount(keys.index, "-inf", client.time()[0] * 1000 + _SOON_MS) > 0
