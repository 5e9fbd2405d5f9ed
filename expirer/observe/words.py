"""How figures, times and strangers' texts stand on the page."""

from __future__ import annotations

import re

from expirer.operate.terminal import shown, shown_time

_SECOND, _MINUTE, _HOUR, _DAY = 1000, 60_000, 3_600_000, 86_400_000
_LONGEST = 120


def cut(text: str, longest: int = _LONGEST) -> str:
    """Return a stranger's text, visible to the last letter, or as much of it as anybody would read."""
    visible = shown(text[: longest + 1])
    return visible if len(visible) <= longest else f"{visible[: longest - 1]}…"


def span(ms: int) -> str:
    """Return a duration in its two largest units."""
    for unit, name, part, small in (
        (_DAY, "d", _HOUR, "h"),
        (_HOUR, "h", _MINUTE, "min"),
        (_MINUTE, "min", _SECOND, "s"),
    ):
        if ms >= unit:
            return f"{ms // unit:,} {name} {ms % unit // part} {small}"
    return f"{ms} ms" if ms < _SECOND else f"{ms // 100 / 10} s"


def moment(at: int, now: int) -> str:
    """Return a time to the second; its date only where that is not today's."""
    text, today = shown_time(at), shown_time(now)[:11]
    return re.sub(r"\.\d+ ", " ", text).removeprefix(today)


def figure(value: float) -> str:
    """Return a number as people read it; a fraction only where it is small."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:,.1f}"  # noqa: PLR2004
