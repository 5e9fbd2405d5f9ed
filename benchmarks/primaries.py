"""Primaries: how fast one worker drains a Cluster of one, two and three, and what many shards cost on one server."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import redis

from benchmarks import probes
from benchmarks.bench import Bench, Part, Ratio, rotated, say
from benchmarks.figures import Figures, Round, percentile
from benchmarks.servers import Server, running
from benchmarks.shop import Hold, holds
from benchmarks.systems import expirer_command, working
from expirer.contract.keys import ShardKeys, shard_of, slot_of
from tests.program import wait_until
from tests.servers import MISSING, RedisServer, find_server, free_cluster_port
from tests.topology import execute, raw

SHARDS = 16
"""As docs/scaling.md recommends."""
PERCENT = 12
ONE_SHARD, MANY_SHARDS = "1 server, 1 shard", f"1 server, {SHARDS} shards"
_SLOTS = 16_384
_CHUNK = 2_000
_POLL_S = 0.02
_START_S = 4.0
_INTERVAL_S = 1


def case(primaries: int) -> str:
    """Name the case of a Cluster whose primaries are slow."""
    return f"Cluster, {primaries} slow primar{'y' if primaries == 1 else 'ies'}"


def _run(bench: Bench, turn: int) -> Round:
    count = bench.sizes.primaries
    cases = {case(n): (n, SHARDS, count // 4, PERCENT) for n in (1, 2, 3)}
    cases |= {f"Cluster, {n} primaries": (n, SHARDS, count, 0) for n in (2, 3)}
    cases |= {ONE_SHARD: (0, 1, count, 0), MANY_SHARDS: (0, SHARDS, count, 0)}
    result: Round = {}
    for name in rotated(list(cases), turn):
        say(f"  {name}")
        result[name] = _measure(bench, *cases[name])
        if name in {ONE_SHARD, MANY_SHARDS}:
            result[name] |= _at_leisure(bench, cases[name][1])
    return result


def _measure(bench: Bench, primaries: int, shards: int, count: int, percent: int) -> Figures:
    keys = _keys(shards)
    with ExitStack() as stack:
        nodes = stack.enter_context(_nodes(bench.folder, max(primaries, 1), keys if primaries else []))
        clients = [stack.enter_context(node.client()) for node in nodes]
        order = sorted(range(shards), key=lambda number: slot_of(keys[number])) if primaries else range(shards)
        homes = {number: clients[place * len(nodes) // shards] for place, number in enumerate(order)}
        empty = _memory(clients)
        stocked = _fill(bench.overdue(count), keys, homes)
        held = _memory(clients) - empty
        flags = ["--log-level", "warning", "--shards", str(shards), "--redis-url", f"redis://127.0.0.1:{nodes[0].port}"]
        if primaries:
            flags += ["--redis-cluster", "true"]
        slow = _slowed(nodes, percent) if percent else ExitStack()
        with slow, working(expirer_command(*flags), Server(nodes[0].folder)) as worker:
            rate = _watch(keys, homes)
            spent_s, rss_mb = _cpu_s(worker.pid), probes.peak_rss_mb(worker.pid)
        exact = all(
            homes[number].hmget(keys[number].stock_prefix + product_id, "available", "reserved")
            == [str(units).encode(), b"0"]
            for (number, product_id), units in stocked.items()
        )
    return {
        "rate": rate,
        "cpu": 1e6 * spent_s / count,
        "rss": rss_mb,
        "bytes": held / count,
        "check": "exact" if exact else "not conserved",
    }


def _at_leisure(bench: Bench, shards: int) -> Figures:
    """Return how late a worker is on one server that is not busy, and what it sends when nothing is due."""
    keys, count, seconds = _keys(shards), bench.sizes.steady_due, bench.sizes.steady_s
    flags = ["--log-level", "warning", "--shards", str(shards), "--interval", f"{_INTERVAL_S}s"]
    with running() as server, server.client() as client:
        start = probes.server_ms(client) + round(_START_S * 1000)
        due = (start + n * seconds * 1000 // count for n in range(count))
        _fill(holds(due), keys, dict.fromkeys(range(shards), client))
        with working(expirer_command(*flags), server):
            wait_until(lambda: not any(client.zcard(one.index) for one in keys), _START_S + seconds + 60)
            with probes.monitoring(server) as monitor:
                time.sleep(seconds)  # idle is what is measured
        idle = monitor.client_commands() / seconds
        events: Any = [entry for one in keys for _, entry in client.xrange(one.events)]
    late = [int(entry[b"expired_at"]) - int(entry[b"expires_at"]) for entry in events]
    return {"p99": percentile(late, 99), "idle": idle}


def _keys(shards: int) -> list[ShardKeys]:
    return [ShardKeys.of("inventory", number, shards) for number in range(shards)]


def _memory(clients: list[redis.Redis]) -> int:
    infos: Any = [client.info("memory") for client in clients]
    return sum(info["used_memory"] for info in infos)


@contextmanager
def _nodes(folder: Path, count: int, keys: list[ShardKeys]) -> Iterator[list[RedisServer]]:
    """Run servers; where keys are given they are a Cluster, each with its part of the shards."""
    binary = find_server()
    if binary is None:
        raise FileNotFoundError(MISSING)
    nodes = []
    with ExitStack() as stack:
        for number in range(count):
            home = folder / f"primary-{time.monotonic_ns()}-{number}"
            home.mkdir()
            options = ["--cluster-enabled", "yes"] if keys else []
            node = RedisServer(binary, home, *options, port=free_cluster_port())
            node.start()
            stack.callback(node.stop)
            nodes.append(node)
        if keys:
            _join(nodes, sorted(map(slot_of, keys)))
        yield nodes


def _join(nodes: list[RedisServer], slots: list[int]) -> None:
    first = (-(-number * len(slots) // len(nodes)) for number in range(1, len(nodes)))
    bounds = [0, *(slots[place] for place in first), _SLOTS]
    for node, (start, end) in zip(nodes, pairwise(bounds), strict=True):
        execute(node, "CLUSTER", "ADDSLOTS", *range(start, end))
        execute(node, "CLUSTER", "MEET", "127.0.0.1", nodes[0].port)
    wait_until(lambda: all(b"cluster_state:ok" in raw(node, "CLUSTER", "INFO") for node in nodes))
    known = f"cluster_known_nodes:{len(nodes)}\r\n".encode()
    wait_until(lambda: all(known in raw(node, "CLUSTER", "INFO") for node in nodes))


def _fill(made: Iterator[Hold], keys: list[ShardKeys], homes: dict[int, redis.Redis]) -> Counter[tuple[int, str]]:
    """Write holds where they belong; return the units of each product."""
    stocked: Counter[tuple[int, str]] = Counter()
    while chunk := list(islice(made, _CHUNK)):
        pipes = {client: client.pipeline(transaction=False) for client in set(homes.values())}
        for hold in chunk:
            number = shard_of(hold.product_id, len(keys))
            names, pipe = keys[number], pipes[homes[number]]
            row: dict[Any, Any] = {
                "order_id": hold.order_id,
                "product_id": hold.product_id,
                "quantity": 1,
                "status": "Active",
            }
            pipe.hset(names.reservation_prefix + hold.id, mapping={**row, "expires_at": hold.expires_at})
            pipe.hincrby(names.stock_prefix + hold.product_id, "available", 0)
            pipe.hincrby(names.stock_prefix + hold.product_id, "reserved", 1)
            pipe.zadd(names.index, {hold.id: hold.expires_at})
            stocked[number, hold.product_id] += 1
        for pipe in pipes.values():
            pipe.execute()
    return stocked


@contextmanager
def _slowed(nodes: list[RedisServer], percent: int) -> Iterator[None]:
    command = [sys.executable, "-m", "benchmarks.peers.slowly", str(percent), *(str(node.pid) for node in nodes)]
    with subprocess.Popen(command) as process:
        try:
            yield
        finally:
            process.kill()
            for node in nodes:
                node.signal(signal.SIGCONT)


def _watch(keys: list[ShardKeys], homes: dict[int, redis.Redis]) -> float:
    """Return reservations a second from the last reading that sees none gone to the last while all servers have some.

    Products are of one shard, and shards of one server, so some have less than others, and are done before them.
    """
    left = count = sum(_left(keys, homes).values())
    first = last = (0.0, count)
    while left:
        lefts = _left(keys, homes)
        left = sum(lefts.values())
        if left == count:
            first = last = time.monotonic(), left
        elif all(lefts.values()) or last is first:
            last = time.monotonic(), left
        time.sleep(_POLL_S)  # gently: the server is being measured
    return (first[1] - last[1]) / (last[0] - first[0])


def _left(keys: list[ShardKeys], homes: dict[int, redis.Redis]) -> Counter[redis.Redis]:
    """Return how many are in the indexes of each server."""
    lefts: Counter[redis.Redis] = Counter()
    for client in set(homes.values()):
        with client.pipeline(transaction=False) as pipe:
            for number, home in homes.items():
                if home is client:
                    pipe.zcard(keys[number].index)
            lefts[client] = sum(pipe.execute())
    return lefts


def _cpu_s(pid: int) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


PART = Part(
    name="primaries",
    title="Primaries and shards",
    method=(
        f"A backlog over {SHARDS} shards, which the primaries share as evenly as whole shards go, drained by one"
        " worker; logs at warning. The clock stops when the first primary has none left. On this machine's two cores"
        f" three primaries cannot be as fast as on machines of their own, so the slow ones get {PERCENT} % of a core"
        " each (continued one after the other, every 10 ms): what is asked is whether more of them are drained as much"
        " faster. *Worker µs* is the worker's processor time for each reservation, its start"
        " included: a million divided by it is the most that one worker can do. *Server bytes* is what a reservation"
        " takes, keys, index and all. On one server also: p99 of the lateness of 1,000 that fall due evenly over 10 s,"
        f" by the times in their events, and then what the worker sends with an interval of {_INTERVAL_S} s and nothing"
        " due, by MONITOR."
    ),
    units={
        "rate": "reservations/s",
        "cpu": "worker µs each",
        "rss": "worker's peak RSS MB",
        "bytes": "server bytes each",
        "p99": "lateness p99 ms",
        "idle": "idle commands/s",
        "check": "counters",
    },
    run=_run,
    ratio=Ratio("rate", "rate ÷ that of one", lambda name: ONE_SHARD if "slow" not in name else case(1)),
)
