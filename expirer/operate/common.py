"""What the verbs of the operator share: the client, the server's time, and how a terminal shows things."""

from __future__ import annotations

import getpass
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TextIO

from redis import Redis
from redis.exceptions import RedisError

from expirer.connect import connect, location, redact
from expirer.control import Pause
from expirer.keys import ShardKeys
from expirer.settings import Settings
from expirer.times import to_ms, worker_clock


@contextmanager
def redis_or_say(settings: Settings) -> Iterator[Redis]:
    """Give a client; an error of Redis is one line on standard error, and the block ends."""
    with connect(settings) as client:
        try:
            yield client
        except (RedisError, OSError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            sys.stderr.write(f"expirer: {location(settings)}: {redact(str(error), settings)}\n")


def server_now(client: Redis, settings: Settings) -> int:
    """Return the time that decides what is due, Unix ms."""
    if settings.clock == "worker":
        return int(worker_clock())
    seconds, microseconds = client.time()
    return seconds * 1000 + microseconds // 1000


def count_overdue(client: Redis, settings: Settings, keys: ShardKeys, now: int) -> int:
    """Count the reservations of a shard that are due at `now`."""
    cutoff = (now - to_ms(settings.grace)) / settings.unit_ms
    return client.zcount(keys.index, "-inf", f"({cutoff:.6f}")


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
