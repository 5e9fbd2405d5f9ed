"""A TCP proxy whose conditions a test sets: slow, silent, cut at a byte, or held at a gate."""

from __future__ import annotations

import math
import select
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Container
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

from tests.program import DEADLINE_S

Way = Literal["request", "reply"]

_EXEC = b"$4\r\nEXEC\r\n"
_REPLY_TO_EXEC = b"\r\n*"
"""It follows the replies to MULTI and EVALSHA, which are lines of text."""
_STEP_S = 0.02
"""How often the proxy looks whether the conditions have changed, and what a slow line passes at once."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """What happens to what passes; by default nothing."""

    delay_s: float = 0.0
    """Added each way."""
    bytes_per_s: float = math.inf
    """Each way of each connection."""
    silent: tuple[Way, ...] = ()
    """What goes this way is kept back and arrives when the conditions change: one is half-open, both a black hole."""
    cut: tuple[Way, int] | None = None
    """After so many bytes this way since the conditions were set, over all connections, that connection is cut."""
    refuses: bool = False
    """New connections are closed at once."""
    parted: frozenset[str] = frozenset()
    """Addresses of callers for whom all is silent, both ways; they may connect, and hear nothing."""


CLEAR = Conditions()


class Gate:
    """Holds the n-th EXEC, counted from 1 over all connections, until it is decided what becomes of it.

    Args:
        nth: which EXEC.
        held: the request, so that the server has not seen it, or the reply, so that it has run.

    """

    def __init__(self, nth: int, held: Way) -> None:
        self.held = held
        self._to_go = nth
        self._is_held = threading.Event()
        self._is_decided = threading.Event()
        self._is_cut = False

    def wait_until_held(self) -> None:
        """Return once the n-th EXEC stands at the gate; what was forwarded until then has arrived."""
        assert self._is_held.wait(DEADLINE_S), "that many transactions never came"

    def pass_on(self) -> None:
        """Let pass what is held, or will be."""
        self._is_decided.set()

    def cut(self) -> None:
        """Lose what is held, or will be, and its connection."""
        self._is_cut = not self._is_decided.is_set()
        self._is_decided.set()

    def stops(self, data: bytes) -> bool:
        """Say whether this is the request to hold."""
        self._to_go -= _EXEC in data
        return self._to_go == 0 and _EXEC in data

    def hold(self) -> bool:
        """Wait for the decision; say whether the connection lives on."""
        self._is_held.set()
        self._is_decided.wait()
        return not self._is_cut


@dataclass(slots=True, eq=False)
class _Stream:
    """One way of one connection, and what is on its way with the time at which it arrives; nothing is the end."""

    way: Way
    source: socket.socket
    target: socket.socket
    caller: str
    """The address from which the connection came."""
    queue: deque[tuple[float, bytes]] = field(default_factory=deque)
    free_at: float = 0.0


class Proxy:
    """Forwards connections to a port of this machine until the block ends.

    `conditions` may be changed at any time, and so may `port`, where new connections go.
    """

    def __init__(self, port: int, gate: Gate | None = None) -> None:
        self.port = port
        self._gate = gate
        self._conditions = CLEAR
        self._passed: Counter[Way] = Counter()
        self._is_closed = False
        self._cuts: deque[Container[str] | None] = deque()
        self._streams: list[_Stream] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._run)
        self.own_port: int = self._listener.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.own_port}"
        self.has_cut = False
        """Whether the cut at a byte has come about since the conditions were set."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._is_closed = True
        if self._gate is not None:
            self._gate.cut()
        self._thread.join(DEADLINE_S)
        self._listener.close()
        self._cut_all()

    @property
    def conditions(self) -> Conditions:
        """What happens to what passes."""
        return self._conditions

    @conditions.setter
    def conditions(self, conditions: Conditions) -> None:
        self.has_cut = False
        self._passed.clear()
        self._conditions = conditions

    def cut(self, callers: Container[str] | None = None) -> None:
        """Cut every connection, or those that came from some addresses, with what is on its way."""
        self._cuts.append(callers)

    def _run(self) -> None:
        while not self._is_closed:
            conditions = self._conditions
            heard = self._heard(conditions)
            ready = select.select([self._listener, *heard], [], [], _STEP_S)[0]
            if self._cuts:
                self._cut_all(self._cuts.popleft())
                continue
            for source in ready:
                if source is self._listener:
                    self._connect(conditions)
                else:
                    self._read(heard[source], conditions)
            for stream in list(self._streams):
                if not self._deliver(stream):
                    self._disconnect(stream)

    def _heard(self, conditions: Conditions) -> dict[socket.socket, _Stream]:
        now = time.monotonic()
        return {
            stream.source: stream
            for stream in self._streams
            if stream.way not in conditions.silent and stream.caller not in conditions.parted and stream.free_at <= now
        }

    def _connect(self, conditions: Conditions) -> None:
        client, (caller, _) = self._listener.accept()
        try:
            if conditions.refuses:
                raise ConnectionRefusedError
            server = socket.create_connection(("127.0.0.1", self.port))
        except OSError:
            client.close()
            return
        for end in (client, server):
            end.settimeout(DEADLINE_S)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._streams += [_Stream("request", client, server, caller), _Stream("reply", server, client, caller)]

    def _read(self, stream: _Stream, conditions: Conditions) -> None:
        most = 65536
        if conditions.bytes_per_s < math.inf:
            most = max(1, int(conditions.bytes_per_s * _STEP_S))
        try:
            data = stream.source.recv(most)
        except OSError:
            data = b""
        now = time.monotonic()
        stream.free_at = now + len(data) / conditions.bytes_per_s if data else math.inf
        stream.queue.append((now + conditions.delay_s, data))

    def _deliver(self, stream: _Stream) -> bool:
        """Pass on what is due; say whether the connection lives on."""
        while stream.queue and stream.queue[0][0] <= time.monotonic():
            with suppress(OSError):
                if self._pass_on(stream, stream.queue.popleft()[1]):
                    continue
            return False
        return True

    def _pass_on(self, stream: _Stream, data: bytes) -> bool:
        if self._gate is not None and stream.way == "request" and self._gate.stops(data):
            return self._pass_gate(self._gate, stream, data)
        cut = self._conditions.cut
        if cut is not None and data and cut[0] == stream.way and not self.has_cut:
            left = cut[1] - self._passed[stream.way]
            if len(data) >= left:
                self.has_cut = True
                stream.target.sendall(data[:left])
                return False
        self._passed[stream.way] += len(data)
        stream.target.sendall(data)
        return data != b""

    @staticmethod
    def _pass_gate(gate: Gate, stream: _Stream, data: bytes) -> bool:
        client, server = stream.source, stream.target
        if gate.held == "request":
            lives = gate.hold()
            if lives:
                server.sendall(data)
            return lives
        server.sendall(data)
        reply = b""
        while _REPLY_TO_EXEC not in reply:
            reply += server.recv(65536)
        lives = gate.hold()
        if lives:
            client.sendall(reply)
        return lives

    def _disconnect(self, stream: _Stream) -> None:
        ends = {stream.source, stream.target}
        self._streams = [other for other in self._streams if other.source not in ends]
        for end in ends:
            end.close()

    def _cut_all(self, callers: Container[str] | None = None) -> None:
        for stream in list(self._streams):
            if callers is None or stream.caller in callers:
                self._disconnect(stream)
