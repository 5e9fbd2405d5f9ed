"""The units for systemd: understood, and closed as far as the program allows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from expirer.web.server import PORT
from tests.conftest import Tool
from tests.deployments import UNIT, WEB_UNIT
from tests.reader import ROOT

pytestmark = pytest.mark.slow

GUIDE = (ROOT / "docs" / "deployment.md").read_text()
PROGRAM = "/opt/expirer/bin/expirer"
EXPOSURE, TOLERANCE = 1.0, 0.3
"""Out of 10, as systemd 252 rates it; other versions rate a little differently."""


@pytest.fixture(params=[UNIT, WEB_UNIT], ids=["run", "web"])
def unit(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a unit with a program that is there: systemd misses another."""
    path = tmp_path / "expirer.service"
    path.write_text(request.param.replace(PROGRAM, str(Path(sys.executable).parent / "expirer")))
    return path


def analyze(tool: Tool, *words: str | Path) -> tuple[int, str, str]:
    """Run systemd-analyze: exit code, standard output, standard error."""
    done = subprocess.run([tool("systemd-analyze"), *words], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_systemd_understands_the_unit(tool: Tool, unit: Path) -> None:
    """No line of the unit is misspelt, refused or ignored."""
    code, _, complaints = analyze(tool, "verify", "--man=no", "--generators=no", unit)

    assert (0, []) == (code, [line for line in complaints.splitlines() if unit.name in line])


def test_the_unit_is_closed(tool: Tool, unit: Path) -> None:
    """Its exposure is what the guide says."""
    highest = round(10 * (EXPOSURE + TOLERANCE))
    code, report, _ = analyze(tool, "security", "--offline=true", "--no-pager", f"--threshold={highest}", unit)

    assert 0 == code, report
    assert f"its exposure {EXPOSURE} of 10" in GUIDE


def test_the_unit_reads_what_the_guide_installs() -> None:
    """The guide puts the program, the settings and the password where the unit looks for them."""
    files = re.findall(r"^(?:EnvironmentFile=|LoadCredential=[\w-]+:|ExecStart=)(\S+)", UNIT, re.MULTILINE)

    assert [PROGRAM, "/etc/expirer/expirer.env", "/etc/expirer/redis-password"] == files
    assert [] == [path for path in files if path.removesuffix("/bin/expirer") not in GUIDE]


def test_the_credential_is_the_password_file() -> None:
    """The program reads the file that systemd makes of the credential."""
    (credential,) = re.findall(r"^LoadCredential=([\w-]+):", UNIT, re.MULTILINE)

    assert f"\nEnvironment=EXPIRER_REDIS_PASSWORD_FILE=%d/{credential}\n" in UNIT


def test_the_second_unit_is_like_the_first() -> None:
    """The unit of `expirer web` differs from that of the worker in what it is and starts, and in nothing else."""
    ours, theirs = (
        {line for line in unit.splitlines() if line and not line.startswith("#")} for unit in (UNIT, WEB_UNIT)
    )

    assert {"Description", "ExecStart"} == {line.partition("=")[0] for line in ours ^ theirs}
    assert f"\nExecStart={PROGRAM} web --http-port {PORT}\n" in WEB_UNIT
