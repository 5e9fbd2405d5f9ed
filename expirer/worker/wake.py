"""Listens on the channels, so that a sleeping worker learns of a sooner reservation and of other workers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from redis.exceptions import RedisError
from structlog.typing import FilteringBoundLogger

from expirer.connection.connect import is_replaced
from expirer.connection.errors import describe
from expirer.connection.pipeline import peer_of
from expirer.worker.worker import Worker

_CHECK_S = 2.0
"""How often it asks itself whether another server is the primary by now."""
_SILENCE_S = 10.0
"""Then the server is asked whether it is still there: one that vanished closes no connection."""
_FIRST_RETRY_S, _LONGEST_RETRY_S = 0.05, 5.0
_LASTING = 2
"""Failures in a row that are logged: a single one may be a restart of Redis."""


class WakeListener:
    """A thread that hands each message to the worker of its shard; a Cluster passes all of them to any node.

    A failure is answered with another attempt: polling is the truth, a message only moves the sleep. While it cannot
    listen, `trouble` says why; a failure that lasts is logged once.
    """

    def __init__(self, workers: Sequence[Worker], log: FilteringBoundLogger) -> None:
        self.trouble = "not subscribed yet"
        self._workers = workers
        self._log = log
        self._handlers: dict[bytes, Callable[[bytes], None]] = {}
        for worker in workers:
            self._handlers[worker.shard.keys.ticks.encode()] = worker.on_tick
            self._handlers[worker.shard.keys.wake.encode()] = worker.on_wake
        self._wakes = {worker.shard.keys.wake.encode() for worker in workers}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="expirer-wake", daemon=True)

    def start(self) -> None:
        """Start listening."""
        self._thread.start()

    def stop(self) -> None:
        """Stop listening; the daemon thread ends with its connection or with the process."""
        self._stopped.set()

    def _run(self) -> None:
        failures = 0
        while not self._stopped.is_set():
            worker = self._workers[failures % len(self._workers)]
            try:
                self._listen(worker)
            except Exception as error:  # noqa: BLE001  # the workers go on without messages
                failures = failures + 1 if self.trouble else 1
                self.trouble = describe(error, worker.shard.settings)
            if failures == _LASTING:
                advice = "units may come back an interval late"
                self._log.warning("wake_unavailable", message=self.trouble, advice=advice)
            self._stopped.wait(min(_LONGEST_RETRY_S, _FIRST_RETRY_S * 2.0 ** min(failures, 10)))

    def _listen(self, worker: Worker) -> None:
        """Listen beside a worker until its connection fails, or leads elsewhere."""
        with worker.shard.client.pubsub() as subscription:  # type: ignore[no-untyped-call]
            pubsub: Any = subscription
            pubsub.subscribe(*self._handlers)
            peer = peer_of(pubsub.connection)
            heard_at, is_asked = time.monotonic(), False
            while not self._stopped.is_set():
                message = pubsub.get_message(timeout=_CHECK_S)
                if message is not None:
                    heard_at, is_asked = time.monotonic(), False
                    self._handle(message)
                elif worker.peer not in (None, peer) or is_replaced(pubsub.connection):
                    raise RedisError("another server is the primary by now")
                elif time.monotonic() - heard_at > _SILENCE_S:
                    if is_asked:
                        raise RedisError("no answer")
                    pubsub.subscribe(next(iter(self._handlers)))  # needs no other right; it is no news
                    heard_at, is_asked = time.monotonic(), True

    def _handle(self, message: dict[str, Any]) -> None:
        channel = message["channel"]
        if message["type"] == "message":
            self._handlers[channel](message["data"])
        elif channel in self._wakes:
            if self.trouble:
                self.trouble = ""
                self._log.debug("wake_available")
            self._handlers[channel](b"")  # makes up for what was published while nobody listened
