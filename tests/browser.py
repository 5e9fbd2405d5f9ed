"""A real browser, and a site for it to look at."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from selenium import webdriver


class Site:
    """Serves one page on loopback, with a policy of what it may load; `asked` has the paths of all requests."""

    def __init__(self, policy: str) -> None:
        self.html = ""
        self.asked: list[str] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append(self.path)
                self.send_response(200)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Security-Policy", policy)
                self.end_headers()
                self.wfile.write(site.html.encode())

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/behind/a/proxy/"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class Browser:
    """A headless Chromium with a profile of its own; it keeps what it asks for and what it complains about."""

    def __init__(self, chromium: Path, driver: Path, profile: Path) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = str(chromium)
        for flag in (
            "headless", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
            "disable-component-update", "disable-sync", "disable-dev-shm-usage", "hide-scrollbars",
            f"user-data-dir={profile}", *(["no-sandbox"] if os.geteuid() == 0 else []),
        ):  # fmt: skip
            options.add_argument(f"--{flag}")
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(str(driver)))
        self.driver.get("about:blank")  # not the page of a new tab, which loads a lot
        self.requests()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.driver.quit()

    def look(self, url: str, *, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        """Open a page on a screen of so many CSS pixels, where people have chosen `light` or `dark`."""
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._cdp("Emulation.setDeviceMetricsOverride", screen)
        self._cdp("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
        self.driver.get(url)

    def requests(self) -> list[str]:
        """Return the address of everything it has asked for since the last call."""
        entries = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]  # type: ignore[no-untyped-call]
        return [
            entry["params"]["request"]["url"] for entry in entries if entry["method"] == "Network.requestWillBeSent"
        ]

    def complaints(self) -> list[str]:
        """Return what stands in its console since the last call: errors, violations of the policy."""
        return [entry["message"] for entry in self.driver.get_log("browser")]  # type: ignore[no-untyped-call]

    def run(self, script: str) -> Any:  # noqa: ANN401  # what the script returns
        """Run a script in the page, as a person at the console would; the policy does not hold for it."""
        return self.driver.execute_script(script)

    def texts(self, selector: str) -> list[str]:
        """Return the visible text of every element that the selector names."""
        script = f"return [...document.querySelectorAll({json.dumps(selector)})].map(element => element.innerText)"
        texts: list[str] = self.run(script)
        return [" ".join(text.split()) for text in texts]

    def _cdp(self, command: str, arguments: Mapping[str, object]) -> None:
        self.driver.execute_cdp_cmd(command, dict(arguments))
