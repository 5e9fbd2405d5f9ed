"""`make demo-monitoring` keeps its promise: an alert comes and goes, and nothing is left behind."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGTERM

import pytest

from tests.conftest import Tool
from tests.program import DEADLINE_S, wait_until
from tests.prometheus import ask, get
from tests.reader import ROOT

pytestmark = pytest.mark.slow

LONG_S = 120.0
"""An alert passes through a scrape, a rule and two programs, on a machine that is busy."""
COMMAND = [sys.executable, "-m", "deploy.monitoring"]


class Demo:
    """The demo, and what it says: where to look, and what to try."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self.process = process
        self.text = "".join(iter(process.stdout.readline, "Ctrl-C ends all of it.\n"))
        self.web, _, _, self.prometheus, alertmanager = re.findall(r"http://[\d.:]+", self.text)
        self._alerts = f"{alertmanager}/api/v2/alerts"

    def types(self, command: str) -> str:
        """Return what one of the commands prints that it says to try, or another one at the same Redis."""
        pause, resume = re.findall(r"^  (\S+/expirer .*)$", self.text, re.MULTILINE)
        words = shlex.split({"pause": pause, "resume": resume}.get(command, resume.replace("resume", command)))
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout

    def page(self) -> str:
        """Return the page."""
        with urllib.request.urlopen(f"{self.web}/", timeout=10) as answer:  # noqa: S310  # http only
            return str(answer.read().decode())

    def fires(self, alert: str) -> bool:
        """Say whether Alertmanager has an alert."""
        return any(alert == found["labels"]["alertname"] for found in get(self._alerts))

    def children(self) -> list[Path]:
        """Return the processes that it started."""
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        return [Path("/proc") / pid for task in tasks for pid in (task / "children").read_text().split()]


@contextmanager
def running(folder: Path) -> Iterator[Demo]:
    """Run the demo with its folder in this one; end it if it still runs."""
    with subprocess.Popen(
        COMMAND, cwd=ROOT, env={**os.environ, "TMPDIR": str(folder)}, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Demo(process)
        finally:
            process.send_signal(SIGTERM)
            process.wait(DEADLINE_S)


@pytest.fixture(autouse=True)
def _has_tools(server_binary: Path, tool: Tool) -> None:
    assert server_binary
    tool("prometheus")
    tool("prometheus-alertmanager")


def test_an_alert_comes_and_goes(tmp_path: Path) -> None:
    """Figures fill; a pause fires its alert and is seen with its reason; a resume ends it, and every unit is there."""
    with running(tmp_path) as demo:
        wait_until(lambda: ask(demo.prometheus, "expirer_worker_expired_reservations_total > 10"), LONG_S)
        assert not demo.fires("ExpirerPausedTooLong")
        demo.types("pause")
        wait_until(lambda: demo.fires("ExpirerPausedTooLong"), LONG_S)
        assert "payment outage" in demo.types("status")
        wait_until(lambda: "payment outage" in demo.page())  # it reads every ten seconds
        assert ask(demo.prometheus, "expirer_shard_paused == 1 and expirer_shard_overdue_reservations > 0")
        demo.types("resume")
        wait_until(lambda: not demo.fires("ExpirerPausedTooLong"), LONG_S)
        wait_until(lambda: ask(demo.prometheus, "expirer_shard_oldest_overdue_seconds < 1"), LONG_S)

        assert demo.types("audit").startswith("0 found")
        assert not ask(demo.prometheus, 'ALERTS{alertstate="firing"}')


@pytest.mark.parametrize("number", [SIGINT, SIGTERM])
def test_it_ends_everything(tmp_path: Path, number: int) -> None:
    """Ctrl-C and SIGTERM end every process that it started, and remove its folder."""
    with running(tmp_path) as demo:
        children = demo.children()
        demo.process.send_signal(number)

        assert 0 == demo.process.wait(DEADLINE_S)
        assert 6 == len(children)
        assert [] == [child for child in children if child.exists()]
        assert [] == list(tmp_path.iterdir())


def test_it_tells_what_ended(tmp_path: Path) -> None:
    """Where one part dies it says which, and ends the others."""
    with running(tmp_path) as demo:
        children = demo.children()
        shop = next(child for child in children if b"shop.py" in (child / "cmdline").read_bytes())
        os.kill(int(shop.name), SIGKILL)

        assert 1 == demo.process.wait(DEADLINE_S)
        assert [] == [child for child in children if child.exists()]


def test_it_says_what_is_missing(tmp_path: Path) -> None:
    """Without a tool it says which, and how to get it, and starts nothing."""
    done = subprocess.run(
        COMMAND, cwd=ROOT, env={**os.environ, "PATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )

    assert (1, "") == (done.returncode, done.stdout)
    assert "no prometheus: put one on PATH, or run `python tests/tools.py` as root" in done.stderr
    assert "no prometheus-alertmanager" in done.stderr
