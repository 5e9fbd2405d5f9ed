"""The audit: it finds each kind of damage, repairs what can be known, and says what it did not compare."""

from __future__ import annotations

import json
from typing import Any

import pytest
import redis

from expirer.config.settings import Settings
from expirer.connection.connect import Servers
from expirer.contract.clock import worker_clock
from expirer.contract.keys import ShardKeys, shard_of
from expirer.contract.text import decode
from expirer.operate import audit as audit_module
from expirer.worker.worker import Worker
from tests.conftest import Log, Operate
from tests.inventory import Inventory
from tests.test_layouts import OWN_WORDS, PLAIN_COUNTERS, TOTAL_AND_RESERVED, flags

FUTURE = 4_102_444_800_000
FINE = "0 found (Active reservations: "


@pytest.fixture
def client(server_client: redis.Redis) -> redis.Redis:
    """Use the real server alone: the fake one has no CLIENT TRACKING, by which an audit hears of what is written."""
    return server_client


@pytest.fixture(autouse=True)
def _no_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here writes a reservation by single commands, so nothing need settle."""
    monkeypatch.setattr(audit_module, "_SETTLE_S", 0.0)


@pytest.fixture
def shop(client: redis.Redis) -> Inventory:
    """A shop in order: ten mugs, three of them held by two reservations."""
    shop = Inventory(client)
    shop.stock("mug", 7, 3)
    shop.hold("mug", 2, FUTURE, "o1:mug", reserved_at=FUTURE - 1000)
    shop.hold("mug", 1, FUTURE + 1, "o2:mug")
    return shop


def kinds(operate: Operate, *flags: str) -> list[tuple[str, str]]:
    """Return kind and id of everything that an audit finds."""
    lines = [json.loads(line) for line in operate("audit", "--json", *flags)[1].splitlines()]
    assert len(lines) - 1 == lines[-1]["summary"]["findings"]
    return sorted((row["kind"], row.get("reservation_id") or row["product_id"]) for row in lines[:-1])


def test_a_shop_in_order_has_no_findings(shop: Inventory, operate: Operate) -> None:
    """Where everything adds up the audit exits 0 and says how much it has looked at."""
    code, out, err = operate("audit")

    assert (code, err) == (0, "")
    assert out.startswith(f"{FINE}2, products: 1, ")
    shop.assert_conserved({"mug": 10})


def test_an_empty_redis_has_no_findings(client: redis.Redis, operate: Operate) -> None:
    """Nothing is in order."""
    assert client.dbsize() == 0

    assert operate("audit")[0] == 0


RESERVATION, STOCK, INDEX = "{inventory}:reservation:o1:mug", "{inventory}:stock:mug", "{inventory}:reservations"
O9 = "{inventory}:reservation:o9:mug order_id o9 product_id mug quantity 1 status"
STALE = "HSET {inventory}:quarantine o9:mug reason=stock_missing"
DAMAGE: dict[str, tuple[list[str], list[tuple[str, str]], tuple[int, int]]] = {
    "left the index": ([f"ZREM {INDEX} o1:mug"], [("not_indexed", "o1:mug")], (7, 3)),
    "left the index, without a time": (
        [f"ZREM {INDEX} o1:mug", f"HDEL {RESERVATION} expires_at"],
        [("not_indexed", "o1:mug")],
        (7, 3),
    ),
    "left the index, due in microseconds": (
        [f"ZREM {INDEX} o1:mug", f"HSET {RESERVATION} expires_at {FUTURE}000"],
        [("not_indexed", "o1:mug")],
        (7, 3),
    ),
    "vanished": (
        [f"DEL {RESERVATION}"],
        [("reservation_missing", "o1:mug"), ("reserved_differs", "mug")],
        (9, 1),
    ),
    "another type": (
        [f"DEL {RESERVATION}", f"SET {RESERVATION} x"],
        [("reservation_wrong_type", "o1:mug"), ("reserved_differs", "mug")],
        (9, 1),
    ),
    "index moved": ([f"ZADD {INDEX} {FUTURE + 777} o1:mug"], [("score_differs", "o1:mug")], (7, 3)),
    "no time": ([f"HSET {RESERVATION} expires_at soon"], [("expires_at_invalid", "o1:mug")], (7, 3)),
    "a time to live": ([f"PEXPIRE {RESERVATION} 600000"], [("active_expires", "o1:mug")], (7, 3)),
    "a time to live in quarantine": (
        [f"ZREM {INDEX} o1:mug", STALE.replace("o9", "o1"), f"PEXPIRE {RESERVATION} {10**15}"],
        [("active_expires", "o1:mug")],
        (7, 3),
    ),
    "a time to live, and not in the index": (
        [f"PEXPIRE {RESERVATION} 600000", f"ZREM {INDEX} o1:mug"],
        [("active_expires", "o1:mug"), ("not_indexed", "o1:mug")],
        (7, 3),
    ),
    "due in microseconds": (
        [f"ZADD {INDEX} {FUTURE}000 o1:mug", f"HSET {RESERVATION} expires_at {FUTURE}000"],
        [("never_due", "o1:mug")],
        (7, 3),
    ),
    "due in nanoseconds by itself": (
        [f"HSET {RESERVATION} expires_at {FUTURE}000000"],
        [("never_due", "o1:mug")],
        (7, 3),
    ),
    "never due in the index": ([f"ZADD {INDEX} +inf o1:mug"], [("never_due", "o1:mug")], (7, 3)),
    "never due, and no time": (
        [f"ZADD {INDEX} +inf o1:mug", f"HDEL {RESERVATION} expires_at"],
        [("never_due", "o1:mug")],
        (7, 3),
    ),
    "due in seconds": (
        [f"ZADD {INDEX} {FUTURE // 1000} o1:mug", f"HSET {RESERVATION} expires_at {FUTURE // 1000}"],
        [("unit_mismatch", "o1:mug")],
        (7, 3),
    ),
    "due in seconds in the index": ([f"ZADD {INDEX} {FUTURE // 1000} o1:mug"], [("unit_mismatch", "o1:mug")], (7, 3)),
    "reserved too large": ([f"HINCRBY {STOCK} reserved 2"], [("reserved_differs", "mug")], (9, 3)),
    "reserved too small": ([f"HINCRBY {STOCK} reserved -1"], [("reserved_differs", "mug")], (6, 3)),
    "reserved negative": ([f"HSET {STOCK} reserved -1"], [("reserved_negative", "mug")], (3, 3)),
    "reserved no number": ([f"HSET {STOCK} reserved {'9' * 4301}"], [("reserved_invalid", "mug")], (7, 3)),
    "reserved missing": ([f"HDEL {STOCK} reserved"], [("reserved_invalid", "mug")], (7, 3)),
    "kept for ever": ([f"HSET {O9} Expired expires_at 1"], [("retention_missing", "o9:mug")], (7, 3)),
    "ended in quarantine": ([f"HSET {O9} Confirmed", STALE], [("quarantine_stale", "o9:mug")], (7, 3)),
    "gone in quarantine": ([STALE], [("quarantine_stale", "o9:mug")], (7, 3)),
    "tried again, then removed from the index": (
        ["HSET {inventory}:quarantine o9:mug reason=reservation_missing\\x20at=1\\x20score=1\\x20retry=1"],
        [("quarantine_stale", "o9:mug")],
        (7, 3),
    ),
}


def damage(client: redis.Redis, commands: list[str]) -> None:
    r"""Run commands as a person would type them; `\x20` is a blank within a word."""
    for command in commands:
        client.execute_command(*(word.replace(r"\x20", " ") for word in command.split()))  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_and_repaired(shop: Inventory, operate: Operate, name: str) -> None:
    """Each kind of damage is found and repaired with a record, and a second run finds nothing."""
    commands, expected, counters = DAMAGE[name]
    damage(shop.client, commands)

    assert expected == kinds(operate)
    code, out, err = operate("audit", "--repair", "--yes")
    assert (code, out.splitlines()[-1]) == (0, f"{len(expected)} repaired, 0 left as they are")
    assert err.count('_repaired"') == len(expected)
    assert operate("audit")[0] == 0
    records: Any = shop.client.xrange(shop.keys.operations)
    assert [kind for kind, _ in expected] == sorted(fields[b"kind"].decode() for _, fields in records)
    assert operate("audit", "--repair", "--yes")[:1] == (0,)
    assert counters == shop.counters("mug")
    if shop.client.type(RESERVATION) == b"string":
        shop.client.delete(RESERVATION)
    shop.assert_conserved({"mug": sum(counters)}, sold={})
    assert -1 in (shop.client.pttl(RESERVATION), shop.client.exists(RESERVATION) - 1)


@pytest.mark.parametrize(
    ("name", "score", "reason"),
    [
        ("left the index", FUTURE, None),
        ("index moved", FUTURE, None),
        ("never due in the index", FUTURE, None),
        ("due in seconds in the index", FUTURE, None),
        ("due in microseconds", None, "unit_mismatch"),
        ("due in nanoseconds by itself", None, "unit_mismatch"),
        ("never due, and no time", None, "unit_mismatch"),
        ("due in seconds", None, "unit_mismatch"),
        ("left the index, due in microseconds", None, "unit_mismatch"),
        ("no time", None, "expires_at_invalid"),
    ],
)
def test_a_wrong_time_is_replaced_or_quarantined(
    shop: Inventory, operate: Operate, name: str, score: float | None, reason: str | None
) -> None:
    """A reservation is indexed at its own expires_at if that is plausible; if not it is quarantined, never guessed."""
    damage(shop.client, DAMAGE[name][0])

    operate("audit", "--repair", "--yes")

    assert score == shop.client.zscore(shop.keys.index, "o1:mug")
    assert reason == shop.quarantine().get("o1:mug")
    shop.assert_conserved({"mug": 10})


@pytest.mark.parametrize(
    ("unit", "due", "expected"),
    [
        ("ms", int(worker_clock()) + 99 * 365 * 86_400_000, []),
        ("ms", int(worker_clock()) + 101 * 366 * 86_400_000, [("never_due", "o1:mug")]),
        ("s", FUTURE // 1000, []),
        ("s", FUTURE, [("never_due", "o1:mug")]),
        ("s", f"{FUTURE // 1000}.5", []),
    ],
    ids=["in a century", "beyond it", "seconds", "ms as seconds", "a fraction"],
)
def test_a_time_is_plausible_for_a_century(
    client: redis.Redis, operate: Operate, unit: str, due: int | str, expected: list[tuple[str, str]]
) -> None:
    """In either unit a time less than a century ahead is believed, and one beyond it never falls due."""
    shop = Inventory(client)
    shop.stock("mug", 8, 2)
    shop.hold("mug", 2, FUTURE, "o1:mug")
    damage(client, [f"ZADD {INDEX} {due} o1:mug", f"HSET {RESERVATION} expires_at {due}"])

    assert expected == kinds(operate, "--score-unit", unit)
    shop.assert_conserved({"mug": 10})


def test_what_a_worker_tries_again_is_in_order(shop: Inventory, operate: Operate) -> None:
    """A reservation whose record or stock was missing a moment ago is later in the index, with a note: no finding."""
    for id_ in ("o1:mug", "lost:mug"):
        shop.client.zadd(shop.keys.index, {id_: FUTURE + 5000})
        shop.client.hset(shop.keys.quarantine, id_, f"reason=stock_missing at={FUTURE} score={FUTURE} retry=1")

    assert kinds(operate) == []
    shop.assert_conserved({"mug": 10})


def test_a_quarantined_hold_that_was_sold_is_not_given_back(shop: Inventory, operate: Operate) -> None:
    """Its entry is stale once it is confirmed by plain commands and its retention is over; a repair removes it."""
    shop.client.zrem(shop.keys.index, "o1:mug")
    shop.client.hset(shop.keys.quarantine, "o1:mug", f"reason=stock_missing at=1 score={FUTURE}")
    damage(shop.client, [f"HSET {RESERVATION} status Confirmed", f"HINCRBY {STOCK} reserved -2"])
    damage(shop.client, [f"DEL {RESERVATION}"])

    code, out, _ = operate("audit")
    assert (code, "reservation: its units are not counted as held" in out) == (1, True)
    assert operate("audit", "--repair", "--yes")[0] == 0
    assert operate("quarantine", "release", "o1:mug", "--quantity", "2", "--product", "mug")[0] == 1
    shop.assert_conserved({"mug": 10}, sold={"mug": 2})


def test_an_entry_without_a_reservation_is_mentioned(shop: Inventory, operate: Operate) -> None:
    """What was quarantined because it had no record stays there; the audit says that its units are not counted."""
    shop.client.zadd(shop.keys.index, {"lost:mug": FUTURE})
    operate("audit", "--repair", "--yes")

    code, out, _ = operate("audit")

    assert (code, shop.quarantine()) == (0, {"lost:mug": "reservation_missing"})
    assert "remark: 1 in quarantine have no reservation: their units are not counted as held; drop them\n" in out
    shop.assert_conserved({"mug": 10})


@pytest.mark.parametrize(
    ("commands", "expected"),
    [
        ([f"HSET {STOCK} available -1"], [("available_negative", "mug")]),
        ([f"HSET {STOCK} available few"], [("available_invalid", "mug")]),
        ([f"HSET {STOCK} available {'9' * 4301}"], [("available_invalid", "mug")]),
        ([f"DEL {STOCK}"], [("stock_missing", "mug")]),
        ([f"DEL {STOCK}", f"LPUSH {STOCK} x"], [("stock_wrong_type", "mug")]),
        ([f"HSET {STOCK} available 0 reserved 1"], [("reserved_differs", "mug")]),
    ],
)
def test_what_cannot_be_known_is_left(
    shop: Inventory, operate: Operate, commands: list[str], expected: list[tuple[str, str]]
) -> None:
    """Where nobody can know what is right, a repair says so, changes nothing and exits 1."""
    damage(shop.client, commands)
    before = shop.client.dump(STOCK)

    assert expected == kinds(operate)
    code, out, _ = operate("audit", "--repair", "--yes")
    assert (code, out.splitlines()[-1]) == (1, "0 repaired, 1 left as they are")
    assert before == shop.client.dump(STOCK)


def test_the_index_of_a_leaked_hold_comes_from_reserved_at(shop: Inventory, operate: Operate) -> None:
    """Without an expires_at a leaked reservation is due at reserved_at and the default duration."""
    shop.client.zrem(shop.keys.index, "o1:mug")
    shop.client.hdel(RESERVATION, "expires_at")

    operate("audit", "--repair", "--yes")

    assert shop.index()[b"o1:mug"] == FUTURE - 1000 + 15 * 60 * 1000
    shop.assert_conserved({"mug": 10})


def test_a_leaked_hold_that_cannot_expire_is_quarantined(shop: Inventory, operate: Operate) -> None:
    """A leaked reservation without a quantity goes to quarantine; its product is not compared, so the audit exits 1."""
    shop.client.zrem(shop.keys.index, "o1:mug")
    shop.client.hset(RESERVATION, "quantity", "two")

    assert kinds(operate) == [("quantity_invalid", "o1:mug")]
    assert operate("audit", "--repair", "--yes")[0] == 1
    code, out, _ = operate("audit")
    assert (code, shop.quarantine()) == (1, {"o1:mug": "quantity_invalid"})
    assert "remark: mug: not compared, a hold of it has no quantity\n" in out
    assert out.splitlines()[-1].startswith("0 found (Active reservations: 2, products: 1, not compared: 1, ")
    assert shop.counters("mug") == (7, 3)


def test_a_repair_asks(shop: Inventory, operate: Operate) -> None:
    """Without --yes, and without a terminal, a repair shows its plan and changes nothing."""
    shop.client.hincrby(STOCK, "reserved", 2)

    code, out, err = operate("audit", "--repair")

    assert (code, err) == (1, "expirer: nothing was changed; repeat this with --yes to repair\n")
    assert (
        "reserved_differs  mug: reserved is 5, its Active reservations hold 3\n  set reserved to 3, available to 9\n"
        in out
    )
    assert shop.counters("mug") == (7, 5)


def test_a_repair_has_no_json(operate: Operate) -> None:
    """--json and --repair together are wrong usage."""
    code, _, err = operate("audit", "--repair", "--json")

    assert code == 2
    assert err.startswith("expirer: --json is for an audit alone")


def test_one_product_alone(shop: Inventory, operate: Operate) -> None:
    """With --product the others are not looked at."""
    shop.stock("tee", 1, 9)

    assert kinds(operate, "--product", "mug") == []
    assert kinds(operate, "--product", "tee") == [("reserved_differs", "tee")]


def test_strangers_are_no_reservations(shop: Inventory, operate: Operate) -> None:
    """Hashes and keys of others under the same prefixes are no findings."""
    shop.client.hset(shop.keys.reservation_prefix + "settings", "theme", "dark")
    shop.client.set(shop.keys.reservation_prefix + "count", 3)
    shop.client.hset(shop.keys.stock_prefix + "settings", "theme", "dark")

    assert kinds(operate) == []


def test_shards_are_all_audited(client: redis.Redis, operate: Operate) -> None:
    """With shards each product is compared on its own shard, and a finding names it."""
    shops = [Inventory(client, ShardKeys.of("inventory", number, 4)) for number in range(4)]
    number = shard_of("mug", 4)
    shops[number].stock("mug", 9, 1)
    shops[number].hold("mug", 1, FUTURE, "o1:mug")
    client.zrem(shops[number].keys.index, "o1:mug")

    (finding,) = [json.loads(line) for line in operate("audit", "--json", "--shards", "4")[1].splitlines()][:-1]

    assert (finding["shard"], finding["kind"]) == (number, "not_indexed")
    assert operate("audit", "--shards", "4", "--repair", "--yes")[0] == 0
    assert kinds(operate, "--shards", "4") == []
    shops[number].assert_conserved({"mug": 10})


def test_a_layout_of_words_of_its_own(client: redis.Redis, operate: Operate) -> None:
    """Names, fields and words of the inventory's own are audited and repaired."""
    client.hset("shop:product:A1", mapping={"onHand": 3, "onHold": 4})
    client.hset("shop:hold:1", mapping={"articleNumber": "A1", "pieces": 2, "state": "PENDING", "heldUntil": FUTURE})

    assert kinds(operate, *flags(OWN_WORDS)) == [("not_indexed", "1"), ("reserved_differs", "A1")]
    assert operate("audit", "--repair", "--yes", *flags(OWN_WORDS))[0] == 0
    assert client.hgetall("shop:product:A1") == {b"onHand": b"5", b"onHold": b"2"}
    assert client.zscore("shop:holds", "1") == FUTURE


def test_a_layout_of_plain_counters(client: redis.Redis, operate: Operate) -> None:
    """Plain counters keep no reserved: only what is leaked is found, and nothing knows when it is due."""
    client.set("stock:mug", 7)
    client.hset("hold:h1", mapping={"sku": "mug", "qty": 2})

    assert kinds(operate, *flags(PLAIN_COUNTERS)) == [("not_indexed", "h1")]
    assert operate("audit", "--repair", "--yes", *flags(PLAIN_COUNTERS))[0] == 0
    assert client.hget("{inventory}:quarantine", "h1") is not None
    assert client.get("stock:mug") == b"7"


def test_a_layout_that_keeps_only_reserved(client: redis.Redis, operate: Operate) -> None:
    """Where available is computed, reserved alone is set."""
    client.hset("stock:tea", mapping={"total": 10, "reserved": 3})
    client.hset("hold:c1:tea", mapping={"sku": "tea", "qty": 2, "expiresAt": FUTURE})
    client.zadd("holds:by-expiry", {"c1:tea": FUTURE})

    assert kinds(operate, *flags(TOTAL_AND_RESERVED)) == [("reserved_differs", "tea")]
    assert operate("audit", "--repair", "--yes", *flags(TOTAL_AND_RESERVED))[0] == 0
    assert client.hgetall("stock:tea") == {b"total": b"10", b"reserved": b"2"}


def test_an_index_of_key_names(client: redis.Redis, operate: Operate) -> None:
    """Where the index holds whole key names the index is walked, and counters are compared all the same."""
    client.hset("stock:mug", mapping={"available": 4, "reserved": 9})
    client.hset("hold:r", mapping={"product_id": "mug", "quantity": 6})
    client.zadd("holds", {"hold:r": FUTURE, "hold:lost": FUTURE})
    layout = ["--index-key=holds", "--reservation-prefix=", "--stock-prefix=stock:"]

    assert kinds(operate, *layout) == [("reservation_missing", "hold:lost"), ("reserved_differs", "mug")]


def test_it_expires_after_the_repair(shop: Inventory, operate: Operate) -> None:
    """What was leaked and is long due expires once it is back in the index."""
    past = int(worker_clock()) - 10_000
    shop.client.hset(RESERVATION, "expires_at", past)
    shop.client.zrem(shop.keys.index, "o1:mug")

    operate("audit", "--repair", "--yes")

    assert Worker(Servers.of(shop.client, Settings()).shards[0], Log().logger()).tick().expired == 1
    shop.assert_conserved({"mug": 10})
    assert shop.counters("mug") == (9, 1)


@pytest.mark.parametrize("id_", [b"\xff:mug", b"\\xff:mug", b"\\x5cxff:mug", "tÿe\x1b:mug".encode(), b"a\0:mug"])
def test_an_id_can_be_given_back_as_printed(client: redis.Redis, operate: Operate, id_: bytes) -> None:
    """Two ids never have the same JSON, and a product's id is found again by what was printed of it."""
    ids = {b"\xff:mug", b"\\xff:mug", b"\\x5cxff:mug", "tÿe\x1b:mug".encode(), b"a\0:mug"}
    for each in ids:
        client.hset(b"{inventory}:reservation:" + each, mapping={"product_id": each, "quantity": 1, "status": "Active"})
        client.hset(b"{inventory}:stock:" + each, mapping={"available": 1, "reserved": 1})
    found = {name for kind, name in kinds(operate) if kind == "not_indexed"}
    printed = decode(id_)

    assert {decode(each) for each in ids} == found
    assert len(ids) == len(found)
    assert kinds(operate, "--product", printed) == [("not_indexed", printed)]
