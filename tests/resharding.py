"""A shop of many products to move to other shards, and what it holds before and after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import redis

from expirer import Reservations
from expirer.contract.keys import ShardKeys, shard_of
from expirer.contract.text import decode
from tests.inventory import Inventory

PRODUCTS = [f"product-{n}" for n in range(40)]
STOCKED = dict.fromkeys(PRODUCTS, 100)


def shops(client: redis.Redis, shards: int) -> list[Inventory]:
    """Return the inventory of each shard."""
    return [Inventory(client, ShardKeys.of("inventory", number, shards)) for number in range(shards)]


def fill(client: redis.Redis, shards: int = 1) -> None:
    """Write a shop of forty products, with reservations Active, overdue, ended and in quarantine."""
    for product_id in PRODUCTS:
        shops(client, shards)[shard_of(product_id, shards)].stock(product_id, 100)
    checkout = Reservations(client, shards=shards)
    for n, product_id in enumerate(PRODUCTS):
        for order in range(n % 7):
            checkout.reserve(f"o{order}", product_id, 1 + order, timedelta(milliseconds=1 if order == 1 else 600_000))
        if n % 7 > 3:
            checkout.confirm("o3", product_id)
            checkout.release("o2", product_id)
    shop = shops(client, shards)[shard_of("product-6", shards)]
    client.zrem(shop.keys.index, "o0:product-6")
    client.hset(shop.keys.quarantine, "o0:product-6", "reason=stock_missing at=1 score=1")
    client.hset(shop.keys.stats, mapping={"expired": 5, "units": 9, "rate_until": "1.5"})


def read_all(client: redis.Redis, shards: int) -> dict[str, Any]:
    """Return all that must stay as it is, on whatever shards it lives."""
    found: dict[str, Any] = {"totals": Counter()}
    for shop in shops(client, shards):
        keys = shop.keys
        for prefix in (keys.reservation_prefix, keys.stock_prefix):
            for key in client.scan_iter(match=f"{prefix}*"):
                name = decode(key).replace(prefix, prefix.rpartition("}:")[2])
                found[name] = (client.hgetall(key), client.ttl(key) > 0)
        found.update({f"index {decode(id_)}": score for id_, score in shop.index().items()})
        found.update({f"quarantine {id_}": reason for id_, reason in shop.quarantine().items()})
        found["totals"].update({name: int(n) for name, n in client.hgetall(keys.stats).items() if n.isdigit()})
    return found


def assert_conserved(client: redis.Redis, shards: int, stocked: Mapping[str, int] = STOCKED) -> None:
    """Assert the law for every product on its shard."""
    for number, shop in enumerate(shops(client, shards)):
        shop.assert_conserved({name: n for name, n in stocked.items() if shard_of(name, shards) == number})


def moved(client: redis.Redis) -> int:
    """Count the products that are on a new shard."""
    return sum(1 for _ in client.scan_iter(match="{inventory:*}:stock:*", count=1000))
