"""The connection and the log: no secret leaves them, and no command is repeated."""

from __future__ import annotations

import io
import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from expirer.config.settings import Settings
from expirer.connection.connect import PasswordFile, connect, connect_all
from expirer.connection.errors import location, redact
from expirer.worker.batch import Tick
from expirer.worker.logs import build_logger
from expirer.worker.worker import Worker
from tests.conftest import Log
from tests.servers import RedisServer, free_port


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:hunter2@host:6380/3?socket_timeout=2", "redis://host:6380/3"),
        ("rediss://:hunter2@host", "rediss://host"),
        ("unix:///run/redis.sock?db=1&password=hunter2", "unix:///run/redis.sock"),
    ],
)
def test_a_location_has_no_password(url: str, shown: str) -> None:
    """What is logged of the address leaves credentials and options out."""
    assert shown == location(Settings(redis_url=url))


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("redis://user:hunter2@host", "AUTH user hunter2"),
        ("redis://:p%40ss@host", "AUTH p@ss, or p%40ss"),
        ("unix:///run/redis.sock?password=hunter2", "AUTH hunter2"),
    ],
)
def test_passwords_are_redacted(url: str, text: str) -> None:
    """A password in an error's text becomes stars, encoded or not."""
    shown = redact(text, Settings(redis_url=url))

    assert "***" in shown
    assert not {"hunter2", "p@ss", "p%40ss"} & set(shown.replace(",", "").split())


def test_a_password_that_begins_with_another_is_redacted_whole() -> None:
    """Of two passwords the longer one is replaced first, whatever order they come in."""
    for first, second in (("hunter2", "hunter2-more"), ("hunter2-more", "hunter2")):
        password = {"redis_sentinels": "a:1", "redis_sentinel_password": second}
        settings = Settings(redis_url=f"redis://:{first}@a", **password)  # type: ignore[arg-type]

        assert "AUTH ***, then ***" == redact("AUTH hunter2-more, then hunter2", settings)


def test_a_password_file_is_redacted(tmp_path: Path) -> None:
    """A password from a file becomes stars too, and nothing else does."""
    secret = tmp_path / "secret"
    secret.write_text("hunter2\n")
    settings = Settings(redis_password_file=secret)

    assert redact("AUTH hunter2, then hunter3", settings) == "AUTH ***, then hunter3"


def test_a_password_that_was_replaced_is_redacted(tmp_path: Path) -> None:
    """A password that was ever read is hidden when its file has another one, and when the file has gone."""
    secret = tmp_path / "secret"
    secret.write_text("hunter2-first")
    settings = Settings(redis_password_file=secret)
    secret.write_text("hunter2-second")
    PasswordFile(secret, None).get_credentials()
    secret.unlink()

    assert redact("AUTH hunter2-first, then hunter2-second", settings) == "AUTH ***, then ***"


def test_a_spoilt_password_file_is_an_error_of_the_tick(own_server: RedisServer, tmp_path: Path) -> None:
    """A password file that goes bad while the worker runs is logged like any trouble, and outlived."""
    secret = tmp_path / "secret"
    secret.write_text("one")
    settings = Settings(redis_url=own_server.url, redis_password_file=secret)
    log = Log()
    worker = Worker(connect_all(settings).shards[0], log.logger())
    secret.write_bytes(b"\xff")

    assert Tick(errors=1) == worker.tick()
    (entry,) = log.of("processing_error")
    assert "is not UTF-8 text" in entry["message"]


def test_a_password_file_is_read_for_each_connection(own_server: RedisServer, tmp_path: Path) -> None:
    """A rotated password is used by the next connection, without a restart."""
    secret = tmp_path / "secret"
    secret.write_text("one\n")
    settings = Settings(redis_url=own_server.url, redis_password_file=secret)
    with own_server.client() as admin:
        admin.config_set("requirepass", "one")
        client = connect(settings)
        assert client.ping()
        admin.config_set("requirepass", "two")
        secret.write_text("two\n")
        client.connection_pool.disconnect()

        assert client.ping()
        client.close()


def test_a_user_name_goes_with_the_password_file(tmp_path: Path) -> None:
    """The user name of the URL is kept, the password comes from the file."""
    secret = tmp_path / "secret"
    secret.write_text("hunter2")

    assert PasswordFile(secret, "ann").get_credentials() == ("ann", "hunter2")
    assert PasswordFile(secret, None).get_credentials() == ("hunter2",)
    url = "redis://ann@host"
    provider = connect(Settings(redis_url=url, redis_password_file=secret)).connection_pool.connection_kwargs[
        "credential_provider"
    ]
    assert provider.get_credentials() == ("ann", "hunter2")


TOPOLOGIES = {"one server": {}, "Sentinels": {"redis_sentinels": "127.0.0.1:1"}, "Cluster": {"redis_cluster": True}}


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_silent_connection_is_kept_alive(topology: str) -> None:
    """Whatever it leads to, a connection gives a sign of life before a NAT or a firewall on its way forgets it."""
    pool: Any = connect(Settings(redis_url="redis://a", **TOPOLOGIES[topology])).connection_pool  # type: ignore[arg-type]
    connections = [pool.make_connection()]
    if topology == "Sentinels":
        connections += [client.connection_pool.make_connection() for client in pool.sentinel_manager.sentinels]

    for connection in connections:
        assert connection.socket_keepalive
        assert 20 == connection.socket_keepalive_options[socket.TCP_KEEPIDLE]
        assert {socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT} < connection.socket_keepalive_options.keys()


def test_a_listening_connection_is_kept_alive(own_server: RedisServer) -> None:
    """A subscriber's socket is kept alive too: it is silent for as long as nothing is published."""
    with connect(Settings(redis_url=f"redis://127.0.0.1:{own_server.port}")) as client:
        pubsub: Any = client.pubsub()
        pubsub.subscribe("nothing")
        sock = pubsub.connection._sock

        assert [1, 20] == [
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
            sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
        ]
        pubsub.close()


def test_a_connection_has_a_name(own_server: RedisServer) -> None:
    """CLIENT LIST shows which connections are the sidecar's, by its name or by the address's."""
    for option, name in (("", "expirer"), ("?client_name=shop", "shop")):
        with connect(Settings(redis_url=f"redis://127.0.0.1:{own_server.port}/0{option}")) as client:
            assert name == client.client_getname()


@pytest.mark.parametrize("how", ["renamed away", "refused"])
def test_client_is_no_precondition(server_binary: Path, tmp_path: Path, log: Log, how: str) -> None:
    """A server without CLIENT, or that refuses it, is worked on: a connection needs no name."""
    options = ("--rename-command", "CLIENT", "") if how == "renamed away" else ()
    server = RedisServer(server_binary, tmp_path, *options, port=free_port())
    server.start()
    try:
        with server.client() as admin:
            admin.execute_command("ACL", "SETUSER", "clerk", "on", "nopass", "~*", "&*", "+@all", "-client")
        user = "clerk:any@" if how == "refused" else ""
        settings = Settings(redis_url=f"redis://{user}127.0.0.1:{server.port}")
        assert Tick() == Worker(connect_all(settings).shards[0], log.logger()).tick(), log.entries
    finally:
        server.stop()


@contextmanager
def allowed_files(limit: int) -> Iterator[None]:
    """Lower the soft limit of open files until the block ends."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["one server", "Cluster"])
def test_many_shards_may_open_as_many_files_as_they_need(topology: str) -> None:
    """With 600 shards the limit of open files is raised at the start; with one it is left alone."""
    with allowed_files(1024):
        connect_all(Settings(**TOPOLOGIES[topology]))  # type: ignore[arg-type]
        left = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        servers = connect_all(Settings(shards=600, **TOPOLOGIES[topology]))  # type: ignore[arg-type]
        raised = resource.getrlimit(resource.RLIMIT_NOFILE)[0]

    assert (1024, 600) == (left, len(servers.shards))
    assert raised >= 2 * 600


@pytest.mark.slow
def test_a_limit_that_cannot_be_raised_is_one_clear_line() -> None:
    """If the hard limit is too low for the shards the program says what they need, and how to allow it, exit 2."""
    start = "import os, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (512, 512)); "
    start += 'os.execv(sys.executable, [sys.executable, "-m", "expirer", "once"])'
    environment = {**os.environ, "EXPIRER_SHARDS": "600"}
    done = subprocess.run([sys.executable, "-c", start], env=environment, capture_output=True, text=True, check=False)

    line = (
        "expirer: EXPIRER_SHARDS=600 needs 1264 open files, and this process may have 512:"
        " ulimit -n 1264, or LimitNOFILE=1264 in a systemd unit\n"
    )
    assert (2, "", line) == (done.returncode, done.stdout, done.stderr)


def test_json_lines() -> None:
    """A JSON line starts with time, level and event, and holds the fields as they are."""
    stream = io.StringIO()

    build_logger(Settings(log_format="json"), stream).info("job_started", shards=1, who="größe\n")

    line = json.loads(stream.getvalue())
    assert list(line) == ["time", "level", "event", "shards", "who"]
    assert tuple(line.values())[1:] == ("info", "job_started", 1, "größe\n")


def test_a_strangers_id_cannot_drive_the_terminal() -> None:
    """On a console escape sequences and newlines of an id are shown, not sent."""
    stream = io.StringIO()

    build_logger(Settings(log_format="console"), stream).info("reservation_expired", order_id="\x1b[2J\n")

    assert "order_id='\\x1b[2J\\n'" in stream.getvalue()
    assert stream.getvalue().count("\n") == 1


def test_auto_is_json_where_nobody_watches() -> None:
    """Without a terminal the format is JSON, and the level filters."""
    stream = io.StringIO()
    log = build_logger(Settings(log_level="warning"), stream)

    log.info("job_started")
    log.error("processing_error")

    assert json.loads(stream.getvalue())["event"] == "processing_error"


def test_an_error_is_one_json_line() -> None:
    """A traceback is a field of the line, not lines of its own."""
    stream = io.StringIO()
    log = build_logger(Settings(), stream)

    log.error("processing_error", exc_info=LookupError("surprise"))

    assert "LookupError: surprise" in json.loads(stream.getvalue())["exception"]


def test_a_log_that_cannot_be_written_is_no_error() -> None:
    """A full disk or a closed pipe costs the line, not the work."""

    class Full(io.StringIO):
        def write(self, _text: str) -> int:
            raise OSError(28, "No space left on device")

    closed = io.StringIO()
    log = build_logger(Settings(), closed)
    closed.close()

    log.info("job_started")
    build_logger(Settings(), Full()).info("job_started")
