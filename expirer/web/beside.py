"""Keeps a process that serves HTTP beside the worker.

A process of its own, because whoever may connect may also flood: a thread would share the worker's interpreter
lock, its file descriptors and its fate. This one shares a few numbers in memory, and nothing waits for it.
"""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from typing import BinaryIO, cast

from structlog.typing import FilteringBoundLogger

from expirer.config.settings import ConfigurationError, Settings
from expirer.web.brief import Brief
from expirer.worker.tally import Tally

_NEEDED = ("jinja2", "prometheus_client", "waitress")
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_LAST_WORDS_S = 0.3
"""A collector that is well takes a few milliseconds; the second of a stop is not for one that is not."""
_BACKLOG = 1024


class WebProcess:
    """Serves HTTP until this process ends, and is started anew whenever it dies before.

    The listening socket is this process's own: it is bound before the worker starts, and who connects while
    there is nobody to answer waits for the next.

    Raises:
        ConfigurationError: the extra is not installed, or the address cannot be had.

    """

    def __init__(self, settings: Settings, log: FilteringBoundLogger) -> None:
        missing = [name for name in _NEEDED if find_spec(name) is None]
        if missing:
            raise ConfigurationError([f"EXPIRER_HTTP_PORT needs {missing[0]}: pip install 'expirer[http]'"])
        self._settings = settings
        self._log = log
        self._listener = _listen(settings.http_host, settings.http_port)
        self._memory = _zeros(Tally.size(settings.shards))
        self.tally = Tally(settings.shards, self._memory.fileno())
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, worker: str) -> None:
        """Serve on behalf of this worker from now on."""
        brief = Brief(self._settings, worker, os.getpid(), self._memory.fileno(), self._listener.fileno())
        threading.Thread(target=self._keep, args=(brief,), name="expirer-web", daemon=True).start()

    def stop(self, within_s: float) -> None:
        """Let the process go; where it exports traces, wait a moment, at most so long, for the last of them."""
        self.tally.stop()
        self._listener.close()
        self._memory.close()
        if (process := self._process) is None:
            return
        with suppress(OSError, subprocess.TimeoutExpired):
            _lifeline(process).close()
            if are_wanted(os.environ):
                process.wait(min(within_s, _LAST_WORDS_S))
        process.kill()

    def _keep(self, brief: Brief) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self.tally.is_stopping:
            began_at = time.monotonic()
            ended: dict[str, object] = {}
            try:
                ended["exit_code"] = self._serve(brief)
            except OSError as error:  # this machine has no process, or no descriptor, left
                ended["error"] = error.strerror or str(error)
            if self.tally.is_stopping:
                return
            if time.monotonic() - began_at > _LONGEST_PAUSE_S:
                pause_s = _FIRST_PAUSE_S
            self._log.error("web_ended", **ended, retry_in_ms=round(1000 * pause_s), worker=brief.worker)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _serve(self, brief: Brief) -> int:
        """Run one process to its end; return its exit code."""
        # -P and a path of its own: modules come from where this process has them, not from the working directory.
        self._process = process = subprocess.Popen(
            [sys.executable, "-P", "-m", "expirer.web"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            pass_fds=(brief.memory, brief.listener),
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the worker
        )
        with _lifeline(process) as lifeline:
            with suppress(BrokenPipeError, ValueError):  # it has died already, or a stop closed its input
                pickle.dump(brief, lifeline)
                lifeline.flush()
            return process.wait()


def _lifeline(process: subprocess.Popen[bytes]) -> BinaryIO:
    return cast("BinaryIO", process.stdin)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with ExitStack() as stack:
            listener = stack.enter_context(socket.socket(family, kind))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
            stack.pop_all()
    except OSError as error:
        why = error.strerror or str(error)
        raise ConfigurationError([f"EXPIRER_HTTP_HOST={host}, EXPIRER_HTTP_PORT={port}: {why}"]) from None
    return listener


def _zeros(size: int) -> BinaryIO:
    """Return a file of so many zero bytes that has no name, in memory where the system can."""
    if hasattr(os, "memfd_create"):
        file: BinaryIO = os.fdopen(os.memfd_create("expirer"), "w+b")
    else:
        file = tempfile.TemporaryFile()  # noqa: SIM115  # it lives as long as the process
    file.truncate(size)
    return file
