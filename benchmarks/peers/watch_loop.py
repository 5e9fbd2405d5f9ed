"""What a careful engineer writes by hand: every second, a WATCH/MULTI/EXEC for each due reservation."""

from __future__ import annotations

import sys
import time
from typing import cast

import redis

INDEX, RESERVATION, STOCK = "{inventory}:reservations", "{inventory}:reservation:", "{inventory}:stock:"


def release(client: redis.Redis, id_: str) -> None:
    """Give one reservation's units back, unless somebody else moved it meanwhile."""
    key = RESERVATION + id_
    with client.pipeline() as pipe:
        pipe.watch(key)  # type: ignore[no-untyped-call]
        row = pipe.hmget(key, ["status", "product_id", "quantity"])
        status, product, quantity = cast("list[str]", row)
        pipe.multi()
        if status == "Active":
            pipe.hset(key, "status", "Expired")
            pipe.hincrby(f"{STOCK}{product}", "available", int(quantity))
            pipe.hincrby(f"{STOCK}{product}", "reserved", -int(quantity))
        pipe.zrem(INDEX, id_)
        try:
            pipe.execute()
        except redis.WatchError:
            return


def main() -> None:
    """Poll until killed."""
    client = redis.Redis(unix_socket_path=sys.argv[1], protocol=2, decode_responses=True)
    while True:
        for id_ in cast("list[str]", client.zrangebyscore(INDEX, "-inf", time.time() * 1000)):
            release(client, id_)
        time.sleep(1)  # polling is what this peer does


if __name__ == "__main__":
    main()
