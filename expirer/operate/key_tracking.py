"""Names the keys that anybody writes, by the server's own tracking, so that a scan misses none."""

from __future__ import annotations

import threading
from contextlib import suppress

from redis import Redis
from redis.exceptions import RedisError

from expirer.connection import pipeline

_CHANNEL = "__redis__:invalidate"
_INTERVAL_S = 0.02
"""Redis cuts a subscriber that leaves 8 MB unread for a minute, or 32 MB at once, unless configured otherwise."""
_MOST_KEYS = 250_000
"""Different keys that are kept until `written` is called, some 30 MB."""


class TrackingLostError(RedisError):
    """From now on nobody knows what was written."""


class KeyTracking:
    """Names the keys that were written since the last call (CLIENT TRACKING in broadcasting mode).

    One connection receives its own tracking, so neither can be lost without the other. A thread reads it all the time.
    It costs the server a message for each key that is written under the prefix.
    """

    def __init__(self, client: Redis, prefix: bytes) -> None:
        """Begin to track; raise RedisError if the host has no tracking, or forbids it."""
        self._pool = client.connection_pool
        self._connection: pipeline.Connection = self._pool.get_connection()
        self._peer = pipeline.peer_of(self._connection)
        self._keys: set[bytes] = set()
        self._error = ""
        self._lock = threading.Lock()
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._read_until_closed, daemon=True)
        try:
            number = pipeline.ask(self._connection, ("CLIENT", "ID"))
            tracking = ("CLIENT", "TRACKING", "ON", "REDIRECT", number, "BCAST", "PREFIX", prefix)
            pipeline.ask(self._connection, tracking, ("SUBSCRIBE", _CHANNEL))
        except BaseException:
            self.close()
            raise
        self._thread.start()

    def covers(self, connection: pipeline.Connection) -> bool:
        """Say whether the keys written on the server of a connection are tracked."""
        return pipeline.peer_of(connection) == self._peer

    @property
    def has_many(self) -> bool:
        """Whether so many keys have been written that they should be taken soon."""
        return len(self._keys) > _MOST_KEYS // 100

    def written(self) -> set[bytes]:
        """Return the keys written since the last call: all whose writing was over when this one was made.

        Raises:
            TrackingLostError: the connection was lost, and with it the knowledge of what was written.

        """
        with self._lock:
            self._read()
            keys, self._keys = self._keys, set()
        if self._error:
            raise TrackingLostError(self._error)
        return keys

    def close(self) -> None:
        """Stop tracking."""
        self._is_closed.set()
        if self._thread.is_alive():
            self._thread.join()
        with suppress(RedisError, OSError):
            self._connection.disconnect()
        self._pool.release(self._connection)

    def _read_until_closed(self) -> None:
        while not self._error and not self._is_closed.wait(_INTERVAL_S):
            with self._lock:
                self._read()

    def _read(self) -> None:
        """Take all messages from the connection; an error is kept, for the connection is of no more use."""
        if self._error:
            return
        try:
            pipeline.write(self._connection, ("PING",))
            while (message := pipeline.read(self._connection))[0] != b"pong":
                if message[2] is None:
                    raise TrackingLostError("a database of this server was emptied meanwhile")
                self._keys.update(message[2])
            if len(self._keys) > _MOST_KEYS:
                raise TrackingLostError(f"more than {_MOST_KEYS:,} keys were written while nobody asked for them")
        except (RedisError, OSError) as error:
            self._error = str(error) if isinstance(error, TrackingLostError) else f"the connection was lost: {error}"
            self._keys.clear()
