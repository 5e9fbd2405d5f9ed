"""Moving an inventory to another number of shards: wholly, resumably, and with all that belongs to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from itertools import count
from typing import Any

import pytest
import redis

from expirer import Refused, Reservations
from expirer.config.settings import Settings
from expirer.connection.connect import connect_all
from expirer.contract import control
from expirer.contract.keys import shard_of
from expirer.operate import reshard
from tests.conftest import MakeWorker, Operate
from tests.inventory import contents
from tests.program import Backlog, wait_until
from tests.resharding import PRODUCTS, assert_conserved, fill, moved, read_all, shops
from tests.servers import RedisServer

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("before", "after"), [(1, 16), (4, 16), (16, 4), (3, 1), (1, 2)])
def test_everything_moves(operate: Operate, client: redis.Redis, before: int, after: int) -> None:
    """Every reservation, counter, index entry, quarantine entry, total and time to live is there on its new shard."""
    fill(client, before)
    expected = read_all(client, before)
    code, out, err = operate("reshard", "--shards", str(before), "--to", str(after), "--yes")

    assert (0, "") == (code, err)
    assert "0 found" in out
    assert f"EXPIRER_SHARDS={after} expirer resume" in out
    assert expected == read_all(client, after)
    assert_conserved(client, after)
    tags = {key.partition(b"}")[0] for key in client.scan_iter() if b":control" not in key}
    assert tags <= {shop.keys.index.partition("}")[0].encode() for shop in shops(client, after)}


def test_the_shop_goes_on_afterwards(operate: Operate, client: redis.Redis, make_worker: MakeWorker) -> None:
    """Expiry stays paused until it is resumed on the new shards; then workers and checkouts go on there."""
    fill(client)
    operate("reshard", "--to", "16", "--yes")
    workers = [make_worker(None, number, shards=16) for number in range(16)]

    done = [worker.tick() for worker in workers]
    assert (16, 0) == (sum(one.paused for one in done), sum(one.expired for one in done))
    operate("resume", "--shards", "16", "--yes")
    due = sum(n % 7 > 1 for n in range(len(PRODUCTS)))
    assert due == sum(worker.tick().expired for worker in workers)
    checkout = Reservations(client, shards=16)
    assert checkout.confirm("o0", "product-1").changed
    with pytest.raises(Refused):
        Reservations(client).reserve("o9", "product-1", 1)
    assert_conserved(client, 16)


def test_any_name_moves(operate: Operate, client: redis.Redis) -> None:
    """Ids may be any bytes: a product and reservations called by single bytes move as any other."""
    (shop,) = shops(client, 1)
    row: dict[Any, Any] = {"quantity": 1, "status": "Active", "expires_at": 4_102_444_800_000}
    names: list[Any] = [b"\0", b"0", b"\xff", b"nobody"]
    for name in names:
        client.hset(shop.keys.stock_prefix.encode() + name, mapping={"available": 9, "reserved": 1})
        client.hset(shop.keys.reservation_prefix.encode() + name, mapping={**row, "product_id": name})
        client.zadd(shop.keys.index, {name: 4_102_444_800_000})
    expected = {name: value for name, value in read_all(client, 1).items() if name != "totals"}

    code, _, err = operate("reshard", "--to", "16", "--yes")

    assert (0, "") == (code, err)
    assert expected == {name: value for name, value in read_all(client, 16).items() if name != "totals"}


def test_nothing_to_move_is_done(operate: Operate, client: redis.Redis) -> None:
    """To the number of shards that the inventory has there is nothing to move: it audits, and exits 0."""
    fill(client)
    before = contents(client)
    code, out, err = operate("reshard", "--to", "1")

    assert (0, "", before) == (code, err, contents(client))
    assert "0 found" in out
    assert out.endswith("nothing to move\nnext: start the checkouts and the sidecar with EXPIRER_SHARDS=1\n")


def test_a_product_of_very_many_is_waited_for(shared_server: RedisServer, server_client: redis.Redis) -> None:
    """A script that takes longer than the time-out of the address is waited for: its answer is not lost."""
    backlog = Backlog(server_client)
    backlog.add(9000)
    settings = Settings(redis_url=f"{shared_server.url}?socket_timeout=0.01")
    with connect_all(settings) as servers:
        reshard._Move(servers, settings, settings.model_copy(update={"shards": 16})).run()

    assert 9000 == sum(len(shop.index()) for shop in shops(server_client, 16))
    assert_conserved(server_client, 16, backlog.stocked)


def test_what_has_no_product_is_kept(operate: Operate, client: redis.Redis) -> None:
    """Entries without a reservation, and reservations without a product, are on the first shard: none is lost."""
    (shop,) = shops(client, 1)
    client.zadd(shop.keys.index, {"ghost": 4_102_444_800_000})
    client.hset(shop.keys.quarantine, "lost", "reason=reservation_missing at=1 score=1")
    shop.hold("", expires_at=4_102_444_800_000, id_="nameless")
    client.hdel(shop.keys.reservation_prefix + "nameless", "product_id")
    operate("reshard", "--to", "2", "--yes")
    first = shops(client, 2)[0]

    assert {b"ghost", b"nameless"} == set(first.index())
    assert "reservation_missing" == first.quarantine()["lost"]
    assert "Active" == first.status("nameless")
    assert [] == client.keys("{inventory}:res*")


def test_an_interrupted_move_is_resumed(shared_server: RedisServer, server_client: redis.Redis) -> None:
    """Killed again and again between two products it leaves each whole, and the last run moves the rest."""
    client = server_client
    fill(client)
    expected = read_all(client, 1)
    command = [sys.executable, "-m", "expirer", "reshard", "--to", "16", "--yes", "--redis-url", shared_server.url]
    halves = 0
    for n in (1, 5, 12, 25):
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ)
        ) as run:
            wait_until(lambda n=n: run.poll() is not None or moved(client) >= n)  # type: ignore[misc]
            run.send_signal(signal.SIGKILL)
        halves += 0 < moved(client) < len(PRODUCTS)
        both = read_all(client, 1)
        both.update({name: value for name, value in read_all(client, 16).items() if name != "totals"})
        both["totals"] = expected["totals"]
        assert expected == both
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (0, "") == (done.returncode, done.stderr)
    assert expected == read_all(client, 16)
    assert_conserved(client, 16)


def test_a_second_time_changes_nothing(operate: Operate, client: redis.Redis) -> None:
    """Where all has moved and the shop goes on it pauses nothing, and says what is next."""
    fill(client)
    operate("reshard", "--to", "16", "--yes")
    operate("resume", "--shards", "16", "--yes")
    before = contents(client)
    code, out, err = operate("reshard", "--to", "16")

    assert (0, "", before) == (code, err, contents(client))
    assert "nothing to move\nnext: start the checkouts and the sidecar with EXPIRER_SHARDS=16\n" in out


def test_what_the_audit_finds_hides_no_next_step(operate: Operate, client: redis.Redis) -> None:
    """Damage from before moves along, and the person hears of it, of what moved and of what is next, each time."""
    shops(client, 1)[0].stock("mug", 5, 3)
    for moved_ in ("1 products with 0 reservations moved", "nothing to move"):
        code, out, _ = operate("reshard", "--to", "4", "--yes")

        assert 1 == code
        assert "reserved is 3, its Active reservations hold 0" in out
        assert moved_ in out
        assert "EXPIRER_SHARDS=4 expirer audit --repair, then: start the checkouts" in out


def test_ended_reservations_move_in_slices(
    operate: Operate, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What holds no unit follows its product some at a time; stopped between two slices, the rest follows later."""
    monkeypatch.setattr(reshard, "_ENDED_AT_ONCE", 10)
    (shop,) = shops(client, 1)
    shop.stock("mug", 97, 3)
    for n in range(28):
        id_ = shop.hold("mug", 1, 4_102_444_800_000, f"o{n}:mug", status="Active" if n < 3 else "Expired")
        if n >= 3:
            client.zrem(shop.keys.index, id_)
            client.pexpire(shop.keys.reservation_prefix + id_, 3_600_000)
    expected = read_all(client, 1)
    home = shops(client, 2)[shard_of("mug", 2)].keys.reservation_prefix
    sizes: list[int] = []
    move = reshard._Move._move

    def stopped_after_two(*arguments: Any) -> None:  # noqa: ANN401  # what it takes
        if len(sizes) == 2:
            raise redis.ConnectionError("the network fails")
        move(*arguments)
        sizes.append(len(client.keys(f"{home}*")))

    monkeypatch.setattr(reshard._Move, "_move", stopped_after_two)
    code, _, err = operate("reshard", "--to", "2", "--yes")
    assert (1, [3, 13]) == (code, sizes)
    assert err.endswith("the network fails; expiry stays paused: repeat this\n")
    assert_conserved_mug(client)
    monkeypatch.setattr(reshard._Move, "_move", move)

    assert (0, "") == operate("reshard", "--to", "2", "--yes")[::2]
    assert expected == read_all(client, 2)
    assert_conserved_mug(client)


def assert_conserved_mug(client: redis.Redis) -> None:
    """Assert the law for the one product of a hundred units, on two shards."""
    shops(client, 2)[shard_of("mug", 2)].assert_conserved({"mug": 100})


def test_a_brake_is_taken_along(operate: Operate, client: redis.Redis) -> None:
    """The brake of one old shard is on all new ones, so that `resume` still asks a person."""
    fill(client, 4)
    mapping: Any = control.braking("shop-1", "9 overdue", 1_795_469_461_999)
    client.hset("{inventory:3}:control", mapping=mapping)
    code, _, err = operate("reshard", "--shards", "4", "--to", "2", "--yes")

    assert (0, "") == (code, err)
    assert [b"9 overdue"] * 2 == [client.hget(f"{{inventory:{number}}}:control", "brake") for number in range(2)]
    assert operate("resume", "--shards", "2")[0] == 1
    assert_conserved(client, 2)


def test_a_lasting_pause_of_a_person_is_kept(operate: Operate, client: redis.Redis) -> None:
    """Who paused, why and since when stays on the old shards, and is what the new ones say."""
    fill(client)
    own = control.pausing("ann@desk", "stocktaking", 1_795_469_461_999)
    client.hset("{inventory}:control", mapping=own)  # type: ignore[arg-type]
    before = client.hgetall("{inventory}:control")
    code, out, _ = operate("reshard", "--to", "2", "--yes")

    assert 0 == code
    assert "paused by ann@desk" in out
    assert [before] * 3 == [client.hgetall(f"{{inventory{shard}}}:control") for shard in ("", ":0", ":1")]


def test_a_pause_that_ends_by_itself_is_replaced(operate: Operate, client: redis.Redis) -> None:
    """A pause that could end in the middle of the move gives way to one that lasts."""
    fill(client)
    own = control.pausing("ann@desk", "lunch", 1_795_469_461_999, 4_102_444_800_000)
    client.hset("{inventory}:control", mapping=own)  # type: ignore[arg-type]
    operate("reshard", "--to", "2", "--yes")

    assert [b"", b"reshard from 1 to 2"] == client.hmget("{inventory}:control", "until", "reason")


@pytest.mark.parametrize("damaged", ["{inventory}:stats", "{inventory:0}:stats"])
def test_a_damaged_total_costs_no_other(operate: Operate, client: redis.Redis, damaged: str) -> None:
    """A total that is no number counts as none, on whichever side; all others are carried over."""
    fill(client)
    client.hset("{inventory:0}:stats", mapping={"expired": 2, "units": 3})
    client.hset("{inventory}:stats", mapping={"token": "1234", "ticks": 7})
    client.hset(damaged, "expired", "abc")
    expected = {b"expired": b"2" if damaged == "{inventory}:stats" else b"5", b"units": b"12"}
    operate("reshard", "--to", "4", "--yes")

    assert expected == client.hgetall("{inventory:0}:stats")
    assert not client.exists("{inventory}:stats")


def test_a_control_key_that_is_written_meanwhile_is_read_again(
    operate: Operate, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where somebody writes it, and expiry stays paused, the move goes on with the product that it was at."""
    fill(client)
    command, calls = reshard._Move._command, count()

    def written_before(move: reshard._Move, *arguments: Any) -> tuple[object, ...]:  # noqa: ANN401  # what it takes
        if next(calls) % 20 == 19:
            client.hset("{inventory}:control", "by", "ann")
        return command(move, *arguments)

    monkeypatch.setattr(reshard._Move, "_command", written_before)

    assert (0, "") == operate("reshard", "--to", "16", "--yes")[::2]
    assert_conserved(client, 16)


@pytest.mark.parametrize("field", ["note", "status"])
def test_a_strangers_hash_is_no_reservation(operate: Operate, client: redis.Redis, field: str) -> None:
    """A hash of somebody else under the prefix of reservations is in nobody's way, and stays where it is."""
    fill(client)
    client.hset("{inventory}:reservation:last-import", field, "Active")

    assert (0, "") == operate("reshard", "--to", "16", "--yes")[::2]
    assert {field.encode(): b"Active"} == client.hgetall("{inventory}:reservation:last-import")
    assert_conserved(client, 16)
