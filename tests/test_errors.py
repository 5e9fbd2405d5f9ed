"""What an error of a real server says: which server, what is wrong, and the way out, in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from expirer.worker.crew import Crew
from redis.exceptions import MovedError

from expirer import cli
from expirer.config.settings import Settings
from expirer.connection.connect import connect_all
from expirer.connection.errors import describe
from expirer.contract.keys import shard_keys, slot_of
from tests.beds import execute, hung
from tests.cluster import Cluster
from tests.conftest import Log
from tests.program import wait_until
from tests.servers import RedisServer, free_port


def told(log: Log, **settings: object) -> list[str]:
    """Tick once; return what the log says of the errors."""
    chosen = Settings(**settings)  # type: ignore[arg-type]  # each is of its type
    with connect_all(chosen) as servers:
        Crew(servers, chosen, log.logger()).run_once()
    return [entry["message"] for entry in log.of("processing_error")]


@pytest.mark.parametrize("verb", ["status", "check", "pending"])
def test_a_time_out_names_the_server(
    own_server: RedisServer, log: Log, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    """A server that hangs is named, in the log and once in the line of a verb."""
    url = f"redis://127.0.0.1:{own_server.port}/0"
    with hung(own_server):
        [message] = told(log, redis_url=f"{url}?socket_timeout=0.3")
        code = cli.main([verb, "--redis-url", f"{url}?socket_timeout=0.3"])

    line = capsys.readouterr().err
    assert f"127.0.0.1:{own_server.port}" in message
    assert (1, f"expirer: {url}: Timeout") == (code, line[: len(f"expirer: {url}: Timeout")])
    assert 1 == line.count("\n")


def test_wrong_credentials_name_the_server_and_where_they_stand(own_server: RedisServer, log: Log) -> None:
    """A wrong password is said of which server, and by which setting it is mended."""
    own_server.client().config_set("requirepass", "hunter2")

    [message] = told(log, redis_url=f"redis://:hunter3@127.0.0.1:{own_server.port}")

    assert message.startswith(f"redis://127.0.0.1:{own_server.port}: ")
    assert message.endswith("look at the credentials in EXPIRER_REDIS_URL and EXPIRER_REDIS_PASSWORD_FILE")
    assert "hunter" not in message


def test_a_replica_says_to_address_the_primary(
    own_server: RedisServer, log: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the address leads to a replica the worker and status say so, with the way out."""
    own_server.client().replicaof("127.0.0.1", free_port())

    [message] = told(log, redis_url=own_server.url)
    code = cli.main(["status", "--redis-url", own_server.url])

    way_out = "address the primary: a replica refuses every write"
    first, *_ = capsys.readouterr().out.splitlines()
    assert message.endswith(f"; {way_out}")
    assert (1, f"shard 0: no live worker; this is a replica: {way_out}") == (code, first)


def test_a_node_that_hangs_is_named(cluster: Cluster, log: Log) -> None:
    """In a Cluster a time-out names the node, not only the shard."""
    settings = {**cluster.settings, "redis_url": f"{cluster.settings['redis_url']}?socket_timeout=0.3"}
    primary = cluster.primary_of("{inventory}:control")
    execute(primary, "CLIENT", "PAUSE", 60_000, "WRITE")
    try:
        [message] = told(log, **settings)
    finally:
        execute(primary, "CLIENT", "UNPAUSE")

    assert f"127.0.0.1:{primary.port}" in message


def test_a_slot_that_nobody_serves(own_cluster: Cluster, log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    """The line has the slot, its shard, and the tool that tells why, in the log as in check."""
    settings = {**own_cluster.settings, "shards": 3}
    slot = slot_of(shard_keys(Settings(**settings))[1])
    for node in own_cluster.nodes:
        execute(node, "CONFIG", "SET", "cluster-require-full-coverage", "no")
        execute(node, "CLUSTER", "DELSLOTS", slot)
    start = own_cluster.settings["redis_url"].removeprefix("redis://")
    line = f"no node of the Cluster serves slot {slot}, that of shard 1; redis-cli --cluster check {start} tells why"

    messages = told(log, **settings)
    code = cli.main(["check", "--redis-cluster", "true", "--shards", "3", "--redis-url", settings["redis_url"]])

    assert [line] == messages
    assert (1, f"expirer: {settings['redis_url']}: {line}\n") == (code, capsys.readouterr().err)


def test_a_cluster_that_is_down(own_cluster: Cluster, log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    """Each shard's line has the node that said so, and the tool that tells why; check grants no right for it."""
    slot = slot_of(shard_keys(Settings(namespace="elsewhere"))[0])
    for node in own_cluster.nodes:
        execute(node, "CLUSTER", "DELSLOTS", slot)
    wait_until(lambda: b"cluster_state:fail" in execute(own_cluster.nodes[0], "CLUSTER", "INFO"))
    start = own_cluster.settings["redis_url"].removeprefix("redis://")

    [message] = told(log, **own_cluster.settings)
    cli.main(["check", "--redis-cluster", "true", "--redis-url", own_cluster.settings["redis_url"]])

    primary = own_cluster.primary_of("{inventory}:control")
    line = f"127.0.0.1:{primary.port}: The cluster is down; redis-cli --cluster check {start} tells why"
    assert line == message
    assert f"failure  connection: {line}" in capsys.readouterr().out


def test_an_ipv6_address_is_written_with_brackets() -> None:
    """Where a slot has gone is written as an address that can be used."""
    error = MovedError("6621 2001:db8::1:7001")

    said = describe(error, Settings(redis_cluster=True))

    assert "slot 6621 is served by [2001:db8::1]:7001 now; nothing was done; the next try goes there" == said


def test_a_server_without_auth_repeats_no_password(server_binary: Path, tmp_path: Path, log: Log) -> None:
    """A server that does not know the command repeats the first letters of what came with it; the log does not."""
    server = RedisServer(server_binary, tmp_path, "--rename-command", "AUTH", "", port=free_port())
    server.start()
    try:
        password = 40 * "hunter2"
        [message] = told(log, redis_url=f"redis://:{password}@127.0.0.1:{server.port}")
    finally:
        server.stop()

    assert "unknown command 'AUTH'" in message
    assert "hunter2" not in message


@pytest.mark.parametrize(
    ("topology", "variables"),
    [("redis_cluster", "EXPIRER_REDIS_URL"), ("redis_sentinels", "EXPIRER_REDIS_SENTINEL_USERNAME")],
)
def test_wrong_credentials_for_who_knows_the_primary(
    own_server: RedisServer, log: Log, topology: str, variables: str
) -> None:
    """A node or a Sentinel that lets nobody in is named, with the settings that hold its credentials."""
    own_server.client().config_set("requirepass", "hunter2")
    address = f"127.0.0.1:{own_server.port}"
    where = {"redis_cluster": True} if topology == "redis_cluster" else {"redis_sentinels": address}
    secret = {} if topology == "redis_cluster" else {"redis_sentinel_password": "hunter3"}
    [message] = told(log, redis_url=f"redis://:hunter3@{address}", **where, **secret)

    assert f"{address}: invalid username-password pair or user is disabled; look at " in message
    assert variables in message.partition("; look at ")[2]
