"""A password stays where it was put: no log, no error, no help, no list of processes, no stranger's server has it."""

from __future__ import annotations

import logging
import os
import socket
import ssl
import subprocess
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path
from signal import SIGTERM
from typing import Self
from urllib.parse import quote

import pytest
import redis
import trustme

from expirer import cli
from expirer.commands import COMMANDS
from expirer.config.settings import Settings
from expirer.connection.connect import PasswordFile, Servers, connect, connect_all
from expirer.worker.batch import Tick
from expirer.worker.logs import build_logger
from expirer.worker.worker import Worker
from tests.conftest import Log
from tests.program import DEADLINE_S, wait_until
from tests.servers import RedisServer, free_port

SECRET = "s3cr3t/w%rd"  # noqa: S105  # it is what must not be found
FORMS = [SECRET, quote(SECRET, safe=""), repr(SECRET.encode())[2:-1], "s3cr3t"]
USER = f"ann:{quote(SECRET, safe='')}"

PROC = Path("/proc")
needs_proc = pytest.mark.skipif(not (PROC / "self" / "cmdline").exists(), reason="this system has no /proc")


def leaks(text: str) -> list[str]:
    """Return the lines that show the secret, or the half of it that a misread URL would."""
    return [line for line in text.splitlines() if any(form in line for form in FORMS)]


class TlsServer:
    """Says whom it claims to be, and keeps what it is told after that."""

    def __init__(self, certificate: trustme.LeafCert) -> None:
        self.told = b""
        self.greeted = 0
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(self._context)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(DEADLINE_S)
        self._listener.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.greeted += 1
                with connection, suppress(OSError), self._context.wrap_socket(connection, server_side=True) as secured:
                    self.told += secured.recv(1000)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[trustme.CA, Path]:
    """Return an authority, and the file that trusts it."""
    authority = trustme.CA()
    file = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(file)
    return authority, file


@pytest.mark.parametrize(
    ("name", "is_trusted", "said"),
    [
        ("localhost", True, ""),
        ("localhost", False, "certificate verify failed"),
        ("elsewhere.example", True, "doesn't match|not valid for|mismatch"),
    ],
    ids=["right", "unknown-authority", "another-name"],
)
def test_only_the_right_server_is_told_the_password(
    authority: tuple[trustme.CA, Path], log: Log, name: str, said: str, *, is_trusted: bool
) -> None:
    """With rediss:// a server must prove its name before it hears anything, whatever stands on the way to it."""
    ca, file = authority
    trust = f"?ssl_ca_certs={file}" if is_trusted else ""
    with TlsServer(ca.issue_cert(name)) as server:
        settings = Settings(redis_url=f"rediss://{USER}@localhost:{server.port}/0{trust}")
        Worker(connect_all(settings).shards[0], log.logger()).tick()
        wait_until(lambda: server.greeted)

    assert (SECRET.encode() in server.told) == (not said)
    assert bool(server.told) == (not said)
    (entry,) = log.of("processing_error")
    assert any(words in entry["message"] for words in said.split("|"))
    assert [] == leaks(str(log.entries))


def urls(server: RedisServer, secret_file: Path) -> dict[str, dict[str, str]]:
    """Return what goes wrong -> the environment of a worker that meets it."""
    there = f"127.0.0.1:{server.port}/0"
    return {
        "wrong password": {"EXPIRER_REDIS_URL": f"redis://{USER}@{there}"},
        "wrong password, as an option": {"EXPIRER_REDIS_URL": f"redis://{there}?password={quote(SECRET, safe='')}"},
        "wrong password, from a file": {
            "EXPIRER_REDIS_URL": f"redis://ann@{there}",
            "EXPIRER_REDIS_PASSWORD_FILE": str(secret_file),
        },
        "nobody there": {"EXPIRER_REDIS_URL": f"redis://{USER}@127.0.0.1:1/0"},
        "no such host": {"EXPIRER_REDIS_URL": f"redis://{USER}@nowhere.invalid/0"},
        "no such socket": {"EXPIRER_REDIS_URL": f"unix://{USER}@/nowhere/redis.sock"},
        "no TLS there": {"EXPIRER_REDIS_URL": f"rediss://{USER}@{there}"},
    }


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize(
    ("trouble", "form"),
    [("wrong password", "console"), *((trouble, "json") for trouble in urls(RedisServer(Path(), Path()), Path()))],
)
@pytest.mark.parametrize(("command", "event"), [("run", "processing_error"), ("web", "cannot_read_redis")])
def test_a_worker_in_trouble_shows_no_password(
    own_server: RedisServer, tmp_path: Path, command: str, event: str, trouble: str, form: str
) -> None:
    """Nothing that a worker or the page's process prints names the password, nor does any list of processes."""
    secret_file = tmp_path / "secret"
    secret_file.write_text(SECRET + "\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EXPIRER_")}
    environment |= urls(own_server, secret_file)[trouble]
    environment |= {"EXPIRER_LOG_FORMAT": form, "EXPIRER_LOG_LEVEL": "debug", "EXPIRER_HTTP_PORT": str(free_port())}
    with own_server.client() as client:
        client.config_set("requirepass", "another")
    printed = tmp_path / "printed"
    with printed.open("wb") as output:
        program = subprocess.Popen(
            [sys.executable, "-m", "expirer", command], env=environment, stdout=output, stderr=output
        )
    try:
        wait_until(lambda: all(name in printed.read_text() for name in (event, "http_started")))
        process = PROC / str(program.pid)
        shown = (process / "cmdline").read_bytes().decode()
        open_to_others = (process / "environ").stat().st_mode & 0o077
        program.send_signal(SIGTERM)
        assert program.wait(DEADLINE_S) == 0
    finally:
        program.kill()
        program.wait()

    assert [] == leaks(f"{printed.read_text()}\n{shown}")
    assert 0 == open_to_others


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{SECRET}@host",
        f"redis//{USER}@host",
        f"redis://{USER}@host:port",
        f"redis://{USER}@host/shop?x={SECRET}",
    ],
)
def test_a_bad_address_is_not_repeated(url: str) -> None:
    """An address that cannot be used, with the password in whatever part of it, is one line without it, exit 2."""
    environment = {**os.environ, "EXPIRER_REDIS_URL": url}
    done = subprocess.run(
        [sys.executable, "-m", "expirer", "run"], env=environment, capture_output=True, text=True, check=False
    )

    assert (2, "", 1) == (done.returncode, done.stdout, done.stderr.count("\n"))
    assert [] == leaks(done.stderr)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_no_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """Help shows the defaults, and nothing of the environment."""
    monkeypatch.setenv("EXPIRER_REDIS_URL", f"redis://{USER}@shop.example/0")
    with pytest.raises(SystemExit):
        cli.main([*command.split(), "--help"])

    out, err = capsys.readouterr()
    assert [] == leaks(out + err)
    assert "shop.example" not in out + err


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_no_object_shows_its_password(tmp_path: Path, log: Log, scheme: str) -> None:
    """What a debugger, a traceback or a careless log line would show of our objects hides the password."""
    file = tmp_path / "secret"
    file.write_text(SECRET)
    for settings in (
        Settings(redis_url=f"{scheme}://{USER}@127.0.0.1:1/0"),
        Settings(redis_url=f"{scheme}://ann@127.0.0.1:1/0", redis_password_file=file),
    ):
        client = connect(settings)
        worker = Worker(Servers.of(client, settings).shards[0], log.logger())
        objects = [settings, client, client.connection_pool, worker, *worker.__dict__.values()]
        objects += [client.connection_pool.make_connection(), settings.model_dump(), settings.redis_url]
        objects.append(PasswordFile(file, "ann"))

        assert [] == leaks("\n".join(f"{thing!r} {thing}" for thing in objects))


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_no_traceback_shows_a_password(own_server: RedisServer, scheme: str) -> None:
    """A traceback of a failed login or connection, with all that led to it, does not name the password."""
    with own_server.client() as admin:
        admin.config_set("requirepass", "another")
    for port in (own_server.port, 1):
        client = connect(Settings(redis_url=f"{scheme}://{USER}@127.0.0.1:{port}/0"))
        with pytest.raises(redis.RedisError) as caught:
            client.ping()

        assert [] == leaks("".join(traceback.format_exception(caught.value)))


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_bug_of_ours_shows_no_password(capsys: pytest.CaptureFixture[str], form: str) -> None:
    """Even an error that nobody foresaw, whose message has the password, is logged without it, traceback and all."""
    settings = Settings(redis_url=f"redis://{USER}@host/0", log_format=form)

    class Broken(redis.ConnectionPool):
        def get_connection(self, *_: object) -> redis.Connection:
            raise LookupError(f"no such thing: {SECRET}")

    worker = Worker(Servers.of(redis.Redis(connection_pool=Broken()), settings).shards[0], build_logger(settings))

    assert Tick(errors=1) == worker.tick()
    said = capsys.readouterr().err
    assert "no such thing: ***" in said
    assert "Traceback" in said
    assert [] == leaks(said)


def test_no_library_logs_a_password(own_server: RedisServer, caplog: pytest.LogCaptureFixture, log: Log) -> None:
    """With every logger of every library at its most talkative the password is not among what they say."""
    caplog.set_level(logging.DEBUG)
    with own_server.client() as admin:
        admin.config_set("requirepass", "another")
    settings = Settings(redis_url=f"redis://{USER}@127.0.0.1:{own_server.port}/0")

    assert Tick(errors=1) == Worker(connect_all(settings).shards[0], log.logger()).tick()
    assert [] == leaks(caplog.text)
