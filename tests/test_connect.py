"""The connection and the log: no secret leaves them, and no command is repeated."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from expirer.config.settings import Settings
from expirer.connection.connect import PasswordFile, connect, connect_all
from expirer.connection.errors import location, redact
from expirer.worker.batch import Tick
from expirer.worker.logs import build_logger
from expirer.worker.worker import Worker
from tests.conftest import Log
from tests.servers import RedisServer


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
    """A password from a file becomes stars too; a file that has gone hides nothing else."""
    secret = tmp_path / "secret"
    secret.write_text("hunter2\n")
    settings = Settings(redis_password_file=secret)

    assert redact("AUTH hunter2", settings) == "AUTH ***"
    secret.unlink()
    assert redact("AUTH hunter3", settings) == "AUTH hunter3"


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
