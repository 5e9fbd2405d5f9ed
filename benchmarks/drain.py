"""Drain: how fast a backlog comes back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks import probes
from benchmarks.bench import Bench, Part, Ratio, rotated, say
from benchmarks.figures import Figures, Round
from benchmarks.servers import running
from benchmarks.shop import Ledger, holds
from benchmarks.systems import EXPIRER, RAW, System, expirer_command, working

LARGE = f"{EXPIRER}, large backlog"
RAW_LARGE = f"{RAW}, large backlog"
LOGGED = f"{LARGE}, a JSON line each"
BATCHES = (50, 500, 1000)


def batch_case(batch: int) -> str:
    """Name the case of one batch size."""
    return f"{LARGE}, batch {batch}"


def _run(bench: Bench, turn: int) -> Round:
    small, large = bench.sizes.drain, bench.sizes.drain_large
    silent = ("--log-level", "warning")
    cases: dict[str, Callable[[], Figures]] = {
        EXPIRER: lambda: _ours(bench, small, *silent),
    }
    for name, system in bench.systems.items():
        if name != EXPIRER:
            cases[name] = partial(_peer, bench, system)
    cases[RAW_LARGE] = lambda: _raw(bench, large)
    cases[LARGE] = lambda: _ours(bench, large, *silent)
    cases[LOGGED] = lambda: _ours(bench, large, "--log-format", "json")
    for batch in BATCHES:
        cases[batch_case(batch)] = partial(_ours, bench, large, *silent, "--batch-size", str(batch))
    result: Round = {}
    for name in rotated(list(cases), turn):
        say(f"  {name}")
        result[name] = cases[name]()
    return result


def _ours(bench: Bench, count: int, *flags: str) -> Figures:
    with running(snapshot=bench.snapshot(overdue=count)) as server, server.client() as client:
        with working(expirer_command(*flags), server) as process:
            drain = probes.watch_drain(client, count, bench.sizes.drain_limit_s * 5)
            rss_mb = probes.peak_rss_mb(process.pid)
        verdict = Ledger.of(bench.overdue(count)).check(client, (hold.id for hold in bench.overdue(count)))
    return {**_rate(drain), "released": drain.released, "rss": rss_mb, "check": verdict}


def _raw(bench: Bench, count: int) -> Figures:
    commands = bench.raw_file(count)
    with running(snapshot=bench.snapshot(overdue=count)) as server, server.client() as client:
        with commands.open("rb") as source:
            replay = server.start_pipe(source)
            drain = probes.watch_drain(client, count, bench.sizes.drain_limit_s * 5)
            replay.wait()
        verdict = Ledger.of(bench.overdue(count)).check(client, (hold.id for hold in bench.overdue(count)))
    return {**_rate(drain), "released": drain.released, "check": verdict}


def _peer(bench: Bench, system: System) -> Figures:
    count = bench.sizes.drain
    snapshot: Path | None = None if system.hears_only else bench.system_snapshot(system, count)
    with running(*system.options, snapshot=snapshot) as server, server.client() as client:
        made = list(bench.overdue(count))
        if system.hears_only:
            due = probes.server_ms(client) + system.lead_ms(count)
            made = list(holds([due] * count))
            system.seed(server, made)
        with working(system.command(server), server) as process:
            drain = probes.watch_drain(client, count, bench.sizes.drain_limit_s)
            rss_mb = probes.peak_rss_mb(process.pid)
        verdict = Ledger.of(made).check(client, [hold.id for hold in made])
    return {**_rate(drain), "released": drain.released, "rss": rss_mb, "check": verdict}


def _rate(drain: probes.Drain) -> Figures:
    """Leave the rate out where the drain was over before it was seen twice."""
    return {"rate": drain.rate} if drain.rate else {}


PART = Part(
    has_peers=True,
    name="drain",
    title="Drain",
    method=(
        "A backlog that was there before the worker. The rate is taken from the first to the last reading of the"
        " counters (one transaction with the server's time every 20 ms), so that no start-up counts; a slow system is"
        " watched for a while only. Ours: events on, batch 100 and logs at warning unless the name says otherwise; in"
        " the large cases the batch is 100 too. Raw Redis is the same reads and writes (HMGET, ZREM, HSET, PEXPIRE, two"
        " HINCRBY, XADD) replayed by `redis-cli --pipe`, which decides nothing and checks nothing. TTL keys expire"
        " while their listener is there, since otherwise they are lost."
    ),
    units={"rate": "reservations/s", "released": "released", "rss": "peak RSS MB", "check": "counters"},
    run=_run,
    ratio=Ratio("rate", "rate ÷ expirer's", lambda case: LARGE if "large backlog" in case else EXPIRER),
    chart="drain.svg",
)
