"""Test beds of several real servers: a primary with replicas and Sentinels, and a Cluster; ended by pid.

Each stands on loopback in a folder of its own, starts in a few seconds, and says in `settings` how the program
connects to it. A test that breaks a bed has one of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from signal import SIGSTOP
from typing import Any, Self

import redis
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.retry import Retry

from tests.program import wait_until
from tests.servers import RedisServer, free_port

SERVICE = "shop"
_REPLICATION = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")
_DOWN_AFTER_MS = 700
_NODE_TIMEOUT_MS = 1000
_MANUAL_FAILOVER_S = 6.0
"""Redis gives one up after 5, without a word to who asked."""
_LAST_BUS = 55_535
"""A node's bus has its port and 10,000."""


class Replicated:
    """A primary with two replicas and three Sentinels.

    Args:
        options: of every server, as on its command line.
        sentinel_lines: of every Sentinel, as in its configuration file.
        login: what a client of the tests needs to connect to a server, such as a password.
        sentinel_login: the same for a Sentinel.
        tls: the authority's certificate, where all speak TLS.

    """

    def __init__(  # each with a default
        self,
        binary: Path,
        folder: Path,
        *options: str,
        sentinel_lines: tuple[str, ...] = (),
        login: dict[str, Any] | None = None,
        sentinel_login: dict[str, Any] | None = None,
        tls: Path | None = None,
    ) -> None:
        self._binary = binary
        self._tls = tls
        self._options = options
        self._folder = folder
        self._sentinel_lines = sentinel_lines
        self._sentinel_login = sentinel_login
        self.servers = [
            RedisServer(
                binary,
                _made(folder / f"server-{number}"),
                *_REPLICATION,
                *options,
                port=free_port(),
                login=login,
                tls=tls,
            )
            for number in range(3)
        ]
        self.sentinels: list[RedisServer] = []
        self.settings: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start everything; return once the replicas follow and the Sentinels know of all."""
        first, *others = self.servers
        for server in self.servers:
            server.start()
        for server in others:
            server.client().replicaof("127.0.0.1", first.port)
        wait_until(lambda: all(_follows(server) for server in others))
        self.sentinels = [self._sentinel(number) for number in range(3)]
        self.settings = {
            "redis_sentinels": ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels),
            "redis_sentinel_service": SERVICE,
        }
        if self._tls is not None:
            self.settings["redis_url"] = f"rediss:///0?ssl_ca_certs={self._tls}"
        wait_until(lambda: all(self._known(sentinel) == (2, 2) for sentinel in self.sentinels))

    def stop(self) -> None:
        """End every process."""
        for server in (*self.sentinels, *self.servers):
            server.stop()

    def primary(self) -> RedisServer:
        """Return the server that says it is the primary, and runs; the last one made so where there are two."""
        roles = {}
        for server in self.servers:
            info = info_of(server)
            if info.get("role") == "master":
                roles[info["connected_slaves"], server.port] = server
        return roles[max(roles)]

    def replicas(self) -> list[RedisServer]:
        """Return the servers other than the primary."""
        primary = self.primary()
        return [server for server in self.servers if server is not primary]

    def failover(self) -> RedisServer:
        """Let a Sentinel promote a replica of a primary that lives; return the new one once all know of it."""
        old = self.primary()
        wait_until(self._asks_for_failover)
        return self.wait_for_another(old)

    def wait_for_another(self, old: RedisServer) -> RedisServer:
        """Return the new primary, once every Sentinel names one that is not the old."""
        wait_until(lambda: all(self._named(sentinel) != old.port for sentinel in self.sentinels))
        port = self._named(self.sentinels[0])
        new = next(server for server in self.servers if server.port == port)
        wait_until(lambda: info_of(new).get("role") == "master")
        return new

    def _asks_for_failover(self) -> bool:
        with suppress(redis.ResponseError):  # NOGOODSLAVE, INPROG: a moment later
            return bool(_execute(self.sentinels[0], "SENTINEL", "FAILOVER", SERVICE))
        return False

    def _named(self, sentinel: RedisServer) -> int:
        return int(_execute(sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)[1])

    def _known(self, sentinel: RedisServer) -> tuple[int, int]:
        reply = _execute(sentinel, "SENTINEL", "MASTER", SERVICE)
        row = dict(zip(reply[::2], reply[1::2], strict=True))
        return int(row[b"num-slaves"]), int(row[b"num-other-sentinels"])

    def _sentinel(self, number: int) -> RedisServer:
        folder = _made(self._folder / f"sentinel-{number}")
        configuration = folder / "sentinel.conf"
        lines = (
            f"sentinel monitor {SERVICE} 127.0.0.1 {self.servers[0].port} 2",
            f"sentinel down-after-milliseconds {SERVICE} {_DOWN_AFTER_MS}",
            f"sentinel failover-timeout {SERVICE} 3000",
            *self._sentinel_lines,
        )
        configuration.write_text("".join(f"{line}\n" for line in lines))
        sentinel = RedisServer(
            self._binary,
            folder,
            *(self._options if self._tls else ()),
            port=free_port(),
            sentinel=configuration,
            login=self._sentinel_login,
            tls=self._tls,
        )
        sentinel.start()
        return sentinel


class Cluster:
    """A Redis Cluster of three primaries and three replicas; the n-th replica belongs to the n-th primary.

    Args:
        options: of every node, as on its command line.
        tls: the authority's certificate, where all speak TLS.

    """

    def __init__(self, binary: Path, folder: Path, *options: str, tls: Path | None = None) -> None:
        self._tls = tls
        self._binary = binary
        self._folder = folder
        self._options = options
        self.nodes: list[RedisServer] = []
        self.settings: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the nodes and join them; return once each says that the Cluster is ok, and all replicas follow."""
        for _ in range(6):
            self._node()
        address = f"127.0.0.1:{self.nodes[0].port}"
        url = f"redis://{address}" if self._tls is None else f"rediss://{address}/0?ssl_ca_certs={self._tls}"
        self.settings = {"redis_cluster": True, "redis_url": url}
        for number, node in enumerate(self.nodes):
            _execute(node, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        self._meet(self.nodes[0])
        primaries, replicas = self.nodes[:3], self.nodes[3:]
        share = REDIS_CLUSTER_HASH_SLOTS // 3 + 1
        for number, node in enumerate(primaries):
            slots = range(number * share, min((number + 1) * share, REDIS_CLUSTER_HASH_SLOTS))
            _execute(node, "CLUSTER", "ADDSLOTS", *slots)
        wait_until(lambda: all(len(self._rows(node)) == len(self.nodes) for node in self.nodes))
        for primary, replica in zip(primaries, replicas, strict=True):
            self._replicate(replica, primary)
        self.wait_until_ok()
        wait_until(lambda: all(_follows(replica) for replica in replicas))
        wait_until(lambda: all(sum("slave" in row[2] for row in self._rows(node)) == 3 for node in self.nodes))

    def stop(self) -> None:
        """End every process."""
        for node in self.nodes:
            node.stop()

    def client(self) -> RedisCluster:
        """Return a new client of the whole Cluster."""
        node = next(node for node in self.nodes if node.runs)
        options = _tls(self._tls)
        return RedisCluster(host="127.0.0.1", port=node.port, protocol=2, socket_timeout=5, **options)

    def wait_until_ok(self) -> None:
        """Return once each running node says that the Cluster is ok."""
        wait_until(lambda: all(b"cluster_state:ok" in _raw(node, "CLUSTER", "INFO") for node in self._running()))

    def primary_of(self, key: str) -> RedisServer:
        """Return the node that serves the slot of a key, as most of the running nodes have it."""
        slot, votes = key_slot(key.encode()), []
        for node in self._running():
            for start, end, (_, port, *_), *_ in _execute(node, "CLUSTER", "SLOTS"):
                if start <= slot <= end:
                    votes.append(port)
        return self._at(max(set(votes), key=votes.count))

    def replica_of(self, primary: RedisServer) -> RedisServer:
        """Return a running replica of a primary, as soon as all know of it."""
        id_ = self.id_of(primary)
        wait_until(lambda: self._followers(id_))
        return self._followers(id_)[0]

    def _followers(self, id_: str) -> list[RedisServer]:
        rows = self._rows(self._running()[0])
        ports = {int(row[1].partition("@")[0].rpartition(":")[2]) for row in rows if row[3] == id_}
        return [node for node in self._running() if node.port in ports]

    def failover(self, primary: RedisServer) -> RedisServer:
        """Exchange a primary that lives with its replica; return the new one once all know of it."""
        return self._promote(primary)

    def take_over(self, primary: RedisServer) -> RedisServer:
        """Promote the replica of a primary that hangs or is dead at once, rather than after the time-out; return it."""
        return self._promote(primary, "TAKEOVER")

    def wait_for_another(self, primary: RedisServer, key: str) -> RedisServer:
        """Return the new primary of a key, once all running nodes but the old one have one, and are ok."""
        wait_until(lambda: self.primary_of(key) is not primary)
        return self.primary_of(key)

    def add_primary(self) -> RedisServer:
        """Add a primary without slots; return it once all know of it."""
        node = self._node()
        _execute(node, "CLUSTER", "SET-CONFIG-EPOCH", len(self.nodes) + 1)
        self._meet(node)
        wait_until(lambda: all(len(self._rows(one)) == len(self.nodes) for one in self._running()))
        wait_until(lambda: b"cluster_state:ok" in _raw(node, "CLUSTER", "INFO"))
        return node

    def remove(self, node: RedisServer) -> None:
        """Let all others forget a node without slots, and end it."""
        id_ = self.id_of(node)
        self.nodes.remove(node)
        for other in self._running():
            _execute(other, "CLUSTER", "FORGET", id_)
        node.stop()

    def begin_move(self, slot: int, source: RedisServer, target: RedisServer) -> None:
        """Declare a slot as migrating from source to target; no key moves yet."""
        _execute(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", self.id_of(source))
        _execute(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", self.id_of(target))

    def move_keys(self, source: RedisServer, target: RedisServer, *keys: str | bytes) -> None:
        """Move some keys of a slot that migrates."""
        if keys:
            _execute(source, "MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)

    def end_move(self, slot: int, source: RedisServer, target: RedisServer) -> None:
        """Move the keys that are left, and give the slot to the target."""
        while keys := _execute(source, "CLUSTER", "GETKEYSINSLOT", slot, 100):
            self.move_keys(source, target, *keys)
        id_ = self.id_of(target)
        for node in (target, source, *(node for node in self._running() if node not in (source, target))):
            with suppress(redis.ResponseError):  # a replica is told by its primary
                _execute(node, "CLUSTER", "SETSLOT", slot, "NODE", id_)

    def move(self, slot: int, source: RedisServer, target: RedisServer) -> None:
        """Move a slot, key by key, as redis-cli does."""
        self.begin_move(slot, source, target)
        self.end_move(slot, source, target)

    def id_of(self, node: RedisServer) -> str:
        """Return the name of a node within the Cluster."""
        for one in self._running():
            for row in self._rows(one):
                if f":{node.port}@" in row[1]:
                    return row[0]
        raise LookupError(node.port)

    def _promote(self, primary: RedisServer, *how: str) -> RedisServer:
        replica = self.replica_of(primary)
        ask_at = 0.0

        def is_promoted() -> bool:
            nonlocal ask_at
            if info_of(replica).get("role") == "master":
                return True
            if ask_at < time.monotonic():
                ask_at = time.monotonic() + _MANUAL_FAILOVER_S
                with suppress(redis.ResponseError):
                    _execute(replica, "CLUSTER", "FAILOVER", *how)
            return False

        wait_until(is_promoted)
        wait_until(lambda: all(self._has_slots(node, replica) for node in self._running()))
        self.wait_until_ok()
        return replica

    def _has_slots(self, node: RedisServer, primary: RedisServer) -> bool:
        return any(f":{primary.port}@" in row[1] and len(row) > 8 for row in self._rows(node))

    def _node(self) -> RedisServer:
        port = free_port()
        while port > _LAST_BUS:
            port = free_port()
        node = RedisServer(
            self._binary, _made(self._folder / f"node-{port}"), "--cluster-enabled", "yes",
            "--cluster-node-timeout", str(_NODE_TIMEOUT_MS), *_REPLICATION, *self._options, port=port, tls=self._tls,
        )  # fmt: skip
        node.start()
        self.nodes.append(node)
        return node

    def _meet(self, node: RedisServer) -> None:
        for other in self._running():
            if other is not node:
                _execute(node, "CLUSTER", "MEET", "127.0.0.1", other.port)

    def _replicate(self, replica: RedisServer, primary: RedisServer) -> None:
        id_ = self.id_of(primary)
        wait_until(lambda: any(row[0] == id_ for row in self._rows(replica)))
        _execute(replica, "CLUSTER", "REPLICATE", id_)

    def _rows(self, node: RedisServer) -> list[list[str]]:
        """Return what a node says of each node that it knows, once they have shaken hands."""
        rows = [line.split(" ") for line in _raw(node, "CLUSTER", "NODES").decode().splitlines()]
        return [row for row in rows if "handshake" not in row[2] and "noaddr" not in row[2]]

    def _running(self) -> list[RedisServer]:
        return [node for node in self.nodes if node.runs]

    def _at(self, port: int) -> RedisServer:
        return next(node for node in self.nodes if node.port == port)


@contextmanager
def hung(server: RedisServer) -> Iterator[None]:
    """Let a server hang until the block ends: it takes connections, and answers nothing."""
    server.signal(SIGSTOP)
    try:
        yield
    finally:
        server.resume()


def wait_for_replicas(server: RedisServer, count: int) -> None:
    """Return once so many replicas have all that was written so far."""
    with _client(server) as client:
        # The Cluster's shops are not disturbed by it: a wait is for what its own connection has published.
        client.publish("tests", "a mark")
        client.wait(count, 0)


def info_of(server: RedisServer) -> dict[str, Any]:
    """Return what a server says of itself; nothing where it does not answer, or hangs up: a Sentinel may tell it to."""
    with suppress(redis.RedisError):
        info: dict[str, Any] = server.client().info()
        return info
    return {}


def _follows(replica: RedisServer) -> bool:
    return bool(info_of(replica).get("master_link_status") == "up")


def _execute(server: RedisServer, *command: Any) -> Any:  # noqa: ANN401  # as redis-py has it
    return _client(server).execute_command(*command)


def _raw(server: RedisServer, *command: str) -> bytes:
    with _client(server) as client:
        client.response_callbacks.clear()
        reply: bytes = client.execute_command(*command)
        return reply


def _client(server: RedisServer) -> Any:  # noqa: ANN401  # redis-py leaves half of its commands untyped
    retry = Retry(NoBackoff(), 0)
    options = {**server.login, **_tls(server.tls)}
    return redis.Redis(host="127.0.0.1", port=server.port, protocol=2, retry=retry, socket_timeout=5, **options)


def _tls(authority: Path | None) -> dict[str, Any]:
    return {} if authority is None else {"ssl": True, "ssl_ca_certs": str(authority)}


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
