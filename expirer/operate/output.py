"""Writes what a command found as JSON, one line for each value."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass

from expirer.contract.numbers import integer
from expirer.contract.text import decode

_NUMBERS = (b"quantity", b"expires_at", b"expired_at")


@dataclass(frozen=True, slots=True)
class Event:
    """An entry of the stream of events; its fields may be anybody's."""

    id: str
    written_at: int
    """Unix ms."""
    fields: dict[str, int | str]


def read_event(entry: tuple[bytes, Mapping[bytes, bytes]]) -> Event:
    """Read an entry of the stream as XREAD and XRANGE return it."""
    id_, row = entry
    fields = {decode(name): number_or_text(value) if name in _NUMBERS else decode(value) for name, value in row.items()}
    return Event(decode(id_), int(id_.partition(b"-")[0]), fields)


def number_or_text(value: bytes) -> int | str:
    """Return an integer as a number, anything else as its text."""
    number = integer(value)
    return decode(value) if number is None else number


def write_json(value: object) -> None:
    """Write one line: a dataclass as an object, bytes as the text of `decode`, so that no two ids look alike."""
    sys.stdout.write(json.dumps(value, default=_plain) + "\n")


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return decode(value)
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} has no JSON")
