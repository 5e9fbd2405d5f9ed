"""Audit: what a look at every reservation costs, in memory and to the clients beside it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress

from benchmarks import probes
from benchmarks.bench import Bench, Part, rotated, say
from benchmarks.figures import Figures, Round, percentile
from benchmarks.foreground import VERBS, Requests
from benchmarks.servers import Server, running
from benchmarks.shop import KEYS, SHELF, SHELF_UNITS
from benchmarks.shopper import PAGE

IDLE, BESIDE, EMPTY = "idle", "audit", "audit of an empty Redis"
_PAUSE_MS = 2
_START_S = 2.0
_POLL_S = 0.05
_LIMIT_S = 1200.0


def _run(bench: Bench, turn: int) -> Round:
    result: Round = {}
    for name in rotated([IDLE, BESIDE], turn):
        say(f"  {name}")
        with running(snapshot=bench.snapshot(active=bench.sizes.million)) as server, server.client() as client:
            client.set(PAGE, "x" * 100)
            client.hset(KEYS.stock_prefix + SHELF, mapping={"available": SHELF_UNITS, "reserved": 0})
            result[name] = _beside_shoppers(bench, server, is_audited=name == BESIDE)
    with running() as server:
        result[EMPTY] = _audit(server)
    return result


def _beside_shoppers(bench: Bench, server: Server, *, is_audited: bool) -> Figures:
    requests = {verb: Requests(server.folder / f"{verb}.taken") for verb in VERBS}
    command = [sys.executable, "-m", "benchmarks.shopper", str(server.socket)]
    shoppers = [subprocess.Popen([*command, verb, str(requests[verb].path), str(_PAUSE_MS)]) for verb in VERBS]
    time.sleep(_START_S)  # the shoppers' start-up is not measured
    began = time.monotonic_ns()
    figures: Figures = {}
    if is_audited:
        figures = _audit(server)
    else:
        time.sleep(bench.sizes.audit_idle_s)  # idle is what this case measures
    ended = time.monotonic_ns()
    for verb, shopper in zip(VERBS, shoppers, strict=True):
        shopper.terminate()
        if shopper.wait() != 0:
            raise RuntimeError(f"the {verb} client failed")
        requests[verb].read()
        taken = requests[verb].within_ms(began, ended)
        figures |= {f"{verb}_p50": percentile(taken, 50), f"{verb}_p99": percentile(taken, 99)}
    return figures


def _audit(server: Server) -> Figures:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EXPIRER_")}
    command = [sys.executable, "-m", "expirer", "audit", "--redis-url", server.url]
    began_at = time.monotonic()
    rss_mb = 0.0
    with tempfile.TemporaryFile("w+") as told:
        with subprocess.Popen(command, env=environment, stdout=told, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None:
                with suppress(IndexError, FileNotFoundError):  # it has just ended
                    rss_mb = probes.peak_rss_mb(process.pid)
                if time.monotonic() > began_at + _LIMIT_S:
                    process.kill()
                time.sleep(_POLL_S)  # gently: the server is being measured
        told.seek(0)
        verdict = told.read().partition(" (")[0].strip()
    return {"rss": rss_mb, "seconds": time.monotonic() - began_at, "check": verdict}


PART = Part(
    name="audit",
    title="Audit",
    method=(
        "`expirer audit` of a million Active reservations of a hundred products, nothing due before tomorrow, with its"
        " settings as they are. Beside it two clients, one GET and one `reserve` every 2 ms or so; *idle* is the same"
        " without the audit. Everything shares the machine. Peak memory is VmHWM."
    ),
    units={
        "get_p50": "GET p50 ms",
        "get_p99": "GET p99 ms",
        "reserve_p50": "reserve p50 ms",
        "reserve_p99": "reserve p99 ms",
        "rss": "peak RSS MB",
        "seconds": "seconds",
        "check": "it found",
    },
    run=_run,
)
