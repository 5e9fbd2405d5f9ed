"""The audit: finds each kind of damage, mends what can be known, and is not misled by live traffic."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
import redis

from expirer import cli
from expirer.config.settings import Settings
from expirer.connection.connect import Servers
from expirer.contract.clock import worker_clock
from expirer.contract.keys import ShardKeys, shard_of
from expirer.operate import audit as audit_module
from expirer.operate.inventory_scan import InventoryScan
from expirer.worker.worker import Worker
from tests.conftest import Log, Operate
from tests.inventory import Inventory
from tests.proxy import Gate, Proxy, Way
from tests.servers import RedisServer
from tests.test_layouts import OWN_WORDS, PLAIN_COUNTERS, TOTAL_AND_RESERVED, flags
from tests.traffic import PRODUCTS, STOCKED, Traffic

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


RESERVATION, STOCK = "{inventory}:reservation:o1:mug", "{inventory}:stock:mug"
DAMAGE = {
    "left the index": ["ZREM {inventory}:reservations o1:mug"],
    "left the index, without a time": [
        "ZREM {inventory}:reservations o1:mug",
        f"HDEL {RESERVATION} expires_at",
    ],
    "vanished": [f"DEL {RESERVATION}"],
    "another type": [f"DEL {RESERVATION}", f"SET {RESERVATION} x"],
    "index moved": ["ZADD {inventory}:reservations 4102444800777 o1:mug"],
    "reserved too large": [f"HINCRBY {STOCK} reserved 2"],
    "reserved too small": [f"HINCRBY {STOCK} reserved -1"],
    "reserved negative": [f"HSET {STOCK} reserved -1"],
    "reserved no number": [f"HSET {STOCK} reserved many"],
    "reserved missing": [f"HDEL {STOCK} reserved"],
    "kept for ever": [
        "HSET {inventory}:reservation:o9:mug order_id o9 product_id mug quantity 1 status Expired expires_at 1"
    ],
    "stale quarantine": [
        "HSET {inventory}:reservation:o9:mug order_id o9 product_id mug quantity 1 status Confirmed",
        "HSET {inventory}:quarantine o9:mug reason=stock_missing",
    ],
}
FOUND: dict[str, tuple[list[tuple[str, str]], tuple[int, int]]] = {
    "left the index": ([("not_indexed", "o1:mug")], (7, 3)),
    "left the index, without a time": ([("not_indexed", "o1:mug")], (7, 3)),
    "vanished": ([("reservation_missing", "o1:mug"), ("reserved_differs", "mug")], (9, 1)),
    "another type": ([("reservation_wrong_type", "o1:mug"), ("reserved_differs", "mug")], (9, 1)),
    "index moved": ([("score_differs", "o1:mug")], (7, 3)),
    "reserved too large": ([("reserved_differs", "mug")], (9, 3)),
    "reserved too small": ([("reserved_differs", "mug")], (6, 3)),
    "reserved negative": ([("reserved_negative", "mug")], (3, 3)),
    "reserved no number": ([("reserved_invalid", "mug")], (7, 3)),
    "reserved missing": ([("reserved_invalid", "mug")], (7, 3)),
    "kept for ever": ([("retention_missing", "o9:mug")], (7, 3)),
    "stale quarantine": ([("quarantine_stale", "o9:mug")], (7, 3)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_and_mended(shop: Inventory, operate: Operate, damage: str) -> None:
    """Each kind of damage is found and mended with a record, and a second run finds nothing."""
    for command in DAMAGE[damage]:
        shop.client.execute_command(*command.split())  # type: ignore[no-untyped-call]
    expected, counters = FOUND[damage]

    assert expected == kinds(operate)
    code, out, err = operate("audit", "--repair", "--yes")
    assert (code, out.splitlines()[-1]) == (0, f"{len(expected)} mended, 0 left as they are")
    assert err.count('_repaired"') == len(expected)
    assert operate("audit")[0] == 0
    assert counters == shop.counters("mug")
    records: Any = shop.client.xrange(shop.keys.operations)
    assert [kind for kind, _ in expected] == sorted(fields[b"kind"].decode() for _, fields in records)
    assert operate("audit", "--repair", "--yes")[:1] == (0,)


@pytest.mark.parametrize(
    ("commands", "expected"),
    [
        ([f"HSET {STOCK} available -1"], [("available_negative", "mug")]),
        ([f"HSET {STOCK} available few"], [("available_invalid", "mug")]),
        ([f"DEL {STOCK}"], [("stock_missing", "mug")]),
        ([f"DEL {STOCK}", f"LPUSH {STOCK} x"], [("stock_wrong_type", "mug")]),
        ([f"HSET {STOCK} available 0 reserved 1"], [("reserved_differs", "mug")]),
    ],
)
def test_what_cannot_be_known_is_left(
    shop: Inventory, operate: Operate, commands: list[str], expected: list[tuple[str, str]]
) -> None:
    """Where nobody can know what is right, a repair says so, changes nothing and exits 1."""
    for command in commands:
        shop.client.execute_command(*command.split())  # type: ignore[no-untyped-call]
    before = shop.client.dump(STOCK)

    assert expected == kinds(operate)
    code, out, _ = operate("audit", "--repair", "--yes")
    assert (code, out.splitlines()[-1]) == (1, "0 mended, 1 left as they are")
    assert before == shop.client.dump(STOCK)


def test_the_index_of_a_leaked_hold_comes_from_reserved_at(shop: Inventory, operate: Operate) -> None:
    """Without an expires_at a leaked reservation is due at reserved_at and the default duration."""
    shop.client.zrem(shop.keys.index, "o1:mug")
    shop.client.hdel(RESERVATION, "expires_at")

    operate("audit", "--repair", "--yes")

    assert shop.index()[b"o1:mug"] == FUTURE - 1000 + 15 * 60 * 1000
    shop.assert_conserved({"mug": 10})


def test_a_leaked_hold_that_cannot_expire_is_quarantined(shop: Inventory, operate: Operate) -> None:
    """A leaked reservation without a quantity goes to quarantine; its product's counters are not compared."""
    shop.client.zrem(shop.keys.index, "o1:mug")
    shop.client.hset(RESERVATION, "quantity", "two")

    assert kinds(operate) == [("quantity_invalid", "o1:mug")]
    assert operate("audit", "--repair", "--yes")[0] == 0
    code, out, _ = operate("audit")
    assert (code, shop.quarantine()) == (0, {"o1:mug": "quantity_invalid"})
    assert "remark: mug: not compared, a quarantined hold of it has no quantity\n" in out
    assert shop.counters("mug") == (7, 3)


def test_a_repair_asks(shop: Inventory, operate: Operate) -> None:
    """Without --yes, and nobody at a terminal, a repair shows its plan and changes nothing."""
    shop.client.hincrby(STOCK, "reserved", 2)

    code, out, err = operate("audit", "--repair")

    assert (code, err) == (1, "expirer: nothing was changed; repeat this with --yes to mend\n")
    assert (
        "reserved_differs  mug: reserved is 5, its Active reservations hold 3\n  set reserved to 3, available to 9\n"
        in out
    )
    assert shop.counters("mug") == (7, 5)


def test_a_repair_has_no_json(operate: Operate) -> None:
    """--json and --repair together are wrong usage."""
    code, _, err = operate("audit", "--repair", "--json")

    assert code == 2
    assert err.startswith("expirer: --json goes with audit alone")


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
    """Names, fields and words of the inventory's own are audited and mended."""
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


@pytest.mark.parametrize("missing", ["-client", "-evalsha", "-scan"])
def test_a_missing_right_is_said(
    shop: Inventory, shared_server: RedisServer, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    """Without CLIENT TRACKING the counters are not compared, and that is said; without other rights it is one line."""
    shop.client.hincrby(STOCK, "reserved", 2)
    shop.client.execute_command(
        "ACL", "SETUSER", "clerk", "on", ">pw", "~*", "&*", "+@all", missing, "+client|setname", "+client|id"
    )  # type: ignore[no-untyped-call]
    try:
        code = cli.main(["audit", "--redis-url", f"{shared_server.url}?username=clerk&password=pw"])
    finally:
        shop.client.execute_command("ACL", "DELUSER", "clerk")  # type: ignore[no-untyped-call]

    out, err = capsys.readouterr()
    if missing == "-client":
        assert (code, err) == (0, "")
        assert "remark: the counters were not compared, without CLIENT TRACKING: " in out
    else:
        assert (code, err.count("\n")) == (1, 1)


@pytest.mark.parametrize("seed", range(10))
def test_live_traffic_gives_no_false_alarm(
    client: redis.Redis, shared_server: RedisServer, operate: Operate, seed: int
) -> None:
    """Beside reserve, confirm, release and expire the audit finds what was damaged, and nothing else."""
    shop = Inventory(client)
    shop.stock("cup", 5, 5)
    shop.hold("cup", 5, FUTURE, "leaked:cup")
    client.zrem(shop.keys.index, "leaked:cup")
    with Traffic(shared_server.url, seed) as traffic:
        found = kinds(operate)
        client.hincrby(shop.keys.stock_prefix + "pot", "reserved", 7)
        damaged = kinds(operate)
        code, out, _ = operate("audit", "--repair", "--yes")
        again = kinds(operate)
    steps = traffic.steps

    assert found == [("not_indexed", "leaked:cup")]
    assert damaged == [("not_indexed", "leaked:cup"), ("reserved_differs", "pot")]
    assert (code, out.splitlines()[-1], again) == (0, "2 mended, 0 left as they are", [])
    assert min(steps["reserved"], steps["ended"], steps["expired"]) > 50
    shop.assert_conserved({**dict.fromkeys(PRODUCTS, STOCKED), "pot": STOCKED + 7, "cup": 10})
    assert kinds(operate) == []


@pytest.mark.parametrize(("held", "done"), [("request", 39), ("reply", 40)])
def test_a_repair_killed_half_way_has_done_whole_steps(
    own_server: RedisServer, capsys: pytest.CaptureFixture[str], held: Way, done: int
) -> None:
    """A repair that is killed has mended some findings wholly and the others not at all; the next run ends it."""
    repair = ["audit", "--repair", "--yes", "--redis-url"]
    products = [f"p{number}" for number in range(30)]
    gate = Gate(2 * len(products) + 40, held)  # each product is counted twice before anything is mended
    with own_server.client() as client:
        shop = Inventory(client)
        for product_id in products:
            shop.stock(product_id, 8, 4)
            shop.hold(product_id, 2, FUTURE, f"o:{product_id}")
            client.zrem(shop.keys.index, f"o:{product_id}")
        with Proxy(own_server.port, gate) as proxy:
            command = [sys.executable, "-m", "expirer", *repair, proxy.url]
            with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
                gate.wait_until_held()
                process.send_signal(signal.SIGKILL)
        counters = Counter(map(shop.counters, products))

        assert done == client.xlen(shop.keys.operations)
        assert done == client.zcard(shop.keys.index) + counters[10, 2]
        assert {(10, 2), (8, 4)} == set(counters)
        assert 0 == cli.main([*repair, own_server.url])
        assert f"\n{60 - done} mended, 0 left as they are\n" in capsys.readouterr().out
        assert 0 == cli.main(["audit", "--redis-url", own_server.url])
        shop.assert_conserved(dict.fromkeys(products, 12))


@pytest.fixture
def write_in_between(monkeypatch: pytest.MonkeyPatch, client: redis.Redis) -> list[int]:
    """Let somebody write the mug's counters each time after they were read, as often as the list says."""
    left = [0]
    watch = audit_module._Recount._watch

    def read_then_write(recount: Any, pipe: Any) -> Any:  # noqa: ANN401
        count = watch(recount, pipe)
        if left[0]:
            left[0] -= 1
            client.hincrby(STOCK, "available", 1)
        return count

    monkeypatch.setattr(audit_module._Recount, "_watch", read_then_write)
    return left


def test_a_conflict_is_logged_and_tried_again(
    shop: Inventory, operate: Operate, monkeypatch: pytest.MonkeyPatch, write_in_between: list[int]
) -> None:
    """Where somebody writes between recount and commit nothing is done, that is logged, and it is tried again."""
    shop.client.hincrby(STOCK, "reserved", 2)
    mend = audit_module._Audit.mend

    def mend_in_between(*arguments: Any) -> Any:  # noqa: ANN401
        write_in_between[0] = 3
        return mend(*arguments)

    monkeypatch.setattr(audit_module._Audit, "mend", mend_in_between)

    code, out, err = operate("audit", "--repair", "--yes")

    assert (code, out.splitlines()[-1]) == (0, "1 mended, 0 left as they are")
    assert err.count('"event": "concurrency_conflict"') == 3
    assert shop.counters("mug") == (12, 3)


def test_a_product_that_never_rests_is_said(
    shop: Inventory, operate: Operate, monkeypatch: pytest.MonkeyPatch, write_in_between: list[int]
) -> None:
    """A product that is written each time between read and commit is named as not compared, never as damaged."""
    monkeypatch.setattr(audit_module, "_ATTEMPTS", 3)
    write_in_between[0] = 10
    shop.client.hincrby(STOCK, "reserved", 2)

    code, out, _ = operate("audit")

    assert code == 0
    assert "remark: mug: not compared, it was written all the time\n" in out


def test_it_expires_after_the_repair(shop: Inventory, operate: Operate) -> None:
    """What was leaked and is long due expires once it is back in the index."""
    past = int(worker_clock()) - 10_000
    shop.client.hset(RESERVATION, "expires_at", past)
    shop.client.zrem(shop.keys.index, "o1:mug")

    operate("audit", "--repair", "--yes")

    assert Worker(Servers.of(shop.client, Settings()).shards[0], Log().logger()).tick().expired == 1
    shop.assert_conserved({"mug": 10})
    assert shop.counters("mug") == (9, 1)


def test_a_flush_in_the_middle_is_one_line(shop: Inventory, operate: Operate, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that is emptied under the audit ends it with one line."""
    products = InventoryScan.products

    def empty(survey: Any, tell: Any) -> Any:  # noqa: ANN401
        yield from products(survey, tell)
        shop.client.flushdb()
        yield 0, b"mug"

    monkeypatch.setattr(InventoryScan, "products", empty)

    code, _, err = operate("audit")

    assert (code, err.count("\n")) == (1, 1)
    assert err.endswith(": the database was emptied meanwhile\n")
