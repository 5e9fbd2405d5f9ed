"""A client of the shop that sends one request after another, and keeps how long each took.

`python -m benchmarks.shopper SOCKET get|reserve FILE [PAUSE_MS]`, until it is asked to stop.
"""

from __future__ import annotations

import signal
import sys
import time
from array import array
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from benchmarks.shop import SHELF
from expirer import Reservations

PAGE = "page"
"""What the GET reads."""


def main() -> None:
    """Send requests, back to back or with a pause after each; at the end write pairs of (start, duration).

    Both are in ns of the monotonic clock.
    """
    socket, verb, path, *pause = sys.argv[1:]
    pause_s = float(pause[0]) / 1000 if pause else 0.0
    client = redis.Redis(unix_socket_path=socket, protocol=2, retry=Retry(NoBackoff(), 0), socket_timeout=None)
    request: Callable[[int], object]
    if verb == "get":
        request = lambda _n: client.get(PAGE)  # noqa: E731
    else:
        checkout = Reservations(client)
        request = lambda n: checkout.reserve(f"s{n}", SHELF, 1, timedelta(hours=1))  # noqa: E731
    is_stopping = False

    def stop(_number: int, _frame: object) -> None:
        nonlocal is_stopping
        is_stopping = True

    signal.signal(signal.SIGTERM, stop)
    taken = array("q")
    n = 0
    while not is_stopping:
        start = time.monotonic_ns()
        request(n)
        taken.extend((start, time.monotonic_ns() - start))
        n += 1
        if pause_s:
            time.sleep(pause_s)  # a shop that is not under load
    Path(path).write_bytes(taken.tobytes())


if __name__ == "__main__":
    main()
