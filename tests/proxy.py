"""A TCP proxy that holds one transaction at a gate, until the test lets it pass or cuts the connection."""

from __future__ import annotations

import select
import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Literal, Self

from tests.program import DEADLINE_S

_EXEC = b"$4\r\nEXEC\r\n"
_REPLY_TO_EXEC = b"\r\n*"
"""It follows the replies to MULTI and EVALSHA, which are lines of text."""


class Proxy:
    """Forwards connections to a port of this machine until the block ends; the n-th EXEC meets the gate.

    Args:
        port: where the server listens.
        nth: which EXEC is held, counted from 1 over all connections.
        held: the request, so that the server has not seen it, or the reply, so that it has run.

    """

    def __init__(self, port: int, nth: int, held: Literal["request", "reply"]) -> None:
        self._server = ("127.0.0.1", port)
        self._to_go = nth
        self._held = held
        self._is_held = threading.Event()
        self._is_decided = threading.Event()
        self._is_cut = False
        self._is_closed = False
        self._peers: dict[socket.socket, socket.socket] = {}
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._run)
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._is_closed = True
        if not self._is_decided.is_set():
            self.cut()
        self._thread.join(DEADLINE_S)
        for end in (self._listener, *self._peers):
            end.close()

    def wait_until_held(self) -> None:
        """Return once the n-th EXEC stands at the gate; what was forwarded until then has arrived."""
        assert self._is_held.wait(DEADLINE_S), "that many transactions never came"

    def pass_on(self) -> None:
        """Let pass what is held, or will be."""
        self._is_decided.set()

    def cut(self) -> None:
        """Lose what is held, or will be, and its connection."""
        self._is_cut = True
        self._is_decided.set()

    def _run(self) -> None:
        while not self._is_closed:
            for source in select.select([self._listener, *self._peers], [], [], 0.02)[0]:
                if source is self._listener:
                    self._connect()
                elif source in self._peers:
                    with suppress(ConnectionError):
                        if self._forward(source, self._peers[source]):
                            continue
                    self._disconnect(source)

    def _connect(self) -> None:
        client, _ = self._listener.accept()
        try:
            server = socket.create_connection(self._server)
        except ConnectionError:
            client.close()
        else:
            self._peers.update({client: server, server: client})

    def _forward(self, source: socket.socket, target: socket.socket) -> bool:
        """Say whether the connection lives on."""
        data = source.recv(65536)
        if _EXEC in data:
            self._to_go -= 1
            if self._to_go == 0:
                if self._held == "reply":
                    target.sendall(data)
                    source, target = target, source
                    data = b""
                    while _REPLY_TO_EXEC not in data:
                        data += source.recv(65536)
                self._is_held.set()
                self._is_decided.wait()
                if self._is_cut:
                    return False
        target.sendall(data)
        return data != b""

    def _disconnect(self, end: socket.socket) -> None:
        for closed in (end, self._peers.pop(end)):
            self._peers.pop(closed, None)
            closed.close()
