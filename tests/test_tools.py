"""The step that installs the tools of the tests: it does nothing where they are, and no harm where it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests import tools


def install(path: Path, *names: str) -> tuple[int, str]:
    """Run the step with this as PATH; return its exit code and what it says."""
    done = subprocess.run(
        [sys.executable, tools.__file__, *names],
        env={**os.environ, "PATH": str(path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def test_it_is_silent_where_all_is_there(tmp_path: Path) -> None:
    """With each tool on PATH it installs nothing and says nothing."""
    for name in ("apt-get", *tools.PACKAGES):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {name}\n")
        (tmp_path / name).chmod(0o755)

    assert (0, "") == install(tmp_path)


def test_it_says_what_stays_missing(tmp_path: Path) -> None:
    """Where it can install nothing it says what is missing, and is no failure: the tests decide."""
    assert (0, "no promtool, amtool; their tests are skipped, and fail where CI is set\n") == install(
        tmp_path, "promtool", "amtool"
    )
