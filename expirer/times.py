"""Durations as people write them, and the worker's own clock."""

from __future__ import annotations

import math
import re
import time
from datetime import timedelta

UNITS_S = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, None: 1}
_MS = timedelta(milliseconds=1)
_MAX_MS = 2**53

LONGEST = timedelta(days=36500)
"""A century: longer is a mistake, and times stay far below 2**53 ms."""


def parse_duration(value: object) -> object:
    """Read `250ms`, `5s`, `15m`, `24h`, `7d` or plain seconds; raise ValueError for anything else."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s|m|h|d)?", value.strip())
    seconds = float(match[1]) * UNITS_S[match[2]] if match else math.inf
    if seconds >= timedelta.max.total_seconds():
        raise ValueError(f"{value!r} is not a duration such as 250ms, 5s, 15m, 24h or 7d")
    return timedelta(seconds=seconds)


def to_ms(duration: timedelta) -> int:
    """Return whole milliseconds."""
    return duration // _MS


def unix_ms(score: float, unit_ms: int) -> int:
    """Return the Unix ms that a score stands for; what is beyond 2**53, infinity too, is cut as the scripts cut it."""
    return int(max(-_MAX_MS, min(_MAX_MS, score * unit_ms)))


def worker_clock() -> float:
    """Return this machine's time, Unix ms with a fraction: the clock where EXPIRER_CLOCK is `worker`."""
    return time.time_ns() / 1_000_000
