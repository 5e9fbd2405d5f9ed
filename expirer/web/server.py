"""Answers HTTP: metrics, probes and the page; reads only, and trusts no client."""

from __future__ import annotations

import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

from structlog.typing import FilteringBoundLogger
from waitress.channel import HTTPChannel
from waitress.server import create_server

from expirer.connection.connect import connect_all
from expirer.connection.errors import GRANT
from expirer.operate.terminal import shown
from expirer.web.brief import Brief
from expirer.web.metrics import Metrics
from expirer.web.page import CSP, render
from expirer.web.probes import ping, refused_keys, why_not_alive, why_not_ready
from expirer.web.refreshed import Refreshed
from expirer.web.watch import Watch
from expirer.worker.events import Pace, RightsJournal
from expirer.worker.logs import build_logger
from expirer.worker.tally import Tally

_THREADS = 6
"""Two may wait for Redis at a time, one for the figures and one for the probe; the others answer at once."""
_MOST_CONNECTIONS = 500
_MOST_HEADER_BYTES = 16 * 1024
_MOST_BODY_BYTES = 1024
_IDLE_S, _REQUEST_S = 15, 5

_TEXT = "text/plain; charset=utf-8"
_HEADERS = [
    ("Cache-Control", "no-store"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
]


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back to the client."""

    body: bytes
    status: str = "200 OK"
    content_type: str = _TEXT
    headers: list[tuple[str, str]] = field(default_factory=list)


class Application:
    """The WSGI application; no request has a side effect, and none waits for Redis longer than one time-out."""

    def __init__(self, brief: Brief, tally: Tally, watch: Watch, log: FilteringBoundLogger) -> None:
        settings = brief.settings
        servers = connect_all(settings)
        self._settings = settings
        self._tally = tally
        self._log = log
        self._watch = watch
        self._pace = Pace()
        self._ping = Refreshed(lambda: ping(settings))
        self._refused = Refreshed(lambda: refused_keys(servers, settings))
        self._metrics = Metrics(servers, settings, tally, brief.worker, brief.pid)
        self._moving = Refreshed(lambda: render(watch.view()))
        self._still = Refreshed(lambda: render(watch.view(is_still=True)))
        self._paths: dict[str, Callable[[WSGIEnvironment], Answer]] = {
            "/": self._show_page,
            "/metrics": self._show_metrics,
            "/livez": self._show_alive,
            "/readyz": self._show_ready,
        }

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        try:
            answer = self._answer(environ)
        except Exception as error:  # noqa: BLE001  # a bug of ours is said in the log, and to the client without detail
            if (more := self._pace.take()) is not None:
                self._log.error("web_error", path=environ["PATH_INFO"][:100], exc_info=error, **more)
            answer = Answer(b"the expirer could not answer; its log tells why\n", "500 Internal Server Error")
        length = ("Content-Length", str(len(answer.body)))
        start_response(answer.status, [("Content-Type", answer.content_type), length, *_HEADERS, *answer.headers])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [answer.body]

    def _answer(self, environ: WSGIEnvironment) -> Answer:
        show = self._paths.get(environ["PATH_INFO"])
        if show is None:
            return Answer(f"there are {', '.join(self._paths)}\n".encode(), "404 Not Found")
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return Answer(b"GET or HEAD\n", "405 Method Not Allowed", headers=[("Allow", "GET, HEAD")])
        return show(environ)

    def _show_page(self, environ: WSGIEnvironment) -> Answer:
        page = self._still if environ.get("QUERY_STRING") == "still" else self._moving
        headers = [("Content-Security-Policy", CSP)]
        return Answer(page.get().encode(), content_type="text/html; charset=utf-8", headers=headers)

    def _show_metrics(self, environ: WSGIEnvironment) -> Answer:
        body, content_type = self._metrics.render(environ.get("HTTP_ACCEPT", ""))
        return Answer(body, content_type=content_type)

    def _show_alive(self, _environ: WSGIEnvironment) -> Answer:
        return _probe([trouble] if (trouble := why_not_alive(self._tally)) else [])

    def _show_ready(self, _environ: WSGIEnvironment) -> Answer:
        # Redis is not asked on behalf of a worker that stops.
        trouble = "" if self._tally.is_stopping else self._ping.get()
        troubles = why_not_ready(self._tally, self._settings, trouble)
        if any(GRANT in trouble for trouble in troubles) and (refused := self._refused.get()):
            troubles.append(f"its user may not use {', '.join(refused)}")
        if not troubles and (missing := self._watch.missing_right):
            # The worker works, and a restart would give it no right.
            return Answer(f"ok, but the figures lack what this user may not read: {shown(missing)}\n".encode())
        return _probe(troubles)


def _probe(troubles: list[str]) -> Answer:
    if not troubles:
        return Answer(b"ok\n")
    return Answer("".join(f"{trouble}\n" for trouble in troubles).encode(), "503 Service Unavailable")


class _Channel(HTTPChannel):  # type: ignore[misc]  # waitress has no types
    """A connection that has a limited time for each request, however slowly the client drips it in."""

    _began_at = 0.0

    def received(self, data: bytes) -> bool:
        now = time.monotonic()
        if self.request is None:
            self._began_at = now
        elif now - self._began_at > _REQUEST_S:
            self.will_close = True
        return bool(super().received(data))


def serve(brief: Brief) -> None:
    """Answer on the brief's listening socket, for ever."""
    log = build_logger(brief.settings).bind(worker=brief.worker)
    logging.getLogger("waitress").addHandler(logging.NullHandler())
    logging.getLogger("waitress").propagate = False  # it says what clients do, a line each
    watch = Watch(connect_all(brief.settings), brief.settings, brief.worker)
    threading.Thread(target=watch.run, args=(RightsJournal(log),), name="expirer-watch", daemon=True).start()
    listener = socket.socket(fileno=brief.listener)
    server: Any = create_server(
        Application(brief, Tally(brief.settings.shards, brief.memory), watch, log),
        sockets=[listener],
        threads=_THREADS,
        ident=None,
        asyncore_use_poll=True,  # select() ends at descriptor 1024
        connection_limit=_MOST_CONNECTIONS,
        channel_timeout=_IDLE_S,
        cleanup_interval=5,
        max_request_header_size=_MOST_HEADER_BYTES,
        max_request_body_size=_MOST_BODY_BYTES,
        log_socket_errors=False,
    )
    server.channel_class = _Channel
    host, port = listener.getsockname()[:2]
    log.info("web_started", host=host, port=port, python=sys.version.split()[0])
    server.run()
