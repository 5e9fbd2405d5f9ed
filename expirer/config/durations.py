"""Durations as people write them."""

from __future__ import annotations

import math
import re
from datetime import timedelta

_UNITS_S = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, None: 1}
_MS = timedelta(milliseconds=1)

LONGEST = timedelta(days=36500)
"""A century: longer is a mistake, and times stay far below 2**53 ms."""


def parse_duration(text: str) -> timedelta:
    """Read `250ms`, `5s`, `15m`, `24h`, `7d` or plain seconds; raise ValueError for anything else."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s|m|h|d)?", text.strip())
    seconds = float(match[1]) * _UNITS_S[match[2]] if match else math.inf
    if seconds >= timedelta.max.total_seconds():
        raise ValueError(f"{text!r} is not a duration such as 250ms, 5s, 15m, 24h or 7d")
    return timedelta(seconds=seconds)


def format_duration(duration: timedelta) -> str:
    """Return a text that `parse_duration` reads, in the largest unit of which there are several."""
    ms = to_ms(duration)
    sizes = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000))
    unit, size = next((one for one in sizes if ms > one[1] and ms % one[1] == 0), ("ms", 1))
    return f"{ms // size}{unit}" if ms else "0s"


def to_ms(duration: timedelta) -> int:
    """Return whole milliseconds."""
    return duration // _MS
