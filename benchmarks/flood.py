"""Flood: what a flood on the HTTP port does to lateness."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack

from benchmarks.bench import Bench, Part, Ratio, rotated, say
from benchmarks.figures import Figures, Round
from benchmarks.servers import running
from benchmarks.steady_load import SteadyLoad
from benchmarks.systems import expirer_command, working
from tests.servers import free_port

QUIET, BYSTANDER, OURS = "no flood", "a flood on a bystander", "the same flood on the sidecar's port"
_START_S = 5.0


def _run(bench: Bench, turn: int) -> Round:
    result: Round = {}
    for name in rotated([QUIET, BYSTANDER, OURS], turn):
        say(f"  {name}")
        result[name] = _measure(bench, name)
    return result


def _measure(bench: Bench, name: str) -> Figures:
    count, seconds = bench.sizes.steady_due, bench.sizes.steady_s
    port, bystander = free_port(), free_port()
    with running() as server, server.client() as client, ExitStack() as stack:
        load = SteadyLoad(server, client, count, seconds, _START_S)
        stack.enter_context(working(expirer_command("--http-port", str(port)), server))
        stack.enter_context(working([sys.executable, "-m", "benchmarks.peers.bystander", str(bystander)], server))
        load.wait()
        flood = None
        if name != QUIET:
            target = port if name == OURS else bystander
            command = [sys.executable, "-m", "benchmarks.peers.flood", str(target), str(seconds + 1)]
            flood = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
        figures = load.watch()
        requests = int(flood.communicate()[0]) if flood else 0
    return {"requests": requests / (seconds + 1), **figures}


PART = Part(
    name="flood",
    title="Flood",
    method=(
        "1,000 reservations due evenly over 10 s, default settings, `EXPIRER_HTTP_PORT` set. The flood: five clients"
        " that ask as fast as they are answered, four that connect, send noise and leave, 600 that drip in a request"
        " without end (eight are open at a time). It runs on the same two cores, at the lowest priority, standing for"
        " other machines. The bystander is a web server of another process, which the worker knows nothing of: what any"
        " flood on this machine costs."
    ),
    units={
        "requests": "requests/s",
        "p50": "p50 ms",
        "p99": "p99 ms",
        "worst": "worst ms",
        "waiting": "not released",
        "check": "counters",
    },
    run=_run,
    ratio=Ratio("p99", "p99 ÷ bystander's", lambda _case: BYSTANDER),
)
