"""Listens on the channels, so that a sleeping worker hears of a sooner reservation and of other workers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from redis import Redis

from expirer.contract.keys import ShardKeys

_RECONNECT_S = 5.0
_SILENCE_S = 10.0
"""Then the server is asked whether it still is there: one that vanished closes no connection."""


class WakeListener:
    """A thread that hands on what is published.

    It calls `wake(n, message)` for each message on the wake channel of the n-th shard, and once, with an empty
    message, after each subscription, to make up for what was published while nobody listened; and
    `hear(n, message)` for each message on its channel of ticks. A failure is answered with another attempt,
    never with an error: polling is the truth, a message only moves the sleep.
    """

    def __init__(
        self,
        client: Redis,
        shards: Sequence[ShardKeys],
        wake: Callable[[int, bytes], None],
        hear: Callable[[int, bytes], None],
    ) -> None:
        self._client = client
        self._wakes = {keys.wake.encode(): number for number, keys in enumerate(shards)}
        self._ticks = {keys.ticks.encode(): number for number, keys in enumerate(shards)}
        self._wake = wake
        self._hear = hear
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="expirer-wake", daemon=True)

    def start(self) -> None:
        """Start listening."""
        self._thread.start()

    def stop(self) -> None:
        """Stop listening; the daemon thread ends with its connection or with the process."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.is_set():
            with suppress(Exception):
                self._listen()
            self._stopped.wait(_RECONNECT_S)

    def _listen(self) -> None:
        with self._client.pubsub() as pubsub:  # type: ignore[no-untyped-call]
            pubsub.subscribe(*self._ticks, *self._wakes)
            is_asked = False
            while not self._stopped.is_set():
                pubsub.connection.connect()  # elsewhere, and subscribe there, if another is the primary by now
                # With a time-out of its own: before redis-py 8.0.1 listen() ends with the socket's.
                message = pubsub.get_message(timeout=_SILENCE_S)
                if message is None:
                    if is_asked:
                        return
                    pubsub.subscribe(next(iter(self._ticks)))  # needs no right but what it has; it is no news
                    is_asked = True
                    continue
                is_asked = False
                channel, data = message["channel"], message["data"] if message["type"] == "message" else b""
                if channel in self._wakes:
                    self._wake(self._wakes[channel], data)
                else:
                    self._hear(self._ticks[channel], data)
