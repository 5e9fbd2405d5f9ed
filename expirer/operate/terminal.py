"""What each command does at the terminal: report an error of Redis, ask a person, write JSON, times and pauses."""

from __future__ import annotations

import getpass
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from redis.exceptions import RedisError

from expirer.config.settings import Settings
from expirer.connection.connect import Servers, connect_all
from expirer.connection.errors import describe, location
from expirer.contract.control import Pause
from expirer.contract.text import decode, printable


@contextmanager
def reporting_errors(settings: Settings) -> Iterator[Servers]:
    """Connect to the shards; an error of Redis becomes one line on standard error, and ends the block."""
    with connect_all(settings) as servers:
        try:
            yield servers
        except BrokenPipeError:  # of standard output
            raise
        except (RedisError, OSError) as error:
            sys.stderr.write(f"expirer: {error_line(error, settings)}\n")


def error_line(error: Exception, settings: Settings) -> str:
    """Return where Redis is, and what an error says."""
    where, text = location(settings), describe(error, settings)
    return printable(text if text.startswith(where) else f"{where}: {text}")


def who() -> str:
    """Return who is at the keyboard, for the records."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def confirms(question: str) -> bool:
    """Ask on a terminal; without one the answer is no."""
    if not sys.stdin.isatty():
        return False
    sys.stdout.write(f"{question} [y/N] ")
    sys.stdout.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def write_json(value: object) -> None:
    """Write one line; bytes become the text of `decode`, so that no two ids look alike."""
    sys.stdout.write(json.dumps(value, default=decode) + "\n")


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
