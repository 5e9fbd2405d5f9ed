"""A real Prometheus and a real Alertmanager on loopback, each in a folder of its own, ended by pid."""

from __future__ import annotations

import json
import math
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_DEADLINE_S = 60
"""For a start on a machine that is busy."""


def get(url: str, **query: str) -> Any:  # noqa: ANN401  # JSON
    """Return what is answered, parsed."""
    with urllib.request.urlopen(f"{url}?{urllib.parse.urlencode(query)}", timeout=10) as answer:  # noqa: S310  # http only
        return json.load(answer)


def ask(prometheus: str, query: str) -> list[tuple[dict[str, str], float]]:
    """Return what a query of PromQL finds now: labels and figure of each series, those that are no number left out.

    Raises:
        ValueError: Prometheus refuses the query, and says why.

    """
    try:
        answer = get(f"{prometheus}/api/v1/query", query=query)
    except urllib.error.HTTPError as error:
        with error:
            raise ValueError(f"{query}: {json.load(error)['error']}") from None
    found = [(dict(series["metric"]), float(series["value"][1])) for series in answer["data"]["result"]]
    return [(labels, figure) for labels, figure in found if not math.isnan(figure)]


class Daemon:
    """One process in a folder of its own, where what it says goes into a file.

    Args:
        port: of loopback, on which it answers HTTP; 0: on none.
        ready: the path that answers 200 once it has started.
        environment: None: this process's own.

    """

    def __init__(
        self,
        arguments: Sequence[str | Path],
        folder: Path,
        port: int = 0,
        ready: str = "/-/ready",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.address = f"127.0.0.1:{port}"
        self.url = f"http://{self.address}"
        self._log = folder / "log"
        with self._log.open("wb") as log:
            # A session of its own: Ctrl-C is for who started it.
            self._process = subprocess.Popen(arguments, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            if port:
                self._wait_for(ready)
        except BaseException:
            self.stop()
            raise

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def said(self) -> str:
        """Return what it has said so far."""
        return self._log.read_text()

    def stop(self) -> None:
        """End the process and wait for it."""
        self._process.kill()
        self._process.wait()

    def _wait_for(self, path: str) -> None:
        deadline = time.monotonic() + _DEADLINE_S
        while not self._is_ready(path):
            if time.monotonic() > deadline or not self.is_running:
                raise RuntimeError(self.said())
            time.sleep(0.05)

    def _is_ready(self, path: str) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}{path}", timeout=10) as answer:  # noqa: S310  # http only
                return bool(answer.status == 200)
        except OSError:
            return False


class Prometheus(Daemon):
    """Prometheus with the configuration that is given as text; files that it names lie in the folder."""

    def __init__(self, binary: Path, folder: Path, port: int, configuration: str) -> None:
        file = folder / "prometheus.yaml"
        file.write_text(configuration)
        arguments: list[str | Path] = [
            *(binary, f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}"),
            *(f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"),
        ]
        super().__init__(arguments, folder, port)


class Alertmanager(Daemon):
    """Alertmanager with a configuration file."""

    def __init__(self, binary: Path, folder: Path, port: int, configuration: Path) -> None:
        arguments: list[str | Path] = [
            *(binary, f"--config.file={configuration}", f"--storage.path={folder / 'data'}"),
            *(f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address=", "--log.level=warn"),
        ]
        super().__init__(arguments, folder, port)
