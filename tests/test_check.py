"""What `expirer check` finds out before a deployment, and that it leaves no trace."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import redis

from expirer import cli
from expirer.config.settings import Settings
from expirer.contract.about import describe
from expirer.contract.clock import worker_clock
from expirer.contract.keys import ShardKeys
from tests.conftest import Operate
from tests.inventory import Inventory, contents
from tests.servers import RedisServer, free_port
from tests.test_layouts import OWN_WORDS, PLAIN_COUNTERS, TOTAL_AND_RESERVED, flags

LATER = 4_000_000_000_000


@pytest.fixture
def shop(server_client: redis.Redis) -> Inventory:
    """A shop on the real server with one overdue reservation and one of later."""
    shop = Inventory(server_client)
    shop.stock("mug", 7, 3)
    shop.hold("mug", 2, int(worker_clock()) - 5000)
    shop.hold("mug", 1, LATER)
    return shop


@pytest.fixture
def check(shared_server: RedisServer, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Return a function that checks the real server: what -> check, and the exit code as `code`."""

    def run(*arguments: str, url: str = shared_server.url) -> dict[str, Any]:
        code = cli.main(["check", "--json", *arguments, "--redis-url", url])
        out, err = capsys.readouterr()
        assert err == ""
        checks = [json.loads(line) for line in out.splitlines()]
        assert code == int(any(one["level"] == "failure" for one in checks))
        return {"code": code, **{one["what"]: one for one in checks}}

    return run


Check = Callable[..., dict[str, Any]]


@pytest.fixture
def _untouched(server_client: redis.Redis) -> Iterator[None]:
    yield
    assert not [key for key in server_client.scan_iter() if b"check" in key]


def test_a_sound_server_is_said_to_be_so(client: redis.Redis, operate: Operate) -> None:
    """On a fake server as on a real one every line is ok, or a warning of what a test's server lacks: exit 0."""
    shop = Inventory(client)
    shop.stock("mug", 7, 3)
    shop.hold("mug", 3, int(worker_clock()) - 5000)

    code, out, err = operate("check")

    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert [] == [line for line in lines if line.startswith("failure")]
    assert "ok       rights: expire.lua works on keys of its own, which are removed again" in lines
    assert "ok       layout: the next 1 reservations fit it" in lines
    shop.assert_conserved({"mug": 10})


def test_nothing_is_changed(shop: Inventory, check: Check) -> None:
    """After a check the whole keyspace is what it was, byte for byte: it expires nothing that is overdue."""
    before = contents(shop.client)

    assert check()["code"] == 0

    assert before == contents(shop.client)
    shop.assert_conserved({"mug": 10})


@pytest.mark.parametrize("layout", [PLAIN_COUNTERS, TOTAL_AND_RESERVED, OWN_WORDS], ids=["plain", "reserved", "words"])
def test_every_layout_is_tried_with_its_own_names(
    server_client: redis.Redis, check: Check, layout: dict[str, str]
) -> None:
    """A layout of the inventory's own is tried with its names, words and counters, and nothing is left."""
    seed(server_client, layout)
    before = contents(server_client)

    found = check(*flags(layout))

    assert (found["code"], found["rights"]["level"]) == (0, "ok")
    assert found["layout"]["finding"] == "the next 1 reservations fit it"
    assert before == contents(server_client)


def seed(client: redis.Redis, layout: dict[str, str]) -> None:
    """Write one hold as the layout has it."""
    due = 1_700_000_000 if layout is PLAIN_COUNTERS else 1_700_000_000_000
    stock = layout["stock_prefix"] + "mug"
    if layout is PLAIN_COUNTERS:
        client.set(stock, 7)
    else:
        names = [layout.get("field_available", "available"), layout.get("field_reserved", "reserved"), "total"]
        client.hset(stock, mapping={name: 2 for name in names if name})
    hold = {layout["field_product_id"]: "mug", layout["field_quantity"]: 2}
    hold |= {layout[name]: due for name in ("field_expires_at",) if layout[name]}
    hold |= {layout[name]: "PENDING" for name in ("field_status",) if layout.get(name)}
    hold |= {layout[name]: "7" for name in ("field_order_id",) if layout[name]}
    client.hset(layout["reservation_prefix"] + "h1", mapping=hold)  # type: ignore[arg-type]
    client.zadd(layout["index_key"], {"h1": due})


def test_whole_key_names_in_the_index(server_client: redis.Redis, check: Check) -> None:
    """Where the index holds whole key names the scratch reservation is one."""
    server_client.hset("hold:1", mapping={"product_id": "mug", "quantity": 1, "status": "Active"})
    server_client.hset("stock:mug", mapping={"available": 0, "reserved": 1})
    server_client.zadd("holds", {"hold:1": LATER})
    before = contents(server_client)

    found = check("--index-key=holds", "--reservation-prefix=", "--stock-prefix=stock:", "--retention=0")

    assert (found["code"], before) == (0, contents(server_client))


def test_every_shard_is_tried(server_client: redis.Redis, check: Check) -> None:
    """A wrong type on the last of the shards is found, and named."""
    last = ShardKeys.of("inventory", 2, 3)
    server_client.set(last.quarantine, "x")

    found = check("--shards", "3")

    assert found["code"] == 1
    assert found["keys"]["finding"] == f"{last.quarantine} holds a string where a hash belongs"
    assert "EXPIRER_NAMESPACE" in found["keys"]["remedy"]


def test_an_index_of_another_type_is_named_once_by_its_cause(shop: Inventory, check: Check) -> None:
    """What else fails because of it points to the line that names the key."""
    shop.client.delete(shop.keys.index)
    shop.client.set(shop.keys.index, "x")

    found = check()

    assert found["code"] == 1
    assert found["keys"]["level"] == "failure"
    assert found["layout"]["remedy"] == "see the line on the keys"


@pytest.mark.parametrize(
    ("policy", "limit", "level"),
    [("allkeys-lru", "100mb", "failure"), ("allkeys-lru", "0", "warning"), ("volatile-ttl", "100mb", "ok")],
)
def test_an_evicting_policy(shop: Inventory, check: Check, policy: str, limit: str, level: str) -> None:
    """A policy that may evict reservations is a failure; without a limit of the memory it is a warning."""
    shop.client.config_set("maxmemory-policy", policy)
    shop.client.config_set("maxmemory", limit)
    try:
        found = check()
    finally:
        shop.client.config_set("maxmemory-policy", "noeviction")
        shop.client.config_set("maxmemory", 0)

    assert (found["eviction"]["level"], found["eviction"]["finding"]) == (level, policy)


def test_a_full_server(shop: Inventory, check: Check) -> None:
    """A server that is full is a failure whose way out is memory, not rights."""
    shop.client.config_set("maxmemory", 1)
    try:
        found = check()
    finally:
        shop.client.config_set("maxmemory", 0)

    assert found["memory"]["level"] == "warning"
    assert found["rights"]["level"] == "failure"
    assert "maxmemory" in found["rights"]["remedy"]


def test_persistence(shop: Inventory, check: Check) -> None:
    """None is a warning; snapshots and an append-only file are said."""
    assert check()["persistence"]["level"] == "warning"

    shop.client.config_set("save", "3600 1")
    with_snapshots = check()["persistence"]
    shop.client.config_set("save", "")
    shop.client.config_set("appendonly", "yes")
    with_file = check()["persistence"]
    shop.client.config_set("appendonly", "no")

    assert (with_snapshots["level"], with_snapshots["finding"].partition(":")[0]) == ("ok", "snapshots")
    assert (with_file["level"], with_file["finding"]) == ("ok", "append-only file")


def test_a_replica_is_a_failure(own_server: RedisServer, check: Check) -> None:
    """On a replica nothing could expire: the role and the rights say so, with the way out."""
    with own_server.client() as client:
        client.replicaof("127.0.0.1", str(free_port()))

        found = check(url=own_server.url)

    assert (found["code"], found["role"]["level"], found["rights"]["level"]) == (1, "failure", "failure")
    assert "primary" in found["rights"]["remedy"]


@pytest.mark.usefixtures("_untouched")
@pytest.mark.parametrize(
    ("lacks", "what", "level"),
    [
        ("-evalsha", "rights", "failure"),
        ("-xadd", "rights", "failure"),
        ("-watch", "rights", "failure"),
        ("-type", "keys", "failure"),
        ("-time", "clock", "failure"),
        ("-exists", "connection", "failure"),
        ("-publish", "channels", "warning"),
        ("-subscribe", "channels", "warning"),
        ("-info", "server", "ok"),
        ("-config", "persistence", "ok"),
    ],
)
def test_a_missing_right_is_named(
    shop: Inventory, check: Check, shared_server: RedisServer, lacks: str, what: str, level: str
) -> None:
    """What the sidecar needs and may not use is a failure with its name; what a host merely hides is not."""
    user = ["clerk", "on", ">pw", "~*", "&*", "+@all", lacks]
    shop.client.execute_command("ACL", "SETUSER", *user)  # type: ignore[no-untyped-call]
    try:
        found = check(url=f"{shared_server.url}?username=clerk&password=pw")
    finally:
        shop.client.execute_command("ACL", "DELUSER", "clerk")  # type: ignore[no-untyped-call]

    assert found[what]["level"] == level
    if level != "ok":
        assert "grant" in found[what]["remedy"]
        assert lacks[1:] in found[what]["finding"].lower()
    shop.assert_conserved({"mug": 10})


def test_a_key_that_may_only_be_read(shop: Inventory, check: Check, shared_server: RedisServer) -> None:
    """A user who may read the stock and not write it is found out, where the server knows such rights."""
    keys = shop.keys
    patterns = [f"~{{inventory}}:{name}*" for name in ("check", "reservation", "control", "quarantine", "stats")]
    patterns += [f"~{name}" for name in (keys.events, keys.workers, keys.about, keys.operations)]
    try:
        shop.client.execute_command(  # type: ignore[no-untyped-call]
            "ACL", "SETUSER", "clerk", "on", ">pw", *patterns, f"%R~{keys.stock_prefix}*", "&*", "+@all"
        )
    except redis.ResponseError:
        pytest.skip("this server knows no rights to read or write single keys")
    try:
        found = check(url=f"{shared_server.url}?username=clerk&password=pw")
    finally:
        shop.client.execute_command("ACL", "DELUSER", "clerk")  # type: ignore[no-untyped-call]

    assert found["rights"]["level"] == "failure"
    assert "grant" in found["rights"]["remedy"]


def test_another_clock(shop: Inventory, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clocks that are far apart are a warning, and a failure where this machine's decides."""
    monkeypatch.setattr("expirer.operate.check.worker_clock", lambda: worker_clock() - 60_000)

    assert check()["clock"]["level"] == "warning"
    found = check("--clock", "worker")["clock"]
    assert (found["level"], "ahead of" in found["finding"]) == ("failure", True)
    shop.assert_conserved({"mug": 10})


def test_a_layout_that_does_not_fit(shop: Inventory, check: Check) -> None:
    """Where every reservation would be quarantined the names do not fit, and the reason says which."""
    found = check("--field-quantity", "pieces")["layout"]

    assert found["level"] == "failure"
    assert "2 quantity_invalid (o0:mug)" in found["finding"]
    shop.assert_conserved({"mug": 10})


def test_a_poisoned_entry_is_a_warning(shop: Inventory, check: Check) -> None:
    """A single reservation that would be quarantined does not condemn the layout."""
    shop.hold("cup", 1, LATER, "o9:cup")

    found = check()

    assert (found["code"], found["layout"]["level"]) == (0, "warning")
    assert found["layout"]["finding"].startswith("of the next 3 reservations 1 would be quarantined: 1 stock_missing")


def test_a_field_under_a_wrong_name_is_a_warning(shop: Inventory, check: Check) -> None:
    """A status field that no reservation has would make each of them Active: no outcome would tell of it."""
    found = check("--field-status", "state")["fields"]

    assert found["level"] == "warning"
    assert "EXPIRER_FIELD_STATUS" in found["remedy"]
    shop.assert_conserved({"mug": 10})


@pytest.mark.parametrize("score", [1_795_469_461_999_000, 1_795_469_461_999_000_000, "+inf", 5_000_000_000_000])
def test_what_will_never_fall_due_is_found(shop: Inventory, check: Check, score: object) -> None:
    """An index entry in microseconds, in nanoseconds, at infinity or a century ahead is a warning that names it."""
    shop.hold("mug", 1, LATER, "o9:mug")
    shop.client.zadd(shop.keys.index, {"o9:mug": score})  # type: ignore[dict-item]

    found = check()["index"]

    assert found["level"] == "warning"
    assert found["finding"].startswith("1 of 3 entries will never fall due (o9:mug: ")
    assert "milliseconds" in found["remedy"]


def test_a_shop_that_counts_in_microseconds_is_a_failure(server_client: redis.Redis, check: Check) -> None:
    """If no entry at all will fall due, the unit is wrong."""
    shop = Inventory(server_client)
    shop.stock("mug", 9, 1)
    shop.hold("mug", 1, 1_795_469_461_999_000)

    assert check()["index"]["level"] == "failure"
    assert check("--score-unit", "s")["index"]["level"] == "failure"
    shop.assert_conserved({"mug": 10})


@pytest.mark.parametrize(
    ("due_in_s", "ttl_s", "grace", "level"),
    [
        (600, 600, "0s", "failure"),
        (600, 500, "0s", "failure"),
        (600, 600 + 86_400, "0s", "warning"),
        (600, 600 + 86_400, "24h", "failure"),
    ],
)
def test_a_time_to_live_on_an_active_reservation_is_found(
    shop: Inventory, check: Check, due_in_s: int, ttl_s: int, grace: str, level: str
) -> None:
    """A record that vanishes when it falls due is a failure; one that has a day to spare is a warning."""
    id_ = shop.hold("mug", 1, int(worker_clock()) + 1000 * due_in_s)
    shop.client.hincrby(shop.keys.stock_prefix + "mug", "reserved", 1)
    shop.client.expire(shop.keys.reservation_prefix + id_, ttl_s)

    found = check("--grace", grace)["ttl"]

    assert found["level"] == level
    assert found["finding"].startswith(f"1 of the next 3 Active reservations have a time to live; {id_} vanishes ")
    shop.assert_conserved({"mug": 11})


@pytest.mark.parametrize(
    ("about", "level"),
    [
        (describe(Settings()), "ok"),
        (describe(Settings(grace=timedelta(seconds=30))), "failure"),
        (describe(Settings(score_unit="s")), "failure"),
        ("version=0.0.1", "ok"),
        ("\x1b[31m", "ok"),
    ],
)
def test_live_workers_must_agree(shop: Inventory, check: Check, about: str, level: str) -> None:
    """A live worker with other settings is a failure; one that has gone, or says nothing of them, is none."""
    shop.client.zadd(shop.keys.workers, {"gone": 1, "here": worker_clock()})
    shop.client.hset(shop.keys.about, mapping={"gone": describe(Settings(grace=timedelta(days=1))), "here": about})

    assert check()["workers"]["level"] == level


def test_a_paused_and_braked_shop_can_be_checked(shop: Inventory, check: Check) -> None:
    """Neither a pause nor a brake stands in the way of a check, and it resumes nothing."""
    shop.client.hset(shop.keys.control, mapping={"paused": 1, "by": "ann", "brake": "9 overdue"})
    before = contents(shop.client)

    assert check("--brake-above", "1")["code"] == 0
    assert before == contents(shop.client)


def test_an_old_server_and_a_cluster_are_failures() -> None:
    """What INFO tells of a server that is too old, or a Cluster, is a failure with the way out."""
    from expirer.connection.server_checks import checks  # noqa: PLC0415

    levels = {
        one.what: one.level
        for one in checks({"redis_version": "5.0.14", "cluster_enabled": 1, "role": "master"}, Settings())
    }

    assert levels == {"version": "failure", "cluster": "failure", "role": "ok"}
    assert [one.finding for one in checks({"redis_version": "7.2.4", "valkey_version": "9.1.0"}, Settings())] == [
        "Valkey 9.1.0"
    ]


def test_without_redis_it_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A Redis that is not there is one line, exit 1."""
    assert cli.main(["check", "--redis-url", "redis://127.0.0.1:1/0"]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
