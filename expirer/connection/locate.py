"""Connections that look for their server each time they connect: the primary is not always the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from redis import ConnectionPool, Redis
from redis.connection import Connection, SSLConnection
from redis.exceptions import AskError, ClusterDownError, ReadOnlyError, RedisError
from redis.exceptions import TimeoutError as TooLate

from expirer.connection.directory import HostPort, shown


class LocatedConnection(Connection):
    """A connection that looks up its address each time it connects, and lets go of a server that is not the right one.

    Args:
        where: returns the address; raises RedisError where it cannot be known.
        elsewhere: returns an address that is known to be the right one by now, at once; None: none is known.

    """

    def __init__(
        self,
        *,
        where: Callable[[], HostPort],
        elsewhere: Callable[[], HostPort | None] | None,
        **options: Any,  # noqa: ANN401  # redis-py's
    ) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]
        self._where = where
        self._elsewhere = elsewhere

    def connect(self) -> None:
        """Connect; where that is done already, go to another server if that is known to be the right one."""
        if self._sock is not None and self.is_given_up():
            self.disconnect()
        try:
            super().connect()  # type: ignore[no-untyped-call]
        except TooLate as error:
            self._name(error)
            raise

    def is_given_up(self) -> bool:
        """Say whether another server is known to be the right one by now, at once."""
        return self._elsewhere is not None and self._elsewhere() not in (None, (self.host, self.port))

    def _connect(self) -> Any:  # noqa: ANN401  # a socket, as redis-py has it
        self.host, self.port = self._where()
        return super()._connect()  # type: ignore[no-untyped-call]

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


def located(
    where: Callable[[], HostPort],
    options: Mapping[str, Any],
    elsewhere: Callable[[], HostPort | None] | None = None,
) -> Redis:
    """Build a client whose connections look up where they go; `options` are those of a connection to any node."""
    kind = options.get("connection_class", Connection)
    pool = ConnectionPool(
        **{
            **options,
            "connection_class": LocatedSSLConnection if issubclass(kind, SSLConnection) else LocatedConnection,
            "where": where,
            "elsewhere": elsewhere,
        }
    )
    return Redis.from_pool(pool)
