"""Unix times in milliseconds."""

from __future__ import annotations

import time

_MAX_MS = 2**53


def unix_ms(score: float, unit_ms: int) -> int:
    """Return the Unix ms that a score stands for, cut to ±2**53 as the scripts cut it."""
    return int(max(-_MAX_MS, min(_MAX_MS, score * unit_ms)))


def worker_clock() -> float:
    """Return this machine's time, Unix ms with a fraction: the clock if EXPIRER_CLOCK is `worker`."""
    return time.time_ns() / 1_000_000
