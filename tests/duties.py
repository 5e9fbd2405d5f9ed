"""Everything that each user of deploy/acl/expirer.acl is there for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from typing import Any
from unittest.mock import patch

from expirer import Reservations
from expirer.config.settings import Settings
from expirer.connection.connect import Servers, connect, connect_all
from expirer.operate.key_tracking import KeyTracking
from expirer.operate.reshard import _Move
from expirer.operate.snapshot import Sampler
from expirer.operate.tail import _positions, follow
from expirer.web.watch import Watch
from expirer.worker.worker import Worker
from tests.acl import LATER, Desk, refusals
from tests.conftest import Log
from tests.program import wait_until

Duty = Callable[[Desk], list[str]]
"""Do something; return what was complained of."""


def expires(desk: Desk) -> list[str]:
    """Expire into a hash and a plain counter, skip, reschedule, quarantine; a worker is there too, and one has gone."""
    return _ticks(desk)


def pulls_the_brake(desk: Desk) -> list[str]:
    """Pause the shard by itself."""
    told = _ticks(desk, brake_above=1)
    is_pulled = desk.shop.client.hget(desk.shop.keys.control, "brake")
    return told or ([] if is_pulled else ["no brake was pulled"])


def checks(desk: Desk) -> list[str]:
    """Look before a deployment whether all is well."""
    desk.shop.client.flushall()
    desk.shop.stock("mug", 0, 1)
    desk.shop.hold("mug", 1, LATER)
    return desk.complaints("check")


def shows_the_page(desk: Desk) -> list[str]:
    """Read what `expirer web` shows."""
    with connect_all(desk.settings) as servers:
        watch = Watch(servers.shards, Log().logger())
        watch.read()
    troubles = [watch.reading.error, "" if watch.figures().is_up else "the shard could not be read"]
    return [trouble for trouble in troubles if trouble]


def _verb(*command: str) -> Duty:
    def run(desk: Desk) -> list[str]:
        return desk.complaints(*command)

    run.__name__ = " ".join(command)
    return run


def tails(desk: Desk) -> list[str]:
    """Follow the events, from now and from the start."""

    def read(servers: Servers) -> None:
        _positions(servers, None)
        next(follow(servers, "start"))

    return desk.errors(read)


def watches(desk: Desk) -> list[str]:
    """Take a snapshot for `top`."""
    return desk.errors(lambda servers: Sampler(servers.shards).sample())


def audits_what_is_emptied(desk: Desk) -> list[str]:
    """Audit while somebody empties the database under the eyes of it, and say so."""
    written, looks = KeyTracking.written, count(1)

    def spied(tracking: KeyTracking) -> set[bytes]:
        if next(looks) == 2:  # the first that stands under a WATCH
            desk.shop.client.flushall()
        return written(tracking)

    with patch.object(KeyTracking, "written", spied):
        told = desk.complaints("audit")
    return [line for line in told if "was emptied meanwhile" not in line]


def finds_it_mended(desk: Desk) -> list[str]:
    """Repair what somebody else mends while the question is answered."""

    def mend(*_: object) -> bool:
        desk.shop.client.delete(*desk.shop.client.scan_iter())
        return True

    with patch("expirer.operate.audit.confirms", mend):
        return desk.complaints("audit", "--repair")


def flies_a_canary(desk: Desk) -> list[str]:
    """Let a live worker expire a hold of its own."""
    desk.shop.client.flushall()
    with living_worker(desk):
        return desk.complaints("check", "--canary")


@contextmanager
def living_worker(desk: Desk) -> Iterator[None]:
    """Run a worker with every right."""
    worker = Worker(Servers.of(desk.server.client(), Settings()).shards[0], Log().logger())
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        wait_until(lambda: desk.shop.client.zcard(desk.shop.keys.workers))
        yield
    finally:
        worker.stop()
        thread.join()


def checks_out(desk: Desk) -> list[str]:
    """Reserve, extend, confirm and release, each of them twice."""

    def shop(checkout: Reservations) -> None:
        for order, end in (("a", checkout.confirm), ("b", checkout.release)):
            for _ in range(2):
                checkout.reserve(order, "mug", 1)
                checkout.extend(order, "mug", timedelta(hours=1))
            end(order, "mug")
            end(order, "mug")

    return desk.checkout_errors(shop)


def wakes(desk: Desk) -> list[str]:
    """Tell sleeping workers of a sooner reservation; where it may not, only the server's log of refusals says so."""
    desk.shop.client.execute_command("ACL", "LOG", "RESET")  # type: ignore[no-untyped-call]
    desk.shop.client.delete(desk.shop.keys.index)
    told = desk.checkout_errors(lambda checkout: checkout.reserve("c", "mug", 1))
    return told + [f"{reason} {what}" for reason, what in refusals(desk.shop.client)]


def moves_to_more_shards(desk: Desk) -> list[str]:
    """Move to two shards and back, the first time after a question; each time all that is there, and its totals."""
    shop = desk.shop
    shop.client.hset(shop.keys.stats, "expired", 5)
    with patch("expirer.operate.reshard.confirms", lambda *_: True):
        told = desk.complaints("reshard", "--to", "2")
    told = told or desk.complaints("reshard", "--to", "1", "--shards", "2", "--yes")
    if told:
        return told
    are_back = shop.counters("mug") == (3, 7) and shop.client.hget(shop.keys.stats, "expired") == b"5"
    return [] if are_back else ["not all is back"]


def gives_way(desk: Desk) -> list[str]:
    """Stop moving where somebody resumes expiry meanwhile, and say so."""
    move_product = _Move._move_product

    def resumed_before(move: _Move, *arguments: Any) -> None:  # noqa: ANN401  # what it takes
        desk.shop.client.delete(desk.shop.keys.control)
        move_product(move, *arguments)

    with patch.object(_Move, "_move_product", resumed_before):
        told = desk.complaints("reshard", "--to", "2", "--yes")
    return [line for line in told if "somebody has resumed expiry" not in line]


def _ticks(desk: Desk, **settings: Any) -> list[str]:  # noqa: ANN401  # any setting
    log = Log()
    with connect(desk.settings) as client:
        Worker(Servers.of(client, desk.settings.model_copy(update=settings)).shards[0], log.logger()).run_once()
    return [entry["message"] for entry in log.of("processing_error")]


LOOKING: list[Duty] = [
    _verb("status", "--max-lateness", "30000d"),
    _verb("pending"),
    _verb("show", "old:mug"),
    _verb("once", "--dry-run"),
    _verb("quarantine", "list"),
    _verb("quarantine", "show", "q1:mug"),
    tails,
    watches,
    shows_the_page,
    _verb("audit"),
    audits_what_is_emptied,
]
DUTIES: dict[str, list[Duty]] = {
    "expirer": [expires, pulls_the_brake, checks],
    "expirer-look": LOOKING,
    "expirer-mend": [
        _verb("pause", "--for", "1h"),
        _verb("resume", "--yes"),
        _verb("quarantine", "requeue", "q1:mug"),
        _verb("quarantine", "release", "q2:mug", "--quantity", "1"),
        _verb("quarantine", "release", "q3:tea", "--quantity", "1"),
        _verb("quarantine", "drop", "q1:mug", "--yes"),
        _verb("audit", "--repair", "--yes"),
        finds_it_mended,
        *LOOKING,
        flies_a_canary,
    ],
    "checkout": [checks_out, wakes],
    "expirer-reshard": [moves_to_more_shards, gives_way],
}
"""User -> all that it is there for; each begins in a shop filled anew."""


def complaints(desk: Desk, user: str) -> list[str]:
    """Let a user do all that it is there for, up to the first complaint."""
    for duty in DUTIES[user]:
        desk.fill()
        told = duty(desk)
        if told:
            return [f"{duty.__name__}: {line}" for line in told]
    return []
