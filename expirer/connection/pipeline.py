"""Sends commands on one connection, several in one packet, and reads their replies in order."""

from __future__ import annotations

from typing import Any, TypeAlias

Connection: TypeAlias = Any
"""redis-py's kinds of connection share no type, and their replies have none."""
Reply: TypeAlias = Any


def ask(connection: Connection, *commands: tuple[object, ...]) -> Reply:
    """Send commands in one packet; return the last one's reply."""
    write(connection, *commands)
    return read(connection, len(commands))


def write(connection: Connection, *commands: tuple[object, ...]) -> None:
    """Send commands in one packet."""
    connection.send_packed_command(connection.pack_commands(commands))


def read(connection: Connection, count: int = 1) -> Reply:
    """Read replies; return the last one, raise the first error."""
    for _ in range(count):
        reply = connection.read_response()
    return reply


def peer_of(connection: Connection) -> object:
    """Return the address that a connection leads to; None if it leads nowhere."""
    try:
        return vars(connection)["_sock"].getpeername()
    except (AttributeError, LookupError, OSError):
        return None
