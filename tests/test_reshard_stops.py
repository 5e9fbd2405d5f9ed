"""What stops a reshard, before it moves anything or half way, and what it says then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis

from expirer import Reservations, cli
from expirer.contract import scripts
from expirer.contract.control import Control
from expirer.contract.keys import shard_of
from expirer.operate import reshard
from expirer.operate.inventory_scan import InventoryScan
from tests.conftest import Operate
from tests.inventory import contents
from tests.resharding import assert_conserved, fill, moved, shops
from tests.servers import RedisServer


def while_it_reads(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Let somebody act before it asks what was written meanwhile."""
    changed = InventoryScan.changed

    def after_it(survey: InventoryScan) -> Any:  # noqa: ANN401  # what changed returns
        act()
        return changed(survey)

    monkeypatch.setattr(InventoryScan, "changed", after_it)


@pytest.mark.parametrize("client", ["server"], indirect=True)  # the fake one has no CLIENT TRACKING
def test_beside_a_checkout_nothing_moves(
    operate: Operate, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a reservation is written while it looks, it stops before it moves, and says what was written."""
    fill(client)
    while_it_reads(monkeypatch, lambda: client.hset("{inventory}:reservation:o0:product-6", "quantity", 1))
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
    assert "reservation:o5:product-6 exists already, so product-6 cannot move there" in err
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


def test_a_pause_that_was_not_written_is_not_told(
    operate: Operate, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where somebody writes the control key while it pauses, nothing is paused, and it does not say so."""
    fill(client)
    read = Control.read

    def written_meanwhile(row: Any) -> Control:  # noqa: ANN401  # what Redis replies
        client.hset("{inventory}:control", "resumed_at", 5)
        return read(row)

    monkeypatch.setattr(Control, "read", written_meanwhile)
    code, _, err = operate("reshard", "--to", "16", "--yes")

    assert (1, 0) == (code, moved(client))
    assert err == "expirer: somebody wrote the control key or the totals meanwhile: find out who\n"
    assert {b"resumed_at": b"5"} == client.hgetall("{inventory}:control")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--to", "0"), "--to 0: the number of shards is 1 to 1024"),
        (("--to", "2000"), "--to 2000: the number of shards is 1 to 1024"),
        (("--to", "2", "--redis-cluster", "true"), "in a Cluster no script reaches two hash tags"),
        (("--to", "2", "--stock-prefix", "s:"), "names of your own belong to one shard"),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: tuple[str, ...], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A number out of range and a layout of one's own are refused before Redis is touched."""
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
    assert "belongs to none of 1 or 4 shards: the inventory fits 16 shards: set EXPIRER_SHARDS" in err


def test_a_wrong_number_is_noticed_among_the_shards_of_the_new(operate: Operate, client: redis.Redis) -> None:
    """Products of four shards are under names that sixteen have, too: still it is seen that none belongs there."""
    fill(client, 4)
    before = contents(client)
    code, _, err = operate("reshard", "--to", "16", "--yes")

    assert (1, before) == (code, contents(client))
    assert "the inventory fits 4 shards" in err


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

    monkeypatch.setattr("expirer.operate.inventory_scan.KeyTracking", refused)
    code, _, err = operate("reshard", "--to", "16", "--yes")

    assert (1, before) == (code, contents(client))
    assert "would not be noticed: unknown subcommand 'TRACKING'" in err


@pytest.mark.parametrize("client", ["server"], indirect=True)  # the fake one has no CLIENT TRACKING
def test_the_end_of_a_retention_is_no_checkout(
    operate: Operate, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reservation whose retention ends while it looks was written by nobody, and does not stop it."""
    fill(client)
    while_it_reads(monkeypatch, lambda: client.pexpire("{inventory}:reservation:o3:product-6", 0))

    assert (0, "") == operate("reshard", "--to", "16", "--yes")[::2]


def test_an_interruption_says_how_things_stand(
    operate: Operate, client: redis.Redis, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After Ctrl-C it says that expiry stays paused, and what to do."""
    fill(client)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(reshard._Move, "_move_totals", interrupted)

    with pytest.raises(KeyboardInterrupt):
        operate("reshard", "--to", "2", "--yes")
    assert capsys.readouterr().err == (
        "expirer: interrupted; 40 products have moved, expiry stays paused: repeat this\n"
    )


def test_a_lost_connection_is_no_conflict(
    own_server: RedisServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the server goes away under way the line says so, and that the move may have begun."""
    with own_server.client() as client:
        fill(client)
    command = reshard._Move._command

    def unanswered(move: Any, old: Any, new: Any, product_id: bytes, ids: Any) -> Any:  # noqa: ANN401  # what it takes
        if product_id.startswith(b"product-"):
            own_server.stop()
        return command(move, old, new, product_id, ids)

    monkeypatch.setattr(reshard._Move, "_command", unanswered)
    code = cli.main(["reshard", "--to", "2", "--yes", "--redis-url", own_server.url])
    err = capsys.readouterr().err

    assert 1 == code
    assert err.startswith(f"expirer: {own_server.url}: ")
    assert "onnection" in err or "Broken pipe" in err
    assert err.endswith("; expiry stays paused: repeat this\n")


def test_a_busy_server_is_waited_for(operate: Operate, client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Redis is at work on a script the person is told to wait and repeat, not to shut it down."""
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
    monkeypatch.setattr(reshard, "_MOST_AT_ONCE", 2)
    shops(client, 1)[0].stock("mug", 100)
    checkout = Reservations(client)
    for order in ("o1", "o2", "o3"):
        checkout.reserve(order, "mug", 1)
    code, _, err = operate("reshard", "--to", "2", "--yes")

    assert (1, 0) == (code, moved(client))
    assert "mug has 3 Active reservations, more than the 2 that move in one step" in err
    shops(client, 1)[0].assert_conserved({"mug": 100})
