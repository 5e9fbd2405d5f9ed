"""A TCP proxy that holds one transaction at a gate, until the test lets it through or cuts the connection."""

from __future__ import annotations

import select
import socket
import socketserver
import threading
from contextlib import suppress
from types import TracebackType
from typing import Literal, Self

from tests.program import DEADLINE_S

_EXEC = b"$4\r\nEXEC\r\n"


class Proxy:
    """Forwards connections to a port of this machine; the n-th EXEC that passes meets the gate.

    Args:
        port: where the server listens.
        nth: which EXEC is held, counted from 1.
        side: what is held: the request, so that the server never saw it, or the reply, so that it has run.

    """

    def __init__(self, port: int, nth: int, side: Literal["request", "reply"]) -> None:
        self._server_port = port
        self._nth = nth
        self._side = side
        self._seen = 0
        self._is_held = threading.Event()
        self._is_decided = threading.Event()
        self._is_cut = False
        handler = type("Handler", (socketserver.BaseRequestHandler,), {"handle": self._handle_request})
        self._listener = _Listener(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.02,))
        self.port: int = self._listener.server_address[1]
