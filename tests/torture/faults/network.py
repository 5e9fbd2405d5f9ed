"""What happens between a server and everybody else."""

from __future__ import annotations

from tests.proxy import CLEAR, Conditions, Way
from tests.torture.fault import Fault
from tests.torture.rig import Rig
from tests.torture.single import OneServer

_BYTES = 1500
"""More than a batch has, with what a new connection says first."""


def cut(rig: OneServer) -> None:
    """Cut a worker's connection after a byte, the next one each time, of what it asks or of what it is answered."""
    way: Way = ("request", "reply")[rig.turn % 2]
    rig.line.cut()
    rig.line.conditions = Conditions(cut=(way, rig.turn // 2 % _BYTES))
    rig.wait_until(lambda: rig.line.has_cut, "a cut")


def black_hole(rig: Rig) -> None:
    """Let nothing through, either way, for longer than any time-out; then all of it arrives."""
    rig.change(Conditions(silent=("request", "reply")))
    rig.wait(1.2 * rig.sizes.timeout_s)
    rig.change(CLEAR)
    rig.wait(0.5)


def half_open(rig: Rig) -> None:
    """Let nothing through one way for longer than any time-out; then all of it arrives."""
    rig.change(Conditions(silent=(("request", "reply")[rig.turn % 2],)))
    rig.wait(1.2 * rig.sizes.timeout_s)
    rig.change(CLEAR)
    rig.wait(0.5)


def be_late(rig: Rig) -> None:
    """Delay everything each way, by turns so that time-outs hold and so that they do not."""
    rig.change(Conditions(delay_s=rig.sizes.latency_s if rig.turn % 2 else 0.6 * rig.sizes.timeout_s))
    rig.wait(6 * rig.sizes.latency_s)
    rig.change(CLEAR)
    rig.wait(0.5)


def be_slow(rig: Rig) -> None:
    """Let no more than 4 kB a second through each connection."""
    rig.change(Conditions(bytes_per_s=4000))
    rig.wait(rig.sizes.timeout_s)
    rig.change(CLEAR)
    rig.wait(0.5)


def flap(rig: Rig) -> None:
    """Cut everything and refuse new connections, let them in again, many times a second."""
    for _ in range(10):
        rig.change(Conditions(refuses=True), cut=True)
        rig.wait(rig.chance.uniform(0, 0.1))
        rig.change(CLEAR)
        rig.wait(rig.chance.uniform(0, 0.3))


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
