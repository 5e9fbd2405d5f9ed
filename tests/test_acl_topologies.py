"""The rights of deploy/acl suffice on a Cluster, and with Sentinels and replicas; what is there for those is needed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.acl import (
    OF_A_TOPOLOGY,
    PASSWORD,
    RULES,
    SENTINEL_FILE,
    Access,
    refusals,
    users,
    with_passwords,
)
from tests.acl_operations import complaints
from tests.cluster import Cluster
from tests.conftest import Log
from tests.inventory import Inventory
from tests.program import Backlog, wait_until
from tests.servers import RedisServer, free_port
from tests.test_sentinel import followed, worker_of
from tests.topology import Replicated, wait_for_replicas

pytestmark = pytest.mark.slow

ON_A_CLUSTER = [user for user in RULES if user != "expirer-reshard"]
"""A Cluster has no script that reaches two hash tags."""
OF_A_CLUSTER = [
    pytest.param(user, rule, id=f"{user} {rule}")
    for user in ON_A_CLUSTER
    for rule in RULES[user]
    if rule in OF_A_TOPOLOGY
]


SENTINEL_TEXT = SENTINEL_FILE.read_text()
AT_SENTINELS = users(with_passwords(SENTINEL_TEXT))
WAYS = dict(re.findall(r"^#   (before its start|a running Sentinel) +(.*)$", SENTINEL_TEXT, re.MULTILINE))
"""How the file says that it is loaded."""

Employ = Callable[..., Access]


def hire(server: RedisServer, user: str, *rules: str) -> None:
    """Create a user with these rights on a server, which forgets what it has refused before."""
    admin = server.client()
    admin.execute_command("ACL", "SETUSER", user, *rules)  # type: ignore[no-untyped-call]
    admin.execute_command("ACL", "LOG", "RESET")  # type: ignore[no-untyped-call]


@pytest.fixture
def employ(cluster: Cluster) -> Iterator[Employ]:
    """Return a function that creates a user of the file on each node of a Cluster, maybe without one of its rights."""

    def run(user: str, *lacks: str) -> Access:
        for node in cluster.nodes:
            hire(node, user, *(rule for rule in RULES[user] if rule not in lacks))
        primary = cluster.primary_of("{inventory}:control")
        shop = Inventory(primary.client())
        url = cluster.settings["redis_url"].replace("//", f"//{user}:{quote(PASSWORD)}@")
        return Access(shop, primary, url, {"redis_cluster": True})

    yield run
    for node in cluster.nodes:
        node.client().execute_command("ACL", "DELUSER", *RULES)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("user", ON_A_CLUSTER)
def test_the_rights_suffice_on_a_cluster(employ: Employ, cluster: Cluster, user: str) -> None:
    """With exactly its rights on each node a user does all that it is there for, and no node refuses anything."""
    assert [] == complaints(employ(user), user)
    assert [] == [refusal for node in cluster.nodes for refusal in refusals(node.client())]


@pytest.mark.parametrize(("user", "rule"), OF_A_CLUSTER)
def test_each_right_for_a_cluster_is_needed(employ: Employ, cluster: Cluster, user: str, rule: str) -> None:
    """Without a right that is for a Cluster something fails there, for want of it."""
    told = complaints(employ(user, rule), user)

    assert told
    command = rule[1:].partition("|")[0]
    refused = {what.partition("|")[0] for node in cluster.nodes for _, what in refusals(node.client())}
    assert {command} == refused


@pytest.fixture(scope="module")
def sentinels(server_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicated]:
    """Run a primary with two replicas and three Sentinels, whose configuration has the file's user."""
    lines = tuple(f"user {user} {' '.join(rules)}" for user, rules in AT_SENTINELS.items())
    with Replicated(server_binary, tmp_path_factory.mktemp("sentinels"), sentinel_lines=lines) as sentinels:
        yield sentinels


@pytest.fixture
def credentials(sentinels: Replicated) -> Iterator[dict[str, object]]:
    """Create the sidecar's user everywhere; return the settings of a worker."""
    for server in sentinels.servers:
        hire(server, "expirer", *RULES["expirer"])
    yield {
        "redis_url": f"redis://expirer:{quote(PASSWORD)}@/0",
        "redis_sentinel_username": "expirer",
        "redis_sentinel_password": PASSWORD,
    }
    for sentinel in sentinels.sentinels:
        hire(sentinel, "expirer", *AT_SENTINELS["expirer"])


def test_the_rights_suffice_with_sentinels(sentinels: Replicated, credentials: dict[str, object], log: Log) -> None:
    """With exactly the rights of both files a worker drains, and follows a failover."""
    old = sentinels.primary()
    old.client().flushall()
    backlog = Backlog(old.client())
    backlog.add(20)
    worker = worker_of(sentinels, log, **credentials)
    assert 20 == worker.tick().expired
    assert [] == log.of("processing_error")
    topology = {name: value for name, value in (sentinels.settings | credentials).items() if name != "redis_url"}
    assert [] == Access(backlog.shop, old, str(credentials["redis_url"]), topology).complaints("check")

    wait_for_replicas(old, 2)
    new = sentinels.failover()
    backlog = followed(new.client(), backlog)
    backlog.add(20)
    wait_until(lambda: worker.tick().expired == 20)

    assert {entry["error"] for entry in log.of("processing_error")} <= {"ConnectionError", "ReadOnlyError"}
    assert [] == [
        refusal for server in (*sentinels.servers, *sentinels.sentinels) for refusal in refusals(server.client())
    ]
    backlog.assert_expired_once()


def test_the_right_at_the_sentinels_is_needed(sentinels: Replicated, credentials: dict[str, object], log: Log) -> None:
    """Without the one right that a Sentinel grants a tick fails, and says which."""
    wait_until(lambda: len(sentinels.replicas()) == 2)
    backlog = Backlog(sentinels.primary().client())
    backlog.add(1)
    for server in sentinels.sentinels:
        hire(server, "expirer", "-@all")

    assert 1 == worker_of(sentinels, log, **credentials).tick().errors

    [error] = log.of("processing_error")
    assert "sentinel" in error["message"].lower()
    assert "permission" in error["message"]


@pytest.mark.parametrize("way", ["before its start", "a running Sentinel"])
def test_a_sentinel_loads_it(server_binary: Path, tmp_path: Path, shell: Callable[[str], str], way: str) -> None:
    """In each of the ways that the file names a Sentinel has the user, also after a restart; not without its hash."""
    configuration = tmp_path / "sentinel.conf"
    configuration.touch()
    file = tmp_path / "sentinel.acl"
    file.write_text(with_passwords(SENTINEL_TEXT))
    sentinel = RedisServer(server_binary, tmp_path, port=free_port(), sentinel=configuration)
    try:
        if way == "before its start":
            shell(WAYS[way])
            sentinel.start()
        else:
            sentinel.start()
            file.write_text(SENTINEL_TEXT)
            assert "hash" in shell(WAYS[way])
            file.write_text(with_passwords(SENTINEL_TEXT))
            assert ["OK", "OK"] == shell(WAYS[way]).split()
            sentinel.stop()
            sentinel.start()
        with sentinel.client() as client:
            assert {*AT_SENTINELS, "default"} == set(client.acl_users())
            assert client.execute_command("AUTH", "expirer", PASSWORD)
    finally:
        sentinel.stop()
