"""Fleet: what many workers cost together."""

from __future__ import annotations

import time
from contextlib import ExitStack

from benchmarks import probes
from benchmarks.bench import Bench, Part, Ratio, rotated, say
from benchmarks.figures import Figures, Round, curve, percentile
from benchmarks.servers import running
from benchmarks.shop import KEYS, Ledger, holds, write_contract
from benchmarks.systems import expirer_command, working

ONE = "1 worker"
_START_S_EACH = 0.6
_START_S = 4.0
_AFTER_S = 1.5


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
        start = probes.server_ms(client) + round((_START_S + _START_S_EACH * workers) * 1000)
        made = list(holds(start + n * seconds * 1000 // count for n in range(count)))
        write_contract(server, made)
        for _ in range(workers):
            fleet.enter_context(working(expirer_command(), server))
        time.sleep(max(0.0, start / 1000 - 1 - time.time()))  # the start-up is not measured
        if int(client.zcard(KEYS.workers)) < workers:
            raise RuntimeError("the fleet was not up in time")
        with probes.monitoring(server) as monitor:
            time.sleep(seconds + 1 + _AFTER_S)  # all that falls due, and what comes late
            end_ms = probes.server_ms(client)
        late = probes.lateness({hold.id: hold.expires_at for hold in made}, monitor.releases(), end_ms)
        commands = monitor.client_commands(start * 1000, (start + seconds * 1000) * 1000)
        events = int(client.xlen(KEYS.events))
        verdict = Ledger.of(made).check(client, [hold.id for hold in made])
    return {
        "per_s": commands / seconds,
        "p50": percentile(late.ms, 50),
        "p99": percentile(late.ms, 99),
        "twice": late.twice + max(0, events - count),
        "waiting": late.waiting,
        "check": verdict,
        "curve": curve(late.ms),
    }


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
