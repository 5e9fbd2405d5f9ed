"""What a person at the terminal is asked and shown."""

from __future__ import annotations

import getpass
import os
import socket
import sys
from datetime import UTC, datetime
from typing import TextIO

from expirer.contract.control import Pause


def who() -> str:
    """Return who is at the keyboard, for those who look later."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def confirms(question: str, answers: TextIO | None = None) -> bool:
    """Ask on a terminal; elsewhere nobody can be sure."""
    source = answers or sys.stdin
    if not source.isatty():
        return False
    sys.stdout.write(f"{question} [y/N] ")
    sys.stdout.flush()
    return source.readline().strip().lower() in ("y", "yes")


def shown(text: str) -> str:
    """Return a stranger's text as a terminal may show it: on one line, without control characters."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def shown_time(unix_ms: int) -> str:
    """Return a time as people read it; one that no calendar has, as it is."""
    try:
        return datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(sep=" ", timespec="milliseconds")[:-6] + " UTC"
    except (ValueError, OverflowError, OSError):
        return f"{unix_ms} ms"


def shown_pause(pause: Pause) -> str:
    """Return who pauses, since when, until when and why."""
    since = "" if pause.since is None else f" since {shown_time(pause.since)}"
    until = "until resumed" if pause.until is None else f"until {shown_time(pause.until)}"
    return f"by {shown(pause.by) or 'nobody named'}{since} {until}: {shown(pause.reason) or 'no reason'}"
