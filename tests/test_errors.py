"""What an error of a real server says: which server, what is wrong, and the remedy, in one line."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis.exceptions import ConnectionError as NoConnection
from redis.exceptions import MovedError, ResponseError

from expirer import cli
from expirer.config.settings import Settings
from expirer.connection.errors import describe
from expirer.contract import scripts
from expirer.contract.keys import shard_keys, slot_of
from tests.cluster import Cluster
from tests.conftest import Log
from tests.program import Backlog, wait_until
from tests.servers import RedisServer, free_port
from tests.topology import execute, hung
from tests.workers import Workers


def logged(log: Log, **settings: object) -> list[str]:
    """Tick once; return what the log says of the errors."""
    Workers(log, **settings).tick()
    return [entry["message"] for entry in log.of("processing_error")]


@pytest.mark.parametrize("command", ["status", "check", "pending"])
def test_a_time_out_names_the_server(
    own_server: RedisServer, log: Log, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """A server that hangs is named, in the log and once in the line of a command."""
    url = f"redis://127.0.0.1:{own_server.port}/0"
    with hung(own_server):
        [message] = logged(log, redis_url=f"{url}?socket_timeout=0.3")
        code = cli.main([command, "--redis-url", f"{url}?socket_timeout=0.3"])

    line = capsys.readouterr().err
    assert f"127.0.0.1:{own_server.port}" in message
    assert (1, f"expirer: {url}: Timeout") == (code, line[: len(f"expirer: {url}: Timeout")])
    assert 1 == line.count("\n")


def test_wrong_credentials_name_the_server_and_the_settings(own_server: RedisServer, log: Log) -> None:
    """A wrong password is said with its server, and the settings that hold it."""
    own_server.client().config_set("requirepass", "hunter2")

    [message] = logged(log, redis_url=f"redis://:hunter3@127.0.0.1:{own_server.port}")

    assert message.startswith(f"redis://127.0.0.1:{own_server.port}: ")
    assert message.endswith("check the credentials in EXPIRER_REDIS_URL and …_PASSWORD_FILE")
    assert "hunter" not in message


def test_a_replica_says_to_address_the_primary(
    own_server: RedisServer, log: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the address leads to a replica the worker and status say so, with the remedy."""
    own_server.client().replicaof("127.0.0.1", free_port())

    [message] = logged(log, redis_url=own_server.url)
    code = cli.main(["status", "--redis-url", own_server.url])

    remedy = "address the primary: a replica refuses every write"
    first, *_ = capsys.readouterr().out.splitlines()
    assert message.endswith(f"; {remedy}")
    assert (1, f"shard 0: no live worker; this is a replica: {remedy}") == (code, first)


def test_a_node_that_hangs_is_named(cluster: Cluster, log: Log) -> None:
    """In a Cluster a time-out names the node, not only the shard."""
    settings = {**cluster.settings, "redis_url": f"{cluster.settings['redis_url']}?socket_timeout=0.3"}
    primary = cluster.primary_of("{inventory}:control")
    execute(primary, "CLIENT", "PAUSE", 60_000, "WRITE")
    try:
        [message] = logged(log, **settings)
    finally:
        execute(primary, "CLIENT", "UNPAUSE")

    assert f"127.0.0.1:{primary.port}" in message


def test_a_slot_that_nobody_serves(own_cluster: Cluster, log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    """The line has the slot, and the tool that tells why, in the log as in check."""
    settings = {**own_cluster.settings, "shards": 3}
    slot = slot_of(shard_keys(Settings(**settings))[1])
    for node in own_cluster.nodes:
        execute(node, "CONFIG", "SET", "cluster-require-full-coverage", "no")
        execute(node, "CLUSTER", "DELSLOTS", slot)
    start = own_cluster.settings["redis_url"].removeprefix("redis://")
    line = f"no node of the Cluster serves slot {slot}; redis-cli --cluster check {start} tells why"

    messages = logged(log, **settings)
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

    [message] = logged(log, **own_cluster.settings)
    cli.main(["check", "--redis-cluster", "true", "--redis-url", own_cluster.settings["redis_url"]])

    primary = own_cluster.primary_of("{inventory}:control")
    line = f"127.0.0.1:{primary.port}: The cluster is down; redis-cli --cluster check {start} tells why"
    assert line == message
    assert f"failure  connection: {line}" in capsys.readouterr().out


def test_an_ipv6_address_is_written_with_brackets() -> None:
    """Where a slot has gone is written as an address that can be used."""
    error = MovedError("6621 2001:db8::1:7001")

    text = describe(error, Settings(redis_cluster=True))

    assert "slot 6621 is served by [2001:db8::1]:7001 now; nothing was done; the next try goes there" == text


def test_a_server_without_auth_repeats_no_password(server_binary: Path, tmp_path: Path, log: Log) -> None:
    """A server that does not know the command repeats the first letters of what came with it; the log does not."""
    server = RedisServer(server_binary, tmp_path, "--rename-command", "AUTH", "", port=free_port())
    server.start()
    try:
        password = 40 * "hunter2"
        [message] = logged(log, redis_url=f"redis://:{password}@127.0.0.1:{server.port}")
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
    [message] = logged(log, redis_url=f"redis://:hunter3@{address}", **where, **secret)

    assert f"{address}: invalid username-password pair or user is disabled; check the credentials in " in message
    assert variables in message.partition("; check ")[2]


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Let this process open nothing until the block ends."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_an_error_is_described_without_opening_a_file(tmp_path: Path) -> None:
    """While no descriptor is left an error has all its parts: the script's command, the server, and no password."""
    secret = tmp_path / "secret"
    secret.write_text("hunter2\n")
    settings = Settings(redis_password_file=secret)
    script = scripts.load("expire")
    line = next(n for n, code in enumerate(script.text.splitlines(), 1) if "call('TIME')" in code)
    place = f"script: {script.sha}, on @user_script:{line}."
    with no_descriptors():
        texts = [
            describe(ResponseError(f"The user executing the script can't run this command {place}"), settings),
            describe(NoConnection("AUTH hunter2"), settings),
        ]

    assert texts[0].startswith("TIME: The user executing the script")
    assert "redis://localhost:6379/0: AUTH ***" == texts[1]


def test_a_worker_outlives_that_no_descriptor_is_left(own_server: RedisServer, tmp_path: Path, log: Log) -> None:
    """A tick that can open nothing is an error in the log, without the password; the next one expires what is due."""
    secret = tmp_path / "secret"
    secret.write_text("hunter2\n")
    with own_server.client() as client:
        backlog = Backlog(client)
        backlog.add(3)
        client.config_set("requirepass", "hunter2")
        url = f"redis://127.0.0.1:{own_server.port}"
        workers = Workers(log, redis_url=url, redis_password_file=secret)
        with no_descriptors():
            assert 1 == workers.each[0].tick().errors

        assert 3 == workers.tick().expired
        backlog.assert_expired_once()
    [error] = log.of("processing_error")
    assert "Too many open files" in error["message"]
