"""The checkout's side of the contract: reserve, confirm, release, extend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any, Self

from redis import Redis
from redis.cluster import RedisCluster
from redis.exceptions import ResponseError

from expirer.config.durations import LONGEST, to_ms
from expirer.config.settings import Settings
from expirer.contract import scripts
from expirer.contract.clock import worker_clock
from expirer.contract.keys import ShardKeys, shard_of

_DONE = ("reserved", "confirmed", "released", "extended", "unchanged")


class Code(StrEnum):
    """Why a step was refused."""

    INSUFFICIENT_STOCK = "insufficient_stock"
    """Fewer units are available than the quantity."""
    DIFFERENT = "different"
    """The reservation id belongs to another order, product or quantity."""
    ENDED = "ended"
    """The reservation is no longer Active; see `Ended.status`."""
    NOT_FOUND = "not_found"
    """No such reservation: never made, or its retention is over."""
    LIMIT_REACHED = "limit_reached"
    """The reservation is held for `max_hold` already."""
    QUANTITY_INVALID = "quantity_invalid"
    """The quantity is not an integer from 1 to 2**53."""
    DURATION_INVALID = "duration_invalid"
    """The duration is not an integer from 1 to 2**53 ms; this client raises ValueError before."""
    RESERVATION_INVALID = "reservation_invalid"
    """The reservation in Redis is damaged, or its key holds another type."""
    STOCK_MISSING = "stock_missing"
    """No such product."""
    STOCK_INVALID = "stock_invalid"
    """A stock counter is not an integer, is too small to give the units back, or would pass 2**53."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """A reservation after a step; times are in Unix ms, None where the reservation in Redis lacks one."""

    id: str
    order_id: str
    product_id: str
    quantity: int
    status: str
    reserved_at: int | None
    expires_at: int | None
    changed: bool
    """False: it was in this state before, and nothing was written."""


class Refused(Exception):  # noqa: N818  # a refusal is an answer, not a fault
    """A step was refused, and nothing was changed; `code` says why."""

    def __init__(self, code: Code, reservation_id: str, detail: str = "") -> None:
        super().__init__(f"{reservation_id}: {code}{detail}")
        self.code = code
        self.reservation_id = reservation_id


class InsufficientStock(Refused):
    """Fewer units are `available` than the quantity."""

    def __init__(self, code: Code, reservation_id: str, available: int) -> None:
        super().__init__(code, reservation_id, f" ({available} available)")
        self.available = available


class Ended(Refused):
    """The reservation is no longer Active: its `status` is Confirmed, Released or Expired."""

    def __init__(self, code: Code, reservation_id: str, status: str) -> None:
        super().__init__(code, reservation_id, f" ({status})")
        self.status = status


class Reservations:
    """Reserve, confirm, release and extend, each in one atomic script.

    A reservation is named by its order and its product: its id is `<order_id>:<product_id>`, unless
    `reservation_id` says otherwise. Every step may be repeated: a second call changes nothing and returns
    the reservation with `changed` False. So a call whose reply was lost is safe to repeat.

    Every step raises `Refused` where it cannot be done, and `redis.exceptions.RedisError` where Redis fails.

    Args:
        client: a connected client, of a server or of a Cluster; `decode_responses` may be on or off.
        namespace: hash tag of every key, as in the sidecar's EXPIRER_NAMESPACE.
        shards: hash tags to spread over, as in the sidecar's EXPIRER_SHARDS.
        default_duration: how long a reservation lasts when `reserve` is not told.
        retention: how long an ended reservation stays readable; zero deletes it, None keeps it.
        now_ms: the clock, Unix ms; None leaves it to the server.

    Raises:
        ValueError: shards is less than 1, or the retention is negative.

    """

    def __init__(  # noqa: PLR0913  # named settings, each with a default
        self,
        client: Redis | RedisCluster,
        *,
        namespace: str = "inventory",
        shards: int = 1,
        default_duration: timedelta = timedelta(minutes=15),
        retention: timedelta | None = timedelta(hours=24),
        now_ms: Callable[[], float] | None = None,
    ) -> None:
        if shards < 1:
            raise ValueError(f"shards is {shards}, and must be 1 or more")
        if retention is not None and retention < timedelta(0):
            raise ValueError(f"a retention of {retention} is negative")
        self._keys = [ShardKeys.of(namespace, shard, shards) for shard in range(shards)]
        self._default_duration = default_duration
        self._retention_ms = -1 if retention is None else to_ms(retention)
        self._now_ms = now_ms
        self._scripts: dict[str, Any] = {
            name: client.register_script(scripts.load(name).text)
            for name in ("reserve", "confirm", "release", "extend")
        }

    @classmethod
    def from_settings(cls, client: Redis | RedisCluster, settings: Settings) -> Self:
        """Build a checkout that agrees with a sidecar of the same settings.

        Raises:
            ValueError: the settings describe a layout of the inventory's own; so it has its own checkout.

        """
        if settings.is_custom_layout:
            raise ValueError("Reservations speaks the contract only, and these settings describe another layout")
        return cls(
            client,
            namespace=settings.namespace,
            shards=settings.shards,
            default_duration=settings.default_duration,
            retention=settings.retention,
            now_ms=worker_clock if settings.clock == "worker" else None,
        )

    def reserve(
        self,
        order_id: str,
        product_id: str,
        quantity: int,
        duration: timedelta | None = None,
        *,
        reservation_id: str | None = None,
    ) -> Reservation:
        """Hold units of a product for an order: they leave `available` until they are confirmed or back.

        Raises:
            InsufficientStock: fewer units are available than the quantity.
            Ended: this reservation was used before; a new attempt needs a `reservation_id` of its own.
            Refused: DIFFERENT, QUANTITY_INVALID, RESERVATION_INVALID, STOCK_MISSING or STOCK_INVALID.
            ValueError: the duration is shorter than a millisecond, or longer than a century.

        """
        duration_ms = _checked_ms(self._default_duration if duration is None else duration)
        return self._step("reserve", order_id, product_id, reservation_id, quantity, duration_ms)

    def confirm(self, order_id: str, product_id: str, *, reservation_id: str | None = None) -> Reservation:
        """Sell the units of a reservation; works while it is Active, even after ExpiresAt.

        Raises:
            Ended: it was Released, or has Expired: the units are not held any more.
            Refused: NOT_FOUND, DIFFERENT, RESERVATION_INVALID, STOCK_MISSING or STOCK_INVALID.

        """
        return self._step("confirm", order_id, product_id, reservation_id, self._retention_ms)

    def release(self, order_id: str, product_id: str, *, reservation_id: str | None = None) -> Reservation:
        """Give the units of a reservation back before it expires.

        Raises:
            Ended: it was Confirmed, or has Expired.
            Refused: NOT_FOUND, DIFFERENT, RESERVATION_INVALID, STOCK_MISSING or STOCK_INVALID.

        """
        return self._step("release", order_id, product_id, reservation_id, self._retention_ms)

    def extend(
        self,
        order_id: str,
        product_id: str,
        duration: timedelta,
        *,
        max_hold: timedelta | None = None,
        reservation_id: str | None = None,
    ) -> Reservation:
        """Hold a reservation for a duration from now; never shortens it.

        With `max_hold` it is held no longer than that after it was reserved: a duration that goes further
        is cut to the limit.

        Raises:
            Ended: it was Confirmed or Released, or has Expired.
            Refused: LIMIT_REACHED, NOT_FOUND, DIFFERENT or RESERVATION_INVALID.
            ValueError: the duration is shorter than a millisecond, or longer than a century.

        """
        limit_ms = "" if max_hold is None else to_ms(max_hold)
        return self._step("extend", order_id, product_id, reservation_id, _checked_ms(duration), limit_ms)

    def _step(
        self, name: str, order_id: str, product_id: str, reservation_id: str | None, *arguments: object
    ) -> Reservation:
        id_ = f"{order_id}:{product_id}" if reservation_id is None else reservation_id
        keys = self._keys[shard_of(product_id, len(self._keys))]
        now = "" if self._now_ms is None else int(self._now_ms())
        places = [keys.index, keys.reservation_prefix + id_, keys.stock_prefix + product_id, keys.quarantine]
        if name == "extend":
            del places[2]  # it moves no units
        timing = (now, keys.wake) if name in ("reserve", "extend") else ()
        try:
            reply = self._scripts[name](places, [id_, order_id, product_id, *arguments, *timing])
        except ResponseError as error:
            error.args = (scripts.explain(str(error)),)
            raise
        code, status, quantity, reserved_at, expires_at, *rest = (
            value.decode(errors="replace") if isinstance(value, bytes) else value for value in reply
        )
        if code == Code.INSUFFICIENT_STOCK:
            raise InsufficientStock(Code(code), id_, int(rest[0]))
        if code == Code.ENDED:
            raise Ended(Code(code), id_, status)
        if code not in _DONE:
            raise Refused(Code(code), id_)
        return Reservation(
            id=id_,
            order_id=order_id,
            product_id=product_id,
            quantity=int(quantity),
            status=status,
            reserved_at=int(reserved_at) if reserved_at.isdigit() else None,
            expires_at=int(expires_at) if expires_at.isdigit() else None,
            changed=code != "unchanged",
        )


def _checked_ms(duration: timedelta) -> int:
    ms = to_ms(duration)
    if ms < 1 or duration > LONGEST:
        raise ValueError(f"a duration of {duration} is not between a millisecond and a century")
    return ms
