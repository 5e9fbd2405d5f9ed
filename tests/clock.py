"""A clock that the tests move, in place of waiting."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from expirer.worker.worker import Worker


class FakeTime:
    """A clock and the worker's alarm in one: waiting moves the clock, and the last wait stops the worker."""

    def __init__(self, worker: Worker, monkeypatch: pytest.MonkeyPatch, *, waits: int) -> None:
        self.now = 1000.0
        self.waits: list[float] = []
        self.messages: list[tuple[Callable[[bytes], None], bytes, float]] = []
        """What the listener would call, with a message, after so many seconds of the wait."""
        self._worker = worker
        self._most = waits
        monkeypatch.setattr("expirer.worker.worker.time.monotonic", lambda: self.now)
        monkeypatch.setattr(worker.alarm, "wait", self.wait)

    def wait(self, _at_most_s: float) -> bool:
        """Wait until the alarm's moment, with the messages that come before it."""
        alarm = self._worker.alarm
        while not alarm.is_stopped:
            timeout = max(alarm.moment - self.now, 0)
            self.waits.append(round(timeout, 6))
            if len(self.waits) == self._most:
                self._worker.stop()
            if not self.messages:
                self.now += timeout
                return True
            handle, message, after = self.messages.pop(0)
            self.now += after
            handle(message)
        return False
