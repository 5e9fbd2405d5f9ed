"""Moving an inventory to more hash tags: wholly, resumably, and never beside a checkout that still writes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from datetime import timedelta
from typing import Any

import fakeredis
import pytest
import redis

from expirer import Refused, Reservations, cli
from expirer.keys import ShardKeys, shard_of
from expirer.operate import reshard
from expirer.operate.survey import Survey
from expirer.settings import Settings
from expirer.worker import Worker
from tests.conftest import Log, Operate
from tests.inventory import Inventory, contents
from tests.program import wait_until
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


def assert_conserved(client: redis.Redis, shards: int) -> None:
    """Assert the law for every product on its shard."""
    for number, shop in enumerate(shops(client, shards)):
        shop.assert_conserved({name: n for name, n in STOCKED.items() if shard_of(name, shards) == number})


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


@pytest.mark.parametrize("client", ["server"], indirect=True)  # the fake one has no CLIENT TRACKING
def test_beside_a_checkout_nothing_moves(
    operate: Operate, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a reservation is written while it looks, it stops before it moves, and says what was written."""
    fill(client)
    news = Survey.news

    def written_before(survey: Survey) -> Any:  # noqa: ANN401  # what news returns
        client.hset("{inventory}:reservation:o0:product-6", "quantity", 1)
        return news(survey)

    monkeypatch.setattr(Survey, "news", written_before)
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
