"""Finds the primary anew for each connection: Sentinels name it, or the nodes of a Cluster do."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

from redis import ConnectionPool, Redis
from redis.connection import Connection, SSLConnection
from redis.exceptions import AskError, ClusterDownError, ReadOnlyError, RedisError
from redis.exceptions import ConnectionError as NoConnection
from redis.exceptions import TimeoutError as TooLate

from expirer import wire

Address = tuple[str, int]

_PATIENCE_S = 1.0
"""For one that is asked; the next may know as well."""
_TRUST_S = 5.0
"""Then a connection that stands looks again: a primary that is parted from the others does not know that it is none."""
_MOST_OF_ITS_TIME = 1 / 30
"""That looking may take where those who are asked hang."""


class LocatedConnection(Connection):
    """A connection that looks up its address each time it connects, and lets go of a server that is not the right one.

    Args:
        where: returns the address; raises RedisError where it cannot be known.
        looks_again: whether to do so, once in a while, though it is connected.

    """

    def __init__(
        self,
        *,
        where: Callable[[], Address],
        looks_again: bool,
        **options: Any,  # noqa: ANN401  # redis-py's
    ) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]
        self._where = where
        self._looks_again = looks_again
        self._looks_at = -math.inf

    def connect(self) -> None:
        """Connect; where that is done already, go to another server if it must be that by now."""
        if self._looks_again and self._sock is not None and time.monotonic() >= self._looks_at:
            with suppress(RedisError, OSError):  # nobody knows better
                if self._look() != (self.host, self.port):
                    self.disconnect()
        try:
            super().connect()  # type: ignore[no-untyped-call]
        except TooLate as error:
            self._name(error)
            raise

    def _connect(self) -> Any:  # noqa: ANN401  # a socket, as redis-py has it
        self.host, self.port = self._look()
        return super()._connect()  # type: ignore[no-untyped-call]

    def _look(self) -> Address:
        began_at = time.monotonic()
        try:
            return self._where()
        finally:
            ended_at = time.monotonic()
            self._looks_at = ended_at + max(_TRUST_S, (ended_at - began_at) / _MOST_OF_ITS_TIME)

    def read_response(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401  # as redis-py has it
        """Read a reply; after one that says that this is not the primary the next command looks for it again."""
        try:
            return super().read_response(*arguments, **options)
        except RedisError as error:
            self._name(error)
            if isinstance(error, AskError | ClusterDownError | ReadOnlyError):  # a MovedError is an AskError
                self.disconnect()  # type: ignore[no-untyped-call]
            raise

    def _name(self, error: RedisError) -> None:
        error.add_note(shown((self.host, self.port)))  # it may be any of several


class LocatedSSLConnection(LocatedConnection, SSLConnection):
    """The same with TLS; the certificate must name the host that was looked up."""


def located(where: Callable[[], Address], options: Mapping[str, Any], *, looks_again: bool = False) -> Redis:
    """Build a client whose connections look up where they go; `options` are those of a connection to any node."""
    kind = options.get("connection_class", Connection)
    pool = ConnectionPool(
        **{
            **options,
            "connection_class": LocatedSSLConnection if issubclass(kind, SSLConnection) else LocatedConnection,
            "where": where,
            "looks_again": looks_again,
        }
    )
    return Redis.from_pool(pool)


class _Directory:
    """Nodes that know where others are; each is asked in its turn, so that one that is wrong is not asked twice."""

    def __init__(self, addresses: Sequence[Address], options: Mapping[str, Any]) -> None:
        self._addresses = list(addresses)
        self._start = frozenset(addresses)
        self._options = {name: value for name, value in options.items() if name != "connection_class"}
        self._kind = options.get("connection_class", Connection)
        for name in ("socket_timeout", "socket_connect_timeout"):
            self._options[name] = min(_PATIENCE_S, options.get(name) or _PATIENCE_S)

    def ask(self, *command: str) -> Iterator[tuple[Address, Any]]:
        """Yield who answered, and what, one by one; where none does raise ConnectionError with what each said."""
        problems = []
        for _ in range(len(self._addresses)):
            address = self._addresses.pop(0)
            self._addresses.append(address)
            try:
                answer = self._ask(address, command)
            except (RedisError, OSError) as error:
                problems.append(f"{shown(address)}: {error}")
                continue
            if answer:
                yield address, answer
            else:
                problems.append(f"{shown(address)}: it does not know")
        if len(problems) == len(self._addresses):
            raise NoConnection("; ".join(problems))

    def learn(self, *addresses: Address) -> None:
        """Ask these as well, and of all others only those of the start: nodes come and go for months."""
        known = self._start.union(addresses)
        kept = (address for address in self._addresses if address in known)
        self._addresses = list(dict.fromkeys((*kept, *addresses)))

    def _ask(self, address: Address, command: tuple[str, ...]) -> Any:  # noqa: ANN401  # what Redis replies
        host, port = address
        connection = self._kind(**{**self._options, "host": host, "port": port})
        try:
            connection.connect()
            return wire.ask(connection, command)
        finally:
            connection.disconnect()


class Sentinels:
    """Knows the primary of one service."""

    def __init__(self, service: str, addresses: Sequence[Address], options: Mapping[str, Any]) -> None:
        self._service = service
        self._directory = _Directory(addresses, options)
        self._most = len(addresses) // 2 + 1
        self._lock = threading.Lock()

    def primary(self) -> Address:
        """Return where the primary is, as most of the Sentinels say, or of those that answer.

        Only most of them can promote another; one that is parted from the others names the old one still.

        Raises:
            ConnectionError: none answers, or none knows the service.

        """
        votes: Counter[Address] = Counter()
        with self._lock:
            try:
                for _, (host, port) in self._directory.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service):
                    address = host.decode(), int(port)
                    votes[address] += 1
                    if votes[address] >= self._most:
                        break
            except NoConnection as error:
                raise NoConnection(f"no Sentinel names a primary of {self._service!r}: {error}") from None
        return votes.most_common(1)[0][0]


class Cluster:
    """Knows the primary of each slot."""

    def __init__(self, addresses: Sequence[Address], options: Mapping[str, Any]) -> None:
        self._directory = _Directory(addresses, options)
        self._lock = threading.Lock()
        self._read_at = -math.inf
        self._trouble = ""
        """Why the last reading failed; empty: it did not."""
        self._ranges: list[tuple[int, int, Address]] = []

    def primary(self, slot: int) -> Address:
        """Return where the primary of a slot is, as the first node that answers says; see `primaries`."""
        return self.primaries([slot])[0]

    def primaries(self, slots: Sequence[int]) -> list[Address]:
        """Return the same for several slots, in their order.

        Raises:
            ConnectionError: none answers, or none serves one of the slots.

        """
        asked_at = time.monotonic()
        with self._lock:
            if self._read_at < asked_at:  # else another asked meanwhile, and this one waited for it
                self._read()
            if self._trouble:
                raise NoConnection(self._trouble)
            return [self._owner(slot) for slot in slots]

    def _owner(self, slot: int) -> Address:
        for first, last, address in self._ranges:
            if first <= slot <= last:
                return address
        raise NoConnection(f"no node of the Cluster serves slot {slot}")

    def _read(self) -> None:
        self._read_at, self._trouble = time.monotonic(), ""
        try:
            (asked, _), rows = next(self._directory.ask("CLUSTER", "SLOTS"))
        except NoConnection as error:
            self._trouble = str(error)
            return
        self._ranges = [(first, last, _node(nodes[0], asked)) for first, last, *nodes in rows]
        self._directory.learn(*(_node(node, asked) for _, _, *nodes in rows for node in nodes))


def _node(row: Sequence[Any], asked: str) -> Address:
    host, port = cast("tuple[bytes | None, int]", row[:2])
    return host.decode() if host else asked, port  # a node that knows no name of its own has the one it was asked by


def shown(address: Address) -> str:
    """Return an address as people write it."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
