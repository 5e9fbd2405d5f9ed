"""Loads the Lua scripts: package data in a wheel, the top-level folder in a checkout."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).parent.parent
_LOADED: dict[str, str] = {}
"""SHA-1 to text: what an error means must be known while no file can be opened."""


@dataclass(frozen=True, slots=True)
class Script:
    """The text of a script, and the SHA-1 by which Redis knows it."""

    text: str
    sha: str


@cache
def load(name: str) -> Script:
    """Read `<name>.lua`; raise FileNotFoundError where the installation lacks it."""
    text = (_folder() / f"{name}.lua").read_text(encoding="utf-8")
    script = Script(text=text, sha=hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())
    _LOADED[script.sha] = text
    return script


def explain(error: str) -> str:
    """Name the commands on the line where a script stopped, for servers that name only the line."""
    place = re.search(r"\b(?:f_)?([0-9a-f]{40})\b.*user_script:(\d+)", error, re.DOTALL)
    if place is None or place[1] not in _LOADED or re.search(r"'\w+' command", error):
        return error
    line = _LOADED[place[1]].splitlines()[int(place[2]) - 1]
    commands = dict.fromkeys(re.findall(r"call\('(\w+)'", line))
    return f"{' or '.join(commands)}: {error}" if commands else error


def _folder() -> Path:
    inside, beside = _PACKAGE / "lua", _PACKAGE.parent / "lua"
    return inside if inside.is_dir() else beside
