"""The short way: a key with a TTL for each reservation, and keyspace notifications when it has expired."""

from __future__ import annotations

import sys
from typing import cast

import redis

PREFIX, RESERVATION, STOCK = "hold:", "{inventory}:reservation:", "{inventory}:stock:"


def release(client: redis.Redis, id_: str) -> None:
    """Give one reservation's units back."""
    key = RESERVATION + id_
    product, quantity = cast("list[str]", client.hmget(key, ["product_id", "quantity"]))
    with client.pipeline() as pipe:
        pipe.hset(key, "status", "Expired")
        pipe.hincrby(f"{STOCK}{product}", "available", int(quantity))
        pipe.hincrby(f"{STOCK}{product}", "reserved", -int(quantity))
        pipe.execute()


def main() -> None:
    """Listen until killed."""
    client = redis.Redis(unix_socket_path=sys.argv[1], protocol=2, decode_responses=True)
    with client.pubsub() as pubsub:  # type: ignore[no-untyped-call]
        pubsub.psubscribe("__keyevent@0__:expired")
        for message in pubsub.listen():
            if message["type"] == "pmessage" and message["data"].startswith(PREFIX):
                release(client, message["data"].removeprefix(PREFIX))


if __name__ == "__main__":
    main()
