"""A clock that the tests move, in place of waiting."""

from __future__ import annotations

from collections.abc import Callable
from queue import Empty

import pytest

from expirer.worker.worker import Worker


class FakeTime:
    """A clock and a signal queue in one: waiting for a signal moves the clock, and the last wait stops the worker."""

    def __init__(self, worker: Worker, monkeypatch: pytest.MonkeyPatch, *, waits: int) -> None:
        self.now = 1000.0
        self.waits: list[float] = []
        self.messages: list[tuple[Callable[[int, bytes], None], bytes, float]] = []
        """What the listener would call, with a message, after so many seconds; each ends a wait."""
        self._worker = worker
        self._most = waits
        monkeypatch.setattr("expirer.worker.worker.time.monotonic", lambda: self.now)
        monkeypatch.setattr(worker, "_signals", self)
        monkeypatch.setattr("expirer.worker.worker.WakeListener.start", lambda _: None)

    def get(self, timeout: float) -> int:
        """Wait, until the next message or for the whole time."""
        self.waits.append(round(timeout, 6))
        if len(self.waits) == self._most:
            self._worker.stop()
        if not self.messages:
            self.now += timeout
            raise Empty
        tell, message, after = self.messages.pop(0)
        self.now += after
        tell(0, message)
        return 0

    def put(self, _signal: int) -> None:
        """Take a signal: the next wait ends anyway."""
