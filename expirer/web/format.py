"""Formats figures, times and strangers' texts for the page."""

from __future__ import annotations

import re
from itertools import pairwise

from expirer.contract.text import printable
from expirer.operate.terminal import format_time

_SECOND = 1000
_UNITS = (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", _SECOND))
_LONGEST = 120
_LEAST_WHOLE = 100
_FIXED = "\N{NO-BREAK SPACE}"


def cut(text: str, longest: int = _LONGEST) -> str:
    """Return a stranger's text without control characters, cut to a length that people read."""
    visible = printable(text[: longest + 1])
    return visible if len(visible) <= longest else f"{visible[: longest - 1]}…"


def span(ms: int) -> str:
    """Return a duration in its two largest units; no line ends between a number and its unit."""
    for (name, unit), (small, part) in pairwise(_UNITS):
        if ms >= unit:
            return f"{ms // unit:,}{_FIXED}{name} {ms % unit // part}{_FIXED}{small}"
    return f"{ms}{_FIXED}ms" if ms < _SECOND else f"{ms // 100 / 10:g}{_FIXED}s"


def moment(at: int, now: int) -> str:
    """Return a time to the second; its date only if that is not today's."""
    text, today = format_time(at), format_time(now)[:11]
    return re.sub(r"(\.\d+)? (?=\w+$)", _FIXED, text).removeprefix(today)


def figure(value: float) -> str:
    """Return a number as people read it; a small one with a fraction, if it has one."""
    is_whole = isinstance(value, int) or value >= _LEAST_WHOLE or value.is_integer()
    return f"{round(value):,}" if is_whole else f"{value:,.1f}"
