"""What the last run of each fault showed: kept as JSON, told in docs/reliability.md."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import redis

import expirer
from tests.torture.fault import Outcome

KEPT = Path(__file__).with_name("results.json")
DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"
_BEGIN, _END = "<!-- made by make torture -->\n", "<!-- until here -->\n"
_MOST_NAMED = 20


@dataclass(frozen=True, slots=True)
class Told:
    """What the document says of a fault besides its figures."""

    title: str
    promise: str


def keep(name: str, outcome: Outcome, server_version: str) -> None:
    """Replace what was kept of a fault."""
    kept = _read()
    kept[name] = {
        "measured_at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "on": f"Redis {server_version}, Python {platform.python_version()}, redis-py {redis.__version__}, "
        f"expirer {expirer.__version__}, {os.cpu_count()} cores",
        **asdict(outcome),
    }
    verdict = kept[name]["verdict"]
    for found in ("lost", "wrong"):
        verdict[found] = {"count": len(verdict[found]), "first": sorted(verdict[found])[:_MOST_NAMED]}
    KEPT.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def tell(faults: Mapping[str, Told]) -> None:
    """Write the figures into the document, between its two marks."""
    kept = _read()
    rows = [
        "fault | struck | steps, of them unanswered | expired | promised | seen | measured",
        " | ".join(["---"] * 7),
    ]
    rows += [_row(faults[name], kept[name]) for name in faults if name in kept]
    machines = sorted({one["on"] for one in kept.values()})
    lines = [*(f"| {row} |\n" for row in rows), "\n", *(f"On {machine}.\n" for machine in machines)]
    before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(_BEGIN)
    after = rest.partition(_END)[2]
    DOCUMENT.write_text("".join([before, _BEGIN, "\n", *lines, "\n", _END, after]), encoding="utf-8")


def _read() -> dict[str, Any]:
    return dict(json.loads(KEPT.read_text(encoding="utf-8"))) if KEPT.exists() else {}


def _row(fault: Told, kept: dict[str, Any]) -> str:
    verdict, struck = kept["verdict"], kept["struck"]
    times = sum(struck.values())
    expired = verdict["ended"].get("Expired", verdict["ended"].get("expired", 0))
    lost, wrong = verdict["lost"]["count"], verdict["wrong"]["count"]
    seen = "exact" if not wrong else f"**{wrong} do not agree**"
    if lost:
        seen = f"{lost:,} facts lost by the server; " + ("the rest agrees exactly" if not wrong else seen)
    cells = (fault.title, f"{times:,}", f"{verdict['steps']:,}, {verdict['unanswered']:,}", f"{expired:,}")
    return " | ".join((*cells, fault.promise, seen, kept["measured_at"]))
