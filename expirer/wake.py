"""Listens on the wake channels, so that a sleeping worker hears of a sooner reservation."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from redis import Redis

_RECONNECT_S = 5.0
_LISTEN_S = 60.0


class WakeListener:
    """A thread that calls `wake(n)` for each message on the n-th channel, and once after each subscription.

    The calls after a subscription make up for what was published while nobody listened. A failure is
    answered with another attempt, never with an error: polling is the truth, a message only shortens the
    sleep.
    """

    def __init__(self, client: Redis, channels: Sequence[str], wake: Callable[[int], None]) -> None:
        self._client = client
        self._numbers = {channel.encode(): number for number, channel in enumerate(channels)}
        self._wake = wake
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
            pubsub.subscribe(*self._numbers)
            while not self._stopped.is_set():
                # With a time-out of its own: before redis-py 8.0.1 listen() ends with the socket's.
                message = pubsub.get_message(timeout=_LISTEN_S)
                if message is not None:
                    self._wake(self._numbers[message["channel"]])
