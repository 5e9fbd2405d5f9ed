"""Connects a command to the inventory, and reports what Redis refuses in one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from redis.exceptions import RedisError

from expirer.config.settings import Settings
from expirer.connection.connect import Servers, connect_all
from expirer.connection.errors import describe, location
from expirer.contract.text import printable


@contextmanager
def reporting_errors(settings: Settings) -> Iterator[Servers]:
    """Give the shards; an error of Redis becomes one line on standard error, and ends the block."""
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
