"""Everything that each user of deploy/acl/expirer.acl is there for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from unittest.mock import patch

from expirer import Reservations
from expirer.config.settings import Settings
from expirer.connection.connect import Servers, connect, connect_all
from expirer.contract import about
from expirer.operate.recount import Recount
from expirer.operate.reshard import _Move
from expirer.operate.snapshot import Sampler
from expirer.operate.tail import _positions, follow
from expirer.web.watch import Watch
from expirer.worker.wake import WakeListener
from expirer.worker.worker import Worker
from tests.acl import LATER, PAST, Access, refusals
from tests.conftest import Log
from tests.program import wait_until

Operation = Callable[[Access], list[str]]
"""Do something; return what was refused."""


def expires(access: Access) -> list[str]:
    """Expire into a hash and a plain counter, skip, reschedule, quarantine; a worker is there too, and one has gone."""
    return _errors(_ticks(access))


def pulls_the_brake(access: Access) -> list[str]:
    """Pause the shard by itself."""
    failures = _errors(_ticks(access, brake_above=1))
    is_pulled = access.shop.client.hget(access.shop.keys.control, "brake")
    return failures or ([] if is_pulled else ["no brake was pulled"])


def listens(access: Access) -> list[str]:
    """Listen for sooner reservations and for other workers."""
    log = Log()
    with connect_all(access.settings) as servers:
        listener = WakeListener([Worker(shard, log.logger()) for shard in servers.shards], log.logger())
        listener.start()
        try:
            wait_until(lambda: not listener.trouble or log.of("wake_unavailable"))
        finally:
            listener.stop()
    return [entry["message"] for entry in log.of("wake_unavailable")]


def tells_other_workers(access: Access) -> list[str]:
    """Say on the channel of ticks that there is nothing left to do for another worker."""
    with access.shop.client.pubsub() as subscription:  # type: ignore[no-untyped-call]
        subscription.subscribe(access.shop.keys.ticks)
        subscription.get_message(timeout=1)
        log = _ticks(access)
        is_told = subscription.get_message(timeout=1) is not None
    return _errors(log) + _unless(access, "no other worker heard of the tick", is_done=is_told)


def compares_settings(access: Access) -> list[str]:
    """Warn of a live worker with other settings."""
    other = about.describe(Settings(grace="1h"))
    access.shop.client.hset(access.shop.keys.about, "here", other)
    is_said = bool(_ticks(access).of("settings_disagree"))
    return _unless(access, "nothing was said of other settings", is_done=is_said)


def forgets_old_notes(access: Access) -> list[str]:
    """Remove the note on a reservation that was to be tried again, and has left the index."""
    shop = access.shop
    shop.client.delete(shop.keys.index)
    shop.client.hset(shop.keys.quarantine, "left:mug", f"reason=record_missing at={PAST} score={PAST} retry={PAST}")
    log = _ticks(access)
    is_gone = not shop.client.hexists(shop.keys.quarantine, "left:mug")
    return _errors(log) + _unless(access, "the note is still there", is_done=is_gone)


def checks(access: Access) -> list[str]:
    """Check before a deployment whether all is well."""
    access.shop.client.flushall()
    access.shop.stock("mug", 0, 1)
    access.shop.hold("mug", 1, LATER)
    return access.complaints("check")


def shows_the_page(access: Access) -> list[str]:
    """Read what `expirer web` shows."""
    with connect_all(access.settings) as servers:
        watch = Watch(servers.shards, Log().logger())
        watch.read()
    troubles = [
        watch.reading.error,
        "" if watch.figures().is_up else "the shard could not be read",
    ]
    return [trouble for trouble in troubles if trouble]


def warns_of_a_short_life(access: Access) -> list[str]:
    """See that Redis deletes a reservation when it falls due."""
    access.shop.client.pexpire(access.shop.keys.reservation_prefix + "o1:mug", 30_000)
    is_seen = "raise their TTL" in access.output("status")[0]
    return _unless(access, "nothing was said of a short time to live", is_done=is_seen)


def _command(*command: str) -> Operation:
    def run(access: Access) -> list[str]:
        return access.complaints(*command)

    run.__name__ = " ".join(command)
    return run


def tails(access: Access) -> list[str]:
    """Follow the events, from now and from the start."""

    def read(servers: Servers) -> None:
        _positions(servers, None)
        next(follow(servers, "start"))

    return access.errors(read)


def watches(access: Access) -> list[str]:
    """Take a snapshot for `top`."""
    return access.errors(lambda servers: Sampler(servers.shards).sample())


def audits_what_is_emptied(access: Access) -> list[str]:
    """Audit while somebody empties the database under the eyes of it, and say so."""
    read_counters = Recount._read_counters

    def emptied(recount: Recount, pipe: Any) -> Any:  # noqa: ANN401  # as it is
        access.shop.client.flushall()  # under the WATCH
        return read_counters(recount, pipe)

    with patch.object(Recount, "_read_counters", emptied):
        failures = access.complaints("audit")
    return [line for line in failures if "was emptied meanwhile" not in line]


def finds_it_repaired(access: Access) -> list[str]:
    """Repair what somebody else repairs while the question is answered."""

    def repair(*_: object) -> bool:
        access.shop.client.delete(*access.shop.client.scan_iter())
        return True

    with patch("expirer.operate.audit.confirms", repair):
        return access.complaints("audit", "--repair")


def flies_a_canary(access: Access) -> list[str]:
    """Let a live worker expire a hold of its own."""
    access.shop.client.flushall()
    with living_worker(access):
        return access.complaints("check", "--canary")


@contextmanager
def living_worker(access: Access) -> Iterator[None]:
    """Run a worker with every right."""
    settings = Settings(interval="200ms")  # there is no listener to wake it
    worker = Worker(Servers.of(access.server.client(), settings).shards[0], Log().logger())
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        wait_until(lambda: access.shop.client.zcard(access.shop.keys.workers))
        yield
    finally:
        worker.stop()
        thread.join()


def checks_out(access: Access) -> list[str]:
    """Reserve, extend, confirm and release, each of them twice."""

    def shop(checkout: Reservations) -> None:
        for order, end in (("a", checkout.confirm), ("b", checkout.release)):
            for _ in range(2):
                checkout.reserve(order, "mug", 1)
                checkout.extend(order, "mug", timedelta(hours=1))
            end(order, "mug")
            end(order, "mug")

    return access.checkout_errors(shop)


def wakes(access: Access) -> list[str]:
    """Tell sleeping workers of a sooner reservation; where it may not, only the server's log of refusals says so."""
    access.shop.client.execute_command("ACL", "LOG", "RESET")  # type: ignore[no-untyped-call]
    access.shop.client.delete(access.shop.keys.index)
    failures = access.checkout_errors(lambda checkout: checkout.reserve("c", "mug", 1))
    return failures + [f"{reason} {what}" for reason, what in refusals(access.shop.client)]


def moves_to_more_shards(access: Access) -> list[str]:
    """Move to two shards and back, the first time after a question; each time all that is there, and its totals."""
    shop = access.shop
    shop.client.hset(shop.keys.stats, "expired", 5)
    with patch("expirer.operate.reshard.confirms", lambda *_: True):
        failures = access.complaints("reshard", "--to", "2")
    failures = failures or access.complaints("reshard", "--to", "1", "--shards", "2", "--yes")
    if failures:
        return failures
    are_back = shop.counters("mug") == (3, 7) and shop.client.hget(shop.keys.stats, "expired") == b"5"
    return [] if are_back else ["not all is back"]


def gives_way(access: Access) -> list[str]:
    """Stop moving where somebody resumes expiry meanwhile, and say so."""
    move_product = _Move._move_product

    def resumed_before(move: _Move, *arguments: Any) -> None:  # noqa: ANN401  # what it takes
        access.shop.client.delete(access.shop.keys.control)
        move_product(move, *arguments)

    with patch.object(_Move, "_move_product", resumed_before):
        failures = access.complaints("reshard", "--to", "2", "--yes")
    return [line for line in failures if "somebody has resumed expiry" not in line]


def _ticks(access: Access, **settings: Any) -> Log:  # noqa: ANN401  # any setting
    log = Log()
    with connect(access.settings) as client:
        Worker(Servers.of(client, access.settings.model_copy(update=settings)).shards[0], log.logger()).run_once()
    return log


def _errors(log: Log) -> list[str]:
    return [entry["message"] for entry in log.of("processing_error")]


def _unless(access: Access, problem: str, *, is_done: bool) -> list[str]:
    """Return the problem and what the server refused, which no command says, unless all is well."""
    refused = ", ".join(f"{reason} {what}" for reason, what in refusals(access.shop.client))
    return [] if is_done else [f"{problem}; refused: {refused}"]


READING: list[Operation] = [
    _command("status", "--max-lateness", "30000d"),
    _command("pending"),
    _command("show", "old:mug"),
    _command("once", "--dry-run"),
    _command("quarantine", "list"),
    _command("quarantine", "show", "q1:mug"),
    tails,
    watches,
    shows_the_page,
    warns_of_a_short_life,
    _command("audit"),
    audits_what_is_emptied,
]
OPERATIONS: dict[str, list[Operation]] = {
    "expirer": [
        expires,
        pulls_the_brake,
        listens,
        tells_other_workers,
        compares_settings,
        forgets_old_notes,
        checks,
    ],
    "expirer-look": READING,
    "expirer-mend": [
        _command("pause", "--for", "1h"),
        _command("resume", "--yes"),
        _command("quarantine", "requeue", "q1:mug"),
        _command("quarantine", "release", "q2:mug", "--quantity", "1"),
        _command("quarantine", "release", "q3:tea", "--quantity", "1"),
        _command("quarantine", "drop", "q1:mug", "--yes"),
        _command("audit", "--repair", "--yes"),
        finds_it_repaired,
        *READING,
        flies_a_canary,
    ],
    "checkout": [checks_out, wakes],
    "expirer-reshard": [moves_to_more_shards, gives_way],
}
"""User -> all that it is there for; each begins in a shop filled anew."""


def complaints(access: Access, user: str) -> list[str]:
    """Let a user do all that it is there for, up to the first complaint."""
    for operation in OPERATIONS[user]:
        access.fill()
        failures = operation(access)
        if failures:
            return [f"{operation.__name__}: {line}" for line in failures]
    return []
