"""The Lua files themselves: their headers, and where they are found."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from expirer import scripts

NAMES = ["confirm", "examine", "expire", "extend", "release", "requeue", "reserve", "reshard", "settle"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["KEYS", "ARGV"])
def test_headers_tell_the_truth(name: str, kind: str) -> None:
    """The header of a script names exactly the keys and arguments that its body reads."""
    header, _, body = scripts.load(name).text.partition("\n\nlocal ")
    documented = re.findall(rf"^--   {kind}\[(\d+)\]  +\S", header, re.MULTILINE)
    read = set(re.findall(rf"{kind}\[(\d+)\]|unpack\({kind}, (\d+)\)", body))

    assert [str(i + 1) for i in range(len(documented))] == documented
    assert set(documented) == {first or second for first, second in read}
    assert "-- Returns" in header


def test_all_scripts_are_known() -> None:
    """The scripts on disk are the ones under test."""
    assert sorted(path.stem for path in (Path(__file__).parent.parent / "lua").glob("*.lua")) == NAMES


def test_integers_are_one_thing() -> None:
    """Every script reads integers in the same way: their copies of the function are equal."""
    copies = {
        copy
        for name in NAMES
        for copy in re.findall(r"^local function integer.*?^end$", scripts.load(name).text, re.DOTALL | re.MULTILINE)
    }

    assert 1 == len(copies)
