"""Knows where the primary is: Sentinels name it, or the nodes of a Cluster do."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar, cast

from redis.connection import Connection
from redis.exceptions import ConnectionError as NoConnection
from redis.exceptions import RedisError

from expirer.connection import pipeline

HostPort = tuple[str, int]
Range = tuple[int, int, HostPort, tuple[HostPort, ...]]
"""First and last slot, who serves them, and all that have them."""
Known = TypeVar("Known")

_PATIENCE_S = 1.0
"""For one that is asked, to connect and again to answer; the next may know as well."""
_QUESTION_S = 5.0
"""After it nobody else is asked; the next question begins with those that were left out."""
LONGEST_S = 2 * (_QUESTION_S + 2 * _PATIENCE_S)
"""That an answer can take: a question of somebody else, then one's own."""
_TRUST_S = 5.0
"""Then the Sentinels are asked again: a primary that is parted from the others does not know that it is none."""


class _Directory(Generic[Known]):
    """Those that know; each is asked in its turn, so that one that is wrong is not asked twice.

    Args:
        read: makes of an answer what is known, given who gave it.
        options: of a connection to any of them.

    """

    def __init__(
        self,
        command: tuple[str, ...],
        read: Callable[[Any, HostPort], Known],
        addresses: Sequence[HostPort],
        options: Mapping[str, Any],
    ) -> None:
        self._command = command
        self._read = read
        self._addresses = list(addresses)
        self._start = frozenset(addresses)
        self._options = {name: value for name, value in options.items() if name != "connection_class"}
        self._kind = options.get("connection_class", Connection)
        for name in ("socket_timeout", "socket_connect_timeout"):
            self._options[name] = min(_PATIENCE_S, options.get(name) or _PATIENCE_S)

    def ask(self) -> Iterator[Known]:
        """Yield what each says, one by one; where none does raise ConnectionError with what stood in the way."""
        until = time.monotonic() + _QUESTION_S
        problems = []
        is_answered = False
        for _ in range(len(self._addresses)):
            address = self._addresses.pop(0)
            self._addresses.append(address)
            try:
                known = self._ask(address)
            except (RedisError, OSError) as error:
                problems.append(f"{shown(address)}: {error}")
            else:
                is_answered = True
                yield known
            if time.monotonic() > until:
                problems.append("no time was left to ask more of them")
                break
        if not is_answered:
            raise NoConnection("; ".join(problems))

    def learn(self, *addresses: HostPort) -> None:
        """Ask these as well, and of all others only those of the start: nodes come and go for months."""
        known = self._start.union(addresses)
        kept = (address for address in self._addresses if address in known)
        self._addresses = list(dict.fromkeys((*kept, *addresses)))

    def _ask(self, address: HostPort) -> Known:
        host, port = address
        connection = self._kind(**{**self._options, "host": host, "port": port})
        try:
            connection.connect()
            answer = pipeline.ask(connection, self._command)
        finally:
            connection.disconnect()
        if not answer:
            raise NoConnection("it does not know")
        try:
            return self._read(answer, address)
        except (AttributeError, LookupError, TypeError, ValueError):
            raise NoConnection(f"its answer to {' '.join(self._command[:2])} makes no sense") from None


class Sentinels:
    """Knows the primary of one service."""

    def __init__(self, service: str, addresses: Sequence[HostPort], options: Mapping[str, Any]) -> None:
        self._service = service
        self._directory = _Directory(
            ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service), _read_primary, addresses, options
        )
        self._most = len(addresses) // 2 + 1
        self._lock = threading.Lock()
        self._primary: HostPort | None = None
        self._looks_at = math.inf
        self._is_looking = threading.Lock()

    def primary(self) -> HostPort:
        """Return where the primary is, as most of the Sentinels say, or of those that answer.

        Only most of them can promote another; one that is parted from the others names the old one still.

        Raises:
            ConnectionError: none answers, or none knows the service.

        """
        votes: Counter[HostPort] = Counter()
        with self._lock:
            try:
                for address in self._directory.ask():
                    votes[address] += 1
                    if votes[address] >= self._most:
                        break
            except NoConnection as error:
                raise NoConnection(f"no Sentinel names a primary of {self._service!r}: {error}") from None
            finally:
                self._looks_at = time.monotonic() + _TRUST_S
        # Where as many say one as another, whoever is connected stays.
        self._primary = max(votes, key=lambda address: (votes[address], address == self._primary))
        return self._primary

    def last_primary(self) -> HostPort | None:
        """Return what `primary` returned last; where that is some time ago let a thread look again, and wait for none.

        So a Sentinel that hangs delays nobody who is connected.
        """
        if time.monotonic() >= self._looks_at and self._is_looking.acquire(blocking=False):
            threading.Thread(target=self._look, name="expirer-sentinels", daemon=True).start()
        return self._primary

    def _look(self) -> None:
        try:
            with suppress(NoConnection):  # nobody knows better
                self.primary()
        finally:
            self._is_looking.release()


class Cluster:
    """Knows the primary of each slot."""

    def __init__(self, addresses: Sequence[HostPort], options: Mapping[str, Any]) -> None:
        self._directory = _Directory(("CLUSTER", "SLOTS"), _read_ranges, addresses, options)
        self._lock = threading.Lock()
        self._asked_at = self._failed_at = -math.inf
        self._trouble = ""
        """Why the last question had no answer; empty: it had."""
        self._ranges: list[Range] = []

    def primary(self, slot: int) -> HostPort:
        """Return where the primary of a slot is, as the first node that answers says; see `primaries`."""
        return self.primaries([slot])[0]

    def primaries(self, slots: Sequence[int]) -> list[HostPort]:
        """Return the same for several slots, in their order.

        Raises:
            ConnectionError: none answers, or none serves one of the slots.

        """
        began_at = time.monotonic()
        with self._lock:
            # What another asked for meanwhile is new enough, and that it had no answer is.
            if self._asked_at < began_at and self._failed_at < began_at:
                self._ask()
            if self._trouble:
                raise NoConnection(self._trouble)
            return [self._owner(slot) for slot in slots]

    def _owner(self, slot: int) -> HostPort:
        for first, last, address, _ in self._ranges:
            if first <= slot <= last:
                return address
        raise NoConnection(f"no node of the Cluster serves slot {slot}")

    def _ask(self) -> None:
        self._asked_at, self._trouble = time.monotonic(), ""
        try:
            self._ranges = next(self._directory.ask())
        except NoConnection as error:
            self._trouble, self._failed_at = str(error), time.monotonic()
            return
        self._directory.learn(*(address for *_, nodes in self._ranges for address in nodes))


def _read_primary(answer: Any, _asked: HostPort) -> HostPort:  # noqa: ANN401  # what Redis replies
    host, port = answer
    return host.decode(), int(port)


def _read_ranges(answer: Any, asked: HostPort) -> list[Range]:  # noqa: ANN401  # what Redis replies
    ranges = []
    for first, last, *rows in answer:
        nodes = tuple(_read_node(row, asked[0]) for row in rows)
        ranges.append((int(first), int(last), nodes[0], nodes))
    return ranges


def _read_node(row: Sequence[Any], asked: str) -> HostPort:
    host, port = cast("tuple[bytes | None, int]", row[:2])
    if host == b"?":  # it is announced by a name that it does not have; the address stands among its other names
        names = dict(zip(*[iter(row[3])] * 2, strict=True))
        host = names.get(b"ip")
    return host.decode() if host else asked, int(port)  # one that knows no name of its own has the one it was asked by


def shown(address: HostPort) -> str:
    """Return an address as people write it."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
