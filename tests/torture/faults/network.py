"""What happens between a server and everybody else."""

from __future__ import annotations

from tests.proxy import CLEAR, Way, Weather
from tests.torture.bed import Bed
from tests.torture.fault import Fault
from tests.torture.single import OneServer

_BYTES = 1500
"""More than a batch has, with what a new connection says first."""


def cut(bed: OneServer) -> None:
    """Cut a worker's connection after a byte, the next one each time, of what it asks or of what it is answered."""
    way: Way = ("request", "reply")[bed.turn % 2]
    bed.line.cut()
    bed.line.weather = Weather(cut=(way, bed.turn // 2 % _BYTES))
    bed.wait_until(lambda: bed.line.has_cut, "a cut")


def black_hole(bed: Bed) -> None:
    """Let nothing through, either way, for longer than any time-out; then all of it arrives."""
    bed.change(Weather(silent=("request", "reply")))
    bed.wait(1.2 * bed.sizes.timeout_s)
    bed.change(CLEAR)
    bed.wait(0.5)


def half_open(bed: Bed) -> None:
    """Let nothing through one way for longer than any time-out; then all of it arrives."""
    bed.change(Weather(silent=(("request", "reply")[bed.turn % 2],)))
    bed.wait(1.2 * bed.sizes.timeout_s)
    bed.change(CLEAR)
    bed.wait(0.5)


def be_late(bed: Bed) -> None:
    """Delay everything each way, by turns so that time-outs hold and so that they do not."""
    bed.change(Weather(delay_s=bed.sizes.latency_s if bed.turn % 2 else 0.6 * bed.sizes.timeout_s))
    bed.wait(6 * bed.sizes.latency_s)
    bed.change(CLEAR)
    bed.wait(0.5)


def be_slow(bed: Bed) -> None:
    """Let no more than 4 kB a second through each connection."""
    bed.change(Weather(bytes_per_s=4000))
    bed.wait(bed.sizes.timeout_s)
    bed.change(CLEAR)
    bed.wait(0.5)


def flap(bed: Bed) -> None:
    """Cut everything and refuse new connections, let them in again, many times a second."""
    for _ in range(10):
        bed.change(Weather(refuses=True), cut=True)
        bed.wait(bed.chance.uniform(0, 0.1))
        bed.change(CLEAR)
        bed.wait(bed.chance.uniform(0, 0.3))


FAULTS = (
    Fault(
        "cuts",
        "a worker's connection cut after 0, 1, 2 … 1,499 bytes of what it asks, and of what it is answered",
        cut,
        times=2 * _BYTES,
        quick_times=10,
    ),
    Fault(
        "holes", "black hole: nothing passes for longer than any time-out, then all of it arrives", black_hole, times=15
    ),
    Fault("half-open", "the same, one way only", half_open, times=16),
    Fault("latency", "2 s of latency, and more than the time-outs bear", be_late, times=10),
    Fault("slow", "4 kB a second for each connection", be_slow, times=10, quick_times=1),
    Fault("flapping", "all connections cut and refused, ten times within seconds", flap, times=30, quick_times=1),
)
