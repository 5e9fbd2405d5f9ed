"""Loads the Lua scripts: package data in a wheel, the top-level folder in a checkout."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Script:
    """The text of a script, and the SHA-1 by which Redis knows it."""

    text: str
    sha: str


@cache
def load(name: str) -> Script:
    """Read `<name>.lua`; raise FileNotFoundError where the installation lacks it."""
    inside, beside = (folder / "lua" / f"{name}.lua" for folder in (_PACKAGE, _PACKAGE.parent))
    text = (inside if inside.exists() else beside).read_text(encoding="utf-8")
    return Script(text=text, sha=hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())
