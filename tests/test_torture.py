"""Each fault under load, a few times: four workers, eight checkouts, and afterwards everything adds up."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Tool
from tests.faults import linux_only
from tests.torture import fuzz
from tests.torture.fault import run
from tests.torture.faults import FAULTS
from tests.torture.rig import QUICK
from tests.torture.soak import SOAKS

pytestmark = pytest.mark.slow


@linux_only
def test_exact_under_every_fault_in_turn(server_binary: Path, tool: Tool) -> None:
    """What Redis acknowledged to the checkouts and what Redis holds agree, reservation by reservation, unit by unit."""
    tool("cc")  # moves the server's clock
    soak = SOAKS["soak"]
    plan = [fault for fault in soak.faults for _ in range(fault.quick_times)]

    outcome = run(plan, soak.host, server_binary, seed=1, sizes=QUICK)

    assert outcome.verdict.steps > 0
    assert outcome.is_kept(), outcome.summary()


@linux_only
def test_exact_while_a_cluster_changes(server_binary: Path) -> None:
    """While slots move, nodes come and go and primaries are exchanged, all of it agrees as well."""
    changes = [FAULTS["slots"], FAULTS["nodes"], FAULTS["swaps"]]

    outcome = run(changes, changes[0].host, server_binary, seed=1, sizes=QUICK)

    assert outcome.verdict.steps > 0
    assert outcome.is_kept(), outcome.summary()


@linux_only
@pytest.mark.parametrize("name", ["power", "failover", "cluster-parts"])
def test_nothing_is_half_done_where_the_server_forgets(name: str, server_binary: Path) -> None:
    """What the server lost is lost as a whole: counters, status, index and events of what survived agree."""
    fault = FAULTS[name]
    outcome = run([fault] * fault.quick_times, fault.host, server_binary, seed=1, sizes=QUICK)

    assert outcome.verdict.steps > 0
    assert outcome.is_kept(may_lose=True), outcome.summary()


def test_hostile_entries_end_in_one_place(server_binary: Path) -> None:
    """Each of thousands of entries at random ends where it belongs, untouched, whatever type a key holds meanwhile."""
    outcome = fuzz.run(server_binary, seed=1, entries=QUICK.entries)

    assert outcome.verdict.steps == QUICK.entries
    assert outcome.is_kept(), outcome.summary()
