"""What happens to the server's clock."""

from __future__ import annotations

from tests.torture.fault import Fault, Host
from tests.torture.single import OneServer

_HOUR_S = 3600


def jump(rig: OneServer) -> None:
    """Move the clock an hour ahead or back, then to where it was; resume what a worker has paused."""
    assert rig.clock is not None
    rig.clock.move(_HOUR_S if rig.turn % 2 == 0 else -_HOUR_S)
    if rig.turn % 2 == 0:
        rig.wait_until(rig.is_braked, "a brake")
    rig.wait(rig.chance.uniform(0.3, 1))
    rig.clock.move(0)  # coming back from the past is a jump ahead, to a time that the last resume has confirmed
    for worker in rig.workers:
        rig.wait_for(worker)
    rig.wait(2.5)  # each worker looks at least once in its interval, and believes the clock again
    rig.resume()


FAULTS = (
    Fault(
        "clock",
        "the server's clock an hour ahead or back, and to where it was",
        jump,
        times=20,
        promise="exact; a worker that sees the jump pauses itself, so none expires before its time",
        host=Host(has_clock=True),
    ),
)
