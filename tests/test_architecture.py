"""The house is as CONTRIBUTING.md draws it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.reader import ROOT

PACKAGE = ROOT / "expirer"
LONGEST = 320
SHARED = ("expirer", "expirer.version")
"""May be imported from everywhere; `expirer` itself hands on the checkout's names when they are used."""


def rows() -> list[list[str]]:
    """Return the modules of each row of the table, the top one first, as `expirer.web` or `expirer.cli`."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    table = re.findall(r"^\| (`expirer/.*?`) \|", text, re.MULTILINE)
    names = (re.findall(r"`(?:expirer/)?(\w+)(?:\.py|/)`", row) for row in table)
    return [[f"expirer.{name}" for name in row] for row in names]


def imports(path: Path) -> Iterator[str]:
    """Yield the full name of everything that a file imports from the package."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "expirer":
            yield from (
                (f"{node.module}.{name.name}" if node.module == "expirer" else node.module) for name in node.names
            )
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.partition(".")[0] == "expirer")


def files() -> list[Path]:
    """Return every module of the package."""
    return sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem != "__init__")


def test_every_module_has_a_row() -> None:
    """The table names every folder and every loose file of the package."""
    folders = {f"expirer.{path.parent.name}" for path in files() if path.parent != PACKAGE}
    loose = {f"expirer.{path.stem}" for path in files() if path.parent == PACKAGE} - set(SHARED)

    assert folders | loose == {name for row in rows() for name in row}


def test_imports_point_downwards() -> None:
    """A module imports from its own row and from the rows below."""
    row_of = {name: number for number, row in enumerate(rows()) for name in row}
    upwards = []
    for path in files():
        own = f"expirer.{path.relative_to(PACKAGE).parts[0].removesuffix('.py')}"
        for name in imports(path):
            place = ".".join(name.split(".")[:2])
            if place in SHARED or name.endswith(".__version__") or own in SHARED:
                continue
            if row_of[place] < row_of[own]:
                upwards.append(f"{path.relative_to(ROOT)} imports {name}")

    assert upwards == []


def test_every_file_can_be_read_in_one_sitting() -> None:
    """No module has more than 320 lines, and the package has few loose files."""
    long = {
        str(path.relative_to(ROOT)): lines
        for path in files()
        if (lines := len(path.read_text().splitlines())) > LONGEST
    }

    assert long == {}
    assert len(list(PACKAGE.glob("*.py"))) <= 8
