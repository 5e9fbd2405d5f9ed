"""Foreground: what a drain costs the clients that share the server with it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeAlias

import redis

from benchmarks.bench import Bench, Part, Ratio, rotated, say
from benchmarks.figures import Figures, Round, percentile, weighted_percentile
from benchmarks.servers import Server, running
from benchmarks.shop import KEYS, SHELF, SHELF_UNITS
from benchmarks.shopper import PAGE
from benchmarks.systems import RAW, expirer_command, working

IDLE, ONE_SCRIPT = "idle", "everything popped in one script"
BATCHES = (50, 100, 500, 1000)
VERBS = ("get", "reserve")
PHASES = ("before", "during", "after")
_AROUND_S = 1.0
BIN_S = 0.05
"""Width of a step of the timelines."""
_POLL_S = 0.005
_START_LIMIT_S = 30.0
_POP_ALL = Path(__file__).parent / "peers" / "pop_all.lua"


def batch_case(batch: int) -> str:
    """Name the case of one batch size."""
    return f"expirer, batch {batch}"


@dataclass(slots=True)
class _Span:
    """When the drain was under way, ns of the monotonic clock, and how many came back in it."""

    began: int = 0
    ended: int = 0
    released: int = 0


_Drainer: TypeAlias = Callable[[Server, redis.Redis, _Span], None]


@dataclass(slots=True)
class Requests:
    """What one shopper sent, as its file has it."""

    path: Path
    taken: list[tuple[int, int]] = field(default_factory=list)

    def read(self) -> None:
        """Take over what a shopper that has ended wrote."""
        values = array("q")
        values.frombytes(self.path.read_bytes())
        self.taken = list(zip(values[::2], values[1::2], strict=True))

    def within_ms(self, since: int, until: int) -> list[float]:
        """Return the durations of the requests that were under way in a span of time."""
        return [taken / 1e6 for start, taken in self.taken if start < until and start + taken > since]


def _run(bench: Bench, turn: int) -> Round:
    raw = bench.raw_file(bench.sizes.raw_foreground)
    cases: dict[str, _Drainer] = {
        IDLE: lambda _server, _client, span: _pass_time(bench, span),
        RAW: lambda server, client, span: _replay(server, client, raw, span),
        ONE_SCRIPT: _pop_all,
    }
    for batch in BATCHES:
        cases[batch_case(batch)] = partial(_drain, bench, batch)
    result: Round = {}
    for name in rotated(list(cases), turn):
        say(f"  {name}")
        with running(snapshot=bench.snapshot(overdue=bench.sizes.million)) as server, server.client() as client:
            _stock(client)
            result[name] = _measure(server, client, cases[name])
    return result


def _stock(client: redis.Redis) -> None:
    client.set(PAGE, "x" * 100)
    client.hset(KEYS.stock_prefix + SHELF, mapping={"available": SHELF_UNITS, "reserved": 0})


def _pass_time(bench: Bench, span: _Span) -> None:
    span.began = time.monotonic_ns()
    time.sleep(bench.sizes.window_s)  # idle is what this case measures
    span.ended = time.monotonic_ns()


def _replay(server: Server, client: redis.Redis, raw: Path, span: _Span) -> None:
    with raw.open("rb") as source, _watching(client, span):
        server.start_pipe(source).wait()


def _drain(bench: Bench, batch: int, server: Server, client: redis.Redis, span: _Span) -> None:
    flags = ("--log-level", "warning", "--batch-size", str(batch))
    with _watching(client, span), working(expirer_command(*flags), server):
        deadline = time.monotonic() + _START_LIMIT_S
        while not span.began:
            if time.monotonic() > deadline:
                raise RuntimeError("the worker never began")
            time.sleep(_POLL_S)  # gently: the server is being measured
        time.sleep(bench.sizes.window_s)  # the drain is longer than what is measured of it


def _pop_all(_server: Server, client: redis.Redis, span: _Span) -> None:
    span.began = time.monotonic_ns()
    now_ms = time.time_ns() // 1_000_000
    span.released = int(client.eval(_POP_ALL.read_text(), 2, KEYS.index, KEYS.events, now_ms, "{inventory}"))
    span.ended = time.monotonic_ns()


@contextmanager
def _watching(client: redis.Redis, span: _Span) -> Iterator[None]:
    """Note when the overdue begin to go, and when they have gone or the block has ended."""
    overdue = _overdue(client)
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(_POLL_S):
            left = _overdue(client)
            if left < overdue and not span.began:
                span.began = time.monotonic_ns()
            if left == 0:
                break
        span.ended = time.monotonic_ns()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        is_over.set()
        watcher.join()
        span.released = overdue - _overdue(client)


def _overdue(client: redis.Redis) -> int:
    return int(client.zcount(KEYS.index, "-inf", time.time_ns() // 1_000_000))


def _measure(server: Server, client: redis.Redis, case: _Drainer) -> Figures:
    span = _Span()
    requests = {verb: Requests(server.folder / f"{verb}.taken") for verb in VERBS}
    shoppers = [
        subprocess.Popen([sys.executable, "-m", "benchmarks.shopper", server.socket, verb, requests[verb].path])
        for verb in VERBS
    ]
    time.sleep(2 * _AROUND_S)  # "before", and the shoppers' own start-up
    case(server, client, span)
    time.sleep(_AROUND_S)  # "after"
    for shopper in shoppers:
        shopper.terminate()
    figures: Figures = {"released": span.released}
    around = round(_AROUND_S * 1e9)
    edges = (span.began - around, span.began, span.ended, span.ended + around)
    for verb, shopper in zip(VERBS, shoppers, strict=True):
        if shopper.wait() != 0:
            raise RuntimeError(f"the {verb} client failed")
        requests[verb].read()
        for phase, since, until in zip(PHASES, edges, edges[1:], strict=False):
            taken = requests[verb].within_ms(since, until)
            figures[f"{verb}_{phase}_p50"] = percentile(taken, 50)
            figures[f"{verb}_{phase}_p99"] = percentile(taken, 99)
            if phase == "during":
                figures[f"{verb}_anytime_p99"] = weighted_percentile(taken, 99)
                figures[f"{verb}_worst"] = max(taken)
        figures[f"{verb}_timeline"] = _timeline(requests[verb], edges[0], edges[-1])
    figures["began"], figures["ended"] = _AROUND_S, _AROUND_S + (span.ended - span.began) / 1e9
    figures["check"] = _check(client)
    return figures


def _timeline(requests: Requests, since: int, until: int) -> list[float]:
    """Return the longest wait that was under way in each twentieth of a second."""
    step = round(BIN_S * 1e9)
    bins = [0.0] * ((until - since) // step + 1)
    for start, taken in requests.taken:
        first, last = max(0, (start - since) // step), (start + taken - since) // step
        for place in range(first, min(last, len(bins) - 1) + 1):
            bins[place] = max(bins[place], round(taken / 1e6, 4))
    return bins


def _check(client: redis.Redis) -> str:
    """Return `exact`, or what is wrong with the counters and the size of the index."""
    with client.pipeline() as pipe:
        pipe.zcard(KEYS.index)
        for key in client.scan_iter(match=f"{KEYS.stock_prefix}*", count=1000):
            pipe.hget(key, "reserved")
        indexed, *reserved = (int(value) for value in pipe.execute())
    return "exact" if indexed == sum(reserved) else f"{indexed} in the index, {sum(reserved)} units reserved"


PART = Part(
    name="foreground",
    title="Foreground",
    method=(
        "Two other clients in Python, one GET and one `reserve` after another, each waiting for its answer, while a"
        " million overdue reservations drain; everything shares the machine. The drain is watched for 3 s (raw Redis:"
        " 300,000 reservations). *p99* is over requests. *at any moment* weighs each request by its duration, since a"
        " client that waits for a stall does not send the requests that would have met it. The one script does the same"
        " reads and writes for all that is due in one go; its server waits for it instead of answering BUSY."
    ),
    units={
        "get_during_p50": "GET p50 ms",
        "get_during_p99": "GET p99 ms",
        "get_anytime_p99": "GET p99 at any moment",
        "reserve_during_p50": "reserve p50 ms",
        "reserve_during_p99": "reserve p99 ms",
        "reserve_anytime_p99": "reserve p99 at any moment",
        "released": "released meanwhile",
        "check": "counters",
    },
    run=_run,
    ratio=Ratio("get_during_p99", "GET p99 ÷ raw's", lambda _case: RAW),
    chart="foreground.svg",
)
