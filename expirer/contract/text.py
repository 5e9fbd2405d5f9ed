r"""Turns ids and fields into text that people and JSON can carry, and back.

An id may be any bytes. As text, bytes that are not UTF-8 are `\xNN`; so a backslash that would read as such an
escape is `\x5c`. Everything else is verbatim.
"""

from __future__ import annotations

import re

_ESCAPE = re.compile(rb"\\x([0-9a-f]{2})")


def decode(value: bytes) -> str:
    """Return the text of an id or a field; `encode` returns the same bytes."""
    return _ESCAPE.sub(rb"\\x5cx\1", value).decode("utf-8", "backslashreplace")


def encode(text: str) -> bytes:
    """Return the bytes of a text that `decode` made, or that a person typed."""
    return _ESCAPE.sub(lambda match: bytes.fromhex(match[1].decode()), text.encode("utf-8", "surrogateescape"))


def printable(text: str) -> str:
    """Return a text as a terminal may show it: on one line, without control characters; `encode` reads it back."""
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    surrogates = "surrogateescape" if "\udc80" <= letter <= "\udcff" else "surrogatepass"
    return "".join(f"\\x{byte:02x}" for byte in letter.encode("utf-8", surrogates))
