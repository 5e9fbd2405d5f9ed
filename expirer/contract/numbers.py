"""Reads integers that others wrote."""

from __future__ import annotations

import re

MAX = 2**53
"""Above it a Lua number skips integers."""


def integer(value: bytes | str | None, least: int = -MAX, most: int = MAX) -> int | None:
    """Return the integer as the scripts read it: no plus, no leading zero; None if it is not one from least to most."""
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else value or ""
    if not re.fullmatch(r"0|-?[1-9][0-9]{0,15}", text):
        return None
    return int(text) if least <= int(text) <= most else None
