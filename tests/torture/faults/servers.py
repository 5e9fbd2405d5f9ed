"""What happens to the server as a process, and to what it has on disk."""

from __future__ import annotations

from pathlib import Path

from tests.proxy import Conditions, Proxy
from tests.torture.fault import Fault, Host
from tests.torture.single import OneServer

_LOGGED = ("--appendonly", "yes", "--auto-aof-rewrite-min-size", "4mb", "--appendfsync")
ALWAYS = Host((*_LOGGED, "always"))
EVERY_SECOND = Host((*_LOGGED, "everysec"))
AGREES = "what the server lost is named; what survived agrees exactly"


def crash(rig: OneServer) -> None:
    """Kill the server, and start it again on what is on its disk."""
    rig.wait(rig.chance.uniform(0.3, 1))
    rig.server.stop()
    rig.wait(rig.chance.uniform(0, 0.5))
    rig.server.start()
    rig.wait(0.5)


def lose_power(rig: OneServer) -> None:
    """Kill the server, and take up to a second of writes from its disk, as a machine that goes dark would."""
    file = _append_only_file(rig)
    on_disk = file.stat().st_size
    rig.wait(rig.chance.uniform(0.2, 1))
    rig.server.stop()
    file = _append_only_file(rig)
    written = file.stat().st_size
    with file.open("r+b") as data:
        data.truncate(rig.chance.randint(min(on_disk, written), written))
    rig.server.start()
    # A server that cuts a half transaction from its log may leave a part of it there, to be done at the next
    # start (Redis 7.0.15 does; valkey#4342 tells of it). A log written anew has no such part.
    rig.client.bgrewriteaof()
    rig.wait_until(lambda: not rig.client.info("persistence")["aof_rewrite_in_progress"], "a new log")
    rig.wait(0.5)


def fail_over(rig: OneServer) -> None:
    """Kill the server while its replica lags behind; everybody goes to the replica."""
    primary, replica = rig.server, rig.new_server()
    with Proxy(primary.port) as line:
        replica.start()
        client = replica.client()
        client.replicaof("127.0.0.1", line.url.rpartition(":")[2])
        rig.wait_until(lambda: client.info("replication")["master_link_status"] == "up", "a replica")
        rig.wait(rig.chance.uniform(0.3, 1))
        line.conditions = Conditions(silent=("reply",))
        rig.wait(rig.chance.uniform(0, 0.5))
        primary.stop()
    client.replicaof("NO", "ONE")
    rig.move_to(replica)
    rig.wait(0.5)


def _append_only_file(rig: OneServer) -> Path:
    # Redis 7 and later have a folder of them, of which the newest grows.
    return max(rig.server.folder.rglob("*.aof"), key=lambda path: (path.stat().st_mtime_ns, ".incr." in path.name))


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
