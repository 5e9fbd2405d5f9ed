"""What the checkout's client promises: one guard, distinct refusals, and steps that may be repeated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import fakeredis
import pytest
import redis

from expirer import Code, Ended, InsufficientStock, Refused, Reservation, Reservations
from expirer.config.settings import Settings
from expirer.connection.connect import Servers
from expirer.contract import scripts
from expirer.contract.keys import ShardKeys, shard_of
from expirer.worker.batch import Tick
from expirer.worker.worker import Worker
from tests.conftest import Log
from tests.inventory import NOW, Inventory, contents

MAX = 2**53
MINUTE = timedelta(minutes=1)


@pytest.fixture
def reservations(client: redis.Redis) -> Reservations:
    """Return a checkout at the tests' present."""
    return Reservations(client, now_ms=lambda: NOW)


def refusal(step: Callable[[], Reservation]) -> Code:
    """Return the code with which a step is refused."""
    with pytest.raises(Refused) as refused:
        step()
    return refused.value.code


def test_reserve_holds_units(inventory: Inventory, reservations: Reservations) -> None:
    """Reserved units leave available, and the reservation is written as the contract says."""
    inventory.stock("mug", 10)

    reservation = reservations.reserve("o1", "mug", 3)

    expires_at = NOW + 15 * 60_000
    assert Reservation("o1:mug", "o1", "mug", 3, "Active", NOW, expires_at, changed=True) == reservation
    assert {b"o1:mug": expires_at} == inventory.index()
    assert inventory.client.hgetall(inventory.keys.reservation_prefix + "o1:mug") == {
        b"order_id": b"o1",
        b"product_id": b"mug",
        b"quantity": b"3",
        b"status": b"Active",
        b"reserved_at": str(NOW).encode(),
        b"expires_at": str(expires_at).encode(),
    }
    assert inventory.client.pttl(inventory.keys.reservation_prefix + "o1:mug") == -1
    inventory.assert_conserved({"mug": 10})


def test_confirm_sells_units(inventory: Inventory, reservations: Reservations) -> None:
    """Confirmed units leave reserved and do not come back."""
    inventory.stock("mug", 10)
    reservations.reserve("o1", "mug", 3)

    assert reservations.confirm("o1", "mug").status == "Confirmed"
    assert (inventory.counters("mug"), inventory.index()) == ((7, 0), {})
    inventory.assert_conserved({"mug": 10})


def test_release_gives_units_back(inventory: Inventory, reservations: Reservations) -> None:
    """Released units are available again at once."""
    inventory.stock("mug", 10)
    reservations.reserve("o1", "mug", 3)

    assert reservations.release("o1", "mug").status == "Released"
    assert (inventory.counters("mug"), inventory.index()) == ((10, 0), {})
    inventory.assert_conserved({"mug": 10})


def test_extend_moves_index_and_hash(inventory: Inventory, reservations: Reservations) -> None:
    """An extended reservation has its new time in the index and in itself."""
    inventory.stock("mug", 10)
    reservations.reserve("o1", "mug", 3, MINUTE)

    extended = reservations.extend("o1", "mug", timedelta(minutes=2))

    assert (extended.expires_at, extended.changed) == (NOW + 120_000, True)
    assert inventory.index() == {b"o1:mug": NOW + 120_000}
    assert inventory.client.hget(inventory.keys.reservation_prefix + "o1:mug", "expires_at") == b"%d" % (NOW + 120_000)
    inventory.assert_conserved({"mug": 10})


def test_extend_never_moves_backwards(inventory: Inventory, reservations: Reservations) -> None:
    """A shorter time than the present one changes nothing, and returns the present one."""
    inventory.stock("mug", 10)
    before = reservations.reserve("o1", "mug", 3, MINUTE)

    assert replace(before, changed=False) == reservations.extend("o1", "mug", timedelta(seconds=59))
    assert inventory.index() == {b"o1:mug": NOW + 60_000}


def test_extend_stops_at_the_limit(inventory: Inventory, reservations: Reservations) -> None:
    """With max_hold a reservation is extended up to the limit, and then refused."""
    inventory.stock("mug", 10)
    reservations.reserve("o1", "mug", 3, MINUTE)
    limit = timedelta(seconds=90)

    assert reservations.extend("o1", "mug", timedelta(minutes=5), max_hold=limit).expires_at == NOW + 90_000
    assert refusal(lambda: reservations.extend("o1", "mug", timedelta(minutes=5), max_hold=limit)) == Code.LIMIT_REACHED
    assert inventory.index() == {b"o1:mug": NOW + 90_000}


STEPS: dict[str, Callable[[Reservations], Reservation]] = {
    "reserve": lambda r: r.reserve("o1", "mug", 3),
    "confirm": lambda r: r.confirm("o1", "mug"),
    "release": lambda r: r.release("o1", "mug"),
    "extend": lambda r: r.extend("o1", "mug", timedelta(hours=1)),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_second_call_changes_nothing(inventory: Inventory, reservations: Reservations, name: str) -> None:
    """Each step may be repeated: the second call writes nothing and says what the state is."""
    inventory.stock("mug", 10)
    reservations.reserve("o1", "mug", 3)
    first = STEPS[name](reservations)
    before = contents(inventory.client)

    second = STEPS[name](reservations)

    assert replace(first, changed=False) == second
    assert before == contents(inventory.client)
    inventory.assert_conserved({"mug": 10})


@pytest.mark.parametrize(
    ("ending", "late"),
    [
        (ending, late)
        for ending in ("Confirmed", "Released", "Expired")
        for late in STEPS
        if (ending, late) not in {("Confirmed", "confirm"), ("Released", "release")}
    ],
)
def test_an_ended_reservation_stays_ended(
    inventory: Inventory, reservations: Reservations, worker: Worker, ending: str, late: str
) -> None:
    """After its end every other step is refused with that end, and changes nothing."""
    inventory.stock("mug", 10)
    early = Reservations(inventory.client, now_ms=lambda: NOW - 60_000)
    early.reserve("o1", "mug", 3, timedelta(seconds=1))
    endings = {
        "Confirmed": STEPS["confirm"],
        "Released": STEPS["release"],
        "Expired": lambda _: worker.tick(),
    }
    endings[ending](reservations)  # type: ignore[no-untyped-call]
    before = contents(inventory.client)

    with pytest.raises(Ended) as ended:
        STEPS[late](reservations)

    assert (Code.ENDED, ending) == (ended.value.code, ended.value.status)
    assert before == contents(inventory.client)
    inventory.assert_conserved({"mug": 10})


@pytest.mark.parametrize("step", ["confirm", "release", "extend"])
def test_late_is_not_too_late(inventory: Inventory, reservations: Reservations, worker: Worker, step: str) -> None:
    """While nobody has expired it, a reservation past its ExpiresAt can be confirmed, released, extended."""
    inventory.stock("mug", 10)
    early = Reservations(inventory.client, now_ms=lambda: NOW - 60_000)
    early.reserve("o1", "mug", 3, timedelta(seconds=1))

    assert STEPS[step](reservations).changed
    assert worker.tick().expired == 0
    inventory.assert_conserved({"mug": 10})


def test_reserve_refuses_more_than_is_available(inventory: Inventory, reservations: Reservations) -> None:
    """Where fewer units are available than asked for nothing changes, and the refusal says how many are."""
    inventory.stock("mug", 2)
    before = contents(inventory.client)

    with pytest.raises(InsufficientStock) as refused:
        reservations.reserve("o1", "mug", 3)

    assert (refused.value.code, refused.value.available) == (Code.INSUFFICIENT_STOCK, 2)
    assert str(refused.value) == "o1:mug: insufficient_stock (2 available)"
    assert before == contents(inventory.client)


def damage(inventory: Inventory, kind: str) -> None:
    """Damage the reservation o1:mug, or the stock of its product."""
    stock = inventory.keys.stock_prefix + "mug"
    reservation = inventory.keys.reservation_prefix + "o1:mug"
    if kind.startswith("list"):
        key = stock if kind == "list stock" else reservation
        inventory.client.delete(key)
        inventory.client.rpush(key, "x")
    elif kind == "no stock":
        inventory.client.delete(stock)
    else:
        name, _, value = kind.partition("=")
        inventory.client.hset(stock if name in ("available", "reserved") else reservation, name, value)


@pytest.mark.parametrize(
    ("step", "kind", "code"),
    [
        ("reserve", "quantity=4", Code.DIFFERENT),
        ("reserve", "order_id=o2", Code.DIFFERENT),
        ("reserve", "product_id=tea", Code.DIFFERENT),
        ("reserve", "list reservation", Code.RESERVATION_INVALID),
        ("confirm", "product_id=tea", Code.DIFFERENT),
        ("confirm", "order_id=o2", Code.DIFFERENT),
        ("release", "order_id=o2", Code.DIFFERENT),
        ("extend", "order_id=o2", Code.DIFFERENT),
        ("confirm", "quantity=1.5", Code.RESERVATION_INVALID),
        ("confirm", "quantity=0", Code.RESERVATION_INVALID),
        ("confirm", "list reservation", Code.RESERVATION_INVALID),
        ("confirm", "no stock", Code.STOCK_MISSING),
        ("confirm", "list stock", Code.STOCK_INVALID),
        ("confirm", "reserved=2", Code.STOCK_INVALID),
        ("confirm", "reserved=x", Code.STOCK_INVALID),
        ("release", "product_id=tea", Code.DIFFERENT),
        ("release", "quantity=1.5", Code.RESERVATION_INVALID),
        ("release", "list reservation", Code.RESERVATION_INVALID),
        ("release", "no stock", Code.STOCK_MISSING),
        ("release", "list stock", Code.STOCK_INVALID),
        ("release", "reserved=2", Code.STOCK_INVALID),
        ("release", "available=x", Code.STOCK_INVALID),
        ("release", f"available={MAX}", Code.STOCK_INVALID),
        ("extend", "product_id=tea", Code.DIFFERENT),
        ("extend", "quantity=x", Code.RESERVATION_INVALID),
        ("extend", "expires_at=soon", Code.RESERVATION_INVALID),
        ("extend", "list reservation", Code.RESERVATION_INVALID),
    ],
)
def test_damage_is_refused(inventory: Inventory, reservations: Reservations, step: str, kind: str, code: Code) -> None:
    """A step on a damaged reservation or stock is refused with its code, and changes nothing."""
    inventory.stock("mug", 10)
    reservations.reserve("o1", "mug", 3)
    damage(inventory, kind)
    before = contents(inventory.client)

    assert code == refusal(lambda: STEPS[step](reservations))
    assert before == contents(inventory.client)


@pytest.mark.parametrize(
    ("stock", "code"),
    [
        (None, Code.STOCK_MISSING),
        ((1.5, 0), Code.STOCK_INVALID),
        ((10, -1), Code.STOCK_INVALID),
        ((10, "x"), Code.STOCK_INVALID),
        ((10, MAX), Code.STOCK_INVALID),
        ((-1, 0), Code.INSUFFICIENT_STOCK),
    ],
)
def test_reserve_refuses_damaged_stock(
    inventory: Inventory, reservations: Reservations, stock: tuple[object, object] | None, code: Code
) -> None:
    """Units are reserved only from counters that can be understood."""
    if stock is not None:
        inventory.stock("mug", *stock)
    before = contents(inventory.client)

    assert code == refusal(lambda: reservations.reserve("o1", "mug", 3))
    assert before == contents(inventory.client)


def test_reserve_refuses_a_stock_of_another_type(inventory: Inventory, reservations: Reservations) -> None:
    """A stock key that is no hash is refused."""
    inventory.client.set(inventory.keys.stock_prefix + "mug", 10)

    assert refusal(lambda: reservations.reserve("o1", "mug", 3)) == Code.STOCK_INVALID


@pytest.mark.parametrize("quantity", [0, -1, 1.5, MAX + 1])
def test_reserve_refuses_a_bad_quantity(inventory: Inventory, reservations: Reservations, quantity: float) -> None:
    """A quantity is an integer from 1 to 2**53."""
    inventory.stock("mug", MAX)

    assert refusal(lambda: reservations.reserve("o1", "mug", quantity)) == Code.QUANTITY_INVALID  # type: ignore[arg-type]
    inventory.assert_conserved({"mug": MAX})


@pytest.mark.parametrize("step", ["confirm", "release", "extend"])
def test_what_is_not_there_is_not_found(reservations: Reservations, step: str) -> None:
    """A step on a reservation that was never made is refused as not found."""
    assert refusal(lambda: STEPS[step](reservations)) == Code.NOT_FOUND


def test_a_hold_limit_needs_reserved_at(inventory: Inventory, reservations: Reservations) -> None:
    """A limit counts from reserved_at: a reservation without one cannot be held to it."""
    inventory.stock("mug", 9, 1)
    inventory.hold("mug", id_="o1:mug")

    assert refusal(lambda: reservations.extend("o1", "mug", MINUTE, max_hold=MINUTE)) == Code.RESERVATION_INVALID
    assert reservations.extend("o1", "mug", MINUTE).reserved_at is None


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", ["index", "quarantine"])
def test_a_key_of_another_type_stops_a_step(
    inventory: Inventory, reservations: Reservations, step: str, name: str
) -> None:
    """Where the index or the quarantine is of another type Redis's error is raised, and nothing changes."""
    inventory.stock("mug", 10)
    if step != "reserve":
        reservations.reserve("o1", "mug", 3)
    inventory.client.delete(getattr(inventory.keys, name))
    inventory.client.set(getattr(inventory.keys, name), "not ours")
    before = contents(inventory.client)

    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        STEPS[step](reservations)

    assert before == contents(inventory.client)


@pytest.mark.parametrize("step", ["confirm", "release", "extend"])
def test_a_quarantined_reservation_can_still_end(inventory: Inventory, reservations: Reservations, step: str) -> None:
    """A step that succeeds on a quarantined reservation takes it out of quarantine."""
    inventory.stock("mug", 10)
    reservations.reserve("o1", "mug", 3)
    inventory.client.zrem(inventory.keys.index, "o1:mug")
    inventory.client.hset(inventory.keys.quarantine, "o1:mug", "reason=stock_missing at=1 score=1")

    STEPS[step](reservations)

    assert inventory.quarantine() == {}
    assert (step == "extend") == (b"o1:mug" in inventory.index())
    inventory.assert_conserved({"mug": 10})


@pytest.mark.parametrize(("retention", "ttl"), [(timedelta(hours=1), 3_600_000), (None, -1)])
@pytest.mark.parametrize("step", ["confirm", "release"])
def test_an_ended_reservation_is_kept(
    client: redis.Redis, inventory: Inventory, step: str, retention: timedelta | None, ttl: int
) -> None:
    """A Confirmed or Released reservation stays readable for the retention."""
    inventory.stock("mug", 10)
    checkout = Reservations(client, retention=retention, now_ms=lambda: NOW)
    checkout.reserve("o1", "mug", 3)

    STEPS[step](checkout)

    kept = client.pttl(inventory.keys.reservation_prefix + "o1:mug")
    assert ttl - 60_000 <= kept <= ttl
    inventory.assert_conserved({"mug": 10})


def test_retention_zero_deletes_what_ended(client: redis.Redis, inventory: Inventory) -> None:
    """With a retention of zero an ended reservation is deleted."""
    inventory.stock("mug", 10)
    checkout = Reservations(client, retention=timedelta(0))
    checkout.reserve("o1", "mug", 3)

    checkout.release("o1", "mug")

    assert refusal(lambda: checkout.release("o1", "mug")) == Code.NOT_FOUND
    inventory.assert_conserved({"mug": 10})


def test_ids_of_ones_own(inventory: Inventory, reservations: Reservations) -> None:
    """A reservation id may be chosen freely, so that an order can hold a product again."""
    inventory.stock("mug", 10)
    reservations.reserve("o1", "mug", 3)
    reservations.release("o1", "mug")

    again = reservations.reserve("o1", "mug", 3, reservation_id="o1:mug:2")

    assert again.id == "o1:mug:2"
    assert reservations.confirm("o1", "mug", reservation_id="o1:mug:2").changed
    inventory.assert_conserved({"mug": 10})


def test_the_server_clock_is_used(client: redis.Redis, inventory: Inventory) -> None:
    """Without a clock of its own the client uses the server's."""
    inventory.stock("mug", 10)
    seconds, _ = client.time()

    reservation = Reservations(client).reserve("o1", "mug", 1, MINUTE)

    assert reservation.reserved_at is not None
    assert reservation.expires_at == reservation.reserved_at + 60_000
    assert abs(reservation.reserved_at // 1000 - seconds) < 60
    extended = Reservations(client).extend("o1", "mug", timedelta(hours=1))
    assert extended.expires_at is not None
    assert extended.expires_at > reservation.expires_at


@pytest.mark.parametrize("duration", [timedelta(0), timedelta(seconds=-1), timedelta.max])
@pytest.mark.parametrize("step", ["reserve", "extend"])
def test_a_duration_is_sensible(
    inventory: Inventory, reservations: Reservations, step: str, duration: timedelta
) -> None:
    """A duration shorter than a millisecond, or longer than a century, is the caller's mistake."""
    inventory.stock("mug", 10)
    calls = {
        "reserve": lambda: reservations.reserve("o1", "mug", 1, duration),
        "extend": lambda: reservations.extend("o1", "mug", duration),
    }

    with pytest.raises(ValueError, match="not between a millisecond and a century"):
        calls[step]()


def test_replies_may_be_decoded() -> None:
    """The client may decode replies: a shop's own client serves."""
    client = fakeredis.FakeRedis(server=fakeredis.FakeServer(), decode_responses=True)
    client.hset("{inventory}:stock:mug", mapping={"available": 10, "reserved": 0})

    assert [
        Reservations(client).reserve("o1", "mug", 1),
        Reservations(client).confirm("o1", "mug"),
    ][-1].status == "Confirmed"


@pytest.mark.parametrize(
    ("product_id", "crc", "of_16"),
    [("", 0, 0), ("123456789", 0xCBF43926, 6), ("mug", 0x3ED0F829, 9), ("größe", 0x5BD3A989, 9)],
)
def test_a_product_has_one_shard(product_id: str, crc: int, of_16: int) -> None:
    """A product lives on the shard that CRC-32 of its UTF-8 bytes names, as the README's vectors say."""
    assert (crc % 16, of_16) == (shard_of(product_id, 16), shard_of(product_id.encode(), 16))


def test_shards_keep_products_apart(client: redis.Redis) -> None:
    """With shards every key of a reservation lies on the shard of its product, and the worker sweeps them all."""
    products = [f"p{i}" for i in range(20)]
    checkout = Reservations(client, shards=4, now_ms=lambda: NOW - 60_000)
    for product in products:
        shop = Inventory(client, ShardKeys.of("inventory", shard_of(product, 4), 4))
        shop.stock(product, 5)
        checkout.reserve("o1", product, 2, MINUTE / 2)

    shards = Servers.of(client, Settings(shards=4)).shards
    tick = sum((Worker(shard, Log().logger(), lambda: NOW).tick() for shard in shards), Tick())

    assert (tick.expired, tick.units) == (20, 40)
    for product in products:
        Inventory(client, ShardKeys.of("inventory", shard_of(product, 4), 4)).assert_conserved({product: 5})


def test_settings_make_a_checkout(client: redis.Redis) -> None:
    """A checkout built from the sidecar's settings uses its namespace, shards, duration and retention."""
    settings = Settings(namespace="shop", shards=2, default_duration="1m", retention="0", clock="worker")
    shop = Inventory(client, ShardKeys.of("shop", shard_of("mug", 2), 2))
    shop.stock("mug", 10)
    checkout = Reservations.from_settings(client, settings)

    held = checkout.reserve("o1", "mug", 3)

    assert held.reserved_at is not None
    assert held.expires_at == held.reserved_at + 60_000
    checkout.release("o1", "mug")
    assert shop.status("o1:mug") is None
    shop.assert_conserved({"mug": 10})


def test_a_layout_of_its_own_has_a_checkout_of_its_own(client: redis.Redis) -> None:
    """With custom names the client refuses to write what that inventory would not understand."""
    with pytest.raises(ValueError, match="speaks the contract only"):
        Reservations.from_settings(client, Settings(index_key="holds"))


def test_a_shop_has_a_shard() -> None:
    """No shards at all, or a negative retention, is the caller's mistake."""
    with pytest.raises(ValueError, match="must be 1 or more"):
        Reservations(fakeredis.FakeRedis(), shards=0)
    with pytest.raises(ValueError, match="is negative"):
        Reservations(fakeredis.FakeRedis(), retention=timedelta(seconds=-1))


@pytest.mark.parametrize("duration", ["", "abc", "0", "-5000", "1.5"])
@pytest.mark.parametrize("step", ["reserve", "extend"])
def test_scripts_refuse_a_bad_duration(
    inventory: Inventory, reservations: Reservations, step: str, duration: str
) -> None:
    """From any language a duration that is not an integer from 1 is refused before anything is written."""
    inventory.stock("mug", 10)
    reservations.reserve("o1", "mug", 3)
    keys = inventory.keys
    names = [keys.index, keys.reservation_prefix + "o1:mug", keys.stock_prefix + "mug", keys.quarantine]
    if step == "extend":
        names.pop(2)
    arguments = ["o1:mug", "o1", "mug", *(["3"] if step == "reserve" else []), duration, "", "", keys.wake]
    before = contents(inventory.client)

    reply = inventory.client.eval(scripts.load(step).text, len(names), *names, *arguments)

    assert reply[0] == b"duration_invalid"
    assert before == contents(inventory.client)


@pytest.mark.parametrize("step", ["confirm", "release"])
def test_scripts_keep_what_has_no_retention(inventory: Inventory, reservations: Reservations, step: str) -> None:
    """Called without a retention a script ends the reservation and keeps it."""
    inventory.stock("mug", 10)
    reservations.reserve("o1", "mug", 3)
    keys = inventory.keys
    names = [keys.index, keys.reservation_prefix + "o1:mug", keys.stock_prefix + "mug", keys.quarantine]

    inventory.client.eval(scripts.load(step).text, 4, *names, "o1:mug", "o1", "mug")

    assert inventory.client.pttl(names[1]) == -1
    assert inventory.status("o1:mug") in ("Confirmed", "Released")
    inventory.assert_conserved({"mug": 10})
