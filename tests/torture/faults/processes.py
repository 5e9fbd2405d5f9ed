"""What happens to the workers and the checkouts as processes."""

from __future__ import annotations

from signal import SIGCONT, SIGSTOP

from tests.torture.bed import Bed
from tests.torture.fault import Fault


def kill(bed: Bed) -> None:
    """Kill a worker at a random moment of a drain, and start another."""
    bed.begin_drain()
    bed.end_worker(bed.chance.choice(bed.workers), kill=True)
    bed.wait_for(bed.start_worker())


def stop(bed: Bed) -> None:
    """Stop one to all workers at a random moment of a drain for longer than any time-out, and let them go on."""
    stopped = bed.chance.sample(bed.workers, bed.chance.randint(1, len(bed.workers)))
    bed.begin_drain()
    for worker in stopped:
        worker.signal(SIGSTOP)
    bed.wait(1.2 * bed.sizes.timeout_s)
    for worker in stopped:
        worker.signal(SIGCONT)


def crowd(bed: Bed) -> None:
    """Start a crowd of workers at once; kill half of it in the middle of a drain, and tell the others to stop."""
    crowd = [bed.start_worker() for _ in range(bed.sizes.fleet)]
    for worker in crowd:
        bed.wait_for(worker)
    bed.begin_drain()
    for n, worker in enumerate(crowd):
        bed.end_worker(worker, kill=n % 2 == 0)


def kill_shop(bed: Bed) -> None:
    """Kill all checkouts in the middle of whatever they do, and let others come."""
    bed.wait(bed.chance.uniform(0.1, 0.5))
    bed.shop.kill()
    bed.shop.open()
    bed.wait(1.0)


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
