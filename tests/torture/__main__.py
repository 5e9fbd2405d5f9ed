"""The long part: each fault as often as promised, then the soaks; the figures go into docs/reliability.md."""

from __future__ import annotations

import argparse
import secrets
import subprocess
import sys
import traceback
from itertools import repeat
from pathlib import Path

from tests.servers import MISSING, find_server
from tests.torture import fuzz, results
from tests.torture.fault import Outcome, run
from tests.torture.faults import FAULTS
from tests.torture.results import Row
from tests.torture.rig import Sizes
from tests.torture.soak import SOAKS

_SIZES = Sizes()
ROWS = {
    **{name: Row(fault.title, fault.promise) for name, fault in FAULTS.items()},
    "fuzz": Row("due entries of random types, sizes, encodings and numbers", "each ends in one place; none blocks"),
    **{name: Row(soak.title, soak.promise) for name, soak in SOAKS.items()},
}
_MAY_LOSE = {name for name, one in (*FAULTS.items(), *SOAKS.items()) if one.may_lose}


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument(
        "--only", default="", metavar="FAULT,…", help=f"of {', '.join(ROWS)}; others keep their figures"
    )
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6), help="default: at random; it is printed")
    parser.add_argument("--minutes", type=float, default=20, help="of each soak; default 20")
    parser.add_argument("--report-only", action="store_true", help="write the document again from what was kept")
    options = parser.parse_args()
    names = [name.strip() for name in options.only.split(",") if name.strip()] or list(ROWS)
    if unknown := [name for name in names if name not in ROWS]:
        parser.error(f"{unknown[0]} is not a fault; the faults are {', '.join(ROWS)}")
    binary = find_server()
    if binary is None:
        parser.error(MISSING)
    if options.report_only:
        names = []
    version = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout.split()[2][2:]
    broken = []
    for name in names:
        _say(f"{name}: begins, seed {options.seed}")
        try:
            outcome = _torture(name, binary, options.seed, options.minutes)
        except Exception:  # noqa: BLE001  # the others are tried all the same
            traceback.print_exc()
            broken.append(name)
            continue
        results.keep(name, outcome, version)
        _say(f"{name}: {outcome.summary()}")
        broken += [name] * (not outcome.is_kept(may_lose=name in _MAY_LOSE))
    results.write(ROWS)
    if broken:
        sys.exit(f"a promise is broken: {', '.join(broken)}")


def _torture(name: str, binary: Path, seed: int, minutes: float) -> Outcome:
    if name == "fuzz":
        return fuzz.run(binary, seed, _SIZES.entries)
    if name in SOAKS:
        return run(SOAKS[name].plan(seed, minutes), SOAKS[name].host, binary, seed, _SIZES)
    fault = FAULTS[name]
    return run(repeat(fault, fault.times), fault.host, binary, seed, _SIZES)


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    main()
