"""The locks of the image: all that is needed, each file by its hashes."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name
from packaging.version import Version

from tests.reader import ROOT

pytestmark = pytest.mark.slow

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = ["deploy/requirements.txt", "deploy/build-requirements.txt"]


def locked(lock: str) -> dict[NormalizedName, Version]:
    """Read a lock as it is for this system: name -> version."""
    text = (ROOT / lock).read_text().replace("\\\n", "")
    entries = [Requirement(line.partition("--hash")[0]) for line in text.splitlines() if re.match(r"\w", line)]
    assert all(len(entry.specifier) == 1 for entry in entries)
    return {
        canonicalize_name(entry.name): Version(next(iter(entry.specifier)).version)
        for entry in entries
        if entry.marker is None or entry.marker.evaluate()
    }


@pytest.mark.parametrize(
    ("lock", "needed"),
    [
        (LOCKS[0], PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"]["http"]),
        (LOCKS[1], PROJECT["build-system"]["requires"]),
    ],
    ids=["program", "build"],
)
def test_the_lock_has_what_the_project_needs(lock: str, needed: list[str]) -> None:
    """Each dependency of expirer[http], and of its build, is locked at a version that pyproject.toml allows."""
    versions = locked(lock)

    assert [] == [text for text in needed if not allows(Requirement(text), versions)]


def allows(requirement: Requirement, versions: dict[NormalizedName, Version]) -> bool:
    """Say whether what is locked satisfies a requirement."""
    version = versions.get(canonicalize_name(requirement.name))
    return version is not None and version in requirement.specifier


@pytest.mark.parametrize("lock", LOCKS)
def test_each_file_is_known_by_its_hash(lock: str) -> None:
    """Each entry has hashes, and no entry or option says from where it comes."""
    text = re.sub(r"^ *#.*\n", "", (ROOT / lock).read_text(), flags=re.MULTILINE)
    entry = r"[\w-]+==\S+( ; [^-\n]+)? \\\n(    --hash=sha256:[0-9a-f]{64}( \\)?\n)+"

    assert re.fullmatch(f"({entry})+", text)
