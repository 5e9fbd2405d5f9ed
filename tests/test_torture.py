"""Each fault under load, a few times: four workers, eight checkouts, and afterwards everything adds up."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.torture.bed import QUICK
from tests.torture.fault import Fault, run
from tests.torture.faults import FAULTS

GROUPS: dict[str, list[Fault]] = {}
"""Those that strike the same kind of server, one after the other: starting everybody takes longest."""
for _fault in FAULTS.values():
    GROUPS.setdefault(f"{_fault.host} {_fault.may_lose}", []).append(_fault)


@pytest.mark.parametrize(
    "faults", [pytest.param(group, id=",".join(one.name for one in group)) for group in GROUPS.values()]
)
def test_nothing_is_lost_or_doubled_under(faults: list[Fault], server_binary: Path) -> None:
    """What the checkouts were told and what Redis holds agree, reservation by reservation, unit by unit."""
    plan = [fault for fault in faults for _ in range(fault.quick_times)]

    outcome = run(plan, faults[0].host, server_binary, seed=1, sizes=QUICK)

    assert outcome.verdict.steps > 0
    outcome.assert_kept(may_lose=faults[0].may_lose)
