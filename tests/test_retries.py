"""What may pass by itself is tried again for a minute, and only then quarantined for good."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis

from expirer.contract.reasons import read_entry
from tests.inventory import NOW, Inventory
from tests.lua import Reply, expire, resolve, run
from tests.servers import RedisServer

DUE = NOW - 1000
Vanish = Callable[[Inventory, str], Callable[[], object]]


def without_stock(inventory: Inventory, _id: str) -> Callable[[], object]:
    """Take the stock away; the function returned restores it."""
    return _vanish(inventory, inventory.keys.stock_prefix + "mug")


def without_reservation(inventory: Inventory, id_: str) -> Callable[[], object]:
    """Take the reservation away; the function returned restores it."""
    return _vanish(inventory, inventory.keys.reservation_prefix + id_)


def _vanish(inventory: Inventory, key: str) -> Callable[[], object]:
    row: Any = inventory.client.hgetall(key)
    inventory.client.delete(key)
    return lambda: inventory.client.hset(key, mapping=row)


both = pytest.mark.parametrize(
    ("vanish", "reason"), [(without_stock, "stock_missing"), (without_reservation, "reservation_missing")]
)


@pytest.fixture
def held(inventory: Inventory) -> str:
    """Return the id of an overdue reservation of two mugs of ten."""
    inventory.stock("mug", 8, 2)
    return inventory.hold("mug", 2, DUE, "o1:mug")


def note(inventory: Inventory) -> dict[str, Any]:
    """Return what the quarantine notes of the reservation."""
    entry: Any = inventory.client.hget(inventory.keys.quarantine, "o1:mug")
    return read_entry(entry)


def looks(inventory: Inventory, grace_ms: int = 0, unit_ms: int = 1) -> list[tuple[int, Reply]]:
    """Let a worker look whenever the index says so, until nothing is left in it: ms after NOW, and the reply."""
    found: list[tuple[int, Reply]] = []
    now = NOW
    while len(found) < 20 and inventory.index():
        reply = expire(inventory.client, now_ms=now, grace_ms=grace_ms, unit_ms=unit_ms)
        found.append((now - NOW, reply))
        now = (reply.next or 0) + grace_ms + 1
    return found


@both
def test_what_comes_back_expires(inventory: Inventory, held: str, vanish: Vanish, reason: str) -> None:
    """A key that is gone for a moment costs lateness, no unit: the next look expires the reservation as it was."""
    restore = vanish(inventory, held)
    first = expire(inventory.client)
    restore()
    second = expire(inventory.client, now_ms=NOW + 1001)

    look = str(NOW + 1000)
    assert ([(held.encode(), look.encode())], [], NOW + 1000) == (first.rescheduled, first.quarantined, first.next)
    assert [(held.encode(), b"o1", b"mug", b"2", str(DUE).encode())] == second.expired
    assert ({}, {}) == (inventory.quarantine(), inventory.index())
    events: Any = inventory.client.xrange(inventory.keys.events)
    assert [str(DUE).encode()] == [event[b"expires_at"] for _, event in events]
    inventory.assert_conserved({"mug": 10})
    assert b"0" == inventory.client.hget(inventory.keys.stats, "quarantined"), reason


@both
def test_it_is_final_after_a_minute(inventory: Inventory, held: str, vanish: Vanish, reason: str) -> None:
    """It is tried again after 1, 2, 4, … seconds, and quarantined once it is a minute old; only that is counted."""
    vanish(inventory, held)
    found = looks(inventory)

    assert [0, 1001, 2003, 4007, 8015, 16_031, 32_063, 60_001] == [at for at, _ in found]
    assert [[]] * 7 + [[(held.encode(), reason.encode())]] == [reply.quarantined for _, reply in found]
    assert {"reason": reason, "at": NOW + 60_001, "score": str(DUE), "retry": None} == note(inventory)
    totals: Any = inventory.client.hgetall(inventory.keys.stats)
    assert (b"1", b"1", b"7") == (
        totals[b"quarantined"],
        totals[f"quarantined:{reason}".encode()],
        totals[b"rescheduled"],
    )


@both
def test_a_note_says_what_is_known(inventory: Inventory, held: str, vanish: Vanish, reason: str) -> None:
    """The quarantine has the reason, when it was first seen, the first score and the next, at every look."""
    vanish(inventory, held)
    expire(inventory.client)
    expire(inventory.client, now_ms=NOW + 1001)

    assert {"reason": reason, "at": NOW, "score": str(DUE), "retry": str(NOW + 2002)} == note(inventory)
    assert {held.encode(): NOW + 2002} == inventory.index()


@both
def test_the_time_of_the_index_is_remembered(inventory: Inventory, held: str, vanish: Vanish, reason: str) -> None:
    """Without an expires_at of its own the reservation expires with the score that it had at first."""
    inventory.client.hdel(inventory.keys.reservation_prefix + held, "expires_at")
    restore = vanish(inventory, held)
    expire(inventory.client)
    restore()

    assert [str(DUE).encode()] == [row[4] for row in expire(inventory.client, now_ms=NOW + 1001).expired], reason
    inventory.assert_conserved({"mug": 10})


def test_a_wrong_unit_is_seen_all_the_same(inventory: Inventory, held: str) -> None:
    """The score that is judged is the first one, not the one of the next look."""
    inventory.client.hdel(inventory.keys.reservation_prefix + held, "expires_at")
    inventory.client.zadd(inventory.keys.index, {held: DUE // 1000})
    restore = without_reservation(inventory, held)
    expire(inventory.client)
    restore()

    assert [(held.encode(), b"unit_mismatch")] == expire(inventory.client, now_ms=NOW + 1001).quarantined
    assert (str(DUE // 1000), None) == (note(inventory)["score"], note(inventory)["retry"])
    inventory.assert_conserved({"mug": 10})


@pytest.mark.parametrize("unit_ms", [1, 1000])
@pytest.mark.parametrize("grace_ms", [0, 5000])
def test_grace_and_seconds(inventory: Inventory, unit_ms: int, grace_ms: int) -> None:
    """A grace does not delay the next look, and an index in seconds gets whole seconds."""
    inventory.client.zadd(inventory.keys.index, {"gone": (NOW - 10_000) / unit_ms})
    found = looks(inventory, grace_ms, unit_ms)

    assert 7 <= len(found) <= 8
    assert all(reply.next == int(reply.rescheduled[0][1]) for _, reply in found[:-1])
    assert 1001 <= found[1][0] <= 2001
    assert 60_000 < found[-1][0] <= 62_000
    assert {"gone": "reservation_missing"} == inventory.quarantine()


def test_a_reservation_extended_meanwhile(inventory: Inventory, held: str) -> None:
    """Its note goes, and the index gets its own time."""
    restore = without_reservation(inventory, held)
    expire(inventory.client)
    restore()
    inventory.client.hset(inventory.keys.reservation_prefix + held, "expires_at", NOW + 60_000)

    assert [(held.encode(), str(NOW + 60_000).encode())] == expire(inventory.client, now_ms=NOW + 1001).rescheduled
    assert ({}, {held.encode(): NOW + 60_000}) == (inventory.quarantine(), inventory.index())
    inventory.assert_conserved({"mug": 10})


def test_a_reservation_that_ended_meanwhile(inventory: Inventory, held: str) -> None:
    """It is skipped, and its note goes."""
    restore = without_stock(inventory, held)
    expire(inventory.client)
    restore()
    inventory.client.hset(inventory.keys.reservation_prefix + held, "status", "Confirmed")
    inventory.client.hincrby(inventory.keys.stock_prefix + "mug", "reserved", -2)

    assert [(held.encode(), b"Confirmed")] == expire(inventory.client, now_ms=NOW + 1001).skipped
    assert ({}, {}) == (inventory.quarantine(), inventory.index())
    inventory.assert_conserved({"mug": 10})


@pytest.mark.slow
@pytest.mark.parametrize("others", [0, 250])
def test_a_note_whose_entry_left_the_index_goes(inventory: Inventory, held: str, others: int) -> None:
    """A reservation confirmed by plain commands takes its place in the index with it; idle ticks remove its note."""
    for n in range(others):
        inventory.client.hset(inventory.keys.quarantine, f"old{n}", f"reason=status_unknown at=1 score={DUE}")
    restore = without_stock(inventory, held)
    expire(inventory.client)
    restore()
    inventory.client.hset(inventory.keys.reservation_prefix + held, "status", "Confirmed")
    inventory.client.hincrby(inventory.keys.stock_prefix + "mug", "reserved", -2)
    inventory.client.zrem(inventory.keys.index, held)
    expire(inventory.client, now_ms=NOW + 1000)  # is not due before
    kept = inventory.quarantine()
    for n in range(1, 250):
        expire(inventory.client, now_ms=NOW + 1000 + n)

    assert held in kept
    assert {f"old{n}": "status_unknown" for n in range(others)} == inventory.quarantine()
    inventory.assert_conserved({"mug": 10})


@pytest.mark.parametrize("client", ["server"], indirect=True)
def test_a_note_stays_where_the_quarantine_cannot_be_read(inventory: Inventory, shared_server: RedisServer) -> None:
    """A user without HSCAN keeps such notes, and everything else works."""
    inventory.overdue("mug", 1)
    inventory.client.hset(inventory.keys.quarantine, "gone", f"reason=stock_missing at={DUE} score=1 retry={DUE}")
    user = ["clerk", "reset", "on", ">pw", "+@all", "-hscan", "~*", "&*"]
    inventory.client.execute_command("ACL", "SETUSER", *user)  # type: ignore[no-untyped-call]
    with redis.Redis.from_url(f"{shared_server.url}?username=clerk&password=pw") as clerk:
        assert [1, 0] == [len(expire(clerk).expired) for _ in range(2)]
    inventory.client.execute_command("ACL", "DELUSER", "clerk")  # type: ignore[no-untyped-call]

    assert {"gone": "stock_missing"} == inventory.quarantine()
    expire(inventory.client)
    assert {} == inventory.quarantine()
    inventory.assert_conserved({"mug": 1})


def test_a_note_of_the_past_is_not_mistaken(inventory: Inventory, held: str) -> None:
    """A score that is not the note's was written since: the reservation expires with it, and is tried as if new."""
    inventory.client.hdel(inventory.keys.reservation_prefix + held, "expires_at")
    restore = without_stock(inventory, held)
    expire(inventory.client)
    later = NOW + 59_000
    inventory.client.zadd(inventory.keys.index, {held: later - 500})

    assert [(held.encode(), str(later + 1000).encode())] == expire(inventory.client, now_ms=later).rescheduled
    assert (later, str(later - 500)) == (note(inventory)["at"], note(inventory)["score"])
    restore()
    inventory.client.zadd(inventory.keys.index, {held: later - 400})
    assert [str(later - 400).encode()] == [row[4] for row in expire(inventory.client, now_ms=later).expired]
    inventory.assert_conserved({"mug": 10})


@pytest.mark.parametrize(
    "entry", ["reason=x at=1 score=2", "by hand", f"reason=x at=9{'9' * 400} score=y retry={DUE}", ""]
)
def test_an_entry_that_is_no_note(inventory: Inventory, held: str, entry: str) -> None:
    """What else the quarantine has of an overdue reservation, whoever wrote it, goes when the reservation expires."""
    inventory.client.hset(inventory.keys.quarantine, held, entry)

    assert [str(DUE).encode()] == [row[4] for row in expire(inventory.client).expired]
    assert {} == inventory.quarantine()
    inventory.assert_conserved({"mug": 10})


def test_a_clock_that_went_back(inventory: Inventory, held: str) -> None:
    """A note from the future counts as one of now: the reservation is neither final at once nor tried for ever."""
    without_stock(inventory, held)
    entry = f"reason=stock_missing at={NOW + 10**9} score={DUE - 1} retry={DUE}"
    inventory.client.hset(inventory.keys.quarantine, held, entry)
    found = looks(inventory)

    assert (8, 60_001) == (len(found), found[-1][0])


def test_a_dry_run_reports_it(inventory: Inventory, held: str) -> None:
    """A dry run names what is missing, and writes nothing."""
    without_stock(inventory, held)
    dry = expire(inventory.client, dry_run=1)
    expire(inventory.client)
    again = expire(inventory.client, dry_run=1, now_ms=NOW + 1001)

    assert [[(held.encode(), b"stock_missing")]] * 2 == [dry.quarantined, again.quarantined]
    assert {held.encode(): NOW + 1000} == inventory.index()


def test_nothing_waits_behind_it(inventory: Inventory) -> None:
    """What is missing does not keep those behind it from expiring, in the same batch and the next."""
    inventory.stock("mug", 0, 30)
    for n in range(30):
        inventory.client.zadd(inventory.keys.index, {f"gone{n}": DUE + n})
        inventory.hold("mug", 1, DUE + n)
    replies = [expire(inventory.client, batch=10) for _ in range(6)]

    assert 30 == sum(len(reply.expired) for reply in replies)
    assert (0, 0) == (replies[-1].overdue, sum(len(reply.quarantined) for reply in replies))
    inventory.assert_conserved({"mug": 30})


@pytest.mark.parametrize(("quantity", "code", "counters"), [(2, "released", (10, 0)), (0, "dropped", (8, 2))])
def test_a_note_can_be_resolved(
    inventory: Inventory, held: str, quantity: int, code: str, counters: tuple[int, int]
) -> None:
    """Release and drop work on a note as on any entry: it is not tried again."""
    restore = without_stock(inventory, held)
    expire(inventory.client)
    restore()

    assert code == resolve(inventory, held, quantity)
    assert (counters, {}, {}) == (inventory.counters("mug"), inventory.quarantine(), inventory.index())
    assert "Expired" == inventory.status(held)


def test_a_note_can_be_requeued(inventory: Inventory, held: str) -> None:
    """Requeue puts the entry back at its own time, and the next tick looks at once."""
    restore = without_stock(inventory, held)
    expire(inventory.client)
    restore()
    keys = inventory.keys
    names = [keys.index, keys.reservation_prefix + held, keys.quarantine, keys.operations]

    assert [b"requeued", str(DUE).encode()] == run(inventory.client, "requeue", names, [held, "expires_at", "ann"])
    assert {} == inventory.quarantine()
    assert 1 == len(expire(inventory.client).expired)
    inventory.assert_conserved({"mug": 10})
