"""TLS as it must be: the server is verified by its authority and its name, and a client shows its own certificate."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from expirer import cli
from expirer.config.settings import ConfigurationError, Settings, load
from expirer.connection.connect import connect, connect_all
from expirer.contract.keys import ShardKeys
from expirer.worker.batch import Tick
from expirer.worker.worker import Worker
from tests.certificates import Authority
from tests.cluster import Cluster
from tests.conftest import Log, Tool
from tests.inventory import Inventory
from tests.servers import RedisServer, free_port
from tests.topology import Replicated
from tests.workers import Workers

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def authority(tool: Tool, server_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Return an authority; where this server was built without TLS skip, but fail where CI is set."""
    tool("openssl")
    # Without a certificate none of them starts. Since 7.2 a server that lacks TLS knows the option all the same.
    options = ["--port", "0", "--tls-port", str(free_port())]
    started = subprocess.run([server_binary, *options], capture_output=True, text=True, check=False)
    if any(words in started.stdout + started.stderr for words in ("Bad directive", "Failed finding TLS support")):
        (pytest.fail if os.environ.get("CI") else pytest.skip)("this server was built without TLS")
    return Authority(tmp_path_factory.mktemp("authority"))


def tls_options(authority: Authority, name: str = "IP:127.0.0.1", *, clients: str = "no") -> list[str]:
    """Return what makes a server speak TLS under a name; `clients`: whether it asks for their certificates."""
    certificate, key = authority.sign(name.replace(":", "-"), name)
    options = {"cert-file": certificate, "key-file": key, "ca-cert-file": authority.certificate}
    return [f"--tls-{option}={value}" for option, value in {**options, "auth-clients": clients}.items()]


@contextmanager
def serving(binary: Path, folder: Path, *options: str) -> Iterator[int]:
    """Run a server that speaks TLS until the block ends; give its port."""
    port = free_port()
    arguments = [word for option in options for word in option.split("=", 1)]
    server = RedisServer(binary, folder, "--tls-port", str(port), *arguments)
    try:
        server.start()
        yield port
    finally:
        server.stop()


def status(port: int, capsys: pytest.CaptureFixture[str], options: str, host: str = "127.0.0.1") -> str:
    """Return the one line that status says on standard error; empty where it is served."""
    code = cli.main(["status", "--redis-url", f"rediss://{host}:{port}/0?{options}"])
    out, err = capsys.readouterr()
    assert (code, err.count("\n")) in ((1, 0), (1, 1))
    assert bool(out) != bool(err)
    return err


def test_the_server_is_verified(
    server_binary: Path, tmp_path: Path, authority: Authority, capsys: pytest.CaptureFixture[str]
) -> None:
    """The right authority and the right name serve; another authority, another name or none is one clear line."""
    stranger = Authority(tmp_path / "stranger")
    with serving(server_binary, tmp_path, *tls_options(authority, "DNS:localhost")) as port:
        trusting = f"ssl_ca_certs={authority.certificate}"

        assert "" == status(port, capsys, trusting, "localhost")
        assert "" == status(port, capsys, f"{trusting}&ssl_check_hostname=false")
        assert "" == status(port, capsys, "ssl_cert_reqs=none")
        assert "IP address mismatch" in status(port, capsys, trusting)
        assert "certificate verify failed" in status(port, capsys, f"ssl_ca_certs={stranger.certificate}", "localhost")
        assert "certificate verify failed" in status(port, capsys, "", "localhost")


def test_a_client_shows_its_certificate(
    server_binary: Path, tmp_path: Path, authority: Authority, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server that asks for certificates serves a client with one of its authority, and no other."""
    certificate, key = authority.sign("client", "DNS:client")
    with serving(server_binary, tmp_path, *tls_options(authority, clients="yes")) as port:
        trusting = f"ssl_ca_certs={authority.certificate}"

        assert "" == status(port, capsys, f"{trusting}&ssl_certfile={certificate}&ssl_keyfile={key}")
        assert "" != status(port, capsys, trusting)


@pytest.mark.parametrize("option", ["ssl_ca_certs", "ssl_certfile", "ssl_keyfile"])
def test_a_file_that_cannot_be_read_is_named(option: str) -> None:
    """A certificate that is not there stops the start, by the name of its option."""
    with pytest.raises(ConfigurationError) as refused:
        load({"redis_url": f"rediss://:hunter2@host?{option}=/nowhere/it.pem"})

    assert [f"--redis-url: has an {option} that cannot be read: No such file or directory"] == refused.value.problems


def test_a_user_and_a_rotated_password_file(
    server_binary: Path, tmp_path: Path, authority: Authority, log: Log
) -> None:
    """Over TLS a user of the server's list is known by the password in a file, which is read again when it changes."""
    secret = tmp_path / "secret"
    secret.write_text("one\n")
    acl = "user sidecar on >one ~{inventory}:* &* +@all"
    with serving(server_binary, tmp_path, *tls_options(authority)) as port:
        admin = connect(Settings(redis_url=f"rediss://127.0.0.1:{port}?ssl_ca_certs={authority.certificate}"))
        admin.execute_command("ACL", "SETUSER", *acl.split()[1:])  # type: ignore[no-untyped-call]
        url = f"rediss://sidecar@127.0.0.1:{port}/0?ssl_ca_certs={authority.certificate}"
        settings = Settings(redis_url=url, redis_password_file=secret)
        worker = Worker(connect_all(settings).shards[0], log.logger())
        assert Tick() == worker.tick()

        admin.execute_command("ACL", "SETUSER", "sidecar", "resetpass", ">two")  # type: ignore[no-untyped-call]
        admin.execute_command("CLIENT", "KILL", "USER", "sidecar")  # type: ignore[no-untyped-call]
        secret.write_text("two\n")

        assert Tick() == worker.tick(), log.entries


def test_a_cluster_with_tls(server_binary: Path, tmp_path: Path, authority: Authority, log: Log) -> None:
    """Every node that the Cluster names is verified like the first."""
    options = (*split(tls_options(authority)), "--tls-cluster", "yes", "--tls-replication", "yes")
    with Cluster(server_binary, tmp_path, *options, tls=authority.certificate) as topology:
        with topology.client() as client:
            for number in range(6):
                shop = Inventory(client, ShardKeys.of("inventory", number, 6))
                shop.stock("mug", 0, 1)
                shop.hold("mug", 1, 1000)

        assert 6 == Workers(log, **topology.settings, shards=6).tick().expired, log.entries


def test_sentinels_with_tls(server_binary: Path, tmp_path: Path, authority: Authority, log: Log) -> None:
    """Sentinels, and the primary that they name, are verified like a server."""
    with Replicated(
        server_binary, tmp_path, *split(tls_options(authority)), "--tls-replication", "yes", tls=authority.certificate
    ) as topology:
        settings = Settings(**topology.settings)
        assert Tick() == Worker(connect_all(settings).shards[0], log.logger()).tick(), log.entries
        topology.failover()
        worker = Worker(connect_all(settings).shards[0], log.logger())

        assert Tick() == worker.tick(), log.entries


def split(options: list[str]) -> list[str]:
    """Return options as separate words."""
    return [word for option in options for word in option.split("=", 1)]
