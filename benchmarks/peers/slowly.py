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
        # One after the other: at the same time they would want more cores than there are.
        for pid in map(int, pids):
            _signal(pid, signal.SIGCONT)
            time.sleep(share * _PERIOD_S)  # its share of the period
            _signal(pid, signal.SIGSTOP)
        time.sleep((1 - share * len(pids)) * _PERIOD_S)  # the rest of it


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


if __name__ == "__main__":
    _main(*sys.argv[1:])
