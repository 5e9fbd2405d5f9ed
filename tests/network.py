"""The lines between servers on loopback: each passes a proxy, so that islands of servers can be parted."""

from __future__ import annotations

import re
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from tests.proxy import CLEAR, Proxy
from tests.servers import RedisServer

OUTSIDE = "127.0.0.1"
"""From where the tests call, and workers and checkouts: nothing ever parts them from a server."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server is: the address that it calls from, and the lines to it."""

    address: str
    line: Proxy
    bus: Proxy | None
    """Of a Cluster's node."""
    options: tuple[str, ...]
    """Of the server, besides what it must announce: the ports of the lines as its own."""

    @property
    def port(self) -> int:
        """Where everybody finds it."""
        return self.line.own_port

    @property
    def lines(self) -> tuple[Proxy, ...]:
        """Return all the lines to it."""
        return (self.line,) if self.bus is None else (self.line, self.bus)


class Network:
    """Has a place for each server, until the block ends.

    A server calls others from an address of its own. So its peers' proxies know it, whoever else is on this machine.
    """

    def __init__(self, binary: Path) -> None:
        self._lines = ExitStack()
        self._places: dict[int, Place] = {}
        self._has_source = _version(binary) >= 7

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()

    def place(self, port: int, bus_port: int | None = None) -> Place:
        """Return a place for a server that listens on these ports."""
        address = f"127.0.0.{2 + len(self._places)}"
        # Redis 6.2 calls from the first address that it listens on.
        source = ("--bind-source-addr", address) if self._has_source else ()
        line = self._lines.enter_context(Proxy(port))
        bus = None if bus_port is None else self._lines.enter_context(Proxy(bus_port))
        place = Place(address, line, bus, ("--bind", address, OUTSIDE, *source, "--port", str(port)))
        self._places[place.port] = place
        return place

    def line_to(self, server: RedisServer) -> Proxy:
        """Return the line on which clients reach a server."""
        return self._places[server.port].line

    def bus_port(self, node: RedisServer) -> int:
        """Return where other nodes of the Cluster find a node."""
        bus = self._places[node.port].bus
        assert bus is not None
        return bus.own_port

    def part(self, *island: RedisServer) -> None:
        """Let nothing pass between these servers and all others, either way, and keep it back."""
        inside = frozenset(self._places[server.port].address for server in island)
        outside = frozenset(place.address for place in self._places.values()) - inside
        for place in self._places.values():
            for line in place.lines:
                line.conditions = replace(line.conditions, parted=outside if place.address in inside else inside)

    def clear(self, *, cut: bool = False) -> None:
        """Let everything pass again, and what was kept back arrive; or, with `cut`, be lost with its connection."""
        for place in self._places.values():
            for line in place.lines:
                if cut:
                    line.cut(line.conditions.parted)
                line.conditions = CLEAR


def _version(binary: Path) -> int:
    found = re.search(r" v=(\d+)", subprocess.check_output([binary, "--version"], text=True))
    assert found is not None
    return int(found[1])
