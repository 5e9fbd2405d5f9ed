"""The process that serves HTTP, `python -m expirer.web`: the sidecar starts it, and briefs it on its input."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
from contextlib import suppress

from expirer.web.brief import Brief
from expirer.web.server import serve

_NICE = 10
"""Where there is one core for both, the worker has it first."""


def _leave_with_parent(traces: Traces) -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    traces.finish()
    os._exit(0)


def main() -> None:
    """Serve until the sidecar, the other end of the input, has gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the worker may need its last second; this ends with it
    with suppress(OSError):  # a sandbox may forbid it
        os.nice(_NICE)
    brief: Brief = pickle.load(sys.stdin.buffer)  # noqa: S301  # written by the process that started this one
    traces = Traces(brief)
    traces.start()
    threading.Thread(target=_leave_with_parent, args=(traces,), daemon=True).start()
    serve(brief)


if __name__ == "__main__":
    main()
