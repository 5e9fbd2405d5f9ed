"""Topologies of real servers: a primary with replicas and Sentinels, and what every topology is made of.

It stands on loopback in a folder of its own, starts in a few seconds, is ended by pid, and says in `settings` how
the program connects to it. A test that breaks a topology has one of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from signal import SIGSTOP
from typing import Any, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.network import OUTSIDE, Network
from tests.program import wait_until
from tests.servers import RedisServer, free_port

SERVICE = "shop"
REPLICATION = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")
_ELECTION_S = 60.0
"""Sentinels that do not agree vote again after some seconds."""
_DOWN_AFTER_MS = 2000
"""Less would take a busy machine for a dead server."""


class Topology(ABC):
    """Servers that start with a block, and end with it whatever happens.

    Args:
        options: of every server, as on its command line.
        tls: the authority's certificate, where all speak TLS.
        network: the lines between them, where they may be parted.

    """

    def __init__(
        self, binary: Path, folder: Path, *options: str, tls: Path | None = None, network: Network | None = None
    ) -> None:
        self._binary = binary
        self._folder = folder
        self._options = options
        self._tls = tls
        self._network = network
        self.settings: dict[str, Any] = {}

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @abstractmethod
    def start(self) -> None:
        """Start everything; return once all know of each other."""

    @abstractmethod
    def is_well(self) -> bool:
        """Say whether everybody knows the same primaries, and has all that they have."""

    @abstractmethod
    def _processes(self) -> Iterable[RedisServer]: ...

    def stop(self) -> None:
        """End every process."""
        for server in self._processes():
            server.stop()


class Replicated(Topology):
    """A primary with two replicas and three Sentinels.

    Args:
        sentinel_lines: of every Sentinel, as in its configuration file.
        login: what a client of the tests needs to connect to a server, such as a password.
        sentinel_login: the same for a Sentinel.

    """

    def __init__(
        self,
        binary: Path,
        folder: Path,
        *options: str,
        sentinel_lines: tuple[str, ...] = (),
        login: dict[str, Any] | None = None,
        sentinel_login: dict[str, Any] | None = None,
        **of_any_topology: Any,  # noqa: ANN401  # see Topology
    ) -> None:
        super().__init__(binary, folder, *options, **of_any_topology)
        self._sentinel_lines = sentinel_lines
        self._sentinel_login = sentinel_login
        self.servers = [self._server(number, login) for number in range(3)]
        self.sentinels: list[RedisServer] = []

    def start(self) -> None:
        """Start everything; return once the replicas follow and the Sentinels know of all."""
        first, *others = self.servers
        for server in self.servers:
            server.start()
        for server in others:
            server.client().replicaof("127.0.0.1", first.port)
        wait_until(lambda: all(follows(server) for server in others))
        for number in range(3):
            self._start_sentinel(number)
        self.settings = {
            "redis_sentinels": ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels),
            "redis_sentinel_service": SERVICE,
        }
        if self._tls is not None:
            self.settings["redis_url"] = f"rediss:///0?ssl_ca_certs={self._tls}"
        wait_until(lambda: all(self._known(sentinel) == (2, 2) for sentinel in self.sentinels))

    def is_well(self) -> bool:
        """Say whether all Sentinels name the one primary, call nobody down, and the others follow it."""
        roles = [info.get("role") for info in map(info_of, self.servers)]
        return (
            sorted(map(str, roles)) == ["master", "slave", "slave"]
            and all(follows(server) for server, role in zip(self.servers, roles, strict=True) if role == "slave")
            and all(self._sees_all(sentinel, self.servers[roles.index("master")]) for sentinel in self.sentinels)
        )

    def _processes(self) -> Iterable[RedisServer]:
        return (*self.sentinels, *self.servers)

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

    def wait_for_another(self, old: RedisServer, sentinels: Sequence[RedisServer] = ()) -> RedisServer:
        """Return the new primary, once all Sentinels, or those that are meant, name one that is not the old."""
        sentinels = sentinels or self.sentinels
        wait_until(lambda: all(self._named(sentinel) != old.port for sentinel in sentinels), _ELECTION_S)
        port = self._named(sentinels[0])
        new = next(server for server in self.servers if server.port == port)
        wait_until(lambda: info_of(new).get("role") == "master")
        return new

    def _asks_for_failover(self) -> bool:
        with suppress(redis.ResponseError):  # NOGOODSLAVE, INPROG: a moment later
            return bool(execute(self.sentinels[0], "SENTINEL", "FAILOVER", SERVICE))
        return False

    def _named(self, sentinel: RedisServer) -> int:
        return int(execute(sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)[1])

    def _known(self, sentinel: RedisServer) -> tuple[int, int]:
        [row] = _rows(execute(sentinel, "SENTINEL", "MASTER", SERVICE))
        return int(row[b"num-slaves"]), int(row[b"num-other-sentinels"])

    def _sees_all(self, sentinel: RedisServer, primary: RedisServer) -> bool:
        [one] = _rows(execute(sentinel, "SENTINEL", "MASTER", SERVICE))
        others = [
            row[b"flags"]
            for kind in ("REPLICAS", "SENTINELS")
            for row in _rows(*execute(sentinel, "SENTINEL", kind, SERVICE))
        ]
        seen = (int(one[b"port"]), one[b"flags"], sorted(others))
        return seen == (primary.port, b"master", [b"sentinel"] * 2 + [b"slave"] * 2)

    def _server(self, number: int, login: dict[str, Any] | None) -> RedisServer:
        port = free_port()
        placed: tuple[str, ...] = ()
        if self._network is not None:
            place = self._network.place(port)
            port = place.port
            placed = (*place.options, "--replica-announce-ip", OUTSIDE, "--replica-announce-port", str(port))
        return RedisServer(
            self._binary, made(self._folder / f"server-{number}"), *REPLICATION, *self._options, *placed,
            port=port, login=login, tls=self._tls,
        )  # fmt: skip

    def _start_sentinel(self, number: int) -> None:
        folder = made(self._folder / f"sentinel-{number}")
        port = free_port()
        placed: tuple[str, ...] = ()
        announced: tuple[str, ...] = ()
        if self._network is not None:
            place = self._network.place(port)
            port, placed = place.port, place.options
            announced = (f"sentinel announce-ip {OUTSIDE}", f"sentinel announce-port {port}")
        configuration = folder / "sentinel.conf"
        lines = (
            f"sentinel monitor {SERVICE} 127.0.0.1 {self.servers[0].port} 2",
            f"sentinel down-after-milliseconds {SERVICE} {_DOWN_AFTER_MS}",
            f"sentinel failover-timeout {SERVICE} 3000",
            *announced,
            *self._sentinel_lines,
        )
        configuration.write_text("".join(f"{line}\n" for line in lines))
        sentinel = RedisServer(
            self._binary,
            folder,
            *(self._options if self._tls else ()),
            *placed,
            port=port,
            sentinel=configuration,
            login=self._sentinel_login,
            tls=self._tls,
        )
        self.sentinels.append(sentinel)
        sentinel.start()


def _rows(*replies: list[bytes]) -> list[dict[bytes, bytes]]:
    return [dict(zip(reply[::2], reply[1::2], strict=True)) for reply in replies]


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
        wait_until(lambda: client.wait(count, 100) >= count)


def info_of(server: RedisServer) -> dict[str, Any]:
    """Return what a server says of itself; nothing where it does not answer, or hangs up: a Sentinel may tell it to."""
    with suppress(redis.RedisError):
        info: dict[str, Any] = server.client().info()
        return info
    return {}


def follows(replica: RedisServer) -> bool:
    """Say whether a replica has what its primary had when it began to follow it."""
    return bool(info_of(replica).get("master_link_status") == "up")


def execute(server: RedisServer, *command: Any) -> Any:  # noqa: ANN401  # as redis-py has it
    """Return what a server answers to a command, as redis-py reads it."""
    return _client(server).execute_command(*command)


def raw(server: RedisServer, *command: str) -> bytes:
    """Return what a server answers to a command, as it stands."""
    with _client(server) as client:
        client.response_callbacks.clear()
        reply: bytes = client.execute_command(*command)
        return reply


def _client(server: RedisServer) -> Any:  # noqa: ANN401  # redis-py leaves half of its commands untyped
    retry = Retry(NoBackoff(), 0)
    options = {**server.login, **tls_options(server.tls)}
    return redis.Redis(host="127.0.0.1", port=server.port, protocol=2, retry=retry, socket_timeout=5, **options)


def tls_options(authority: Path | None) -> dict[str, Any]:
    """Return what a client needs to trust an authority; nothing where there is none."""
    return {} if authority is None else {"ssl": True, "ssl_ca_certs": str(authority)}


def made(folder: Path) -> Path:
    """Return a folder, which exists then."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder
