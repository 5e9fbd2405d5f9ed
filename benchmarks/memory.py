"""Memory: the most that the worker ever holds."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks import probes
from benchmarks.bench import Bench, Part
from benchmarks.figures import Round
from benchmarks.servers import running
from benchmarks.shop import Ledger
from benchmarks.systems import EXPIRER, expirer_command, working

_LIMIT_S = 300.0


def _run(bench: Bench, _turn: int) -> Round:
    count = bench.sizes.million
    with running(snapshot=bench.snapshot(overdue=count)) as server, server.client() as client:
        # Every line is made, and kept by nobody.
        with working(expirer_command("--log-format", "json"), server, Path(os.devnull)) as process:
            drain = probes.watch_drain(client, count, _LIMIT_S)
            rss_mb = probes.peak_rss_mb(process.pid)
        verdict = Ledger.of(bench.overdue(count)).check(client)
    return {EXPIRER: {"rss": rss_mb, "released": drain.released, "rate": drain.rate, "check": verdict}}


PART = Part(
    name="memory",
    title="Memory",
    method="Peak resident memory (VmHWM) of the worker after it has drained a million, default settings.",
    units={"rss": "peak RSS MB", "released": "released", "rate": "reservations/s", "check": "counters"},
    run=_run,
    is_absolute=True,
)
