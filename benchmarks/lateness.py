"""Lateness: how long after ExpiresAt the units are back."""

from __future__ import annotations

import random
import time
from datetime import timedelta

from benchmarks import probes
from benchmarks.bench import Bench, Part, Ratio, rotated, say
from benchmarks.figures import Figures, Round, curve, percentile
from benchmarks.servers import running
from benchmarks.shop import KEYS, SHELF, SHELF_UNITS, Ledger, holds
from benchmarks.systems import BULLMQ_100, EXPIRER, System, working
from expirer import Reservations

FLOOD = "1,000 due per second"
SHORTER = f"{EXPIRER}, a shorter hold written while it sleeps"
_POLL_S = 0.5


def flood_case(name: str) -> str:
    """Name the case of a flood."""
    return f"{name}, {FLOOD}"


def _run(bench: Bench, turn: int) -> Round:
    sizes = bench.sizes
    result: Round = {}
    for name in rotated(list(bench.systems), turn):
        say(f"  {name}")
        result[name] = _even(bench, bench.systems[name], sizes.due, sizes.due_s)
    say(f"  {SHORTER}")
    result[SHORTER] = _shorter(bench, turn)
    for name in rotated([EXPIRER, BULLMQ_100], turn):
        if name in bench.systems:
            say(f"  {flood_case(name)}")
            result[flood_case(name)] = _even(bench, bench.systems[name], sizes.flood, sizes.flood_s)
    return result


def _even(bench: Bench, system: System, count: int, seconds: int) -> Figures:
    with running(*system.options) as server, server.client() as client:
        start = probes.server_ms(client) + system.lead_ms(count)
        made = list(holds(start + n * seconds * 1000 // count for n in range(count)))
        system.seed(server, made)
        with probes.monitoring(server) as monitor, working(system.command(server), server):
            if probes.server_ms(client) > start:
                raise RuntimeError(f"{system.name} was seeded too slowly to measure")
            _wait_until(made[-1].expires_at)
            deadline = time.monotonic() + bench.sizes.ttl_wait_s
            while time.monotonic() < deadline and len(monitor.releases()) < count:
                time.sleep(_POLL_S)  # the monitor reads in a thread; this only waits for the last
            end_ms = probes.server_ms(client)
        late = probes.lateness({hold.id: hold.expires_at for hold in made}, monitor.releases(), end_ms)
        verdict = Ledger.of(made).check(client, [hold.id for hold in made])
    return _figures(late, verdict)


def _shorter(bench: Bench, turn: int) -> Figures:
    chance = random.Random(turn)  # noqa: S311  # seeded: the same moments in every run
    system = bench.systems[EXPIRER]
    due: dict[str, int] = {}
    with running() as server, server.client() as client:
        system.seed(server, list(bench.active(1)))
        client.hset(KEYS.stock_prefix + SHELF, mapping={"available": SHELF_UNITS, "reserved": 0})
        checkout = Reservations(client)
        with working(system.command(server), server), probes.monitoring(server) as monitor:
            time.sleep(system.start_s)  # asleep towards tomorrow is where the case begins
            for n in range(bench.sizes.holds):
                hold = checkout.reserve(f"h{n}", SHELF, 1, timedelta(milliseconds=chance.randint(5, 50)))
                due[hold.id] = hold.expires_at or 0
                _wait_until(due[hold.id] + chance.randint(60, 150))
            end_ms = probes.server_ms(client)
        late = probes.lateness(due, monitor.releases(), end_ms)
        row = client.hmget(KEYS.stock_prefix + SHELF, ["available", "reserved"])
    verdict = "exact" if row == [str(SHELF_UNITS).encode(), b"0"] else f"shelf {row}"
    return _figures(late, verdict)


def _wait_until(moment_ms: int) -> None:
    time.sleep(max(0.0, moment_ms / 1000 - time.time()))  # what falls due by then is what is measured


def _figures(late: probes.Lateness, verdict: str) -> Figures:
    problems = [f"{late.waiting} still waiting"] * (late.waiting > 0)
    problems += [f"{late.early} early"] * (late.early > 0) + [f"{late.twice} released twice"] * (late.twice > 0)
    return {
        "p50": percentile(late.ms, 50),
        "p99": percentile(late.ms, 99),
        "worst": max(late.ms),
        "check": "; ".join([*problems, verdict]) if problems or verdict != "exact" else verdict,
        "curve": curve(late.ms),
    }


PART = Part(
    has_peers=True,
    name="lateness",
    title="Lateness",
    method=(
        "500 reservations due evenly over 10 s, every system with its default settings; then 1,000 a second for 20 s;"
        " then holds of 5 to 50 ms, written one at a time by the Python client while the worker sleeps towards a"
        " reservation of tomorrow. A release is the server's own record (MONITOR, microseconds) of the write that marks"
        " the reservation Expired, the same for all. A reservation falls due as soon as its ExpiresAt has passed."
        " What is still waiting when the watch ends counts as late as it was by then."
    ),
    units={"p50": "p50 ms", "p99": "p99 ms", "worst": "worst ms", "check": "counters"},
    run=_run,
    ratio=Ratio("p99", "p99 ÷ expirer's", lambda case: flood_case(EXPIRER) if FLOOD in case else EXPIRER),
    chart="lateness.svg",
)
