"""Moving an inventory to more hash tags: wholly, resumably, and never beside a checkout that still writes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import fakeredis
import pytest
import redis

from expirer import Refused, Reservations, cli, control, scripts
from expirer.connect import connect_all
from expirer.keys import ShardKeys, shard_of
from expirer.operate import reshard
from expirer.operate.survey import Survey
from expirer.settings import Settings
from expirer.worker import Worker
from tests.conftest import Log, Operate
from tests.inventory import Inventory, contents
from tests.program import Backlog, wait_until
from tests.servers import RedisServer

PRODUCTS = [f"product-{n}" for n in range(40)]
STOCKED = dict.fromkeys(PRODUCTS, 100)


class _QuietFeed:
    """Hears that nobody writes; fakeredis has no CLIENT TRACKING."""

    def __init__(self, *_: object) -> None:
        pass

    def written(self) -> set[bytes]:
        return set()

    def hears(self, _connection: object) -> bool:
        return True

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def _fake_is_heard(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "client" in request.fixturenames and isinstance(request.getfixturevalue("client"), fakeredis.FakeRedis):
        monkeypatch.setattr("expirer.operate.survey.Feed", _QuietFeed)


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


def look(client: redis.Redis, shards: int) -> dict[str, Any]:
    """Return all that matters of a shop, whatever shards it lives on."""
    found: dict[str, Any] = {"totals": Counter()}
    for shop in shops(client, shards):
        keys = shop.keys
        for prefix in (keys.reservation_prefix, keys.stock_prefix):
            for key in client.scan_iter(match=f"{prefix}*"):
                name = key.decode().replace(prefix, prefix.rpartition("}:")[2])
                found[name] = (client.hgetall(key), client.ttl(key) > 0)
        found.update({f"index {id_.decode()}": score for id_, score in shop.index().items()})
        found.update({f"quarantine {id_}": reason for id_, reason in shop.quarantine().items()})
        found["totals"].update({name: int(n) for name, n in client.hgetall(keys.stats).items() if n.isdigit()})
    return found


def assert_conserved(client: redis.Redis, shards: int, stocked: Mapping[str, int] = STOCKED) -> None:
    """Assert the law for every product on its shard."""
    for number, shop in enumerate(shops(client, shards)):
        shop.assert_conserved({name: n for name, n in stocked.items() if shard_of(name, shards) == number})


@pytest.mark.parametrize(("before", "after"), [(1, 16), (4, 16), (16, 4), (3, 1), (1, 2)])
def test_everything_moves(operate: Operate, client: redis.Redis, before: int, after: int) -> None:
    """Every reservation, counter, index entry, quarantine entry, total and time to live is there on its new shard."""
    fill(client, before)
    expected = look(client, before)
    code, out, err = operate("reshard", "--shards", str(before), "--to", str(after), "--yes")

    assert (0, "") == (code, err)
    assert "0 found" in out
    assert f"EXPIRER_SHARDS={after} expirer resume" in out
    assert expected == look(client, after)
    assert_conserved(client, after)
    tags = {key.partition(b"}")[0] for key in client.scan_iter() if b":control" not in key}
    assert tags <= {shop.keys.index.partition("}")[0].encode() for shop in shops(client, after)}


def test_the_shop_goes_on_afterwards(operate: Operate, client: redis.Redis, log: Log) -> None:
    """Expiry stays paused until it is resumed on the new shards; then workers and checkouts go on there."""
    fill(client)
    operate("reshard", "--to", "16", "--yes")
    worker = Worker(client, Settings(shards=16), log.logger())

    assert (16, 0) == ((done := worker.tick()).paused, done.expired)
    operate("resume", "--shards", "16", "--yes")
    due = sum(n % 7 > 1 for n in range(len(PRODUCTS)))
    assert due == worker.tick().expired
    checkout = Reservations(client, shards=16)
    assert checkout.confirm("o0", "product-1").changed
    with pytest.raises(Refused):
        Reservations(client).reserve("o9", "product-1", 1)
    assert_conserved(client, 16)


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
    expected = look(client, 1)
    command = [sys.executable, "-m", "expirer", "reshard", "--to", "16", "--yes", "--redis-url", shared_server.url]
    halves = 0
    for n in (1, 5, 12, 25):
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ)
        ) as run:
            wait_until(lambda n=n: run.poll() is not None or moved(client) >= n)  # type: ignore[misc]
            run.send_signal(signal.SIGKILL)
        halves += 0 < moved(client) < len(PRODUCTS)
        both = look(client, 1)
        both.update({name: value for name, value in look(client, 16).items() if name != "totals"})
        both["totals"] = expected["totals"]
        assert expected == both
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (0, "") == (done.returncode, done.stderr)
    assert expected == look(client, 16)
    assert_conserved(client, 16)


def moved(client: redis.Redis) -> int:
    """Count the products that are on a new shard."""
    return sum(1 for _ in client.scan_iter(match="{inventory:*}:stock:*", count=1000))


def while_it_looks(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Let somebody act before it asks what was written meanwhile."""
    news = Survey.news

    def after_it(survey: Survey) -> Any:  # noqa: ANN401  # what news returns
        act()
        return news(survey)

    monkeypatch.setattr(Survey, "news", after_it)


@pytest.mark.parametrize("client", ["server"], indirect=True)  # the fake one has no CLIENT TRACKING
def test_beside_a_checkout_nothing_moves(
    operate: Operate, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a reservation is written while it looks, it stops before it moves, and says what was written."""
    fill(client)
    while_it_looks(monkeypatch, lambda: client.hset("{inventory}:reservation:o0:product-6", "quantity", 1))
    code, _, err = operate("reshard", "--to", "16", "--yes")

    assert (1, 0) == (code, moved(client))
    assert "expirer: o0:product-6 was written just now: stop the checkouts first" in err
    assert_conserved(client, 1)


def test_what_is_in_the_way_stops_it(operate: Operate, client: redis.Redis) -> None:
    """A product whose new key is taken is not moved, not even in part, and the line names the key."""
    fill(client)
    client.hset(f"{{inventory:{shard_of('product-6', 2)}}}:reservation:o5:product-6", "quantity", 1)
    before = {key: value for key, value in contents(client).items() if b"product-6" in key}
    code, _, err = operate("reshard", "--to", "2", "--yes")

    assert 1 == code
    assert "reservation:o5:product-6 exists already, in the way of product-6" in err
    assert "expiry stays paused: repeat this" in err
    assert before == {key: value for key, value in contents(client).items() if b"product-6" in key}


def test_a_resumption_stops_it(operate: Operate, client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where somebody resumes expiry meanwhile not one more product moves."""
    fill(client)
    move_product = reshard._Move._move_product

    def resumed_before(*arguments: Any) -> None:  # noqa: ANN401  # what it takes
        if moved(client) == 3:
            client.delete("{inventory}:control")
        move_product(*arguments)

    monkeypatch.setattr(reshard._Move, "_move_product", resumed_before)
    code, _, err = operate("reshard", "--to", "16", "--yes")

    assert (1, 3) == (code, moved(client))
    assert "somebody has resumed expiry" in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--to", "1"), "--to 1: EXPIRER_SHARDS is 1 already"),
        (("--to", "0"), "--to 0: the number of shards is 1 to 1024"),
        (("--to", "2000"), "--to 2000: the number of shards is 1 to 1024"),
        (("--to", "2", "--redis-cluster", "true"), "in a Cluster no script reaches two hash tags"),
        (("--to", "2", "--stock-prefix", "s:"), "names of your own belong to one shard"),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: tuple[str, ...], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A number that is none, the same number and a layout of one's own are refused before Redis is touched."""
    assert 2 == cli.main(["reshard", "--yes", *arguments])
    assert expected in capsys.readouterr().err


def test_without_redis_it_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Where no Redis answers it says so, and does not ask whether it may."""
    code = cli.main(["reshard", "--to", "2", "--redis-url", "redis://ann:hunter2@127.0.0.1:1/0"])
    out, err = capsys.readouterr()

    assert (1, "", 1) == (code, out, len(err.splitlines()))
    assert err.startswith("expirer: redis://127.0.0.1:1/0: ")


def test_a_name_that_is_taken_stops_it(operate: Operate, client: redis.Redis) -> None:
    """Where a key of the new shards belongs to something else nothing moves, and the line says so."""
    fill(client)
    client.set("{inventory:0}:control", "theirs")
    code, _, err = operate("reshard", "--to", "2", "--yes")

    assert (1, 0) == (code, moved(client))
    assert "{inventory:0}:control holds a string where a hash belongs" in err
    assert_conserved(client, 1)


def test_nothing_happens_unasked(operate: Operate, client: redis.Redis) -> None:
    """Without --yes, and without a terminal to answer on, nothing is changed."""
    fill(client)
    before = contents(client)
    code, out, err = operate("reshard", "--to", "16")

    assert 1 == code
    assert "from 1 to 16 shards?" in out or "repeat this with --yes" in err
    assert before == contents(client)


def test_a_wrong_present_number_is_refused(operate: Operate, client: redis.Redis) -> None:
    """Where the shop has another number of shards than was said nothing is paused, and the line names the right one."""
    fill(client, 16)
    before = contents(client)
    code, out, err = operate("reshard", "--to", "4", "--yes")

    assert (1, "", before) == (code, out, contents(client))
    assert "neither 1 nor 4 shards have it: what is there fits 16 shards: set EXPIRER_SHARDS" in err


def test_a_wrong_number_is_noticed_among_the_shards_of_the_new(operate: Operate, client: redis.Redis) -> None:
    """Products of four shards are under names that sixteen have, too: still it is seen that none belongs there."""
    fill(client, 4)
    before = contents(client)
    code, _, err = operate("reshard", "--to", "16", "--yes")

    assert (1, before) == (code, contents(client))
    assert "what is there fits 4 shards" in err


def test_a_second_time_changes_nothing(operate: Operate, client: redis.Redis) -> None:
    """Where all has moved and the shop goes on it pauses nothing, and says what is next."""
    fill(client)
    operate("reshard", "--to", "16", "--yes")
    operate("resume", "--shards", "16", "--yes")
    before = contents(client)
    code, out, err = operate("reshard", "--to", "16")

    assert (0, "", before) == (code, err, contents(client))
    assert "nothing was to be moved\nnext: start the checkouts and the sidecar with EXPIRER_SHARDS=16\n" in out


def test_what_the_audit_finds_hides_no_next_step(operate: Operate, client: redis.Redis) -> None:
    """Damage from before moves along, and the person hears of it, of what moved and of what is next, each time."""
    shops(client, 1)[0].stock("mug", 5, 3)
    for moved_ in ("1 products with 0 reservations moved", "nothing was to be moved"):
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
    expected = look(client, 1)
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
    assert expected == look(client, 2)
    assert_conserved_mug(client)


def assert_conserved_mug(client: redis.Redis) -> None:
    """Assert the law for the one product of a hundred units, on two shards."""
    shops(client, 2)[shard_of("mug", 2)].assert_conserved({"mug": 100})


@pytest.mark.parametrize("command", ["zadd", "zrem", "zmscore", "hset", "hdel", "hmget", "rename"])
def test_a_missing_right_moves_nothing(server_client: redis.Redis, shared_server: RedisServer, command: str) -> None:
    """The script uses each command where a refusal leaves everything in place, before it moves the first key."""
    client = server_client
    shop, moved_to = shops(client, 1)[0].keys, shops(client, 2)[1].keys
    fill(client)
    before = contents(client)
    rights = ["on", "nopass", "~*", "+@all", f"-{command}"]
    client.execute_command("ACL", "SETUSER", "ann", "reset", *rights)  # type: ignore[no-untyped-call]
    keys = [getattr(one, name) for one in (shop, moved_to) for name in ("index", "quarantine")]
    keys.insert(2, f"{shop.stock_prefix}product-6")
    keys.append(f"{moved_to.stock_prefix}product-6")
    words = ["product-6", shop.reservation_prefix, moved_to.reservation_prefix, "product_id"]
    ids = ["o0:product-6", "o1:product-6", "o4:product-6", "o5:product-6"]
    url = f"{shared_server.url}?username=ann&password=any"
    with redis.Redis.from_url(url, protocol=2) as ann, pytest.raises(redis.ResponseError):
        ann.eval(scripts.load("reshard").text, 6, *keys, *words, *ids)
    client.execute_command("ACL", "DELUSER", "ann")  # type: ignore[no-untyped-call]

    assert before == contents(client)


@pytest.mark.parametrize("client", ["server"], indirect=True)  # the fake one has no CLIENT TRACKING
def test_where_nobody_would_hear_a_checkout_nothing_is_paused(
    operate: Operate, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without CLIENT TRACKING a checkout that still writes would not be noticed, so it does not begin."""
    fill(client)
    before = contents(client)

    def refused(*_: object) -> None:
        raise redis.ResponseError("unknown subcommand 'TRACKING'")

    monkeypatch.setattr("expirer.operate.survey.Feed", refused)
    code, _, err = operate("reshard", "--to", "16", "--yes")

    assert (1, before) == (code, contents(client))
    assert "without CLIENT TRACKING: unknown subcommand 'TRACKING'" in err


@pytest.mark.parametrize("client", ["server"], indirect=True)  # the fake one has no CLIENT TRACKING
def test_the_end_of_a_retention_is_no_checkout(
    operate: Operate, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reservation whose retention ends while it looks was written by nobody, and does not stop it."""
    fill(client)
    while_it_looks(monkeypatch, lambda: client.pexpire("{inventory}:reservation:o3:product-6", 0))

    assert (0, "") == operate("reshard", "--to", "16", "--yes")[::2]


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
    client.hset(damaged, "expired", "abc")
    expected = {b"expired": b"2" if damaged == "{inventory}:stats" else b"5", b"units": b"12"}
    operate("reshard", "--to", "4", "--yes")

    assert expected == client.hgetall("{inventory:0}:stats")
    assert not client.exists("{inventory}:stats")


def test_an_interruption_says_how_things_stand(
    operate: Operate, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever stops it with Ctrl-C reads that expiry stays paused, and what to do."""
    fill(client)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(reshard._Move, "_move_totals", interrupted)

    assert (130, "expirer: interrupted; 40 products have moved, expiry stays paused: repeat this\n") == operate(
        "reshard", "--to", "2", "--yes"
    )[::2]


def test_a_lost_connection_is_no_conflict(
    own_server: RedisServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the server goes away under way the line says so, and that the move may have begun."""
    with own_server.client() as client:
        fill(client)
    call = reshard._Move._call

    def unanswered(move: Any, client: Any, *arguments: Any) -> None:  # noqa: ANN401  # what it takes
        call(move, client, *arguments)
        if isinstance(client, redis.client.Pipeline):
            own_server.stop()

    monkeypatch.setattr(reshard._Move, "_call", unanswered)
    code = cli.main(["reshard", "--to", "2", "--yes", "--redis-url", own_server.url])
    err = capsys.readouterr().err

    assert 1 == code
    assert err.startswith(f"expirer: {own_server.url}: ")
    assert "onnection" in err
    assert err.endswith("; expiry stays paused: repeat this\n")


def test_a_busy_server_is_waited_for(operate: Operate, client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Redis is at work on a script nobody is told to shut it down, but to wait and repeat."""
    fill(client)

    def busy(*_: object) -> None:
        raise redis.ResponseError("BUSY Redis is busy running a script. You can only call … SHUTDOWN NOSAVE.")

    monkeypatch.setattr(reshard._Move, "_move_product", busy)
    code, _, err = operate("reshard", "--to", "2", "--yes")

    assert 1 == code
    assert "wait until it answers again; expiry stays paused: repeat this" in err
    assert "SHUTDOWN" not in err


def test_a_name_like_a_shard_of_ours_is_no_shard(operate: Operate, client: redis.Redis) -> None:
    """A number with a leading zero, or of thousands of digits, is somebody else's, and stays where it is."""
    fill(client, 4)
    strangers = [f"{{inventory:{number}}}:stock:mug" for number in ("03", "9" * 5000)]
    for key in strangers:
        client.hset(key, mapping={"available": 1, "reserved": 0})
    code, _, err = operate("reshard", "--shards", "4", "--to", "2", "--yes")

    assert (0, "", 2) == (code, err, client.exists(*strangers))
    assert_conserved(client, 2)


def test_a_product_of_too_many_is_refused(
    operate: Operate, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A product with more Active reservations than one script moves stays whole, and is named."""
    monkeypatch.setattr(reshard, "_MOST_HELD", 2)
    shops(client, 1)[0].stock("mug", 100)
    checkout = Reservations(client)
    for order in ("o1", "o2", "o3"):
        checkout.reserve(order, "mug", 1)
    code, _, err = operate("reshard", "--to", "2", "--yes")

    assert (1, 0) == (code, moved(client))
    assert "mug has 3 Active reservations, more than the 2 that move in one step" in err
    shops(client, 1)[0].assert_conserved({"mug": 100})
