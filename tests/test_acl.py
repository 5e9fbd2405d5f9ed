"""The rights of deploy/acl/expirer.acl suffice, none is superfluous, and no password comes with them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from signal import SIGTERM

import pytest
import redis

from expirer import Reservations
from expirer.contract.keys import ShardKeys
from tests.acl import (
    NAMING,
    OF_A_TOPOLOGY,
    PASSWORD,
    PAST,
    RULES,
    TEXT,
    Access,
    refusals,
    users,
    with_passwords,
)
from tests.acl_operations import OPERATIONS, complaints, expires, pulls_the_brake, tails
from tests.inventory import Inventory
from tests.program import Program, wait_until
from tests.servers import RedisServer
from tests.test_web import Site

Employ = Callable[..., Access]


@pytest.fixture
def employ(shared_server: RedisServer, server_client: redis.Redis) -> Iterator[Employ]:
    """Return a function that creates a user of the file, maybe without one of its rights."""

    def run(user: str, *lacks: str) -> Access:
        rules = [rule for rule in RULES[user] if rule not in lacks]
        server_client.execute_command("ACL", "SETUSER", user, *rules)  # type: ignore[no-untyped-call]
        server_client.execute_command("ACL", "LOG", "RESET")  # type: ignore[no-untyped-call]
        return Access(
            Inventory(server_client), shared_server, f"{shared_server.url}?username={user}&password={PASSWORD}"
        )

    yield run
    server_client.execute_command("ACL", "DELUSER", *RULES)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("user", RULES)
def test_the_rights_suffice(employ: Employ, user: str) -> None:
    """With exactly its rights a user does all that it is there for, and nothing is refused."""
    access = employ(user)

    assert [] == complaints(access, user)
    assert [] == refusals(access.shop.client)


@pytest.mark.parametrize("user", RULES)
def test_one_server_needs_no_right_of_another_topology(employ: Employ, user: str) -> None:
    """Without the rights that are for a Cluster or for replicas alone, all goes on one server as before."""
    assert [] == complaints(employ(user, *OF_A_TOPOLOGY), user)


@pytest.mark.slow
@pytest.mark.parametrize("user", RULES)
def test_each_right_is_needed(employ: Employ, user: str) -> None:
    """Without any one of its commands, key patterns and channels something fails, and a line says for want of what."""
    unnoticed = []
    for rule in RULES[user]:
        if rule[0] not in "+~&" or rule in {*OF_A_TOPOLOGY, NAMING}:
            continue
        wanted = {"+": rule[1:].partition("|")[0], "~": "key", "&": "channel"}[rule[0]]
        access = employ(user, rule)
        failures = complaints(access, user)
        refused = [what for reason, what in refusals(access.shop.client) if reason == wanted]
        is_refused = rule[0] == "+" or any(fnmatchcase(what, rule[1:]) for what in refused)
        if not is_refused or not any(wanted in line.lower() for line in failures):
            unnoticed.append((rule, failures))

    assert [] == unnoticed


@pytest.mark.slow
def test_without_a_right_reshard_pauses_nothing(employ: Employ) -> None:
    """A right that the move wants is missed before the pause; GET is for the audit after it."""
    found_late = set()
    for rule in RULES["expirer-reshard"]:
        if rule[0] in "+~&":
            access = employ("expirer-reshard", rule)
            access.fill()
            failures = access.complaints("reshard", "--to", "2", "--yes")
            keys = access.shop.client.scan_iter("*:control")
            has_paused = b"reshard from 1 to 2" in {access.shop.client.hget(key, "reason") for key in keys}
            assert has_paused or failures, rule
            if has_paused and failures:
                found_late.add(rule)

    assert {"+get"} == found_late


@pytest.mark.parametrize("user", RULES)
def test_keys_and_channels_outside_are_refused(employ: Employ, user: str) -> None:
    """Neither another namespace, nor a key of the shop that it has no business with, nor another channel."""
    names = ["other", "{inventory-2}:reservations", "{inventory}:other", "inventory:reservations"]
    forbidden = {
        "expirer-look": ["{inventory}:operations"],
        "checkout": [f"{{inventory}}:{name}" for name in ("control", "expired", "stats", "workers", "operations")],
    }
    access = employ(user)
    with redis.Redis.from_url(access.url, protocol=2) as client:
        for name in names + forbidden.get(user, []):
            with pytest.raises(redis.exceptions.NoPermissionError, match="key"):
                client.hmget(name, ["field"])
        with pytest.raises(redis.exceptions.NoPermissionError, match="channel"):
            client.execute_command("PUBLISH" if "+publish" in RULES[user] else "SUBSCRIBE", "other", "1")


def test_who_looks_can_write_nothing(server_client: redis.Redis) -> None:
    """Who looks has no command that the server counts as writing; the scripts have none but those."""
    writing = {f"+{name}" for name in map(str, server_client.acl_cat("write"))}

    assert "+hset" in writing
    assert set() == writing & set(RULES["expirer-look"])


def test_a_group_is_for_its_purpose_alone(employ: Employ) -> None:
    """Without the commands that the file says are for the audit alone, all else works as before."""
    user = "expirer-look"
    comment = TEXT[: TEXT.index(f"\nuser {user} ")].rpartition("\n\n")[2]
    [first] = re.findall(r"from (\+\w+) on", comment)
    rules = RULES[user]
    access = employ(user)
    admin = access.shop.client
    left = [rule for rule in rules[: rules.index(first)] if rule != "&__redis__:invalidate"]
    admin.execute_command("ACL", "SETUSER", user, *left)  # type: ignore[no-untyped-call]

    failing = set()
    for each in OPERATIONS[user]:
        access.fill()
        if each(access):
            failing.add(each.__name__)

    assert {"audit", "audits_what_is_emptied"} == failing


@pytest.mark.parametrize("user", [user for user, rules in RULES.items() if NAMING in rules])
def test_nobody_needs_a_name(employ: Employ, user: str) -> None:
    """Without the right to name its connections a user does all that it is there for."""
    assert [] == complaints(employ(user, NAMING), user)


def test_expiry_goes_on_without_what_is_beside_it(employ: Employ) -> None:
    """Without each right that the file says only something else loses by, units come back, and the brake works."""
    comment = TEXT[: TEXT.index("\nuser expirer ")].partition("something is lost:\n")[2]
    rights = re.findall(r"(?<= )[+~&]\S+", comment)
    assert set(rights) <= {*RULES["expirer"]}
    assert {"+info", "+publish", "&{inventory}:ticks", "~{inventory}:check:*"} <= {*rights}
    access = employ("expirer", *rights, NAMING)

    for operation in (pulls_the_brake, expires):
        access.fill()
        assert [] == operation(access)
    assert "Expired" == access.shop.status("o1:mug")


def test_with_shards(employ: Employ) -> None:
    """With the tag that the file names for shards, and nothing else, each user serves all of them."""
    assert "the tag is {inventory:*}" in TEXT
    rules = users(with_passwords(TEXT.replace("{inventory}", "{inventory:*}")))
    accesses = {user: employ(user) for user in RULES}
    admin = accesses["expirer"].shop.client
    for user in RULES:
        admin.execute_command("ACL", "SETUSER", user, *rules[user])  # type: ignore[no-untyped-call]
    for number in range(3):
        Inventory(admin, ShardKeys.of("inventory", number, 3)).stock("mug", 5)
    with redis.Redis.from_url(accesses["checkout"].url, protocol=2) as client:
        Reservations(client, shards=3).reserve("o1", "mug", 2)

    assert [] == accesses["expirer"].complaints("check", "--shards", "3")
    assert [] == accesses["expirer-mend"].complaints("audit", "--repair", "--yes", "--shards", "3")
    assert [] == accesses["expirer-look"].complaints("show", "o1:mug", "--shards", "3")
    assert [] == refusals(admin)
    Inventory(admin, ShardKeys.of("inventory", 1, 3)).assert_conserved({"mug": 5})


@pytest.mark.slow
def test_the_whole_product_runs(employ: Employ) -> None:
    """Two workers, the page, a checkout, a reader and a repairer, each as its user: nothing is refused."""
    worker, looker, mender, checkout, _ = map(employ, RULES)
    shop, admin = worker.shop, worker.shop.client
    shop.stock("mug", 20)
    with (
        ExitStack() as stack,
        Program(worker.url) as second,
        redis.Redis.from_url(checkout.url, protocol=2) as client,
    ):
        site = Site(worker.url, stack, command="run")
        first = site.program
        first.wait_for("job_started")
        second.wait_for("job_started")
        wait_until(lambda: admin.zcard(shop.keys.workers) == 2)
        channels = (shop.keys.wake, shop.keys.ticks)
        wait_until(lambda: [2, 2] == [listeners for _, listeners in admin.pubsub_numsub(*channels)])
        reservations = Reservations(client, default_duration=timedelta(milliseconds=50))
        reservations.reserve("o1", "mug", 2)
        wait_until(lambda: shop.status("o1:mug") == "Expired")
        hour = timedelta(hours=1)
        reservations.reserve("o2", "mug", 1, hour)
        reservations.confirm("o2", "mug")
        reservations.reserve("o3", "mug", 2, hour)
        reservations.release("o3", "mug")
        reservations.reserve("o4", "mug", 3, hour)
        reservations.extend("o4", "mug", 2 * hour)
        assert [] == mender.complaints("pause", "--reason", "outage")
        reservations.reserve("o5", "mug", 1)
        wait_until(lambda: first.of("expiry_paused") or second.of("expiry_paused"))
        for command in ("status", "pending", "show o2:mug", "once --dry-run", "quarantine list", "audit"):
            assert [] == looker.complaints(*command.split())
        assert [] == tails(looker)
        assert shop.status("o5:mug") == "Active"
        assert [] == mender.complaints("resume")
        wait_until(lambda: shop.status("o5:mug") == "Expired")
        admin.hset(shop.keys.reservation_prefix + "o4:mug", mapping={"quantity": "three", "expires_at": PAST})
        admin.zadd(shop.keys.index, {"o4:mug": PAST})
        admin.publish(shop.keys.wake, "1")
        wait_until(shop.quarantine)
        assert [] == mender.complaints("quarantine", "release", "o4:mug", "--quantity", "3")
        assert [] == mender.complaints("check", "--canary")
        assert (200, "ok\n") == site.get("/readyz")
        page = Site(looker.url, stack)
        wait_until(lambda: (page.figures()["expirer_redis_up"], page.get("/")[0]) == (1, 200))
        for program in (first, second):
            program.signal(SIGTERM)
            assert program.wait() == 0
            assert [] == program.of("processing_error")
    admin.delete(shop.keys.control)
    shop.hold("mug", 1, 1, "o6:mug")
    shop.hold("mug", 1, 1, "o7:mug")
    assert [] == pulls_the_brake(worker)

    assert [] == refusals(admin)
    for id_ in ("o6:mug", "o7:mug"):
        admin.delete(shop.keys.reservation_prefix + id_)
    admin.delete(shop.keys.reservation_prefix + "o4:mug")
    shop.assert_conserved({"mug": 20})


WAYS = dict(re.findall(r"^#   (redis\.conf|aclfile|a running server)\b.*?  +(\w+ .*)$", TEXT, re.MULTILINE))
"""How the file says that it is loaded."""


@pytest.fixture
def server(server_binary: Path, tmp_path: Path, way: str) -> Iterator[RedisServer]:
    """Return a server, not started, that will have its users in the place that this way names."""
    place = tmp_path / ("redis.conf" if way == "redis.conf" else "users.acl")
    place.touch()
    if way == "redis.conf":
        server = RedisServer(server_binary, tmp_path, configuration=place)
    else:
        server = RedisServer(server_binary, tmp_path, "--aclfile", str(place))
    yield server
    server.stop()


@pytest.mark.parametrize("way", WAYS)
def test_it_loads(server: RedisServer, tmp_path: Path, shell: Callable[[str], str], way: str) -> None:
    """In each of the ways that it names the file gives users that can log in, and a restart keeps them."""
    (tmp_path / "expirer.acl").write_text(with_passwords(TEXT))
    if way == "redis.conf":
        assert not shell(WAYS[way])
    server.start()
    if way == "redis.conf":
        server.client().config_rewrite()
    else:
        assert not [line for line in shell(WAYS[way]).splitlines() if line and line != "OK"]
    server.stop()
    server.start()

    with server.client() as client:
        assert {*RULES, "default"} == set(client.acl_users())
        for user in RULES:
            assert client.execute_command("AUTH", user, PASSWORD)


@pytest.mark.parametrize("way", WAYS)
def test_a_placeholder_is_refused(server: RedisServer, tmp_path: Path, shell: Callable[[str], str], way: str) -> None:
    """As it is shipped the file cannot be loaded in any way: there is no password that others know."""
    (tmp_path / "expirer.acl").write_text(TEXT)
    if way == "redis.conf":
        assert not shell(WAYS[way])
        server.start(wait=False)
        wait_until(lambda: server.pid is None)
        return
    server.start()

    assert "hash" in shell(WAYS[way])
    with server.client() as client:
        assert ["default"] == client.acl_users()


def test_no_rule_lets_all_in() -> None:
    """Every user has a placeholder of its own, and no category, nor every key or channel."""
    for user, rules in users(TEXT).items():
        assert rules[:3] == ["reset", "on", f"#sha256-of-the-password-of-{user}"]
        assert rules.index("resetchannels") < rules.index("-@all")
        right = r"(~\{inventory(:\*)?\}|&\{inventory\}|&__redis__):[a-z:]+\*?|\+[a-z|]+|resetchannels|-@all"
        assert [] == [rule for rule in rules[3:] if not re.fullmatch(right, rule)]
