"""What makes a server refuse to write, for as long as a block lasts."""

from __future__ import annotations

import resource
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
import redis

from tests.program import wait_until
from tests.servers import free_port

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="limits of another process, and a preloaded clock")


@contextmanager
def full(client: redis.Redis) -> Iterator[str]:
    """Leave no memory."""
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", 1)
    yield "maxmemory"
    client.config_set("maxmemory", 0)


@contextmanager
def replica(client: redis.Redis) -> Iterator[str]:
    """Make it a replica of a server that is not there."""
    client.replicaof("127.0.0.1", free_port())
    yield "read only replica"
    client.replicaof("NO", "ONE")


@contextmanager
def busy(client: redis.Redis) -> Iterator[str]:
    """Run a script that never ends."""
    client.config_set("lua-time-limit", 1)

    def spin() -> None:
        with pytest.raises(redis.ResponseError, match="killed"):
            client.eval("while true do end", 0)

    thread = threading.Thread(target=spin)
    thread.start()
    wait_until(lambda: is_busy(client))
    yield "BUSY"
    client.script_kill()
    thread.join()


def is_busy(client: redis.Redis) -> bool:
    """Say whether a script holds the server."""
    try:
        client.ping()
    except redis.ResponseError as error:
        return str(error).startswith("BUSY")
    return False


@contextmanager
def full_disk(client: redis.Redis) -> Iterator[str]:
    """Let no file of the server grow any more; one that syncs always ends when it notices."""
    if not client.info("persistence")["aof_enabled"]:
        client.config_set("appendonly", "yes")
        wait_until(lambda: not client.info("persistence")["aof_rewrite_in_progress"])
    pid = int(client.info("server")["process_id"])
    _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, most))
    wait_until(lambda: not takes_writes(client))
    yield "MISCONF"
    with suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, most))
        wait_until(lambda: takes_writes(client) and not client.exists("probe"))


def takes_writes(client: redis.Redis) -> bool:
    """Say whether the server takes a write that leaves nothing behind."""
    try:
        client.set("probe", "", px=1)
    except redis.RedisError:
        return False
    return True
