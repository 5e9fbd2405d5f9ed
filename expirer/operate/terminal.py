"""Asks a person at the terminal, and writes times and pauses for people."""

from __future__ import annotations

import getpass
import os
import socket
import sys
from datetime import UTC, datetime
from typing import TextIO

from expirer.contract.control import Pause
from expirer.contract.text import printable


def who() -> str:
    """Return who is at the keyboard, for the records."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def confirms(question: str, answers: TextIO | None = None) -> bool:
    """Ask on a terminal; without one the answer is no."""
    source = answers or sys.stdin
    if not source.isatty():
        return False
    sys.stdout.write(f"{question} [y/N] ")
    sys.stdout.flush()
    return source.readline().strip().lower() in ("y", "yes")


def format_time(unix_ms: int) -> str:
    """Return a time as people read it, or in ms if no calendar has it."""
    try:
        return datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(sep=" ", timespec="milliseconds")[:-6] + " UTC"
    except (ValueError, OverflowError, OSError):
        return f"{unix_ms} ms"


def format_pause(pause: Pause) -> str:
    """Return who pauses, since when, until when and why."""
    since = "" if pause.since is None else f" since {format_time(pause.since)}"
    until = "until resumed" if pause.until is None else f"until {format_time(pause.until)}"
    return f"by {printable(pause.by) or 'nobody named'}{since} {until}: {printable(pause.reason) or 'no reason'}"
