"""Connections to a Redis Cluster: each finds the primary of its slot when it connects, and leaves one that is not."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from redis import ConnectionPool, Redis
from redis.connection import Connection, SSLConnection
from redis.exceptions import AskError, ClusterDownError, ReadOnlyError, RedisError
from redis.exceptions import ConnectionError as NoConnection

from expirer.config.address import HostPort, format_address
from expirer.connection import pipeline
from expirer.connection.errors import UNSERVED, Named

_PATIENCE = {"socket_connect_timeout": 1.0, "socket_timeout": 1.0}
"""Seconds for one node to connect, and to answer: the next may know as well."""
_QUESTION_S = 5.0
"""After it no other node is asked; the next question begins with those that were left out."""
LONGEST_S = 2 * (_QUESTION_S + 2)
"""How long an answer can take: a question of another thread, then one's own."""


class Cluster:
    """Knows the primary of each slot: asks the nodes that it was given, and those that it has learned of."""

    def __init__(self, start: Sequence[HostPort], options: Mapping[str, Any]) -> None:
        self._start = self._nodes = list(start)
        self._options = dict(options)
        self._kind = self._options.pop("connection_class", Connection)
        self._lock = threading.Lock()
        self._asked_at = -math.inf
        self._map: list[tuple[int, int, HostPort]] = []
        """First and last slot, and their primary."""
        self._problem = ""

    def client(self, slot: int) -> Redis:
        """Build a client of the primary of a slot."""
        kind = ClusterSSLConnection if issubclass(self._kind, SSLConnection) else ClusterConnection
        pool = ConnectionPool(kind, **self._options, where=lambda: self.primaries([slot])[0])
        return Redis.from_pool(pool)

    def primaries(self, slots: Sequence[int]) -> list[HostPort]:
        """Return where the primary of each slot is, as the first node says that answers.

        Raises:
            ConnectionError: none answers, or none serves one of the slots.

        """
        began_at = time.monotonic()
        with self._lock:
            if self._asked_at < began_at:  # otherwise another thread's answer, or failure, is new enough
                self._ask()
            if self._problem:
                raise NoConnection(self._problem)
            return [self._primary(slot) for slot in slots]

    def _primary(self, slot: int) -> HostPort:
        for first, last, primary in self._map:
            if first <= slot <= last:
                return primary
        raise NoConnection(f"{UNSERVED}{slot}")

    def _ask(self) -> None:
        asked_at, problems = time.monotonic(), []
        for node in self._nodes:
            self._nodes = [*(other for other in self._nodes if other != node), node]  # is not asked first again
            try:
                self._learn(node)
            except (RedisError, OSError) as error:
                problems.append(f"{format_address(node)}: {error}")
            except (AttributeError, LookupError, TypeError, ValueError):
                problems.append(f"{format_address(node)}: its answer to CLUSTER SLOTS makes no sense")
            else:
                self._asked_at, self._problem = asked_at, ""
                return
            if time.monotonic() > asked_at + _QUESTION_S:
                problems.append("no time was left to ask more of them")
                break
        self._asked_at, self._problem = time.monotonic(), "; ".join(problems)

    def _learn(self, node: HostPort) -> None:
        connection = self._kind(**{**self._options, **_PATIENCE, "host": node[0], "port": node[1]})
        try:
            connection.connect()
            reply = pipeline.ask(connection, ("CLUSTER", "SLOTS"))
        finally:
            connection.disconnect()
        if not reply:
            raise NoConnection("it knows of no slot")
        ranges = [(int(first), int(last), [_address(row, node[0]) for row in rows]) for first, last, *rows in reply]
        self._map = [(first, last, addresses[0]) for first, last, addresses in ranges]
        learned = dict.fromkeys(address for *_, addresses in ranges for address in addresses)
        kept = (known for known in self._nodes if known in learned or known in self._start)
        self._nodes = list(dict.fromkeys((*kept, *learned)))  # nodes come and go for months


def _address(row: pipeline.Reply, asked: str) -> HostPort:
    host, port, *_ = row
    if host == b"?":  # it is announced by a name that it does not have; its address is among its other names
        host = dict(zip(*[iter(row[3])] * 2, strict=True)).get(b"ip")
    return host.decode() if host else asked, int(port)  # a node without a name has the one that it was asked by


class ClusterConnection(Named):
    """A connection that asks where to go each time it connects; `where` raises RedisError if nobody knows."""

    def __init__(self, *, where: Callable[[], HostPort], **options: pipeline.Reply) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]
        self._where = where

    def _connect(self) -> pipeline.Reply:
        self.host, self.port = self._where()
        return super()._connect()  # type: ignore[no-untyped-call]

    def read_response(self, *arguments: pipeline.Reply, **options: pipeline.Reply) -> pipeline.Reply:
        """Read a reply; after one that says that this is not the primary the next command looks for it again."""
        try:
            return super().read_response(*arguments, **options)
        except (AskError, ClusterDownError, ReadOnlyError):  # a MovedError is an AskError
            self.disconnect()  # type: ignore[no-untyped-call]
            raise


class ClusterSSLConnection(ClusterConnection, SSLConnection):
    """The same with TLS; the certificate must name the host that the Cluster names."""
