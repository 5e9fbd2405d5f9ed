"""The command line: measure, then write results, report and charts."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks import (
    audit,
    charts,
    drain,
    fleet,
    flood,
    foreground,
    idle,
    lateness,
    memory,
    primaries,
    report,
    results,
    scaling,
)
from benchmarks.bench import Bench, Part, say
from benchmarks.figures import Round
from benchmarks.sizes import QUICK, Sizes
from benchmarks.systems import System, find_systems

PARTS = {
    part.name: part
    for module in (drain, lateness, foreground, scaling, idle, memory, fleet, audit, flood, primaries)
    for part in [module.PART]
}
_HERE = Path(__file__).parent
_RAW = ".results.json"
"""Every round, on this machine only: the record is RESULTS.md."""


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only", default="", metavar="PART,…", help=f"of {', '.join(PARTS)}; the sections of the others stay"
    )
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument("--quick", action="store_true", help="a smoke test: one round of a tenth, into .quick/")
    parser.add_argument("--report-only", action="store_true", help="make report and charts again from .results.json")
    options = parser.parse_args()
    names = [name.strip() for name in options.only.split(",") if name.strip()] or list(PARTS)
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"{unknown[0]} is not a part; the parts are {', '.join(PARTS)}")
    if options.rounds < 1:
        parser.error("at least one round")
    folder = _HERE / ".quick" if options.quick else _HERE
    folder.mkdir(exist_ok=True)
    report_path = folder / "RESULTS.md"
    if options.report_only:
        measured = results.Results.read(folder / _RAW)
    else:
        measured = _measure(names, QUICK if options.quick else Sizes(), 1 if options.quick else options.rounds, folder)
    charts.draw(measured, folder / "charts")
    before = report_path.read_text(encoding="utf-8") if report_path.exists() else ""
    report_path.write_text(report.update(before, measured, PARTS, is_quick=options.quick), encoding="utf-8")
    say(f"written: {report_path}")


def _measure(names: list[str], sizes: Sizes, rounds: int, folder: Path) -> results.Results:
    measured, kept = results.Results(), results.Results.read(folder / _RAW)
    systems: dict[str, System] = {}
    if any(PARTS[name].has_peers for name in names):
        systems, missing = find_systems(sizes.ttl_keys)
        measured.describe(systems, missing)
    machine = results.machine()
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        bench = Bench(Path(scratch), sizes, systems)
        for part in (PARTS[name] for name in names):
            measured.parts[part.name] = results.PartResult(results.now(), machine, _rounds(bench, part, rounds))
            kept.update(measured)
            kept.write(folder / _RAW)
    return measured


def _rounds(bench: Bench, part: Part, rounds: int) -> list[Round]:
    done = []
    for turn in range(1 if part.is_absolute else rounds):
        say(f"{part.name}, round {turn + 1} of {1 if part.is_absolute else rounds}")
        done.append(part.run(bench, turn))
    return done


if __name__ == "__main__":
    main()
