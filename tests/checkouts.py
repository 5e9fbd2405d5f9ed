"""Two checkouts that do the same steps: one uses the client, one plain commands as another language would."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import cast

import redis
from redis.client import Pipeline

from expirer import Ended, Refused, Reservations
from expirer.contract.keys import ShardKeys


@dataclass(frozen=True, slots=True)
class Answer:
    """What a checkout was told: the step was done, or refused because of a status."""

    reservation_id: str
    operation: str
    status: str
    is_done: bool
    expires_at: int = 0


class LuaCheckout:
    """A checkout that uses the client."""

    def __init__(self, client: redis.Redis, shards: int = 1) -> None:
        self._reservations = Reservations(client, shards=shards)

    def step(self, operation: str, order: str, product: str, quantity: int, ms: int) -> Answer | None:
        """Do one step; return what it was told, None where there is nothing to tell."""
        duration = timedelta(milliseconds=ms)
        arguments = {"reserve": (quantity, duration), "extend": (duration,)}.get(operation, ())
        try:
            done = getattr(self._reservations, operation)(order, product, *arguments)
        except Ended as ended:
            return Answer(ended.reservation_id, operation, ended.status, is_done=False)
        except Refused as refused:
            assert refused.code == "not_found"
            return None
        return Answer(done.id, operation, done.status, done.changed, done.expires_at)


class PlainCheckout:
    """A checkout in another language: WATCH, MULTI and EXEC, and the contract."""

    def __init__(self, client: redis.Redis, keys: ShardKeys | None = None) -> None:
        self._client = client
        self._keys = keys or ShardKeys.of("inventory")

    def step(self, operation: str, order: str, product: str, quantity: int, ms: int) -> Answer | None:
        """Do one step, again and again where somebody else was faster; return what it was told."""
        with self._client.pipeline() as pipe:
            while True:
                try:
                    return self._attempt(pipe, operation, order, product, quantity, ms)
                except redis.WatchError:
                    pipe.reset()

    def _attempt(
        self,
        pipe: Pipeline,
        operation: str,
        order: str,
        product: str,
        quantity: int,
        ms: int,
    ) -> Answer | None:
        id_ = f"{order}:{product}"
        key, stock = self._keys.reservation_prefix + id_, self._keys.stock_prefix + product
        pipe.watch(key)  # type: ignore[no-untyped-call]
        row = cast("dict[bytes, bytes]", pipe.hgetall(key))
        status = row.get(b"status", b"").decode()
        if operation == "reserve":
            if status:
                return Answer(id_, operation, status, is_done=False)
        elif not status:
            return None
        elif status != "Active":
            return Answer(id_, operation, status, is_done=False)
        seconds, microseconds = pipe.time()
        expires_at = max(seconds * 1000 + microseconds // 1000 + ms, int(row.get(b"expires_at", 0)))
        pipe.multi()
        if operation == "reserve":
            status = "Active"
            fields = {"order_id": order, "product_id": product, "quantity": quantity, "status": status}
            pipe.hset(key, mapping={**fields, "expires_at": expires_at})  # type: ignore[dict-item]
            pipe.hincrby(stock, "available", -quantity)
            pipe.hincrby(stock, "reserved", quantity)
            pipe.zadd(self._keys.index, {id_: expires_at})
        elif operation == "extend":
            pipe.hset(key, "expires_at", expires_at)
            pipe.zadd(self._keys.index, {id_: expires_at})
        else:
            status = "Confirmed" if operation == "confirm" else "Released"
            pipe.hset(key, "status", status)
            pipe.hincrby(stock, "reserved", -quantity)
            if operation == "release":
                pipe.hincrby(stock, "available", quantity)
            pipe.zrem(self._keys.index, id_)
        pipe.execute()
        return Answer(id_, operation, status, is_done=True, expires_at=expires_at)
