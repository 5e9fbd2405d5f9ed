"""Values that are asked for more often than they may be made."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Refreshed(Generic[Value]):
    """A value that is made anew when it is asked for and older than a second, by one thread at a time.

    Who asks meanwhile gets the last one. So a thousand requests a second cost Redis what one does, and where
    Redis hangs they wait in no queue: a probe of the loop is answered as ever.

    Args:
        make: makes the value; it must raise nothing.

    """

    def __init__(self, make: Callable[[], Value], lasts_s: float = 1.0) -> None:
        self._make = make
        self._lasts_s = lasts_s
        self._lock = threading.Lock()
        self._last: tuple[Value, float] | None = None

    def get(self) -> Value:
        """Return the value; the first one is waited for."""
        last = self._last
        if last is not None and (time.monotonic() - last[1] < self._lasts_s or not self._lock.acquire(blocking=False)):
            return last[0]
        if last is None:
            self._lock.acquire()
        try:
            if self._last is None or self._last is last:
                self._last = self._make(), time.monotonic()
            return self._last[0]
        finally:
            self._lock.release()
