"""Scaling: what a reservation costs the server, whatever else is in the index."""

from __future__ import annotations

import time
from typing import cast

import redis

from benchmarks.bench import Bench, Part, rotated, say
from benchmarks.figures import Figures, Round
from benchmarks.servers import running
from benchmarks.shop import KEYS
from benchmarks.systems import expirer_command, working

_POLL_S = 0.01
_LIMIT_S = 30.0


_BACKLOG, _BESIDE = "backlog of {:,}", "beside {:,} not due"


def is_backlog(case: str) -> bool:
    """Say whether a case is one of a growing backlog."""
    return case.startswith("backlog")


def is_beside(case: str) -> bool:
    """Say whether a case is one of ever more reservations that are not due."""
    return case.startswith("beside")


def size(case: str) -> int:
    """Return how many a case is about."""
    return int("".join(filter(str.isdigit, case)))


def _run(bench: Bench, turn: int) -> Round:
    drained, scaling = bench.sizes.scaling_drained, bench.sizes.scaling
    cases = {_BACKLOG.format(count): (count, 0) for count in scaling[1:]}
    cases |= {_BESIDE.format(count): (drained, count) for count in scaling}
    result: Round = {}
    for name in rotated(list(cases), turn):
        say(f"  {name}")
        overdue, active = cases[name]
        result[name] = _cost(bench, overdue, active)
    return result


def _cost(bench: Bench, overdue: int, active: int) -> Figures:
    with running(snapshot=bench.snapshot(overdue, active)) as server, server.client() as client:
        before = _indexed(client)
        client.config_resetstat()
        with working(expirer_command("--log-level", "warning"), server):
            deadline = time.monotonic() + _LIMIT_S
            while before - _indexed(client) < bench.sizes.scaling_drained and time.monotonic() < deadline:
                time.sleep(_POLL_S)  # gently: the server is being measured
        stats = cast("dict[str, dict[str, float]]", client.info("commandstats"))
        expired = before - _indexed(client)
    evalsha = stats["cmdstat_evalsha"]
    return {"usec": evalsha["usec"] / expired, "per_call": evalsha["usec"] / evalsha["calls"], "expired": expired}


def _indexed(client: redis.Redis) -> int:
    return int(client.zcard(KEYS.index))


PART = Part(
    name="scaling",
    title="Cost against backlog",
    method=(
        "The server's own account (`INFO commandstats`, evalsha) per expired reservation, batch 100, over the first"
        " 10,000 that a worker expires of the backlog; then the same backlog of 10,000 beside Active ones that are not"
        " due."
    ),
    units={"usec": "server µs per reservation", "per_call": "server µs per batch", "expired": "expired"},
    run=_run,
    chart="cost.svg",
)
