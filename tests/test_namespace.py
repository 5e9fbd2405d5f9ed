"""A namespace with braces is taken as it is, so that a tenant may keep every key and channel under a prefix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from datetime import timedelta

import pytest
import redis

from expirer import Reservations, cli
from expirer.config.settings import Settings
from expirer.contract.keys import ShardKeys, shard_keys, shard_of
from tests.acl import refusals
from tests.inventory import Inventory
from tests.program import Program, wait_until
from tests.servers import RedisServer

TENANT = "app1:{inventory}"


@pytest.fixture
def tenant_url(shared_server: RedisServer, server_client: redis.Redis) -> Iterator[str]:
    """Return the URL of a user who has only keys and channels that begin with `app1:`."""
    rules = ("on", ">pw", "~app1:*", "resetchannels", "&app1:*", "&__redis__:invalidate", "+@all")
    server_client.execute_command("ACL", "SETUSER", "tenant", *rules)  # type: ignore[no-untyped-call]
    server_client.execute_command("ACL", "LOG", "RESET")  # type: ignore[no-untyped-call]
    yield f"{shared_server.url}?username=tenant&password=pw"
    server_client.execute_command("ACL", "DELUSER", "tenant")  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("namespace", "shards", "tags"),
    [
        ("inventory", 1, ["{inventory}"]),
        ("inventory", 2, ["{inventory:0}", "{inventory:1}"]),
        (TENANT, 1, ["app1:{inventory}"]),
        (TENANT, 2, ["app1:{inventory:0}", "app1:{inventory:1}"]),
        ("{shop}:eu", 2, ["{shop:0}:eu", "{shop:1}:eu"]),
    ],
)
def test_every_name_begins_with_the_namespace(namespace: str, shards: int, tags: list[str]) -> None:
    """Each key, prefix and channel of a shard begins with the namespace, in braces or as it was given."""
    for tag, keys in zip(tags, shard_keys(Settings(namespace=namespace, shards=shards)), strict=True):
        assert [] == [name for name in asdict(keys).values() if not name.startswith(f"{tag}:")]


@pytest.mark.parametrize("namespace", ["", "{}", "app1:{}", "{a}{b}", "{a", "a}", "}a{", "{{a}}"])
def test_other_braces_are_refused(namespace: str) -> None:
    """A namespace whose keys would share no hash tag is refused: by the settings, and by Reservations."""
    with pytest.raises(ValueError, match="must be text without braces"):
        Settings(namespace=namespace)
    with pytest.raises(ValueError, match="must be text without braces"):
        ShardKeys.of(namespace)


@pytest.mark.parametrize("shards", [1, 3])
def test_a_tenant_needs_no_other_name(
    server_client: redis.Redis, tenant_url: str, capsys: pytest.CaptureFixture[str], shards: int
) -> None:
    """A user of `app1:*` alone reserves, expires by a wake message, audits, pauses and reshards."""
    flags = ("--redis-url", tenant_url, "--namespace", TENANT, "--shards", str(shards))
    shop = Inventory(server_client, ShardKeys.of(TENANT, shard_of("mug", shards), shards))
    shop.stock("mug", 10)
    with redis.Redis.from_url(tenant_url) as client, Program(tenant_url, namespace=TENANT, shards=shards) as program:
        program.wait_for("job_started")
        wait_until(lambda: server_client.pubsub_numsub(shop.keys.wake)[0][1])
        reservations = Reservations(client, namespace=TENANT, shards=shards)
        reservations.reserve("o1", "mug", 3, timedelta(milliseconds=300))
        reservations.reserve("o2", "mug", 2, timedelta(hours=1))
        assert "o1:mug" == program.wait_for("reservation_expired")["reservation_id"]
        codes = {
            command: cli.main([*command.split(), *flags])
            for command in ("check", "status", "pending", "show o1:mug", "pause", "resume", "quarantine list", "audit")
        }
    codes["reshard"] = cli.main(["reshard", "--to", "2", "--yes", *flags])

    assert {0} == {*codes.values()}, (codes, capsys.readouterr())
    assert [] == refusals(server_client)
    assert [] == [key for key in server_client.scan_iter() if not key.startswith(b"app1:{inventory")]
    moved = Inventory(server_client, ShardKeys.of(TENANT, shard_of("mug", 2), 2))
    assert (8, 2) == moved.counters("mug")
    moved.assert_conserved({"mug": 10})
