"""Floods an HTTP server of this machine for some seconds: hot clients, slow clients, noise; says how much it asked.

python -m benchmarks.peers.flood PORT SECONDS
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from contextlib import suppress

_HOT = (b"GET /metrics", b"GET /readyz", b"GET /", b"GET /nowhere", b"DELETE /metrics")
_SLOW = 600
"""More than the server lets in."""
_CHURN = 4


class _Flood:
    def __init__(self, port: int, seconds: float) -> None:
        self._port = port
        self._until = time.monotonic() + seconds
        self.requests = 0

    async def run(self) -> None:
        hot = (self._ask(line) for line in _HOT)
        slow = (self._drip() for _ in range(_SLOW))
        churn = (self._churn() for _ in range(_CHURN))
        await asyncio.gather(*hot, *slow, *churn)

    def _goes_on(self) -> bool:
        return time.monotonic() < self._until

    async def _ask(self, line: bytes) -> None:
        while self._goes_on():
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.TimeoutError):
                await self._ask_on_one_connection(line)

    async def _ask_on_one_connection(self, line: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            while self._goes_on():
                writer.write(line + b" HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 4000 + b"\r\n\r\n")
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 1)
                length = next(row for row in head.lower().splitlines() if row.startswith(b"content-length:"))
                await asyncio.wait_for(reader.readexactly(int(length.split(b":")[1])), 1)
                self.requests += 1
        finally:
            writer.close()

    async def _drip(self) -> None:
        while self._goes_on():
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self._port)
                writer.write(b"GET /metrics HTTP/1.1\r\n")
                while self._goes_on() and not writer.is_closing():
                    writer.write(b"X")
                    await asyncio.sleep(0.5)  # as slow as a connection may be that is alive
                writer.close()
            await asyncio.sleep(0.5)  # who was hung up on comes back, without a spin

    async def _churn(self) -> None:
        while self._goes_on():
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self._port)
                writer.write(b"\x16\x03\x01" + b"\xff" * 20_000)
                writer.close()
                self.requests += 1
            await asyncio.sleep(0)  # lets the other clients have their turn


def _main(port: str, seconds: str) -> None:
    os.nice(19)  # it stands for other machines, so it must not take this one's processors from the worker
    flood = _Flood(int(port), float(seconds))
    asyncio.run(flood.run())
    sys.stdout.write(f"{flood.requests}\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])
