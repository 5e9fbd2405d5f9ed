"""An audit beside live traffic: it tracks every write, compares what it can, and says what it did not compare."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis

from expirer import cli
from expirer.config.settings import Settings
from expirer.connection.connect import Servers
from expirer.operate import audit as audit_module
from expirer.operate import inventory_scan, key_tracking
from expirer.operate.inventory_scan import InventoryScan
from tests.conftest import Operate
from tests.inventory import Inventory
from tests.proxy import Gate, Proxy, Way
from tests.servers import RedisServer
from tests.test_audit import FUTURE, STOCK, kinds
from tests.traffic import PRODUCTS, STOCKED, Traffic

pytestmark = pytest.mark.slow

FOUND = [("not_indexed", "o1:mug"), ("reserved_differs", "tee")]
"""What is wrong in the shop."""
IMPATIENT = pytest.mark.parametrize("client", ["impatient"], indirect=True)


@pytest.fixture
def impatient(server_binary: Path, tmp_path: Path) -> Iterator[redis.Redis]:
    """Connect to a server that cuts a subscriber soon after it has stopped reading."""
    server = RedisServer(server_binary, tmp_path, "--client-output-buffer-limit", "pubsub 256kb 128kb 1")
    server.start()
    with server.client() as client:
        yield client
    server.stop()


@pytest.fixture
def client(request: pytest.FixtureRequest) -> redis.Redis:
    """Use a real server: the fake one has no CLIENT TRACKING."""
    client: redis.Redis = request.getfixturevalue(getattr(request, "param", "server_client"))
    return client


@pytest.fixture(autouse=True)
def _no_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here writes a reservation by single commands, so nothing need settle."""
    monkeypatch.setattr(audit_module, "_SETTLE_S", 0.0)


@pytest.fixture
def shop(client: redis.Redis) -> Inventory:
    """Ten mugs, two of them held by a reservation that is not in the index, and tees with a wrong counter."""
    shop = Inventory(client)
    shop.stock("mug", 8, 2)
    shop.hold("mug", 2, FUTURE, "o1:mug")
    client.zrem(shop.keys.index, "o1:mug")
    shop.stock("tee", 9, 3)
    shop.hold("tee", 1, FUTURE, "o1:tee")
    return shop


During = Callable[[str, Callable[[], object]], None]


@pytest.fixture
def during(monkeypatch: pytest.MonkeyPatch) -> During:
    """Return a function that lets somebody act once in the middle of the walk, or of the products."""

    def patch(name: str, act: Callable[[], object]) -> None:
        generator = getattr(InventoryScan, name)
        acts = [act]

        def act_in_the_middle(scan: Any) -> Any:  # noqa: ANN401
            for item in generator(scan):
                if acts:
                    acts.pop()()
                yield item

        monkeypatch.setattr(InventoryScan, name, act_in_the_middle)

    return patch


def write_much(shop: Inventory) -> None:
    """Write a reservation until a subscriber that does not read is cut, after some 2 MB of messages."""
    for _ in range(25_000):
        shop.client.hset(shop.keys.reservation_prefix + "o1:tee", "seen", 1)


@IMPATIENT
def test_the_tracking_is_read_during_the_walk(shop: Inventory, operate: Operate, during: During) -> None:
    """Beside many writes the server does not cut the audit, which goes on to compare the counters."""
    during("walk", lambda: write_much(shop))

    assert kinds(operate) == FOUND
    shop.client.hincrby(shop.keys.stock_prefix + "tee", "reserved", -2)
    shop.assert_conserved({"mug": 10, "tee": 10})


@IMPATIENT
def test_the_tracking_is_read_while_a_person_thinks(
    shop: Inventory, operate: Operate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repair that was answered late, beside many writes, still knows what was written and recounts."""

    def think(_question: str) -> bool:
        write_much(shop)
        shop.client.hincrby(shop.keys.stock_prefix + "tee", "reserved", 4)
        shop.hold("tee", 4, FUTURE, "o2:tee")
        return True

    monkeypatch.setattr(audit_module, "confirms", think)
    code, out, _ = operate("audit", "--repair")

    assert (code, out.splitlines()[-1]) == (0, "2 repaired, 0 left as they are")
    shop.assert_conserved({"mug": 10, "tee": 16})


def kill_the_tracking(client: redis.Redis) -> None:
    """Close what tracks, as an idle `timeout` of the server or a person does."""
    for row in client.client_list():
        if "t" in row["flags"]:
            client.client_kill_filter(_id=row["id"])


@pytest.mark.parametrize("name", ["walk", "products"])
def test_a_lost_tracking_is_never_a_comparison(shop: Inventory, operate: Operate, during: During, name: str) -> None:
    """If the tracking is lost the audit still reports the reservations, and says that it compared no counters."""

    def lose() -> None:
        kill_the_tracking(shop.client)
        shop.hold("mug", 1, FUTURE, "o2:mug")
        shop.client.hset(STOCK, mapping={"available": 7, "reserved": 3})

    during(name, lose)
    code, out, err = operate("audit")

    assert (code, err) == (1, "")
    assert "not_indexed  o1:mug" in out
    assert "differs" not in out
    assert "remark: 2 products: not compared, CLIENT TRACKING failed: the connection was lost: " in out
    assert "1 found (Active reservations: " in out
    assert ", products: 2, not compared: 2, " in out
    shop.client.hincrby(shop.keys.stock_prefix + "tee", "reserved", -2)
    shop.assert_conserved({"mug": 10, "tee": 10})


def test_a_repair_without_tracking_leaves_the_counters(
    shop: Inventory, operate: Operate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the tracking is lost before the repair, reservations are repaired, and the counters are left as they are."""

    def lose(_question: str) -> bool:
        kill_the_tracking(shop.client)
        return True

    monkeypatch.setattr(audit_module, "confirms", lose)
    code, out, err = operate("audit", "--repair")

    assert (code, out.splitlines()[-1]) == (1, "1 not counted again, 1 repaired, 1 left as they are")
    assert '"event": "counters_not_repaired"' in err
    assert shop.counters("tee") == (9, 3)
    assert kinds(operate) == FOUND[1:]


def test_a_flush_is_no_comparison(shop: Inventory, operate: Operate, during: During) -> None:
    """If a database of the server is emptied meanwhile, no counter is compared, and the audit exits 1."""
    during("products", shop.client.flushdb)

    code, out, _ = operate("audit")

    assert code == 1
    assert "CLIENT TRACKING failed: a database of this server was emptied meanwhile\n" in out


def test_what_is_kept_of_writes_is_bounded(shop: Inventory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many writes of few reservations take little memory, and too many different keys are an error, not a leak."""
    monkeypatch.setattr(key_tracking, "_MOST_KEYS", 1000)
    monkeypatch.setattr(inventory_scan, "_REPACK_ABOVE", 500)
    servers = Servers.of(shop.client, Settings())
    with closing(InventoryScan(servers)) as scan:
        for _ in range(500):
            shop.client.hset(shop.keys.reservation_prefix + "o1:tee", "seen", 1)
            list(scan.changed())

        assert len(scan._known[0, b"tee"]._data) <= 500 + len(b"....o1:tee")
        assert set(scan.known(0, b"tee")) == {b"o1:tee"}

        for number in range(1001):
            shop.hold("tee", 1, FUTURE, f"x{number}:tee")
        with pytest.raises(redis.RedisError, match=r"more than 1,000 keys were written"):
            scan.changed()


@pytest.mark.parametrize("missing", ["-client", "-evalsha", "-scan"])
def test_a_missing_permission_is_reported(
    shop: Inventory, shared_server: RedisServer, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    """Without CLIENT TRACKING no counter is compared, and the audit exits 1; without others it is one line."""
    shop.client.zadd(shop.keys.index, {"o1:mug": FUTURE})
    shop.client.execute_command(
        "ACL", "SETUSER", "clerk", "on", ">pw", "~*", "&*", "+@all", missing, "+client|setname", "+client|id"
    )  # type: ignore[no-untyped-call]
    try:
        code = cli.main(["audit", "--json", "--redis-url", f"{shared_server.url}?username=clerk&password=pw"])
    finally:
        shop.client.execute_command("ACL", "DELUSER", "clerk")  # type: ignore[no-untyped-call]

    out, err = capsys.readouterr()
    if missing == "-client":
        summary = json.loads(out)["summary"]
        assert (code, err, summary["findings"], summary["not_compared"]) == (1, "", 0, 2)
        assert summary["remarks"][0].startswith("2 products: not compared, CLIENT TRACKING failed: ")
    else:
        assert (code, err.count("\n")) == (1, 1)


@pytest.mark.parametrize("seed", range(3))
def test_live_traffic_gives_no_false_alarm(
    client: redis.Redis, shared_server: RedisServer, operate: Operate, seed: int
) -> None:
    """Beside reserve, confirm, release and expire the audit finds what was damaged, and nothing else."""
    shop = Inventory(client)
    shop.stock("cup", 5, 5)
    shop.hold("cup", 5, FUTURE, "leaked:cup")
    client.zrem(shop.keys.index, "leaked:cup")
    with Traffic(shared_server.url, seed) as traffic:
        found = kinds(operate)
        client.hincrby(shop.keys.stock_prefix + "pot", "reserved", 7)
        damaged = kinds(operate)
        code, out, _ = operate("audit", "--repair", "--yes")
        again = kinds(operate)
    steps = traffic.steps

    assert found == [("not_indexed", "leaked:cup")]
    assert damaged == [("not_indexed", "leaked:cup"), ("reserved_differs", "pot")]
    assert (code, out.splitlines()[-1], again) == (0, "2 repaired, 0 left as they are", [])
    assert min(steps["reserved"], steps["ended"], steps["expired"]) > 50
    shop.assert_conserved({**dict.fromkeys(PRODUCTS, STOCKED), "pot": STOCKED + 7, "cup": 10})
    assert kinds(operate) == []


@pytest.mark.parametrize(("held", "done"), [("request", 39), ("reply", 40)])
def test_a_repair_killed_half_way_has_done_whole_steps(
    own_server: RedisServer, capsys: pytest.CaptureFixture[str], held: Way, done: int
) -> None:
    """A repair that is killed has done some repairs completely and the others not at all; the next run ends it."""
    repair = ["audit", "--repair", "--yes", "--redis-url"]
    products = [f"p{number}" for number in range(30)]
    gate = Gate(2 * len(products) + 40, held)  # each product is counted twice before anything is repaired
    with own_server.client() as client:
        shop = Inventory(client)
        for product_id in products:
            shop.stock(product_id, 8, 4)
            shop.hold(product_id, 2, FUTURE, f"o:{product_id}")
            client.zrem(shop.keys.index, f"o:{product_id}")
        with Proxy(own_server.port, gate) as proxy:
            command = [sys.executable, "-m", "expirer", *repair, proxy.url]
            with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
                gate.wait_until_held()
                process.send_signal(signal.SIGKILL)
        counters = Counter(map(shop.counters, products))

        assert done == client.xlen(shop.keys.operations)
        assert done == client.zcard(shop.keys.index) + counters[10, 2]
        assert {(10, 2), (8, 4)} == set(counters)
        assert 0 == cli.main([*repair, own_server.url])
        assert f"\n{60 - done} repaired, 0 left as they are\n" in capsys.readouterr().out
        assert 0 == cli.main(["audit", "--redis-url", own_server.url])
        shop.assert_conserved(dict.fromkeys(products, 12))


@pytest.fixture
def write_in_between(monkeypatch: pytest.MonkeyPatch, shop: Inventory) -> list[int]:
    """Let somebody write the tees' counters each time under the watch, as often as the list says."""
    left = [0]
    require_tracked = InventoryScan.require_tracked

    def write(scan: Any, connection: Any) -> None:  # noqa: ANN401
        require_tracked(scan, connection)
        if left[0]:
            left[0] -= 1
            for product_id in ("mug", "tee"):
                shop.client.hincrby(shop.keys.stock_prefix + product_id, "available", 1)

    monkeypatch.setattr(InventoryScan, "require_tracked", write)
    return left


def test_a_conflict_is_logged_and_tried_again(
    shop: Inventory, operate: Operate, monkeypatch: pytest.MonkeyPatch, write_in_between: list[int]
) -> None:
    """If somebody writes between recount and commit nothing is done, that is logged, and it is tried again."""

    def agree(_question: str) -> bool:
        write_in_between[0] = 3
        return True

    monkeypatch.setattr(audit_module, "confirms", agree)
    code, out, err = operate("audit", "--repair")

    assert (code, out.splitlines()[-1]) == (0, "2 repaired, 0 left as they are")
    assert err.count('"event": "concurrency_conflict"') == 3
    shop.assert_conserved({"mug": 13, "tee": 15})


def test_a_product_that_never_rests_is_not_compared(
    shop: Inventory, operate: Operate, monkeypatch: pytest.MonkeyPatch, write_in_between: list[int]
) -> None:
    """A product that is written each time between read and commit is named, counted, and reason to exit 1."""
    monkeypatch.setattr(audit_module, "_ATTEMPTS", 3)
    shop.client.zadd(shop.keys.index, {"o1:mug": FUTURE})
    write_in_between[0] = 3

    code, out, _ = operate("audit", "--product", "mug")

    assert code == 1
    assert "remark: mug: not compared, it was written all the time\n0 found (" in out
    assert ", products: 1, not compared: 1, " in out


def test_a_repair_does_what_was_agreed(shop: Inventory, operate: Operate, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the plan of a repair has changed since a person agreed to it, it is not done."""

    def agree(_question: str) -> bool:
        shop.client.hset(shop.keys.reservation_prefix + "o1:mug", "expires_at", FUTURE + 1)
        shop.client.hset(shop.keys.stock_prefix + "tee", "reserved", 1)
        return True

    monkeypatch.setattr(audit_module, "confirms", agree)
    code, out, _ = operate("audit", "--repair")

    assert (code, out.splitlines()[-1]) == (1, "1 changed meanwhile, 1 repaired meanwhile, 1 left as they are")
    assert shop.client.zscore(shop.keys.index, "o1:mug") is None
    shop.assert_conserved({"mug": 10, "tee": 10})
