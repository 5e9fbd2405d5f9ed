"""What the settings promise about where Redis is: what cannot be meant is refused in one line, with the remedy."""

from __future__ import annotations

import pytest

from expirer.config.settings import ConfigurationError, load
from expirer.connection.connect import connect_all
from expirer.connection.errors import location, redact
from expirer.contract.keys import shard_keys, slot_of

CLUSTER = {"redis_cluster": "true"}
OURS = "in a Redis Cluster all keys of a shard need the hash tag {inventory}, which EXPIRER_NAMESPACE sets"


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ({**CLUSTER, "redis_sentinels": "a:1"}, "EXPIRER_REDIS_CLUSTER and EXPIRER_REDIS_SENTINELS exclude each other"),
        ({**CLUSTER, "redis_url": "unix:///run/redis.sock"}, "EXPIRER_REDIS_URL is a socket of this machine"),
        ({"redis_sentinels": "a:1", "redis_url": "unix:///run/redis.sock"}, "EXPIRER_REDIS_URL is a socket of this"),
        ({**CLUSTER, "redis_url": "redis://a:1/3"}, "EXPIRER_REDIS_URL names a database: a Cluster has only 0"),
        ({**CLUSTER, "redis_url": "redis://a:1?db=3"}, "EXPIRER_REDIS_URL names a database: a Cluster has only 0"),
        ({"redis_url": "redis://a:1,b:2"}, "EXPIRER_REDIS_URL has several hosts, which EXPIRER_REDIS_CLUSTER=true"),
        ({"redis_url": "redis://a:1,b:x"}, "--redis-url: has an invalid host or port"),
        ({"redis_sentinels": "a:1,b"}, "--redis-sentinels: no. 2 is not host:port, as sentinel-1:26379 is; user and"),
        ({"redis_sentinels": "a:1,b:x"}, "--redis-sentinels: no. 2 is not host:port"),
        ({"redis_sentinels": "ann:hunter2@a:1"}, "--redis-sentinels: no. 1 is not host:port"),
        ({"redis_sentinels": "a:1,:hunter2@b"}, "--redis-sentinels: no. 2 is not host:port"),
        ({"redis_cluster": "maybe"}, "--redis-cluster=maybe: "),
        ({"redis_sentinel_service": "shop"}, "EXPIRER_REDIS_SENTINEL_SERVICE needs EXPIRER_REDIS_SENTINELS"),
        ({"redis_sentinel_username": "ann"}, "EXPIRER_REDIS_SENTINEL_USERNAME needs EXPIRER_REDIS_SENTINELS"),
        ({"redis_sentinel_password": "hunter2"}, "EXPIRER_REDIS_SENTINEL_PASSWORD needs EXPIRER_REDIS_SENTINELS"),
        (
            {"redis_sentinels": "a:1", "redis_sentinel_password": "hunter2", "redis_sentinel_password_file": __file__},
            "EXPIRER_REDIS_SENTINEL_PASSWORD and EXPIRER_REDIS_SENTINEL_PASSWORD_FILE exclude each other",
        ),
        (
            {"redis_url": "redis://:hunter2@a", "redis_password_file": __file__},
            "EXPIRER_REDIS_PASSWORD_FILE is set, and the address has a password too",
        ),
        (
            {"redis_url": "redis://a?password=hunter2", "redis_password_file": __file__},
            "EXPIRER_REDIS_PASSWORD_FILE is set, and the address has a password too",
        ),
        ({"redis_sentinel_password_file": "/nowhere"}, "--redis-sentinel-password-file: cannot read '/nowhere'"),
    ],
)
def test_what_cannot_be_meant_is_refused(flags: dict[str, str], problem: str) -> None:
    """Settings that exclude each other, and addresses that are none, stop the start in one line."""
    with pytest.raises(ConfigurationError) as refused:
        load(flags)

    [line] = refused.value.problems
    assert line.startswith(problem)
    assert "hunter2" not in line


def test_a_default_may_be_spelt_out() -> None:
    """The usual name of the service is no mistake where there are no Sentinels."""
    assert not load({"redis_sentinel_service": "mymaster", "redis_sentinel_password": ""}).redis_sentinels


@pytest.mark.parametrize(
    ("layout", "problems"),
    [
        ({"index_key": "holds"}, ["EXPIRER_INDEX_KEY=holds lives in another slot than {inventory}:control"]),
        (
            {"events_key": "{shop}:gone", "stock_prefix": "stock:"},
            [
                "EXPIRER_EVENTS_KEY={shop}:gone lives in another slot than {inventory}:control",
                "EXPIRER_STOCK_PREFIX=stock: puts its keys into other slots than {inventory}:control",
            ],
        ),
        (
            {"reservation_prefix": ""},
            ["EXPIRER_RESERVATION_PREFIX= puts its keys into other slots than {inventory}:control"],
        ),
        (
            {"reservation_prefix": "hold:{inventory"},
            ["EXPIRER_RESERVATION_PREFIX=hold:{inventory puts its keys into other slots than {inventory}:control"],
        ),
        (
            {"reservation_prefix": "{}inventory:"},
            ["EXPIRER_RESERVATION_PREFIX={}inventory: puts its keys into other slots than {inventory}:control"],
        ),
    ],
)
def test_a_layout_that_a_cluster_would_spread_is_refused(layout: dict[str, str], problems: list[str]) -> None:
    """In a Cluster the names that would put keys of one shard into several slots are named, with the remedy."""
    with pytest.raises(ConfigurationError) as refused:
        connect_all(load({**CLUSTER, **layout}))

    assert [f"{problem}; {OURS}" for problem in problems] == refused.value.problems


def test_a_layout_of_its_own_with_one_tag_is_taken() -> None:
    """Names of its own are welcome in a Cluster where they share a tag, which the namespace names."""
    own = {
        "index_key": "holds:{shop}",
        "reservation_prefix": "hold:{shop}:",
        "stock_prefix": "{shop}",
        "namespace": "shop",
    }

    [keys] = shard_keys(load({**CLUSTER, **own}))

    assert slot_of(keys) == slot_of(shard_keys(load({"namespace": "shop"}))[0])


def test_elsewhere_any_layout_is_taken() -> None:
    """Without a Cluster no name needs a tag."""
    assert connect_all(load({"index_key": "holds", "reservation_prefix": ""})).shards


def test_several_nodes_are_one_location() -> None:
    """What is logged of the address names every start node, and no password."""
    settings = load({**CLUSTER, "redis_url": "rediss://ann:hunter2@a:7000,b:7001/0?socket_timeout=2"})

    assert "rediss://a:7000,b:7001/0" == location(settings)


def test_the_password_of_the_sentinels_is_redacted() -> None:
    """A password of the Sentinels in an error's text becomes stars, as the server's does."""
    settings = load(
        {"redis_url": "redis://:hunter2@host", "redis_sentinels": "a:1", "redis_sentinel_password": "hunter3"}
    )

    assert "AUTH ***, then ***" == redact("AUTH hunter2, then hunter3", settings)
