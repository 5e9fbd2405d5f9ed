"""What `expirer pending` and `expirer show` tell of single reservations."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import redis

from expirer import cli
from expirer.contract.clock import worker_clock
from expirer.contract.keys import ShardKeys, shard_of
from tests.inventory import Inventory
from tests.servers import RedisServer

Operate = Callable[..., tuple[int, str, str]]
PAST = 1_700_000_000_000


@pytest.fixture
def command(shared_server: RedisServer, capsys: pytest.CaptureFixture[str]) -> Operate:
    """Return a function that runs a command against the real server: exit code, standard output, standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.main([*arguments, "--redis-url", shared_server.url])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def shop(server_client: redis.Redis) -> Inventory:
    """A shop with 250 mugs and a tee reserved, the tee last."""
    shop = Inventory(server_client)
    shop.stock("mug", 0, 250)
    shop.stock("tee", 0, 1)
    for number in range(250):
        shop.hold("mug", 1, PAST + number, f"o{number}:mug")
    shop.hold("tee", 1, int(worker_clock()) + 60_000, "o250:\x1btee")
    return shop


def test_the_soonest_come_first(shop: Inventory, command: Operate) -> None:
    """Without options the next twenty are listed in the order in which they fall due."""
    code, out, err = command("pending")

    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == [f"o{number}:mug" for number in range(20)]
    assert out.startswith("o0:mug  1 of mug, due 2023-11-14 22:13:20.000 UTC\n")
    shop.assert_conserved({"mug": 250, "tee": 1})


def test_one_product_is_found_behind_the_others(shop: Inventory, command: Operate) -> None:
    """`--product` looks past other products; control characters are shown, not obeyed."""
    code, out, _ = command("pending", "--product", "tee", "--json")

    assert code == 0
    assert json.loads(out)["reservation_id"] == "o250:\x1btee"
    assert command("pending", "--product", "tee")[1].startswith("o250:\\x1btee  1 of tee, due ")
    shop.assert_conserved({"mug": 250, "tee": 1})


@pytest.mark.parametrize(("within", "count"), [("1s", 250), ("5m", 251)])
def test_only_what_falls_due_in_time(shop: Inventory, command: Operate, within: str, count: int) -> None:
    """`--due-within` ends the list at that moment of the server's clock."""
    _, out, _ = command("pending", "--due-within", within, "--limit", "1000", "--json")

    assert len(out.splitlines()) == count
    shop.assert_conserved({"mug": 250, "tee": 1})


def test_nothing_pending_is_said(server_client: redis.Redis, command: Operate) -> None:
    """An empty Redis is no error."""
    assert server_client.dbsize() == 0

    assert command("pending") == (0, "none among the next 10,000 of each shard\n", "")


def test_a_products_own_shard_is_asked(server_client: redis.Redis, command: Operate) -> None:
    """With shards the product's shard is the one that is read."""
    number = shard_of("mug", 4)
    Inventory(server_client, ShardKeys.of("inventory", number, 4)).hold("mug", expires_at=PAST)

    _, out, _ = command("pending", "--product", "mug", "--shards", "4", "--json")

    assert json.loads(out)["shard"] == number


def test_the_soonest_of_all_shards_come_first(server_client: redis.Redis, command: Operate) -> None:
    """With shards the list is one, by ExpiresAt, whatever shard each is on."""
    for number in range(3):
        shop = Inventory(server_client, ShardKeys.of("inventory", number, 3))
        for step in range(4):
            shop.hold("mug", 1, PAST + 3 * step - number, f"o{3 * step - number}:mug")

    _, out, _ = command("pending", "--shards", "3", "--limit", "7")

    assert [line.split()[0] for line in out.splitlines()] == [f"o{n}:mug" for n in range(-2, 5)]


IDS = [
    b"o\xff:mug",
    rb"o\xff:mug",
    rb"o\x5cxff:mug",
    b"o\x1b[2J:mug",
    b"o\n:mug",
    "o\u202e:mug".encode(),
    "o\x85:mug".encode(),
]
"""Each another's id as a program might write it that escapes what it cannot print."""


def test_ids_are_given_back_as_printed(server_client: redis.Redis, command: Operate) -> None:
    """Any id that `pending` prints, on a terminal or as JSON, is the one that `show` finds; no two look alike."""
    shop = Inventory(server_client)
    for number, id_ in enumerate(IDS):
        key: Any = shop.keys.reservation_prefix.encode() + id_
        server_client.hset(key, mapping={b"product_id": id_, b"quantity": number})
        server_client.zadd(shop.keys.index, {id_: PAST + number})

    printed = [line.split("  ")[0] for line in command("pending")[1].splitlines()]
    rows = [json.loads(line) for line in command("pending", "--json")[1].splitlines()]

    assert [len(IDS)] * 2 == [len(set(printed)), len({row["reservation_id"] for row in rows})]
    for number, texts in enumerate(zip(printed, (row["reservation_id"] for row in rows), strict=True)):
        for text in texts:
            assert f"  fields: quantity {number}\n" in command("show", text)[1]
            assert json.loads(command("pending", "--json", "--product", text)[1]) == rows[number]


def test_numbers_are_numbers(shop: Inventory, command: Operate) -> None:
    """JSON has a quantity as a number; what is no number stands as its text, and nothing as null."""
    shop.hold("mug", "two", 1, "o251:mug")
    shop.hold("mug", None, 2, "o252:mug")

    rows = [json.loads(line) for line in command("pending", "--json", "--limit", "3")[1].splitlines()]

    assert [row["quantity"] for row in rows] == ["two", None, 1]


def test_damage_is_listed_too(shop: Inventory, command: Operate) -> None:
    """What is not a reservation is listed with question marks."""
    shop.client.set(shop.keys.reservation_prefix + "bad", "x")
    shop.client.zadd(shop.keys.index, {"bad": 1})

    assert command("pending", "--limit", "1")[1].startswith("bad  ? of ?, due 1970-")


def test_everything_of_an_active_one(shop: Inventory, command: Operate) -> None:
    """An Active reservation is shown with its fields and its place in the index."""
    code, out, err = command("show", "o7:mug")

    assert (code, err) == (0, "")
    assert out.startswith("shard 0, {inventory}:reservation:o7:mug\n  fields: order_id o7\n")
    assert out.endswith("  index: due 2023-11-14 22:13:20.007 UTC\n  quarantine: not in it\n")
    shop.assert_conserved({"mug": 250, "tee": 1})


def test_everything_of_an_expired_one(shop: Inventory, command: Operate) -> None:
    """An Expired reservation is shown with its event."""
    assert command("once")[0] == 0

    code, out, _ = command("show", "o7:mug", "--json")

    known = json.loads(out)
    assert code == 0
    assert (known["fields"]["status"], known["expires_at"]) == ("Expired", None)
    assert known["event"]["reservation_id"] == "o7:mug"
    shop.assert_conserved({"mug": 250, "tee": 1})


def test_a_quarantined_one_and_a_wrong_type(shop: Inventory, command: Operate) -> None:
    """A quarantine entry is enough to be shown; a key of another type is named."""
    shop.client.set(shop.keys.reservation_prefix + "bad", "x")
    shop.client.hset(shop.keys.quarantine, "bad", "reason=reservation_wrong_type at=1 score=1")

    code, out, _ = command("show", "bad")

    assert code == 0
    assert "  fields: type string where a hash belongs\n" in out
    assert "  quarantine: reason=reservation_wrong_type at=1 score=1\n" in out


@pytest.mark.parametrize("line", ["status --max-lateness 30000d", "pending", "show o7:mug", "once --dry-run"])
def test_reading_needs_no_right_to_write(
    shop: Inventory, shared_server: RedisServer, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    """A user who may only read can use every command that only reads."""
    reads = "hgetall hget hmget zscore xrange zrange zrangebyscore zcount zcard hlen time type exists multi exec"
    allowed = [f"+{name}" for name in (*reads.split(), "evalsha", "script|load", "client|setname")]
    user = ["reader", "on", ">pw", "~{inventory}*", *allowed]
    shop.client.execute_command("ACL", "SETUSER", *user)  # type: ignore[no-untyped-call]
    shop.client.zadd(shop.keys.workers, {"w": worker_clock()})
    try:
        code = cli.main([*line.split(), "--redis-url", f"{shared_server.url}?username=reader&password=pw"])
    finally:
        shop.client.execute_command("ACL", "DELUSER", "reader")  # type: ignore[no-untyped-call]

    assert (code, capsys.readouterr().err) == (0, "")
    shop.assert_conserved({"mug": 250, "tee": 1})


def test_no_trace_is_one_line(server_client: redis.Redis, command: Operate) -> None:
    """An id of which nothing is known exits 1 with one line."""
    assert server_client.dbsize() == 0

    assert command("show", "o1:mug") == (1, "", "expirer: o1:mug: no reservation, index entry or quarantine entry\n")
