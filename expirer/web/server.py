"""`expirer web`: serves the page and the inventory's figures, and reads Redis only; one is enough for an inventory."""

from __future__ import annotations

import ipaddress
import os
import signal
import threading
import urllib.parse
from contextlib import suppress
from http import HTTPStatus

from expirer.config.environment import variable
from expirer.config.settings import Settings
from expirer.connection.connect import connect_all
from expirer.contract.clock import worker_clock
from expirer.contract.text import printable
from expirer.web.metrics import InventoryCollector
from expirer.web.page import CSP, Page, render
from expirer.web.watch import Watch
from expirer.worker.http import Answer, HttpServer, Request, Route, probe
from expirer.worker.logs import build_logger
from expirer.worker.process import STOP_SIGNALS
from expirer.worker.prometheus import metrics_route

PORT = 9878
"""If the settings name none: the port beside the usual one of a worker."""


def serve(settings: Settings) -> int:
    """Serve until SIGTERM, SIGINT or SIGHUP; return the exit code.

    Raises:
        ConfigurationError: the address cannot be used.

    """
    stops = {number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN}
    signal.pthread_sigmask(signal.SIG_BLOCK, stops)
    log = build_logger(settings)
    watch = Watch(connect_all(settings).shards, log)
    server = HttpServer(settings.http_host, settings.http_port or PORT, routes(watch, settings), log)
    threading.Thread(target=watch.run, name="expirer-watch", daemon=True).start()
    server.start()
    signal.sigwait(stops)
    os._exit(0)  # nothing is under way that has to end in order


def routes(watch: Watch, settings: Settings) -> dict[str, Route]:
    """Return what there is to be asked for; no answer waits for Redis."""
    return {
        "/": lambda request: _show_page(watch, settings, request),
        "/metrics": metrics_route(InventoryCollector(watch.figures)),
        "/livez": lambda _: probe(watch.why_not_alive()),
        "/readyz": lambda _: probe(watch.why_not_ready()),
    }


def _show_page(watch: Watch, settings: Settings, request: Request) -> Answer:
    # Only the page shows ids. A site that a browser has open may give its own name this address (DNS rebinding)
    # and read what we answer; an address, or a name that the site does not own, it cannot have.
    host = request.headers.get("host", "")
    if not is_allowed(host, settings):
        text = f"this page does not answer to the name {host!r}: add it to {variable('http_allowed_hosts')}"
        return Answer(f"{printable(text)}\n".encode(), HTTPStatus.MISDIRECTED_REQUEST)
    html = render(Page(settings, watch.reading, int(worker_clock()), is_still=request.query == "still"))
    return Answer(html.encode(), content_type="text/html; charset=utf-8", headers={"Content-Security-Policy": CSP})


def is_allowed(host: str, settings: Settings) -> bool:
    """Say whether a Host header is an address, localhost, the host that is listened on, or an allowed name."""
    allowed = {"localhost", settings.http_host.lower(), *map(str.lower, settings.http_allowed_hosts)}
    with suppress(ValueError):  # of a host, or of an address, that is none
        name = urllib.parse.urlsplit(f"//{host}").hostname or ""
        return "*" in allowed or name in allowed or ipaddress.ip_address(name) is not None
    return False
