"""Fleet: what many workers cost together."""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks.bench import Bench, Part, Ratio, rotated, say
from benchmarks.figures import Figures, Round
from benchmarks.servers import running
from benchmarks.shop import KEYS
from benchmarks.steady_load import SteadyLoad
from benchmarks.systems import expirer_command, working

ONE = "1 worker"
_START_S_EACH = 0.6
_START_S = 4.0


def fleet_case(workers: int) -> str:
    """Name the case of a fleet."""
    return ONE if workers == 1 else f"{workers} workers"


def _run(bench: Bench, turn: int) -> Round:
    result: Round = {}
    for workers in rotated([1, bench.sizes.fleet], turn):
        say(f"  {fleet_case(workers)}")
        result[fleet_case(workers)] = _measure(bench, workers)
    return result


def _measure(bench: Bench, workers: int) -> Figures:
    count, seconds = bench.sizes.fleet_due, bench.sizes.fleet_s
    with running() as server, server.client() as client, ExitStack() as fleet:
        load = SteadyLoad(server, client, count, seconds, _START_S + _START_S_EACH * workers)
        for _ in range(workers):
            fleet.enter_context(working(expirer_command(), server))
        load.wait()
        if int(client.zcard(KEYS.workers)) < workers:
            raise RuntimeError("the fleet was not up in time")
        figures = load.watch()
        events = int(client.xlen(KEYS.events))
    twice = load.released_again + max(0, events - count)
    return {"per_s": load.commands / seconds, "twice": twice, **figures}


PART = Part(
    name="fleet",
    title="Fleet",
    method=(
        "2,000 reservations due evenly over 10 s, default settings; client commands and lateness by MONITOR, without"
        " what scripts run inside the server. *Twice* counts reservations that were marked Expired more than once, and"
        " events beyond one each."
    ),
    units={
        "per_s": "client commands/s",
        "p50": "p50 ms",
        "p99": "p99 ms",
        "twice": "released twice",
        "waiting": "not released",
        "check": "counters",
    },
    run=_run,
    ratio=Ratio("per_s", "commands ÷ one's", lambda _case: ONE),
)
