"""What keeps a batch from taking everything at once: the brake, the rate, the clock, and its own size in bytes."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from tests.inventory import NOW, Inventory
from tests.lua import MIB, Reply, expire
from tests.servers import RedisServer

GRACE_MS = 5000


def overdue_since(inventory: Inventory, *since: int) -> None:
    """Write reservations that are overdue, with the grace, since these times."""
    inventory.stock("mug", 0, len(since))
    for time in since:
        inventory.hold("mug", expires_at=time - GRACE_MS)


def drain(inventory: Inventory, **arguments: object) -> list[Reply]:
    """Expire batch after batch, until nothing is overdue or something stops it."""
    replies = [expire(inventory.client, **arguments)]
    while replies[-1].overdue and not replies[-1].held:
        replies.append(expire(inventory.client, **arguments))
    return replies


@pytest.mark.parametrize(("brake", "held"), [(3, ""), (2, "brake")])
@pytest.mark.parametrize("unit_ms", [1, 1000])
def test_the_brake_counts_what_became_overdue_since(inventory: Inventory, brake: int, held: str, unit_ms: int) -> None:
    """What was overdue at a resume, grace included, is not counted; what became overdue since then is."""
    overdue_since(inventory, NOW - 4000, NOW - 3000, NOW - 2000, NOW - 1500, NOW - 1000, NOW - 500)
    for id_, score in inventory.index().items():
        inventory.client.zadd(inventory.keys.index, {id_: score / unit_ms})
        inventory.client.hset(inventory.keys.reservation_prefix + id_.decode(), "expires_at", score / unit_ms)
    reply = expire(
        inventory.client, brake=brake, counted_from_ms=NOW - 2000, grace_ms=GRACE_MS, unit_ms=unit_ms, batch=10
    )

    assert (held, 0 if held else 6) == (reply.held, reply.taken)
    inventory.assert_conserved({"mug": 6})


@pytest.mark.parametrize("counted_from_ms", [0, NOW + 60_001, NOW + 10**12, 2**53])
def test_a_resume_in_the_future_is_none(inventory: Inventory, counted_from_ms: int) -> None:
    """A resume that a wrong clock wrote does not switch the brake off."""
    overdue_since(inventory, *range(NOW - 40, NOW - 30))
    inventory.client.zadd(inventory.keys.index, {"ancient": 0, "older": "-inf"})

    assert "" == expire(inventory.client, brake=12, counted_from_ms=counted_from_ms, dry_run=1).held
    assert "brake" == expire(inventory.client, brake=11, counted_from_ms=counted_from_ms).held
    inventory.assert_conserved({"mug": 10})


def test_a_clock_a_little_ahead_may_resume(inventory: Inventory) -> None:
    """A resume that another machine's clock wrote some seconds ahead lets go what is overdue now."""
    overdue_since(inventory, *range(NOW - 40, NOW - 30))

    assert 10 == expire(inventory.client, brake=1, counted_from_ms=NOW + 10_000).taken
    inventory.assert_conserved({"mug": 10})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rate", "saved_ms", "counts"),
    [
        (200, 1000, [50, 50, 50, 50]),
        (200, 100, [20]),
        (120, 1000, [50, 50, 20]),
        (3, 100, [1]),
        (15, 100, [2]),
        (1000, 60_000, [50] * 6),
    ],
)
def test_a_drain_may_use_what_was_saved(inventory: Inventory, rate: int, saved_ms: int, counts: list[int]) -> None:
    """The rate saves up what it allows in saved_ms, and the batches of one drain may take all of it."""
    inventory.overdue("mug", 300)
    replies = drain(inventory, batch=50, rate=rate, saved_ms=saved_ms)
    most = sum(counts)

    assert counts == [reply.taken for reply in replies if reply.taken]
    assert ("rate" if most < 300 else "", 300 - most) == (replies[-1].held, replies[-1].overdue)
    if most < 300:
        assert 0 <= (replies[-1].next or 0) - (NOW + 1000 * most / rate) < 1
    inventory.assert_conserved({"mug": 300})


@pytest.mark.slow
@pytest.mark.parametrize("rate", [3, 15, 200])
@pytest.mark.parametrize("resolution_ms", [10, 100, 1000])
def test_the_rate_is_kept_over_time(inventory: Inventory, rate: int, resolution_ms: int) -> None:
    """A worker that looks when the rate allows more expires as many a second as the rate says."""
    inventory.overdue("mug", 100)
    now = NOW
    while inventory.index():
        reply = drain(inventory, rate=rate, saved_ms=max(100, resolution_ms), now_ms=now)[-1]
        now = max(now + resolution_ms, (reply.next or 0) + 1)
    done_in_s = (now - NOW) / 1000

    assert 0.9 * (100 - 2 * max(1, rate * max(100, resolution_ms) / 1000)) / rate <= done_in_s <= 1.1 * 100 / rate + 2
    inventory.assert_conserved({"mug": 100})


def test_the_rate_is_named_only_where_it_stops(inventory: Inventory) -> None:
    """Where nothing is left, or the batch is the smaller limit, the rate holds nothing back."""
    inventory.overdue("mug", 30)

    assert ["", ""] == [expire(inventory.client, batch=batch, rate=25).held for batch in (10, 10)]
    assert ["rate", "rate"] == [expire(inventory.client, batch=batch, rate=25).held for batch in (10, 10)]
    assert "" == expire(inventory.client, batch=10, rate=25, now_ms=NOW + 200).held
    inventory.assert_conserved({"mug": 30})


@pytest.mark.parametrize("until", ["nan", "inf", "-inf", "soon", "0x7fffffffffff", str(NOW * 2), ""])
def test_a_damaged_rate_limits_all_the_same(inventory: Inventory, until: str) -> None:
    """What the stats say of the rate is a stranger's number like any other."""
    inventory.overdue("mug", 30)
    inventory.client.hset(inventory.keys.stats, "rate_until", until)
    taken = sum(reply.taken for now in (NOW, NOW + 1000) for reply in drain(inventory, rate=10, now_ms=now))

    assert 10 <= taken <= 20
    inventory.assert_conserved({"mug": 30})


class TestClock:
    """A clock that another worker does not confirm is not believed."""

    LATEST = NOW - 5000

    @pytest.mark.parametrize(
        ("ticks", "held"),
        [
            ({}, "clock"),
            ({"ann": NOW - 100}, "clock"),
            ({"bob": LATEST}, "clock"),
            ({"bob": NOW - 60_000, "ann": NOW - 100}, "clock"),
            ({"bob": NOW + 1}, "clock"),
            ({"bob": LATEST + 1}, ""),
            ({"ann": NOW - 100, "bob": NOW - 100}, ""),
            ({"bob": NOW}, ""),
        ],
    )
    def test_one_witness_does_not_convict(self, inventory: Inventory, ticks: dict[str, int], held: str) -> None:
        """A jump is believed if another worker has ticked in the time that this one did not see pass."""
        inventory.overdue("mug", 3)
        if ticks:
            inventory.client.zadd(inventory.keys.workers, ticks)

        assert held == expire(inventory.client, latest_ms=self.LATEST).held
        inventory.assert_conserved({"mug": 3})

    def test_what_is_not_believed_is_not_written(self, inventory: Inventory) -> None:
        """A tick at a time that is not believed leaves no heartbeat: it would convince the next worker."""
        inventory.overdue("mug", 3)
        inventory.client.zadd(inventory.keys.workers, {"bob": NOW - 60_000})
        before = {key: inventory.client.dump(key) for key in inventory.client.scan_iter()}
        replies = [expire(inventory.client, latest_ms=self.LATEST, worker=worker) for worker in ("ann", "bob", "ann")]

        assert ["clock"] * 3 == [reply.held for reply in replies]
        assert [b""] * 3 == [reply.mark for reply in replies]
        assert before == {key: inventory.client.dump(key) for key in inventory.client.scan_iter()}
        inventory.assert_conserved({"mug": 3})


class TestBytes:
    """A batch is bounded in bytes, too."""

    def hold(self, inventory: Inventory, count: int, **sizes: int) -> dict[str, int]:
        """Write overdue reservations with an id, an order id or a product id of that many bytes; return the stock."""
        product = "p" * sizes.get("product", 3)
        inventory.stock(product, 0, count)
        for n in range(count):
            id_ = f"{n:03}" + "i" * (sizes.get("id", 3) - 3)
            inventory.hold(product, 1, NOW - 1000 + n, id_, order_id="o" * sizes.get("order", 2))
        return {product: count}

    @pytest.mark.parametrize("part", ["id", "order", "product"])
    def test_large_ids_make_small_batches(self, inventory: Inventory, part: str) -> None:
        """Ids, order ids and product ids of a batch are at most 1 MiB; the rest stays overdue for the next."""
        stocked = self.hold(inventory, 50, **{part: 100_000})
        replies = drain(inventory)

        assert [10, 10, 10, 10, 10] == [reply.taken for reply in replies]
        assert [40, 30, 20, 10, 0] == [reply.overdue for reply in replies]
        assert all(sum(map(len, row[:3])) <= MIB for reply in replies for row in reply.expired)
        assert {""} == {reply.held for reply in replies}
        inventory.assert_conserved(stocked)

    def test_one_entry_is_always_taken(self, inventory: Inventory) -> None:
        """An id larger than the bound is a batch of its own."""
        stocked = self.hold(inventory, 3, id=2 * MIB)

        assert [1, 1, 1] == [reply.taken for reply in drain(inventory)]
        inventory.assert_conserved(stocked)

    def test_a_large_one_waits_for_the_next_batch(self, inventory: Inventory) -> None:
        """What does not fit any more has no outcome yet, and no effect on the counters."""
        self.hold(inventory, 40)
        big = inventory.hold("ppp", 1, NOW - 900, "b" * MIB)
        inventory.client.hincrby(inventory.keys.stock_prefix + "ppp", "reserved", 1)
        first = expire(inventory.client)

        assert (40, 1, NOW - 900) == (first.taken, first.overdue, first.next)
        inventory.assert_conserved({"ppp": 41})
        assert [big.encode()] == [row[0] for row in expire(inventory.client).expired]
        inventory.assert_conserved({"ppp": 41})

    def test_the_rate_counts_only_what_was_taken(self, inventory: Inventory) -> None:
        """A batch that its bytes cut short uses up no more of the rate than it took."""
        stocked = self.hold(inventory, 50, id=100_000)
        replies = drain(inventory, rate=30)

        assert [10, 10, 10] == [reply.taken for reply in replies if reply.taken]
        assert "rate" == expire(inventory.client, rate=30).held
        inventory.assert_conserved(stocked)

    def test_other_outcomes_count_too(self, inventory: Inventory) -> None:
        """Large ids that are skipped, quarantined or tried again are bounded like those that expire."""
        for n, status in enumerate(["Confirmed", "odd", "Active"] * 10):
            inventory.hold("gone", 1, NOW - 1000 + n, f"{n:03}" + "i" * 99_997, status=status, order_id="o")
        replies = drain(inventory)

        assert [10, 10, 10] == [reply.taken for reply in replies]
        assert 0 == inventory.client.zcount(inventory.keys.index, "-inf", NOW)


class TestWorkers:
    """The list of workers has no history, and no future."""

    HOUR = 60 * 60 * 1000

    def test_who_ticked_an_hour_ago_is_forgotten(self, inventory: Inventory) -> None:
        """A worker that has not ticked for an hour leaves the list, and what it said of itself goes too."""
        old = {f"old{n}": NOW - self.HOUR - 1 - n for n in range(1500)}
        inventory.client.zadd(inventory.keys.workers, {**old, "late": NOW - self.HOUR})
        inventory.client.hset(inventory.keys.about, mapping=dict.fromkeys([*old, "late"], "version=0"))
        for _ in range(2):
            expire(inventory.client)

        assert [b"late", b"ann"] == inventory.client.zrange(inventory.keys.workers, 0, -1)
        assert {b"late", b"ann"} == set(inventory.client.hkeys(inventory.keys.about))

    def test_who_ticked_in_the_future_is_forgotten(self, inventory: Inventory) -> None:
        """A worker whose last tick lies more than a minute ahead would be live until then: it is forgotten."""
        ahead = {f"ahead{n}": NOW + 60_001 + n * self.HOUR for n in range(1500)}
        inventory.client.zadd(inventory.keys.workers, {**ahead, "skewed": NOW + 60_000, "bob": NOW - 1})
        inventory.client.hset(inventory.keys.about, mapping=dict.fromkeys([*ahead, "bob"], "version=0"))
        for _ in range(2):
            expire(inventory.client)

        assert [b"bob", b"ann", b"skewed"] == inventory.client.zrange(inventory.keys.workers, 0, -1)
        assert {b"bob", b"ann"} == set(inventory.client.hkeys(inventory.keys.about))

    def test_the_list_lasts_an_hour(self, inventory: Inventory) -> None:
        """Every tick renews the life of the list, so that it vanishes an hour after the last of them."""
        expire(inventory.client)
        for key in (inventory.keys.workers, inventory.keys.about):
            assert self.HOUR - 60_000 < inventory.client.pttl(key) <= self.HOUR


class TestCompany:
    """What workers tell one another: facts about this index, and a mark that only its readers know."""

    @pytest.fixture
    def channel(self, inventory: Inventory) -> Any:  # noqa: ANN401  # redis-py's PubSub has no types
        """Return a subscription to the ticks."""
        with inventory.client.pubsub(ignore_subscribe_messages=True) as subscription:  # type: ignore[no-untyped-call]
            subscription.subscribe(inventory.keys.ticks)
            subscription.get_message(timeout=5)
            yield subscription

    def heard(self, channel: Any) -> list[bytes]:  # noqa: ANN401
        """Return the messages so far."""
        messages = iter(lambda: channel.get_message(timeout=0.2), None)
        return [message["data"] for message in messages]

    def test_a_worker_alone_says_nothing(self, inventory: Inventory, channel: Any) -> None:  # noqa: ANN401
        """Without another worker there is no mark, no message, and no token."""
        inventory.overdue("mug", 2)

        assert [b"", b""] == [expire(inventory.client).mark for _ in range(2)]
        assert [] == self.heard(channel)
        assert not inventory.client.hexists(inventory.keys.stats, "token")

    def test_calls_are_numbered(self, inventory: Inventory, channel: Any) -> None:  # noqa: ANN401
        """The first token is everybody's, every call has a number, and a message tells the head of the index."""
        inventory.stock("mug", 8, 2)
        inventory.hold("mug")
        inventory.hold("mug", expires_at=NOW + 70_000)
        expire(inventory.client, worker="ann")
        marks = [expire(inventory.client, worker=who, token=f"of{who}").mark for who in ("bob", "ann")]
        paused = expire(inventory.client, worker="bob", batch=0).mark

        assert ([b"ofbob 1", b"ofbob 2"], b"ofbob 3") == (marks, paused)
        assert [b"ofbob 1 %d 0 bob" % (NOW + 70_000), b"ofbob 2 %d 0 ann" % (NOW + 70_000)] == self.heard(channel)
        inventory.assert_conserved({"mug": 10})

    def test_a_message_has_what_the_call_left(self, inventory: Inventory, channel: Any) -> None:  # noqa: ANN401
        """The head is the first entry after the call: overdue, rescheduled, tried again, or none."""
        inventory.client.zadd(inventory.keys.workers, {"bob": NOW})
        inventory.overdue("mug", 2)
        expire(inventory.client, batch=1)
        expire(inventory.client)
        inventory.client.zadd(inventory.keys.index, {"gone": NOW - 5})
        expire(inventory.client)

        told = [tuple(message.split(b" ")[2:4]) for message in self.heard(channel)]
        assert [(b"%d" % (NOW - 1000), b"1"), (b"", b"0"), (b"%d" % (NOW + 1000), b"0")] == told

    def test_what_stops_a_worker_is_not_told(self, inventory: Inventory, channel: Any) -> None:  # noqa: ANN401
        """A brake, a rate, a disbelieved clock and a dry run are one worker's own: no message speaks of them."""
        inventory.client.zadd(inventory.keys.workers, {"bob": NOW - 60_000})
        inventory.overdue("mug", 9)
        stopped: tuple[dict[str, object], ...] = ({"brake": 1}, {"rate": 1}, {"latest_ms": NOW - 1}, {"dry_run": 1})
        helds = [expire(inventory.client, **words).held for words in stopped]

        assert ["brake", "rate", "clock", ""] == helds
        assert [] == self.heard(channel)
        inventory.assert_conserved({"mug": 9})

    @pytest.mark.parametrize("token", ["", "two words", "x" * 1000, b"\xff\x00"])
    @pytest.mark.parametrize("ticks", ["", "-5", "many", str(2**53), "9" * 400])
    def test_a_damaged_mark_is_replaced(self, inventory: Inventory, token: str | bytes, ticks: str) -> None:
        """A token or a number that cannot be one starts anew, and stops no batch."""
        inventory.client.zadd(inventory.keys.workers, {"bob": NOW})
        inventory.client.hset(inventory.keys.stats, mapping={"token": token, "ticks": ticks})
        inventory.overdue("mug", 2)

        marks = [expire(inventory.client, token=f"token{n}").mark for n in (1, 2)]
        assert [b"token1 1", b"token1 2"] == marks
        inventory.assert_conserved({"mug": 2})


@pytest.mark.parametrize("client", ["server"], indirect=True)
def test_a_missing_right_on_the_stats_moves_nothing(
    client: redis.Redis, shared_server: RedisServer, inventory: Inventory
) -> None:
    """In company the stats are written before the first unit moves."""
    inventory.overdue("mug", 2)
    client.zadd(inventory.keys.workers, {"bob": NOW})
    user = ["clerk", "reset", "on", ">pw", "+@all", "&*", "~{inventory}:[^s]*", "~{inventory}:stock:*"]
    try:
        client.execute_command("ACL", "SETUSER", *user, "%R~{inventory}:stats")  # type: ignore[no-untyped-call]
    except redis.ResponseError:
        pytest.skip("this server knows no rights to read or write single keys")
    url = f"{shared_server.url}?username=clerk&password=pw"
    try:
        with redis.Redis.from_url(url) as clerk, pytest.raises(redis.ResponseError):
            expire(clerk)
    finally:
        client.execute_command("ACL", "DELUSER", "clerk")  # type: ignore[no-untyped-call]

    assert (0, 2) == inventory.counters("mug")
    inventory.assert_conserved({"mug": 2})
