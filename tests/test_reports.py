"""The records of long runs: a part that is run alone changes its own figures, and no others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import audit as audit_part
from benchmarks import drain, fleet, flood, foreground, idle, lateness, memory, primaries, scaling
from benchmarks.report import update
from benchmarks.results import PartResult, Results
from tests.reader import ROOT
from tests.torture import results
from tests.torture.results import Row

pytestmark = pytest.mark.slow

MODULES = (drain, lateness, foreground, scaling, idle, memory, fleet, audit_part, flood, primaries)
PARTS = {module.PART.name: module.PART for module in MODULES}


def test_the_report_is_as_it_would_be_written() -> None:
    """RESULTS.md has a section for each part and a row for each target; with nothing new it stays as it is."""
    report = (ROOT / "benchmarks" / "RESULTS.md").read_text()

    assert report == update(report, Results(), PARTS, is_quick=False)
    assert [] == [part.title for part in PARTS.values() if f"\n## {part.title}\n" not in report]


def test_a_part_that_is_measured_alone_changes_its_own_section() -> None:
    """What was not measured keeps its section and its rows."""
    report = (ROOT / "benchmarks" / "RESULTS.md").read_text()
    measured = PartResult("2030-01-01 00:00 UTC", {"processor": "abacus"}, [{"expirer": {"per_s": 0.5}}])

    changed = update(report, Results(parts={"idle": measured}), PARTS, is_quick=False)

    [before] = {*report.splitlines()} & {line for line in report.splitlines() if line.startswith("| Idle |")}
    gone = {*report.splitlines()} - {*changed.splitlines()}
    section = report.partition("\n## Idle\n")[2].partition("\n## ")[0]
    assert before in gone
    assert gone <= {before, *section.splitlines()}
    assert "| Idle | ≤ 0.1 client commands/s | 0.500 | **not reached** |" in changed
    assert "Measured 2030-01-01 00:00 UTC, 1 round, on: processor abacus." in changed


def test_a_fault_that_is_tried_alone_changes_its_own_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/reliability.md keeps the rows of the faults that were not tried."""
    document = tmp_path / "reliability.md"
    document.write_text((ROOT / "docs" / "reliability.md").read_text())
    monkeypatch.setattr(results, "DOCUMENT", document)
    monkeypatch.setattr(results, "KEPT", tmp_path / ".results.json")
    rows = [line for line in document.read_text().splitlines() if line.endswith(" UTC |")]
    faults = {str(n): Row(row.split(" | ")[0].removeprefix("| "), row.split(" | ")[4]) for n, row in enumerate(rows)}
    results.write(faults)
    assert (ROOT / "docs" / "reliability.md").read_text() == document.read_text()

    verdict = {"lost": {"count": 0}, "wrong": {"count": 0}, "ended": {"Expired": 7}, "steps": 9, "unanswered": 1}
    tried = {"measured_at": "2030-01-01 00:00 UTC", "on": "an abacus", "injected": {"kill": 3}, "verdict": verdict}
    results.KEPT.write_text(json.dumps({"1": tried}))
    results.write(faults)

    now = [line for line in document.read_text().splitlines() if line.endswith(" UTC |")]
    assert now == [
        rows[0],
        f"| {faults['1'].title} | 3 | 9, 1 | 7 | {faults['1'].promise} | exact | 2030-01-01 00:00 UTC |",
        *rows[2:],
    ]
    assert "On an abacus.\n" in document.read_text()
