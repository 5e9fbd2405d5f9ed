"""Gives processes a share of a processor each, by stopping and continuing them: slower machines, on this one.

python -m benchmarks.peers.slowly PERCENT PID...
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress

_PERIOD_S = 0.01


def _main(percent: str, *pids: str) -> None:
    share = int(percent) / 100
    while True:
        for number, seconds in ((signal.SIGCONT, share), (signal.SIGSTOP, 1 - share)):
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(int(pid), number)
            time.sleep(seconds * _PERIOD_S)  # its share of each period, then the rest


if __name__ == "__main__":
    _main(*sys.argv[1:])
