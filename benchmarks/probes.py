"""What is measured, and how: counters read at a gentle rate, MONITOR for times, /proc for memory."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from benchmarks.servers import Server
from benchmarks.shop import KEYS, PRODUCTS

_POLL_S = 0.02
_RELEASE = re.compile(
    rf'^(\d+)\.(\d+) \[\d+ [^\]]*\] "(?:hset|hmset)" "{re.escape(KEYS.reservation_prefix)}([^"]+)" .*"Expired"',
    re.IGNORECASE,
)
_CLIENT = re.compile(r"^(\d+)\.(\d+) \[\d+ (?!lua\])")


def server_ms(client: redis.Redis) -> int:
    """Return the server's clock, Unix ms."""
    seconds, microseconds = client.time()
    return int(seconds) * 1000 + int(microseconds) // 1000


@dataclass(frozen=True, slots=True)
class Drain:
    """How many came back between the first and the last reading that saw the number move, and in how long."""

    rate: float
    released: int
    seconds: float


def _read_available(client: redis.Redis) -> tuple[int, int]:
    """Return the server's time in microseconds and the units available, in one transaction."""
    with client.pipeline() as pipe:
        pipe.time()
        for product in PRODUCTS:
            pipe.hget(KEYS.stock_prefix + product, "available")
        (seconds, microseconds), *available = pipe.execute()
    return seconds * 1_000_000 + microseconds, sum(int(value or 0) for value in available)


def watch_drain(client: redis.Redis, count: int, limit_s: float, start_limit_s: float = 30.0) -> Drain:
    """Wait until `count` units are back, or the limit after the first; the clock is the server's."""
    deadline = time.monotonic() + start_limit_s
    first: tuple[int, int] | None = None
    last = (0, 0)
    while time.monotonic() < deadline and last[1] < count:
        seen = _read_available(client)
        if first is None and seen[1] > 0:
            first, deadline = seen, time.monotonic() + limit_s
        if seen[1] > last[1]:
            last = seen
        time.sleep(_POLL_S)  # gently: the server is being measured
    if first is None or last[0] <= first[0]:
        return Drain(rate=0, released=last[1], seconds=0)
    seconds = (last[0] - first[0]) / 1_000_000
    return Drain(rate=(last[1] - first[1]) / seconds, released=last[1], seconds=seconds)


class Monitor:
    """What the server ran, by MONITOR: its own clock in microseconds, and the same method for every system."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def releases(self) -> dict[str, list[int]]:
        """Return reservation id -> each moment it was marked Expired, Unix microseconds."""
        found: dict[str, list[int]] = {}
        for line in self._lines():
            if match := _RELEASE.match(line):
                found.setdefault(match[3], []).append(int(match[1]) * 1_000_000 + int(match[2]))
        return found

    def client_commands(self, since_us: int = 0, until_us: int = 1 << 62) -> int:
        """Count what clients sent in a span of time; what scripts ran inside the server is left out."""
        matches = (match for line in self._lines() if (match := _CLIENT.match(line)))
        return sum(since_us <= int(match[1]) * 1_000_000 + int(match[2]) < until_us for match in matches)

    def _lines(self) -> Iterator[str]:
        with self._path.open(encoding="utf-8", errors="replace") as lines:
            yield from lines


@contextmanager
def monitoring(server: Server) -> Iterator[Monitor]:
    """Record every command until the block ends; read the record after it."""
    path = server.folder / "monitor.txt"
    with path.open("wb") as output, subprocess.Popen([*server.cli(), "monitor"], stdout=output) as process:
        while path.stat().st_size == 0:
            time.sleep(0.005)  # the server says OK once it tells of every command
        try:
            yield Monitor(path)
        finally:
            time.sleep(0.1)  # what it has told already is on its way to the file
            process.terminate()


@dataclass(frozen=True, slots=True)
class Lateness:
    """How late each release was, in ms; those still waiting at the end count as late as they were by then."""

    ms: list[float]
    waiting: int
    early: int
    twice: int


def lateness(due_ms: Mapping[str, int], releases: Mapping[str, list[int]], end_ms: int) -> Lateness:
    """Compare the first release of each reservation with its ExpiresAt."""
    late = [releases[id_][0] / 1000 - due if id_ in releases else end_ms - due for id_, due in due_ms.items()]
    return Lateness(
        ms=late,
        waiting=sum(id_ not in releases for id_ in due_ms),
        early=sum(value < 0 for value in late),
        twice=sum(len(moments) > 1 for id_, moments in releases.items() if id_ in due_ms),
    )


def peak_rss_mb(pid: int) -> float:
    """Return the most memory that a process and its children have ever held, each at its own peak."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    own = int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return own + sum(peak_rss_mb(int(child)) for child in children)
