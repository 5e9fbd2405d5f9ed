"""Tells which reservations were written, by the server's own tracking, so that an audit misses none."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from expirer.connection import pipeline

_CHANNEL = "__redis__:invalidate"


class KeyTracking:
    """Names the keys that anybody has written since the last look (CLIENT TRACKING in broadcasting mode).

    It costs the server a message for each written key of the prefixes while it is open.
    """

    def __init__(self, client: Redis, prefixes: Sequence[bytes]) -> None:
        """Begin to listen; raise RedisError where the host has no tracking, or forbids it."""
        self._pool = client.connection_pool
        self._connections: list[Any] = []
        try:
            listener, tracker = (self._connect() for _ in range(2))
            number = pipeline.ask(listener, ("CLIENT", "ID"))
            pipeline.ask(listener, ("SUBSCRIBE", _CHANNEL))
            wanted = (word for prefix in prefixes for word in ("PREFIX", prefix))
            pipeline.ask(tracker, ("CLIENT", "TRACKING", "ON", "REDIRECT", number, "BCAST", *wanted))
        except BaseException:
            self.close()
            raise
        self._listener = listener

    def hears(self, connection: Any) -> bool:  # noqa: ANN401  # redis-py's kinds of connection share no type
        """Say whether what is written on the server of a connection is heard."""
        return _server(connection) == _server(self._listener)

    def written(self) -> set[bytes]:
        """Return the keys written since the last call: all whose writing was over when this one was made.

        Raises:
            RedisError: the connection was lost, and with it the knowledge of what was written.

        """
        pipeline.write(self._listener, ("PING",))
        keys: set[bytes] = set()
        while (message := pipeline.read(self._listener))[0] != b"pong":
            if message[2] is None:
                raise RedisError("the database was emptied meanwhile")
            keys.update(message[2])
        return keys

    def close(self) -> None:
        """Stop listening."""
        for connection in self._connections:
            with suppress(RedisError, OSError):
                connection.disconnect()
            self._pool.release(connection)
        self._connections.clear()

    def _connect(self) -> Any:  # noqa: ANN401  # redis-py's kinds of connection share no type
        connection = self._pool.get_connection()
        self._connections.append(connection)
        return connection


def _server(connection: Any) -> tuple[object, object]:  # noqa: ANN401  # see KeyTracking.hears
    return getattr(connection, "host", None), getattr(connection, "port", None)  # neither: the only socket there is
