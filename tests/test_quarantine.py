"""Repairing what could not be expired: list, show, requeue, release and drop."""

from __future__ import annotations

import json
from typing import Any

import pytest
import redis

from expirer import cli
from expirer.contract.keys import ShardKeys, shard_of
from expirer.contract.text import encode
from expirer.worker.worker import Worker
from tests.conftest import MakeWorker, Operate
from tests.inventory import NOW, Inventory
from tests.servers import RedisServer
from tests.test_layouts import OWN_WORDS, PLAIN_COUNTERS, TOTAL_AND_RESERVED, flags, seed_plain_counters

PAST = NOW - 1000


@pytest.fixture
def poisoned(inventory: Inventory, worker: Worker) -> Inventory:
    """A shop with ten mugs, two of them held by a reservation whose quantity is no number."""
    inventory.stock("mug", 8, 2)
    inventory.hold("mug", "two", PAST, "o1:mug")
    worker.tick()

    assert inventory.quarantine() == {"o1:mug": "quantity_invalid"}
    return inventory


def operations(shop: Inventory) -> list[dict[str, str]]:
    """Return what was done by hand, as the stream tells it."""
    entries: Any = shop.client.xrange(shop.keys.operations)
    return [{name.decode(): value.decode() for name, value in fields.items()} for _, fields in entries]


def test_the_list_counts_each_reason(poisoned: Inventory, operate: Operate) -> None:
    """Every entry is a line, and the last line counts them by reason."""
    poisoned.client.hset(poisoned.keys.quarantine, "by-hand", "looks odd")

    code, out, err = operate("quarantine", "list")

    lines = out.splitlines()
    assert (code, err, len(lines)) == (0, "", 3)
    assert "o1:mug  quantity_invalid since 2027-01-15 08:00:00.000 UTC" in lines
    assert "by-hand  looks odd" in lines
    assert lines[-1].startswith("2 in quarantine: ")
    assert operate("quarantine", "list", "--reason", "stock_missing")[1] == "0 in quarantine\n"


def test_the_list_for_programs(poisoned: Inventory, operate: Operate) -> None:
    """With --json each line is an object."""
    expected: dict[str, Any] = {
        "shard": 0,
        "reservation_id": "o1:mug",
        "reason": "quantity_invalid",
        "at": NOW,
        "score": str(PAST),
    }
    expected["retry"] = None

    assert expected == json.loads(operate("quarantine", "list", "--json")[1])
    assert poisoned.quarantine() == {"o1:mug": "quantity_invalid"}


def test_show_advises(poisoned: Inventory, operate: Operate) -> None:
    """An entry is shown with its reason, and with what to do about it."""
    code, out, _ = operate("quarantine", "show", "o1:mug")

    assert code == 0
    assert "  fields: quantity two\n" in out
    assert "  advice: fix the quantity, then requeue; or release its units\n" in out
    assert operate("quarantine", "show", "o2:mug") == (1, "", "expirer: o2:mug: it is not in quarantine\n")
    assert poisoned.quarantine() == {"o1:mug": "quantity_invalid"}


@pytest.mark.parametrize("which", [["o1:mug"], ["--all"], ["--reason", "quantity_invalid"]])
def test_what_was_fixed_expires_after_requeue(
    poisoned: Inventory, operate: Operate, worker: Worker, which: list[str]
) -> None:
    """Once its cause is fixed, requeue puts an entry back at its own time, and the next tick expires it."""
    poisoned.client.hset(poisoned.keys.reservation_prefix + "o1:mug", "quantity", 2)

    code, out, err = operate("quarantine", "requeue", *which)

    assert (code, out) == (0, "1 requeued\n")
    assert '"event": "reservation_requeued"' in err
    assert (poisoned.index(), poisoned.quarantine()) == ({b"o1:mug": PAST}, {})
    assert [("requeue", "o1:mug")] == [(row["operation"], row["reservation_id"]) for row in operations(poisoned)]
    assert worker.tick().expired == 1
    poisoned.assert_conserved({"mug": 10})
    assert poisoned.counters("mug") == (10, 0)


def test_requeue_twice_changes_nothing(poisoned: Inventory, operate: Operate) -> None:
    """A second requeue finds the reservation in the index, and says so."""
    operate("quarantine", "requeue", "o1:mug")

    assert operate("quarantine", "requeue", "o1:mug") == (0, "1 unchanged\n", "")
    assert len(operations(poisoned)) == 1


def test_requeue_takes_the_time_of_the_entry(poisoned: Inventory, operate: Operate) -> None:
    """Without an expires_at of its own the reservation is due at the score that its entry remembers."""
    poisoned.client.hdel(poisoned.keys.reservation_prefix + "o1:mug", "expires_at")
    poisoned.client.hset(poisoned.keys.quarantine, "lost", "no score in here")

    code, out, err = operate("quarantine", "requeue", "o1:mug", "lost", "unknown")

    assert (code, out) == (1, "1 requeued, 2 refused\n")
    assert "expirer: lost: nothing says when it is due: set its expires_at, then repeat this\n" in err
    assert "expirer: unknown: it is not in quarantine\n" in err
    assert poisoned.index() == {b"o1:mug": PAST}


def test_requeue_wants_to_know_which(operate: Operate) -> None:
    """Without an id, a reason or --all nothing is requeued; with two of them neither."""
    problem = "expirer: quarantine requeue takes ids, or --reason, or --all\n"

    assert operate("quarantine", "requeue") == (2, "", problem)
    assert operate("quarantine", "requeue", "o1:mug", "--all") == (2, "", problem)


def test_release_frees_what_is_stated(poisoned: Inventory, operate: Operate) -> None:
    """Release moves the stated units, marks the reservation Expired, and tells the consumers of the events."""
    code, out, err = operate("quarantine", "release", "o1:mug", "--quantity", "2")

    assert (code, out) == (0, "1 released\n")
    assert '"event": "reservation_released"' in err
    assert (poisoned.counters("mug"), poisoned.quarantine()) == ((10, 0), {})
    assert poisoned.status("o1:mug") == "Expired"
    assert 0 < poisoned.client.pttl(poisoned.keys.reservation_prefix + "o1:mug") <= 24 * 3600 * 1000
    events: Any = poisoned.client.xrange(poisoned.keys.events)
    ((_, event),) = events
    assert (event[b"reservation_id"], event[b"quantity"], event[b"expires_at"]) == (b"o1:mug", b"2", b"%d" % PAST)
    (operation,) = operations(poisoned)
    assert (operation["operation"], operation["product_id"], operation["quantity"]) == ("release", "mug", "2")
    poisoned.assert_conserved({"mug": 10})


def test_release_twice_frees_once(poisoned: Inventory, operate: Operate) -> None:
    """A second release finds no entry: it is refused, and the counters stay."""
    operate("quarantine", "release", "o1:mug", "--quantity", "2")

    code, out, err = operate("quarantine", "release", "o1:mug", "--quantity", "2")

    assert (code, out, err) == (1, "1 refused\n", "expirer: o1:mug: it is not in quarantine\n")
    poisoned.assert_conserved({"mug": 10})


@pytest.mark.parametrize(
    ("stock", "quantity", "why"),
    [
        ({"available": 8, "reserved": 2}, "3", "reserved_too_small: fewer units are reserved than that"),
        ({"available": "x", "reserved": 2}, "2", "available_invalid"),
        ({"available": 8, "reserved": "2.0"}, "2", "reserved_invalid"),
        ({"available": 2**53, "reserved": 2}, "1", "available_overflow"),
        ({"title": "Mug"}, "1", "stock_missing: there is no such product"),
    ],
)
def test_release_never_guesses(
    poisoned: Inventory, operate: Operate, stock: dict[Any, Any], quantity: str, why: str
) -> None:
    """Where the counters cannot take it, release is refused with the reason, and nothing is written."""
    key = poisoned.keys.stock_prefix + "mug"
    poisoned.client.delete(key)
    poisoned.client.hset(key, mapping=stock)
    before = poisoned.client.hgetall(key)

    code, _, err = operate("quarantine", "release", "o1:mug", "--quantity", quantity)

    assert code == 1
    assert err.startswith(f"expirer: o1:mug: {why}")
    assert before == poisoned.client.hgetall(key)
    assert poisoned.quarantine() == {"o1:mug": "quantity_invalid"}
    assert operations(poisoned) == []


def test_release_of_another_product_is_refused(poisoned: Inventory, operate: Operate) -> None:
    """Where the reservation names its product, no other product's units are freed."""
    poisoned.stock("tee", 0, 5)

    code, _, err = operate("quarantine", "release", "o1:mug", "--quantity", "2", "--product", "tee")

    assert (code, err) == (1, "expirer: o1:mug: its reservation is of another product than --product says\n")
    assert poisoned.counters("tee") == (0, 5)


def test_release_of_a_lost_reservation_is_forced(inventory: Inventory, worker: Worker, operate: Operate) -> None:
    """The units of a reservation that was never there are released once the operator insists, and says of what."""
    inventory.stock("mug", 8, 2)
    inventory.client.zadd(inventory.keys.index, {"o1:mug": PAST})
    worker.tick()
    release = ["quarantine", "release", "o1:mug", "--quantity", "2"]

    refused = operate(*release, "--product", "mug")
    of_no_product = operate(*release, "--force")
    code, out, _ = operate(*release, "--force", "--product", "mug")

    assert (refused[0], "o1:mug: there is no such reservation any more" in refused[2]) == (1, True)
    problem = "expirer: o1:mug: its reservation names no product: say which with --product\n"
    assert of_no_product == (1, "1 refused\n", problem)
    assert (code, out) == (0, "1 released\n")
    inventory.assert_conserved({"mug": 10})
    assert inventory.counters("mug") == (10, 0)


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_what_was_sold_and_forgotten_is_not_released(
    poisoned: Inventory, operate: Operate, client: redis.Redis, force: list[str]
) -> None:
    """A quarantined reservation that was confirmed, and whose retention is over, gives no units back a second time."""
    keys = poisoned.keys
    poisoned.stock("mug", 6, 4)
    poisoned.hold("mug", 2, 4_000_000_000_000, "o2:mug")
    client.hset(keys.reservation_prefix + "o1:mug", "status", "Confirmed")
    client.hincrby(keys.stock_prefix + "mug", "reserved", -2)
    client.pexpire(keys.reservation_prefix + "o1:mug", 0)

    code, _, err = operate("quarantine", "release", "o1:mug", "--quantity", "2", "--product", "mug", *force)

    assert (code, poisoned.counters("mug")) == (1, (6, 2))
    assert "it may have been sold" in err
    poisoned.assert_conserved({"mug": 10}, sold={"mug": 2})
    assert operate("quarantine", "drop", "--yes", "o1:mug")[:2] == (0, "1 dropped\n")
    poisoned.assert_conserved({"mug": 10}, sold={"mug": 2})


@pytest.fixture
def waiting(inventory: Inventory, worker: Worker) -> Inventory:
    """A shop with ten mugs, whose stock key was away when a reservation of two of them fell due."""
    inventory.hold("mug", 2, PAST, "o1:mug")
    worker.tick()
    inventory.stock("mug", 8, 2)

    assert (len(inventory.index()), inventory.quarantine()) == (1, {"o1:mug": "stock_missing"})
    return inventory


def test_what_is_tried_again_is_listed_so(waiting: Inventory, operate: Operate) -> None:
    """An entry that waits to be tried again says so, and is counted so."""
    _, out, _ = operate("quarantine", "list")

    assert out.splitlines() == [
        "o1:mug  stock_missing since 2027-01-15 08:00:00.000 UTC, waiting, tried again",
        "1 in quarantine: 1 stock_missing; 1 waiting, tried again",
    ]
    waiting.assert_conserved({"mug": 10})


@pytest.mark.parametrize(
    ("command", "available", "indexed"),
    [("requeue o1:mug", 10, 1), ("release o1:mug --quantity 2", 10, 0), ("drop --yes o1:mug", 8, 0)],
)
def test_what_is_tried_again_can_be_resolved(
    waiting: Inventory, operate: Operate, worker: Worker, command: str, available: int, indexed: int
) -> None:
    """An entry that waits is requeued at its own time, released or dropped as any other, and exactly once."""
    assert operate("quarantine", *command.split())[0] == 0

    assert (waiting.quarantine(), len(waiting.index())) == ({}, indexed)
    assert worker.tick().expired == indexed
    assert waiting.counters("mug") == (available, 10 - available)
    if available == 10:
        waiting.assert_conserved({"mug": 10})


@pytest.mark.parametrize("id_", [b"\xff\xfe", b"\x1b[31m", b"\\xff", b"line\nbreak", b"\0", b"na\xc3\xafve", b"a\\b"])
def test_an_id_is_given_back_as_printed(inventory: Inventory, operate: Operate, id_: bytes) -> None:
    """Ids may be any bytes: what a list or its JSON prints names the entry in the next command, and no other."""
    client: Any = inventory.client
    client.hset(inventory.keys.quarantine, mapping={id_: "by hand", b"xff": "another", id_ + b"\0": "a third"})
    printed = [line.partition("  by hand")[0] for line in operate("quarantine", "list")[1].splitlines()]
    rows = [json.loads(line) for line in operate("quarantine", "list", "--json")[1].splitlines()]
    (named,) = [row["reservation_id"] for row in rows if row["reason"] == "by hand"]
    (shown,) = [line for line in printed if encode(line) == id_]

    assert encode(named) == id_
    assert operate("quarantine", "drop", "--yes", shown)[:2] == (0, "1 dropped\n")
    assert set(client.hkeys(inventory.keys.quarantine)) == {b"xff", id_ + b"\0"}


def test_release_wants_a_unit(operate: Operate) -> None:
    """A quantity of nothing is wrong usage."""
    code, _, err = operate("quarantine", "release", "o1:mug", "--quantity", "0")

    assert (code, err) == (2, "expirer: --quantity 0: an entry holds at least one unit; to release none, drop it\n")


def test_what_has_ended_is_only_dropped(poisoned: Inventory, operate: Operate) -> None:
    """An entry whose reservation was confirmed meanwhile frees nothing; drop removes it and leaves the status."""
    poisoned.client.hset(poisoned.keys.reservation_prefix + "o1:mug", "status", "Confirmed")

    code, _, err = operate("quarantine", "release", "o1:mug", "--quantity", "2")
    dropped = operate("quarantine", "drop", "--yes", "o1:mug")

    assert (code, err) == (1, "expirer: o1:mug: it is Confirmed, so it holds no units: drop the entry\n")
    assert dropped[:2] == (0, "1 dropped\n")
    assert (poisoned.status("o1:mug"), poisoned.counters("mug")) == ("Confirmed", (8, 2))
    assert poisoned.quarantine() == {}


def test_drop_touches_no_counter(poisoned: Inventory, operate: Operate) -> None:
    """Drop ends the reservation and leaves its units where they are counted; no event claims an expiry."""
    code, out, err = operate("quarantine", "drop", "o1:mug", "--yes")

    assert (code, out) == (0, "1 dropped\n")
    assert '"event": "reservation_dropped"' in err
    assert (poisoned.status("o1:mug"), poisoned.counters("mug")) == ("Expired", (8, 2))
    assert (poisoned.quarantine(), poisoned.client.xlen(poisoned.keys.events)) == ({}, 0)
    assert [row["operation"] for row in operations(poisoned)] == ["drop"]


def test_drop_asks(poisoned: Inventory, operate: Operate) -> None:
    """Without --yes, and nobody at a terminal to be asked, nothing is dropped."""
    code, _, err = operate("quarantine", "drop", "o1:mug")

    assert (code, err) == (1, "expirer: see expirer quarantine list, then repeat this with --yes\n")
    assert poisoned.quarantine() == {"o1:mug": "quantity_invalid"}


def test_a_key_of_another_type_is_left_alone(inventory: Inventory, worker: Worker, operate: Operate) -> None:
    """Dropping an entry whose key is no hash touches only the entry."""
    inventory.client.set(inventory.keys.reservation_prefix + "o1:mug", "x")
    inventory.client.zadd(inventory.keys.index, {"o1:mug": PAST})
    worker.tick()

    assert operate("quarantine", "drop", "--yes", "o1:mug")[:2] == (0, "1 dropped\n")
    assert inventory.client.get(inventory.keys.reservation_prefix + "o1:mug") == b"x"


def test_the_quarantine_of_every_shard_is_searched(client: redis.Redis, operate: Operate) -> None:
    """With shards an entry is found where its product lives."""
    shop = Inventory(client, ShardKeys.of("inventory", shard_of("mug", 4), 4))
    shop.stock("mug", 9, 1)
    shop.hold("mug", 1, PAST, "o1:mug")
    client.zrem(shop.keys.index, "o1:mug")
    client.hset(shop.keys.quarantine, "o1:mug", f"reason=stock_missing at=1 score={PAST}")

    assert operate("quarantine", "release", "o1:mug", "--quantity", "1", "--shards", "4")[0] == 0
    shop.assert_conserved({"mug": 10})


def test_plain_counters_take_units_back(client: redis.Redis, make_worker: MakeWorker, operate: Operate) -> None:
    """In a layout of plain counters and seconds, release increments the counter, requeue restores the seconds."""
    seed_plain_counters(client)
    client.hset("hold:h1", "qty", "two")
    client.zadd("holds", {"h3": NOW // 1000 - 5})
    done = make_worker(**PLAIN_COUNTERS).tick()
    assert (done.quarantined, done.rescheduled) == (1, 1)

    released = operate("quarantine", "release", "h1", "--quantity", "2", *flags(PLAIN_COUNTERS))
    requeued = operate("quarantine", "requeue", "h3", *flags(PLAIN_COUNTERS))

    assert (released[0], requeued[0]) == (0, 0)
    assert client.get("stock:mug") == b"9"
    assert client.zscore("holds", "h3") == NOW // 1000 - 5
    assert client.hget("hold:h1", "status") == b"Expired"


def test_without_a_status_the_hold_is_deleted(client: redis.Redis, make_worker: MakeWorker, operate: Operate) -> None:
    """Where only reserved is kept it alone shrinks, and the settled hold is deleted."""
    client.hset("stock:tea", mapping={"total": 10, "reserved": 3})
    client.hset("hold:cart1:tea", mapping={"sku": "tea", "qty": "?", "expiresAt": PAST})
    client.zadd("holds:by-expiry", {"cart1:tea": PAST})
    assert make_worker(**TOTAL_AND_RESERVED).tick().quarantined == 1

    assert operate("quarantine", "release", "cart1:tea", "--quantity", "3", *flags(TOTAL_AND_RESERVED))[0] == 0
    assert client.hgetall("stock:tea") == {b"total": b"10", b"reserved": b"0"}
    assert not client.exists("hold:cart1:tea")


def test_words_of_its_own(client: redis.Redis, make_worker: MakeWorker, operate: Operate) -> None:
    """In a layout with words of its own the settled hold carries the inventory's own word."""
    client.hset("shop:product:A1", mapping={"onHand": 3, "onHold": 2})
    client.hset("shop:hold:1", mapping={"articleNumber": "A1", "pieces": "", "state": "PENDING"})
    client.zadd("shop:holds", {"1": PAST})
    assert make_worker(**OWN_WORDS).tick().quarantined == 1

    assert operate("quarantine", "release", "1", "--quantity", "2", *flags(OWN_WORDS))[0] == 0
    assert client.hgetall("shop:product:A1") == {b"onHand": b"5", b"onHold": b"0"}
    assert client.hget("shop:hold:1", "state") == b"EXPIRED"
    assert client.xlen("shop:hold-events") == 1


@pytest.mark.parametrize("command", ["release o1:mug --quantity 2", "requeue o1:mug", "drop o1:mug --yes"])
@pytest.mark.parametrize("missing", ["hset", "hdel", "xadd", "zrem", "zadd", "pexpire", "events", "stock"])
def test_a_missing_right_does_nothing_half(
    server_client: redis.Redis,
    shared_server: RedisServer,
    capsys: pytest.CaptureFixture[str],
    command: str,
    missing: str,
) -> None:
    """Without a right that it needs a command moves no unit, says which in one line, and can be repeated."""
    shop = Inventory(server_client)
    shop.stock("mug", 8, 2)
    shop.hold("mug", "two", PAST, "o1:mug")
    server_client.zrem(shop.keys.index, "o1:mug")
    server_client.hset(shop.keys.quarantine, "o1:mug", f"reason=quantity_invalid at=1 score={PAST}")
    keys = [*vars_of(shop.keys, but=missing), "~*:reservation:*"] + ["~*:stock:*"] * (missing != "stock")
    user = ["clerk", "on", ">pw", *keys, "&*", "+@all", f"-{missing}" if missing not in ("events", "stock") else "+get"]
    server_client.execute_command("ACL", "SETUSER", *user)  # type: ignore[no-untyped-call]
    try:
        url = f"{shared_server.url}?username=clerk&password=pw"
        code = cli.main(["quarantine", *command.split(), "--redis-url", url])
    finally:
        server_client.execute_command("ACL", "DELUSER", "clerk")  # type: ignore[no-untyped-call]
    err = capsys.readouterr().err

    if code:
        assert (8, 2) == shop.counters("mug")
        assert len(err.splitlines()) == 1
        assert shop.quarantine() == {"o1:mug": "quantity_invalid"}
        assert cli.main(["quarantine", *command.split(), "--redis-url", shared_server.url]) in (0, 1)
    if command.startswith("release") and shop.status("o1:mug") == "Expired" and not shop.quarantine():
        shop.assert_conserved({"mug": 10})


def vars_of(keys: ShardKeys, but: str) -> list[str]:
    """Return key patterns for all names of a shard but one."""
    names = ("index", "events", "quarantine", "control", "stats", "workers", "operations", "wake")
    return [f"~{getattr(keys, name)}" for name in names if name != but]
