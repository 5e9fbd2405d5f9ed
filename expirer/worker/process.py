"""The process of `expirer run`: a crew on a thread of its own, and the signals that stop it."""

from __future__ import annotations

import os
import signal
import threading
import time
from queue import SimpleQueue
from types import FrameType

from expirer.config.settings import Settings
from expirer.connection.connect import connect_all
from expirer.web.beside import WebProcess
from expirer.worker.crew import Crew
from expirer.worker.logs import build_logger

_STOP_DEADLINE_S, _FAREWELL_S = 0.75, 0.1
"""Together less than the second in which a stop is promised."""


def run(settings: Settings) -> int:
    """Work until SIGTERM or SIGINT, then end within a second; return the exit code."""
    log = build_logger(settings)
    web = WebProcess(settings, log) if settings.http_port else None
    crew = Crew(connect_all(settings), settings, log, web.tally if web else None)
    code = 1
    news: SimpleQueue[None] = SimpleQueue()

    def work() -> None:
        nonlocal code
        try:
            crew.run()
            code = 0
        finally:
            news.put(None)

    def stop(_number: int, _frame: FrameType | None) -> None:
        crew.stop()
        news.put(None)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    if web:
        web.start(crew.id)
    # A thread of its own: a stop need not wait for a server that hangs, nor for a reader of the log.
    thread = threading.Thread(target=work, name="expirer-worker", daemon=True)
    thread.start()
    news.get()
    deadline = time.monotonic() + _STOP_DEADLINE_S
    thread.join(_STOP_DEADLINE_S)
    if not thread.is_alive():
        if web:
            web.stop(deadline - time.monotonic())
        return code
    error = "no answer in time; the batch under way is whole, or not done"
    farewell = threading.Thread(target=lambda: log.warning("job_stopped", worker=crew.id, error=error), daemon=True)
    farewell.start()
    farewell.join(_FAREWELL_S)
    os._exit(0)  # an ordinary exit would wait for the lock of a log that nobody reads


def run_once(settings: Settings) -> int:
    """Tick once; return the exit code: 1 where anything stood in the way."""
    done = Crew(connect_all(settings), settings, build_logger(settings)).run_once()
    return 1 if done.errors or done.conflicts else 0
