"""The moment at which a worker looks next, which other threads may move."""

from __future__ import annotations

import math
import threading
import time


class Alarm:
    """One thread waits; any thread may move the moment (monotonic seconds) within the bounds of the last look.

    What is heard while a look is under way is kept until its end: it may be newer than what the look has seen.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._at = -math.inf
        self._earliest = -math.inf
        self._latest = math.inf
        self._is_stopped = False

    def begin(self) -> None:
        """Begin a look: it sees what was heard before."""
        with self._changed:
            self._at, self._earliest, self._latest = math.inf, -math.inf, math.inf

    def end(self, at: float, earliest: float, latest: float) -> None:
        """End a look: the next is at `at`, or at what was heard meanwhile; no message moves it out of the bounds."""
        with self._changed:
            self._at = min(at, self._at)
            self._earliest, self._latest = earliest, latest

    def sooner(self, at: float) -> None:
        """Look at `at`, or before."""
        with self._changed:
            if at < self._at:
                self._at = at
                self._changed.notify()

    def later(self, at: float) -> None:
        """Look at `at`: what the alarm waited for has been done by another worker."""
        with self._changed:
            self._at = at
            self._changed.notify()

    def stop(self) -> None:
        """Wake for good."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify()

    @property
    def is_stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._is_stopped

    @property
    def moment(self) -> float:
        """When the next look is."""
        return max(self._earliest, min(self._at, self._latest))

    def wait(self, at_most_s: float) -> bool:
        """Sleep until the moment, until stopped, or for so many seconds; say whether the moment has come."""
        until = time.monotonic() + at_most_s
        with self._changed:
            while not self._is_stopped:
                now = time.monotonic()
                if now >= self.moment:
                    return True
                if now >= until:
                    return False
                self._changed.wait(min(self.moment, until) - now)
        return False
