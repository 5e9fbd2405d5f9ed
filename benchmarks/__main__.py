"""The command line: measure, then write results, report and charts."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks import (
    attack,
    audit,
    charts,
    drain,
    fleet,
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
from benchmarks.systems import find_systems

PARTS = {
    part.name: part
    for module in (drain, lateness, foreground, scaling, idle, memory, fleet, audit, attack, primaries)
    for part in [module.PART]
}
_HERE = Path(__file__).parent
_KEPT = "results.json"


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only", default="", metavar="PART,…", help=f"of {', '.join(PARTS)}; others keep their results"
    )
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument("--quick", action="store_true", help="a smoke test: one round of a tenth, into .quick/")
    parser.add_argument("--report-only", action="store_true", help="make report and charts again from results.json")
    options = parser.parse_args()
    names = [name.strip() for name in options.only.split(",") if name.strip()] or list(PARTS)
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"{unknown[0]} is not a part; the parts are {', '.join(PARTS)}")
    if options.rounds < 1:
        parser.error("at least one round")
    folder = _HERE / ".quick" if options.quick else _HERE
    folder.mkdir(exist_ok=True)
    kept = results.Results.read(folder / _KEPT)
    if not options.report_only:
        _measure(kept, names, QUICK if options.quick else Sizes(), 1 if options.quick else options.rounds, folder)
    charts.draw(kept, folder / "charts")
    (folder / "RESULTS.md").write_text(report.render(kept, PARTS, is_quick=options.quick), encoding="utf-8")
    say(f"written: {folder / 'RESULTS.md'}")


def _measure(kept: results.Results, names: list[str], sizes: Sizes, rounds: int, folder: Path) -> None:
    systems, missing = find_systems(sizes.ttl_keys)
    kept.describe(systems, missing)
    machine = results.machine()
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        bench = Bench(Path(scratch), sizes, systems)
        for part in (PARTS[name] for name in names):
            kept.parts[part.name] = results.PartResult(results.now(), machine, _rounds(bench, part, rounds))
            kept.write(folder / _KEPT)


def _rounds(bench: Bench, part: Part, rounds: int) -> list[Round]:
    done = []
    for turn in range(1 if part.is_absolute else rounds):
        say(f"{part.name}, round {turn + 1} of {1 if part.is_absolute else rounds}")
        done.append(part.run(bench, turn))
    return done


if __name__ == "__main__":
    main()
