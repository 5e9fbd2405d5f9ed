"""What the last run of each fault showed: in docs/reliability.md, and in more detail as JSON on this machine."""

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

KEPT = Path(__file__).with_name(".results.json")
DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"
_BEGIN, _END = "<!-- made by make torture -->\n", "<!-- until here -->\n"
_MOST_NAMED = 20


@dataclass(frozen=True, slots=True)
class Row:
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


def write(faults: Mapping[str, Row]) -> None:
    """Write the figures into the document, between its two marks; a fault that was not tried here keeps its row."""
    kept = _read()
    before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(_BEGIN)
    old, _, after = rest.partition(_END)
    rows = {line.split(" | ")[0]: line for line in old.splitlines(keepends=True) if line.startswith("|")}
    new = {f"| {faults[name].title}": f"| {_row(faults[name], kept[name])} |\n" for name in faults if name in kept}
    known = [f"| {fault.title}" for fault in faults.values()]
    machines = {f"On {one['on']}.\n" for one in kept.values()}
    if {*known} - {*new}:
        machines |= {line for line in old.splitlines(keepends=True) if line.startswith("On ")}
    heads = [
        "| fault | injected | steps, of them unanswered | expired | promised | seen | measured |\n",
        f"|{' --- |' * 7}\n",
    ]
    lines = [*heads, *((rows | new)[title] for title in known if title in rows | new), "\n", *sorted(machines)]
    DOCUMENT.write_text("".join([before, _BEGIN, "\n", *lines, "\n", _END, after]), encoding="utf-8")


def _read() -> dict[str, Any]:
    return dict(json.loads(KEPT.read_text(encoding="utf-8"))) if KEPT.exists() else {}


def _row(fault: Row, kept: dict[str, Any]) -> str:
    verdict, injected = kept["verdict"], kept["injected"]
    times = sum(injected.values())
    expired = verdict["ended"].get("Expired", verdict["ended"].get("expired", 0))
    lost, wrong = verdict["lost"]["count"], verdict["wrong"]["count"]
    seen = "exact" if not wrong else f"**{wrong} do not agree**"
    if lost:
        seen = f"{lost:,} facts lost by the server; " + ("the rest agrees exactly" if not wrong else seen)
    cells = (fault.title, f"{times:,}", f"{verdict['steps']:,}, {verdict['unanswered']:,}", f"{expired:,}")
    return " | ".join((*cells, fault.promise, seen, kept["measured_at"]))
