"""Idle: what a worker costs that has nothing to do."""

from __future__ import annotations

import time

from benchmarks import probes
from benchmarks.bench import Bench, Part
from benchmarks.figures import Round
from benchmarks.servers import running
from benchmarks.systems import EXPIRER, expirer_command, working

_START_S = 3.0


def _run(bench: Bench, _turn: int) -> Round:
    million = bench.snapshot(active=bench.sizes.million)
    with running(snapshot=million) as server, working(expirer_command(), server):
        time.sleep(_START_S)  # the first ticks are not idle
        with probes.monitoring(server) as monitor:
            time.sleep(bench.sizes.idle_s)  # idle is what is measured
        commands = monitor.client_commands()
    return {EXPIRER: {"commands": commands, "per_s": commands / bench.sizes.idle_s}}


PART = Part(
    name="idle",
    title="Idle",
    method=(
        "A million Active reservations, nothing due before tomorrow, default settings; counted by MONITOR for two"
        " minutes, without the commands that scripts run inside the server."
    ),
    units={"commands": "client commands in 120 s", "per_s": "client commands/s"},
    run=_run,
    is_absolute=True,
)
