"""Traces for OpenTelemetry: a span for each drain that did something or failed.

Where and how they are sent is said by OpenTelemetry's own variables, and nothing here is a setting of ours. The
worker knows nothing of it: the drains are read from the memory that it counts in, and sent by another process.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from urllib.parse import unquote, urlsplit

from structlog.typing import FilteringBoundLogger

from expirer.journal import Pace
from expirer.logs import build_logger
from expirer.observe.brief import Brief
from expirer.tally import Tally

_LOOK_S = 1.0
_LIFE_SIGN_S = 0.02
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_HEADERS = ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS")
_SPOKEN = "http/protobuf"
_SHORTEST_SECRET = 4
"""A shorter header is the number of a tenant; hiding it would make every figure unreadable."""


def are_wanted(environment: Mapping[str, str]) -> bool:
    """Say whether the variables ask for traces."""
    is_off = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    is_none = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none"
    return _first(environment, _ENDPOINTS) is not None and not is_off and not is_none


class Traces:
    """Exports the drains of the worker on a thread of its own; what goes wrong with that is a line in the log."""

    def __init__(self, brief: Brief) -> None:
        self._tally = Tally(brief.settings.shards, brief.memory)
        self._worker = brief.worker
        self._parent = brief.pid
        self._log = build_logger(brief.settings).bind(worker=brief.worker)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="expirer-traces", daemon=True)

    def start(self) -> None:
        """Export from now on, where the variables ask for it."""
        if are_wanted(os.environ):
            self._thread.start()

    def finish(self) -> None:
        """Export what is left, for as long as the worker's process waits for it: not for one that was killed."""
        self._is_over.set()
        while self._thread.is_alive() and os.getppid() == self._parent:
            self._thread.join(_LIFE_SIGN_S)

    def _run(self) -> None:
        _listen_to_the_sdk(self._log)
        try:
            self._export()
        except ImportError as error:
            self._log.warning("traces_off", reason=f"{error}: pip install 'expirer[otel]'")
        except Exception as error:  # noqa: BLE001  # whatever the variables say, the worker works
            self._log.warning("traces_off", reason=_redact(str(error), os.environ))

    def _export(self) -> None:
        protocol = _first(os.environ, _PROTOCOLS)
        if protocol is not None and os.environ[protocol] != _SPOKEN:
            raise ValueError(f"{protocol}={os.environ[protocol]}: only {_SPOKEN} is spoken, by custom on port 4318")
        from expirer.observe.spans import Spans  # noqa: PLC0415  # the extra may be missing, and it takes a while

        spans = Spans(self._worker)
        pace = Pace()
        is_over = False
        while not is_over:
            is_over = self._is_over.wait(_LOOK_S)
            drains, missed = self._tally.take_drains()
            for drain in drains:
                spans.add(drain)
            if missed and (more := pace.take()) is not None:
                self._log.warning("traces_missed", count=missed, **more)
        spans.flush()


class _Complaints(logging.Handler):
    """Passes on what the SDK logs, at a bounded pace and without secrets."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        super().__init__(logging.WARNING)
        self._log = log
        self._pace = Pace()

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line, or hold it back."""
        if (more := self._pace.take()) is not None:
            error = record.exc_info[1] if record.exc_info else None
            message = record.getMessage() if error is None else f"{record.getMessage()} {error}"
            self._log.warning("traces_error", message=_redact(message, os.environ), **more)


def _listen_to_the_sdk(log: FilteringBoundLogger) -> None:
    logger = logging.getLogger("opentelemetry")
    logger.addHandler(_Complaints(log))
    logger.propagate = False


def _first(environment: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    """Return the first of the variables that is set to something."""
    return next((name for name in names if environment.get(name)), None)


def _redact(text: str, environment: Mapping[str, str]) -> str:
    """Return the text with every secret that the variables hold replaced by `***`."""
    for secret in sorted(_secrets(environment), key=len, reverse=True):
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, "***")
    return text


def _secrets(environment: Mapping[str, str]) -> Iterator[str]:
    """Yield the values in the headers, well formed or not, and what an address may carry."""
    for name in _HEADERS:
        for item in environment.get(name, "").split(","):
            _, equals, value = item.partition("=")
            secret = (value if equals else item).strip()
            yield from (secret, unquote(secret))
    for name in _ENDPOINTS:
        endpoint = environment.get(name, "")
        yield endpoint
        with suppress(ValueError):
            url = urlsplit(endpoint)
            yield from (url.query, url.password or "")
