"""The Lua files themselves: their headers, and where they are found."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from expirer.contract import scripts
from tests.lua import ARGUMENTS

NAMES = ["confirm", "examine", "expire", "extend", "release", "requeue", "reserve", "reshard", "resolve"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["KEYS", "ARGV"])
def test_headers_tell_the_truth(name: str, kind: str) -> None:
    """The header of a script names exactly the keys and arguments that its body reads."""
    header, _, body = scripts.load(name).text.partition("\n\nlocal ")
    documented = re.findall(rf"^--   {kind}\[(\d+)\]  +\S", header, re.MULTILINE)
    read = set(re.findall(rf"{kind}\[(\d+)\]|unpack\({kind}, (\d+)\)|= (\d+), #{kind}", body))

    assert [str(i + 1) for i in range(len(documented))] == documented
    assert set(documented) == {"".join(number) for number in read}
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


@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_written_in_one_way(name: str) -> None:
    """Nothing goes through an integer of C, which has 32 bits on some servers, or through 14 digits of a double."""
    body = scripts.load(name).text.partition("\n\nlocal ")[2]
    formats = re.findall(r"format\((?:'([^']*)'|)", body)

    assert set(formats) <= {"%.0f", "%.3f", "(%.3f", "(%.6f"}
    assert "tostring(call" not in body
    assert ":format(" not in body


def test_the_tests_name_the_arguments_of_the_header() -> None:
    """What tests.lua gives to expire.lua are the arguments that its header names, in that order."""
    named = re.findall(r"^--   ARGV\[\d+\]  +(\w+)", scripts.load("expire").text, re.MULTILINE)

    assert named == list(ARGUMENTS)


def line_of(name: str, code: str) -> int:
    """Return the number of the first line of a script that has this in it."""
    return next(n for n, line in enumerate(scripts.load(name).text.splitlines(), 1) if code in line)


@pytest.mark.parametrize(
    "said",
    [
        "The user executing the script can't run this command or subcommand script: {sha}, on @user_script:{line}.",
        "Error running script (call to f_{sha}): @user_script:{line}: @user_script: {line}: The user executing …",
    ],
    ids=["redis-7.0", "redis-6.2"],
)
def test_an_error_names_its_command(said: str) -> None:
    """Where Redis names but a script and its line, the command there is put before it; both where a line has two."""
    for name, code, command in [("resolve", "'XLEN'", "XLEN"), ("resolve", "{call('GET', stock)}", "GET or HMGET")]:
        error = said.format(sha=scripts.load(name).sha, line=line_of(name, code))

        assert f"{command}: {error}" == scripts.explain(error)


@pytest.mark.parametrize(
    "error",
    [
        "Connection refused",
        f"about a script that is not ours script: {'0' * 40}, on @user_script:3.",
        "ACL failure in script: User ann has no permissions to run the 'xadd' command script: on @user_script:86.",
    ],
)
def test_another_error_stays_as_it_is(error: str) -> None:
    """An error that names its command, or is of no script of ours, is not touched."""
    assert error == scripts.explain(error)
