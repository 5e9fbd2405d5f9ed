"""Answers HTTP from one thread: a few short connections at a time, whatever the clients do."""

from __future__ import annotations

import re
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus

from structlog.typing import FilteringBoundLogger

from expirer.config.settings import ConfigurationError
from expirer.contract.text import printable
from expirer.worker.events import LogLimiter

MOST_CONNECTIONS = 8
"""The next one takes the place of the oldest, so idle clients keep no probe from its answer."""
LONGEST_S = 5.0
"""From the connection to the last byte of the answer."""
MOST_HEAD_BYTES = 8192
_LEAST_S = 0.002
"""A connection has this long to send its request before the next one may take its place."""
_RETRY_S = 0.05
"""Pause when nothing can be accepted: usually no file descriptor is left."""
_BACKLOG = 1024
_END = b"\r\n\r\n"
_REQUEST = re.compile(rb"([A-Z]{1,16}) (/[!-~]*) HTTP/1\.[01]((?:\r\n[!-9;-~]+:[^\r\n]*)*)")
_HEADERS = {
    "Cache-Control": "no-store",
    "Connection": "close",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks for; the names of the headers are in lower case."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the client gets."""

    body: bytes
    status: HTTPStatus = HTTPStatus.OK
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)


Route = Callable[[Request], Answer]


def probe(trouble: str, note: str = "") -> Answer:
    """Answer 503 with what is in the way; else 200, with a note on what does not need a restart."""
    lines = "".join(f"{printable(line)}\n" for line in trouble.splitlines())
    if lines:
        return Answer(lines.encode(), HTTPStatus.SERVICE_UNAVAILABLE)
    return Answer(f"ok, but wake messages are not heard: {printable(note)}\n".encode() if note else b"ok\n")


class HttpServer:
    """Serves routes until it is stopped: at most 8 connections, 5 s and one request each, no body read.

    Routes run one after the other on the server's thread, so they must not wait for anything. A connection costs
    at most 8 KiB and one answer, which bounds the memory of all.

    Raises:
        ConfigurationError: the address cannot be used.

    """

    def __init__(self, host: str, port: int, routes: Mapping[str, Route], log: FilteringBoundLogger) -> None:
        self._routes = routes
        self._log = log
        self._limiter = LogLimiter()
        self._connections: list[_Connection] = []
        """The oldest first."""
        self._listener = _listen(host, port)
        self._selector = selectors.DefaultSelector()
        self._stopping, self._stop = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="expirer-http", daemon=True)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._listener.getsockname()[1])

    def start(self) -> None:
        """Answer from now on."""
        host, port = self._listener.getsockname()[:2]
        self._log.info("http_started", host=host, port=port)
        self._thread.start()

    def stop(self) -> None:
        """Close the port and every connection."""
        self._stop.close()
        self._thread.join(1.0)

    def _run(self) -> None:
        with self._selector, self._listener, self._stopping:
            self._selector.register(self._listener, selectors.EVENT_READ)
            self._selector.register(self._stopping, selectors.EVENT_READ)
            while True:
                patience_s = self._connections[0].until - time.monotonic() if self._connections else None
                ready = {key.fileobj for key, _ in self._selector.select(patience_s)}
                for connection in tuple(self._connections):
                    if connection.socket in ready:
                        self._proceed(connection)
                    elif time.monotonic() >= connection.until:
                        self._close(connection)
                if self._stopping in ready:
                    break
                if self._listener in ready:
                    self._accept()  # one in each round, so that a flood delays the connections by one accept only
            for connection in tuple(self._connections):
                self._close(connection)

    def _accept(self) -> None:
        if len(self._connections) >= MOST_CONNECTIONS:
            oldest = self._connections[0]
            time.sleep(max(oldest.since + _LEAST_S - time.monotonic(), 0))
            self._proceed(oldest)
            if oldest in self._connections:
                self._close(oldest)
        try:
            client, _ = self._listener.accept()
        except OSError:
            time.sleep(_RETRY_S)
            return
        connection = _Connection(client, self._answer)
        self._connections.append(connection)
        self._selector.register(client, selectors.EVENT_READ)
        self._proceed(connection)  # the request is often there already

    def _proceed(self, connection: _Connection) -> None:
        if not connection.proceed():
            self._close(connection)
        elif connection.unsent:
            self._selector.modify(connection.socket, selectors.EVENT_WRITE)

    def _close(self, connection: _Connection) -> None:
        self._connections.remove(connection)
        self._selector.unregister(connection.socket)
        connection.socket.close()

    def _answer(self, head: bytes) -> bytes:
        """Return all the bytes that answer a request."""
        match = _REQUEST.fullmatch(head)
        if match is None:
            text = f"not a request of HTTP/1.1 with a head of at most {MOST_HEAD_BYTES} bytes\n"
            return _encode(Answer(text.encode(), HTTPStatus.BAD_REQUEST))
        method, target, lines = (group.decode("latin-1") for group in match.groups())
        headers = (line.split(":", 1) for line in lines.split("\r\n")[1:])
        path, _, query = target.partition("?")
        request = Request(method, path, query, {name.lower(): value.strip() for name, value in headers})
        return _encode(self._call(request), has_body=method != "HEAD")

    def _call(self, request: Request) -> Answer:
        route = self._routes.get(request.path)
        if route is None:
            return Answer(f"there are {', '.join(self._routes)}\n".encode(), HTTPStatus.NOT_FOUND)
        if request.method not in ("GET", "HEAD"):
            return Answer(b"GET or HEAD\n", HTTPStatus.METHOD_NOT_ALLOWED, headers={"Allow": "GET, HEAD"})
        log = self._log
        try:
            return route(request)
        except Exception:
            if (more := self._limiter.take()) is not None:
                log.exception("http_error", path=request.path, **more)
            return Answer(b"expirer could not answer; its log says why\n", HTTPStatus.INTERNAL_SERVER_ERROR)


class _Connection:
    """One client: reads the head of one request, then sends the answer, never waiting."""

    def __init__(self, client: socket.socket, answer: Callable[[bytes], bytes]) -> None:
        client.settimeout(0)
        self.socket = client
        self.since = time.monotonic()
        self.until = self.since + LONGEST_S
        self.unsent = memoryview(b"")
        self._answer = answer
        self._head = b""

    def proceed(self) -> bool:
        """Read and send what can be without waiting; return False when the connection is done."""
        try:
            if not self.unsent:
                received = self.socket.recv(MOST_HEAD_BYTES - len(self._head))
                self._head += received
                head, end, _ = self._head.partition(_END)
                if not end and len(self._head) < MOST_HEAD_BYTES:
                    return bool(received)
                self.unsent = memoryview(self._answer(head if end else b""))
            self.unsent = self.unsent[self.socket.send(self.unsent) :]
            if self.unsent:
                return True
        except BlockingIOError:
            return True
        except OSError:
            return False
        with suppress(OSError):  # unread bytes would make close() reset the connection, and the client lose the answer
            self.socket.shutdown(socket.SHUT_WR)
            self.socket.recv(MOST_HEAD_BYTES)
        return False


def _encode(answer: Answer, *, has_body: bool = True) -> bytes:
    own = {"Content-Type": answer.content_type, "Content-Length": str(len(answer.body))}
    headers = own | _HEADERS | dict(answer.headers)
    lines = [f"HTTP/1.1 {answer.status.value} {answer.status.phrase}", *map(": ".join, headers.items())]
    return "\r\n".join(lines).encode("latin-1") + _END + (answer.body if has_body else b"")


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        why = str(error.strerror or error).partition(" (while attempting")[0]
        raise ConfigurationError([f"EXPIRER_HTTP_HOST={host}, EXPIRER_HTTP_PORT={port}: {why}"]) from None
    listener.settimeout(0)
    return listener
