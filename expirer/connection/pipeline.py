"""Sends commands on one connection, several in one packet, and reads their replies in order."""

from __future__ import annotations

from typing import Any


def ask(connection: Any, *commands: tuple[object, ...]) -> Any:  # noqa: ANN401  # redis-py's kinds of connection share no type
    """Send commands in one packet; return the last one's reply."""
    write(connection, *commands)
    return read(connection, len(commands))


def write(connection: Any, *commands: tuple[object, ...]) -> None:  # noqa: ANN401  # see ask
    """Send commands in one packet."""
    connection.send_packed_command(connection.pack_commands(commands))


def read(connection: Any, count: int = 1) -> Any:  # noqa: ANN401  # see ask
    """Read replies; return the last one, raise the first error."""
    for _ in range(count):
        reply = connection.read_response()
    return reply
