"""What happens to the server as a process, and to what it has on disk."""

from __future__ import annotations

from pathlib import Path

from tests.proxy import Proxy, Weather
from tests.torture.fault import Fault, Host
from tests.torture.single import OneServer

_LOGGED = ("--appendonly", "yes", "--auto-aof-rewrite-min-size", "4mb", "--appendfsync")
ALWAYS = Host((*_LOGGED, "always"))
EVERY_SECOND = Host((*_LOGGED, "everysec"))
AGREES = "what the server lost is named; what survived agrees exactly"


def crash(bed: OneServer) -> None:
    """Kill the server, and start it again on what is on its disk."""
    bed.wait(bed.chance.uniform(0.3, 1))
    bed.server.stop()
    bed.wait(bed.chance.uniform(0, 0.5))
    bed.server.start()
    bed.wait(0.5)


def lose_power(bed: OneServer) -> None:
    """Kill the server, and take up to a second of writes from its disk, as a machine that goes dark would."""
    file = _append_only_file(bed)
    on_disk = file.stat().st_size
    bed.wait(bed.chance.uniform(0.2, 1))
    bed.server.stop()
    file = _append_only_file(bed)
    written = file.stat().st_size
    with file.open("r+b") as data:
        data.truncate(bed.chance.randint(min(on_disk, written), written))
    bed.server.start()
    # A server that cuts a half transaction from its log may leave a part of it there, to be done at the next
    # start (Redis 7.0.15 does; valkey#4342 tells of it). A log written anew has no such part.
    bed.client.bgrewriteaof()
    bed.wait_until(lambda: not bed.client.info("persistence")["aof_rewrite_in_progress"], "a new log")
    bed.wait(0.5)


def fail_over(bed: OneServer) -> None:
    """Kill the server while its replica lags behind; everybody goes to the replica."""
    primary, replica = bed.server, bed.new_server()
    with Proxy(primary.port) as line:
        replica.start()
        client = replica.client()
        client.replicaof("127.0.0.1", line.url.rpartition(":")[2])
        bed.wait_until(lambda: client.info("replication")["master_link_status"] == "up", "a replica")
        bed.wait(bed.chance.uniform(0.3, 1))
        line.weather = Weather(silent=("reply",))
        bed.wait(bed.chance.uniform(0, 0.5))
        primary.stop()
    client.replicaof("NO", "ONE")
    bed.move_to(replica)
    bed.wait(0.5)


def _append_only_file(bed: OneServer) -> Path:
    # Redis 7 and later have a folder of them, of which the newest grows.
    return max(bed.server.folder.rglob("*.aof"), key=lambda path: (path.stat().st_mtime_ns, ".incr." in path.name))


FAULTS = (
    Fault("crashes", "the primary killed with -9, `appendfsync always`", crash, times=20, host=ALWAYS),
    Fault(
        "power",
        "the primary killed with -9 and up to a second of its log lost, `appendfsync everysec`",
        lose_power,
        times=20,
        promise=AGREES,
        host=EVERY_SECOND,
        may_lose=True,
    ),
    Fault(
        "failover",
        "the primary killed with -9 while its replica lags; the replica takes over",
        fail_over,
        times=20,
        promise=AGREES,
        host=Host(("--repl-diskless-sync-delay", "0")),
        may_lose=True,
    ),
)
