"""The systems side by side: how each is given its reservations, started and stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks import install
from benchmarks.servers import Server
from benchmarks.shop import Hold, write_contract, write_rows

_PEERS = Path(__file__).parent / "peers"
_STOP_S = 3.0

EXPIRER, RAW = "expirer", "raw Redis"
BULLMQ_100, BULLMQ_1 = "BullMQ, concurrency 100", "BullMQ, concurrency 1"
CELERY, WATCH_LOOP, TTL_KEYS = "Celery ETA", "WATCH loop, 1 s poll", "TTL keys"


@dataclass(frozen=True, slots=True)
class System:
    """One way to release what is due.

    Args:
        settings: what it was told, for the reader of the results.
        seed: writes stock and reservations, and whatever the system needs to know of them.
        command: the worker's command line.
        seeds_per_s, start_s: the least speed of `seed`, and the longest start, so that nothing falls due before
            the worker listens.
        options: what its redis-server must be told.
        hears_only: it releases nothing that fell due before it was there.

    """

    name: str
    version: str
    settings: str
    seed: Callable[[Server, Sequence[Hold]], None]
    command: Callable[[Server], Sequence[str | Path]]
    seeds_per_s: int = 20_000
    start_s: float = 3.0
    options: tuple[str, ...] = ()
    hears_only: bool = False

    def lead_ms(self, count: int) -> int:
        """Return how long before the first is due seeding must begin."""
        return round((self.start_s + count / self.seeds_per_s) * 1000)


@contextmanager
def working(
    command: Sequence[str | Path], server: Server, log: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker until the block ends: asked to stop, then killed with its children."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EXPIRER_")}
    environment |= {
        "BENCH_SOCKET": str(server.socket),
        "EXPIRER_REDIS_URL": server.url,
        "NODE_PATH": str(install.BULLMQ),
    }
    path = log or server.folder / "worker.log"
    with path.open("ab") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True
        )
        try:
            yield process
            if process.poll() is not None:
                raise RuntimeError(f"{command} ended with {process.returncode}")
        finally:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            _repeat_errors(path)


def _repeat_errors(log: Path) -> None:
    """Say what went wrong in the sidecar: a figure must not hide it."""
    with log.open(encoding="utf-8", errors="replace") as lines:
        errors = [line for line in lines if "processing_error" in line]
    if errors:
        sys.stderr.write(f"{len(errors)} errors, such as {errors[0]}")


def expirer_command(*flags: str) -> list[str | Path]:
    """Return the command line of the sidecar."""
    return [sys.executable, "-m", "expirer", "run", *flags]


def expirer() -> System:
    """Return the sidecar with its defaults."""
    return System(EXPIRER, version("expirer"), "defaults", write_contract, lambda _server: expirer_command())


def watch_loop() -> System:
    """Return the loop that people write by hand."""
    return System(
        WATCH_LOOP,
        f"redis-py {version('redis')}",
        "every second one WATCH/MULTI/EXEC for each due reservation",
        write_contract,
        lambda server: [sys.executable, _PEERS / "watch_loop.py", server.socket],
    )


def ttl_keys(others: int) -> System:
    """Return TTL keys with notifications, beside so many other keys with a TTL."""

    def seed(server: Server, made: Sequence[Hold]) -> None:
        write_rows(server, made)
        server.pipe(f"SET session:{n} 1 EX 86400\r\n".encode() for n in range(others))
        server.pipe(f"SET hold:{hold.id} 1 PXAT {hold.expires_at}\r\n".encode() for hold in made)

    return System(
        TTL_KEYS,
        f"redis-py {version('redis')}",
        f"notify-keyspace-events Ex, active-expire-effort 10; {others:,} other keys with a TTL",
        seed,
        lambda server: [sys.executable, _PEERS / "ttl_keys.py", server.socket],
        start_s=3.0 + others / 50_000,
        options=("--notify-keyspace-events", "Ex", "--active-expire-effort", "10"),
        hears_only=True,
    )


def bullmq(concurrency: int) -> System:
    """Return BullMQ; raise MissingPeerError where it cannot be installed."""
    release = install.install_bullmq()

    def seed(server: Server, made: Sequence[Hold]) -> None:
        write_rows(server, made)
        _feed(["node", _PEERS / "bullmq.js", "add", server.socket], server, made)

    return System(
        {100: BULLMQ_100, 1: BULLMQ_1}[concurrency],
        release,
        f"delayed jobs, concurrency {concurrency}, removeOnComplete, one MULTI per job on a connection of its own",
        seed,
        lambda server: ["node", _PEERS / "bullmq.js", "work", server.socket, str(concurrency)],
        seeds_per_s=4_000,
    )


def celery() -> System:
    """Return Celery; raise MissingPeerError where it cannot be installed."""
    release = install.install_celery()
    processes = os.cpu_count() or 1

    def seed(server: Server, made: Sequence[Hold]) -> None:
        write_rows(server, made)
        _feed([install.CELERY / "python", _PEERS / "celery_app.py"], server, made)

    return System(
        CELERY,
        release,
        f"prefork, {processes} processes; prefetch multiplier 0 (no limit); results, events, remote control, gossip,"
        " mingle and heartbeat off; visibility timeout 24 h; one MULTI per task",
        seed,
        lambda _server: [
            install.CELERY / "celery", "--app", "celery_app", "--workdir", _PEERS, "worker", "--pool", "prefork",
            "--concurrency", str(processes), "--loglevel", "warning",
            "--without-gossip", "--without-mingle", "--without-heartbeat",
        ],
        seeds_per_s=1_000,
        start_s=5.0,
    )  # fmt: skip


def _feed(command: Sequence[str | Path], server: Server, made: Sequence[Hold]) -> None:
    environment = {**os.environ, "BENCH_SOCKET": str(server.socket), "NODE_PATH": str(install.BULLMQ)}
    rows = json.dumps([(hold.id, hold.product_id, hold.expires_at) for hold in made])
    subprocess.run(command, env=environment, input=rows.encode(), check=True)


def find_systems(ttl_keys_beside: int) -> tuple[dict[str, System], dict[str, str]]:
    """Return every system that can run here, and name -> reason of those that cannot."""
    found: dict[str, System] = {}
    missing: dict[str, str] = {}
    makers: dict[str, Callable[[], System]] = {
        EXPIRER: expirer,
        BULLMQ_100: lambda: bullmq(100),
        BULLMQ_1: lambda: bullmq(1),
        CELERY: celery,
        WATCH_LOOP: watch_loop,
        TTL_KEYS: lambda: ttl_keys(ttl_keys_beside),
    }
    for name, make in makers.items():
        try:
            found[name] = make()
        except install.MissingPeerError as error:
            missing[name] = str(error)
    return found, missing
