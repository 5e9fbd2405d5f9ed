"""A clock of the server that the tests move: a few lines of C, preloaded into it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.tools import find_tool, missing

_SOURCE = Path(__file__).with_name("clock.c")


class ServerClock:
    """Compile the shim into the folder; a server started with `environment` shows `offset_s` more than it is."""

    def __init__(self, folder: Path) -> None:
        library = folder / "clock.so"
        compiler = find_tool("cc")
        if compiler is None:
            raise FileNotFoundError(missing("cc"))
        subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, _SOURCE, "-ldl"], check=True)
        self._file = folder / "clock.offset"
        self.move(0)
        self.environment = {"LD_PRELOAD": str(library), "EXPIRER_TEST_CLOCK": str(self._file)}

    def move(self, offset_s: int) -> None:
        """Let the server's clock be ahead of this machine's by so many seconds, or behind."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(str(offset_s), encoding="ascii")
        fresh.replace(self._file)  # in one piece, as the server reads it all the time
