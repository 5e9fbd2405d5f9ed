"""Builds the logger: one event a line, JSON for programs, coloured text on a terminal."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TextIO

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

from expirer.config.settings import Settings
from expirer.connection.errors import redact


class _Writer:
    """Writes lines; a full disk or a closed pipe costs the line, never the tick that logs it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def msg(self, line: str) -> None:
        with suppress(OSError, ValueError):
            self._stream.write(line + "\n")
            self._stream.flush()

    debug = info = warning = error = critical = msg


def build_logger(settings: Settings, stream: TextIO | None = None) -> FilteringBoundLogger:
    """Return a logger that writes to the stream, standard error unless told otherwise."""
    stream = stream or sys.stderr
    console = settings.log_format == "console" or (settings.log_format == "auto" and stream.isatty())
    renderers: list[Processor] = (
        # Ids are strangers' input: repr keeps escape sequences from the terminal.
        [
            structlog.dev.ConsoleRenderer(
                colors=stream.isatty(),
                sort_keys=False,
                timestamp_key="time",
                repr_native_str=True,
                exception_formatter=structlog.dev.plain_traceback,
            )
        ]
        if console
        else [structlog.processors.JSONRenderer()]
    )

    def hide_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        if "exception" in event:
            event["exception"] = redact(event["exception"], settings)  # it ends with an error's message
        return event

    logger: FilteringBoundLogger = structlog.wrap_logger(
        _Writer(stream),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            _what_first,
            structlog.processors.format_exc_info,
            hide_secrets,
            *renderers,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(settings.log_level),
    )
    return logger.bind()


def _what_first(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Put what happened at the start of the line, and where at its end."""
    first = {name: event.pop(name) for name in ("time", "level", "event")}
    last = {name: event.pop(name) for name in ("shard", "worker") if name in event}
    return first | dict(event) | last
