"""Ids and fields of any bytes, as people and programs read them, and back."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from expirer.contract.text import decode, encode, printable

_ANY = st.binary(max_size=20) | st.text(alphabet="\\x0c5f\x1b\u202e\x85", max_size=20).map(str.encode)


@given(_ANY)
@example(b"\xff")
@example(rb"\xff")
@example(rb"\x5cxff")
def test_any_bytes_are_read_back(value: bytes) -> None:
    """What is written of an id, into JSON or on a terminal, is read as that id and no other."""
    assert value == encode(decode(value)) == encode(printable(decode(value)))


@given(st.text() | st.characters(categories=["Cs"]))
def test_whatever_is_printed_is_one_line(text: str) -> None:
    """Any text is printed, on one line, without a control character."""
    assert printable(text).isprintable()
