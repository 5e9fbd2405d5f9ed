"""Durations as people write them."""

from __future__ import annotations

import math
import re
from datetime import timedelta

UNITS_S = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, None: 1}
_MS = timedelta(milliseconds=1)

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
