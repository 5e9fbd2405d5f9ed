"""What happens to the workers and the checkouts as processes."""

from __future__ import annotations

from signal import SIGCONT, SIGSTOP

from tests.torture.fault import Fault
from tests.torture.rig import Rig


def kill(rig: Rig) -> None:
    """Kill a worker at a random moment of a drain, and start another."""
    rig.begin_drain()
    rig.end_worker(rig.chance.choice(rig.workers), kill=True)
    rig.wait_for(rig.start_worker())


def stop(rig: Rig) -> None:
    """Stop one to all workers at a random moment of a drain for longer than any time-out, and let them go on."""
    stopped = rig.chance.sample(rig.workers, rig.chance.randint(1, len(rig.workers)))
    rig.begin_drain()
    for worker in stopped:
        worker.signal(SIGSTOP)
    rig.wait(1.2 * rig.sizes.timeout_s)
    for worker in stopped:
        worker.signal(SIGCONT)


def crowd(rig: Rig) -> None:
    """Start a crowd of workers at once; kill half of it in the middle of a drain, and tell the others to stop."""
    crowd = [rig.start_worker() for _ in range(rig.sizes.fleet)]
    for worker in crowd:
        rig.wait_for(worker)
    rig.begin_drain()
    for n, worker in enumerate(crowd):
        rig.end_worker(worker, kill=n % 2 == 0)


def kill_shop(rig: Rig) -> None:
    """Kill all checkouts in the middle of whatever they do, and let others come."""
    rig.wait(rig.chance.uniform(0.1, 0.5))
    rig.workload.kill()
    rig.workload.open()
    rig.wait(1.0)


FAULTS = (
    Fault("kills", "a worker killed with -9, at random in a drain", kill, times=200),
    Fault("stops", "one to four workers stopped for longer than any time-out, then continued", stop, times=30),
    Fault(
        "crowds",
        "twenty workers started at once; half killed with -9, half told to stop",
        crowd,
        times=10,
        quick_times=1,
    ),
    Fault("writers", "all eight checkouts killed with -9", kill_shop, times=50, quick_times=1),
)
