"""Ids may be any bytes, and an id may name any key: none of them stops a shard, or is taken for another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import redis

from tests.inventory import NOW, Inventory
from tests.lua import expire, reshard, resolve
from tests.servers import RedisServer

DUE = NOW - 1000


@pytest.fixture
def clerk(server_client: redis.Redis, shared_server: RedisServer) -> Iterator[redis.Redis]:
    """Connect as a user who may read and write the inventory and `hold:…`, and at most read `show:…`."""
    user = ["clerk", "reset", "on", ">pw", "+@all", "&*", "~{inventory}:*", "~hold:*", "~stock:*"]
    server_client.execute_command("ACL", "SETUSER", *user)  # type: ignore[no-untyped-call]
    with suppress(redis.ResponseError):  # Redis 6.2 has no rights to read and not write
        server_client.execute_command("ACL", "SETUSER", "clerk", "%R~show:*")  # type: ignore[no-untyped-call]
    with redis.Redis.from_url(f"{shared_server.url}?username=clerk&password=pw") as client:
        yield client
    server_client.execute_command("ACL", "DELUSER", "clerk")  # type: ignore[no-untyped-call]


def write_hold(client: redis.Redis, key: str, product: str = "stock:mug") -> None:
    """Write an overdue reservation of one unit under any key, which is its name in the index, too."""
    client.hset(key, mapping={"product_id": product, "quantity": 1, "status": "Active"})
    client.zadd("{inventory}:reservations", {key: DUE})


@pytest.mark.parametrize("key", ["secret", "show:1"], ids=["read", "write"])
def test_an_entry_that_names_a_foreign_key_is_judged_alone(
    server_client: redis.Redis, clerk: redis.Redis, key: str
) -> None:
    """With an empty prefix a member may name a key that the user may not use: it is quarantined, the others expire."""
    server_client.hset("stock:mug", mapping={"available": 7, "reserved": 3})
    for name in ("hold:1", key, "hold:2"):
        write_hold(server_client, name)
    reply = expire(clerk, reservation_prefix="", stock_prefix="")

    assert [(key.encode(), b"key_forbidden")] == reply.quarantined
    assert [b"hold:1", b"hold:2"] == [row[0] for row in reply.expired]
    assert [b"9", b"1"] == server_client.hmget("stock:mug", "available", "reserved")
    assert b"Active" == server_client.hget(key, "status")
    assert {key: "key_forbidden"} == Inventory(server_client).quarantine()


@pytest.mark.parametrize("product", ["secret", "show:1"], ids=["read", "write"])
def test_a_product_that_names_a_foreign_key_is_judged_alone(
    server_client: redis.Redis, clerk: redis.Redis, product: str
) -> None:
    """With an empty prefix a product id may name a key that the user may not use: nothing of it changes."""
    for stock in ("stock:mug", product):
        server_client.hset(stock, mapping={"available": 7, "reserved": 3})
    write_hold(server_client, "hold:1", product)
    write_hold(server_client, "hold:2")
    reply = expire(clerk, reservation_prefix="", stock_prefix="")

    assert [(b"hold:1", b"key_forbidden")] == reply.quarantined
    assert [b"hold:2"] == [row[0] for row in reply.expired]
    assert [b"8", b"2"] == server_client.hmget("stock:mug", "available", "reserved")
    assert [b"7", b"3"] == server_client.hmget(product, "available", "reserved")


@pytest.mark.parametrize("prefix", ["secret:", "show:"], ids=["read", "write"])
@pytest.mark.parametrize("kind", ["reservation_prefix", "stock_prefix"])
def test_a_prefix_that_is_refused_concerns_all(
    server_client: redis.Redis, clerk: redis.Redis, kind: str, prefix: str
) -> None:
    """Behind a prefix a refusal is a missing right, not a bad entry: it is raised, and nothing changes."""
    prefixes = {"reservation_prefix": "hold:", "stock_prefix": "stock:"} | {kind: prefix}
    server_client.hset(prefixes["stock_prefix"] + "mug", mapping={"available": 7, "reserved": 1})
    server_client.hset(prefixes["reservation_prefix"] + "1", mapping={"product_id": "mug", "quantity": 1})
    server_client.zadd("{inventory}:reservations", {"1": DUE})

    with pytest.raises(redis.ResponseError):
        expire(clerk, **prefixes)
    assert [b"7", b"1"] == server_client.hmget(prefixes["stock_prefix"] + "mug", "available", "reserved")
    assert ({}, {b"1": DUE}) == (Inventory(server_client).quarantine(), Inventory(server_client).index())


@pytest.mark.parametrize("missing", ["-hmget", "-type"])
def test_a_missing_command_is_no_bad_entry(server_client: redis.Redis, clerk: redis.Redis, missing: str) -> None:
    """A right that is missing for every key is raised with an empty prefix, too."""
    server_client.execute_command("ACL", "SETUSER", "clerk", missing)  # type: ignore[no-untyped-call]
    write_hold(server_client, "hold:1")

    with pytest.raises(redis.ResponseError):
        expire(clerk, reservation_prefix="", stock_prefix="")
    assert {} == Inventory(server_client).quarantine()


NAMES = ["", "\0", "\0\0", "a", "a\0", "\0a"]


@pytest.mark.parametrize("quantity", [0, 1])
@pytest.mark.parametrize("resolved", NAMES)
def test_resolving_one_entry_leaves_the_others(inventory: Inventory, resolved: str, quantity: int) -> None:
    """Release and drop touch the entry that they name, and no other, whatever the names."""
    inventory.stock("mug", 4, len(NAMES))
    others = [name for name in NAMES if name != resolved]
    for name in NAMES:
        inventory.client.hset(
            inventory.keys.reservation_prefix + name, mapping={"product_id": "mug", "quantity": "1", "status": "Active"}
        )
        inventory.client.hset(inventory.keys.quarantine, name, f"reason=quantity_invalid at=1 score={DUE}")

    assert ("released" if quantity else "dropped") == resolve(inventory, resolved, quantity)
    assert sorted(others) == sorted(inventory.quarantine())
    if quantity:
        inventory.assert_conserved({"mug": 4 + len(NAMES)})


@pytest.mark.parametrize("moved", NAMES)
def test_resharding_one_product_leaves_the_others(inventory: Inventory, moved: str) -> None:
    """Reshard moves the reservations that it is given, and no other, whatever the names in either shard."""
    keys = inventory.keys
    for name in NAMES:
        product = "mug" if name == moved else "tea"
        inventory.client.hset(keys.reservation_prefix + name, mapping={"product_id": product, "status": "Active"})
        inventory.client.zadd(keys.index, {name: DUE})
        inventory.client.hset(keys.quarantine, name, "by hand")
    there = [name for name in NAMES if name != moved]
    for name in there:
        inventory.client.hset("new:reservation:" + name, "product_id", "cup")
        inventory.client.zadd("new:index", {name: DUE - 1})
        inventory.client.hset("new:quarantine", name, "by another hand")

    assert [b"moved", b"1"] == reshard(inventory, "mug", [moved])
    assert dict.fromkeys((name.encode() for name in there), DUE) == inventory.index()
    scores: Any = inventory.client.zrange("new:index", 0, -1, withscores=True)
    assert {name.encode(): DUE if name == moved else DUE - 1 for name in NAMES} == dict(scores)
    assert sorted(there) == sorted(name.decode() for name in inventory.client.hkeys(keys.quarantine))  # type: ignore[union-attr]
    products = [inventory.client.hget(f"new:reservation:{name}", "product_id") for name in NAMES]
    assert [b"mug" if name == moved else b"cup" for name in NAMES] == products


@pytest.mark.parametrize("name", NAMES)
def test_a_reservation_of_any_name_expires(inventory: Inventory, name: str) -> None:
    """What the script asks about names that nobody has neither meets nor changes a reservation or a product."""
    for one in NAMES:
        inventory.stock(one, 9, 1)
        inventory.client.hset(
            inventory.keys.reservation_prefix + one,
            mapping={"product_id": one, "quantity": 1, "status": "Active", "expires_at": DUE},
        )
    inventory.client.zadd(inventory.keys.index, {name: DUE})

    assert [name.encode()] == [row[0] for row in expire(inventory.client).expired]
    assert [(10, 0) if one == name else (9, 1) for one in NAMES] == [inventory.counters(one) for one in NAMES]
    inventory.assert_conserved(dict.fromkeys(NAMES, 10))
