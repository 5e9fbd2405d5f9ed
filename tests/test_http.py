"""What the server of probes and figures answers, and that no client takes memory, descriptors or a probe from it."""

from __future__ import annotations

import os
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path

import pytest

from expirer.config.settings import ConfigurationError
from expirer.contract.keys import ShardKeys
from expirer.worker import http
from expirer.worker.http import MOST_CONNECTIONS, MOST_HEAD_BYTES, Answer, HttpServer, Request
from tests.conftest import Log
from tests.program import DEADLINE_S, Backlog, Program, wait_until
from tests.servers import RedisServer, free_port

BIG = 64 * 2**20
SEVERAL = 500


def fail(_: Request) -> Answer:
    """Be a route with a bug."""
    raise ValueError("a secret")


ROUTES = {
    "/livez": lambda _: Answer(b"ok\n"),
    "/echo": lambda request: Answer(f"{request.method} {request.query} {request.headers['accept']}".encode()),
    "/big": lambda _: Answer(bytes(BIG)),
    "/bug": fail,
}


@pytest.fixture
def server(log: Log) -> Iterator[HttpServer]:
    """Serve a few routes on a free port."""
    server = HttpServer("127.0.0.1", 0, ROUTES, log.logger())
    server.start()
    yield server
    server.stop()


def connect(server: HttpServer) -> socket.socket:
    """Return a connection."""
    return socket.create_connection(("127.0.0.1", server.port), DEADLINE_S)


def ask(server: HttpServer, request: bytes) -> bytes:
    """Send bytes; return all that is answered until the server closes the connection."""
    with connect(server) as client:
        client.sendall(request)
        return read(client)


def read(client: socket.socket) -> bytes:
    """Return all that comes until the connection is closed or reset."""
    parts = []
    with suppress(ConnectionError):
        while part := client.recv(2**20):
            parts.append(part)
    return b"".join(parts)


def descriptors() -> int:
    """Return how many descriptors this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


def assert_probe_is_answered(server: HttpServer) -> None:
    """Assert that a probe has its answer within the second that Kubernetes waits for it."""
    began_at = time.monotonic()
    assert ask(server, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").endswith(b"\r\n\r\nok\n")
    assert time.monotonic() - began_at < 1.0


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", b"200"),
        (b"GET /livez?a=b HTTP/1.0\r\n\r\n", b"200"),
        (b"HEAD /livez HTTP/1.1\r\n\r\n", b"200"),
        (b"POST /livez HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", b"405"),
        (b"DELETE /livez HTTP/1.1\r\n\r\n", b"405"),
        (b"GET /livez/ HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /../../etc/passwd HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /%00%ff HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /bug HTTP/1.1\r\n\r\n", b"500"),
        (b"GET http://x/livez HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /livez HTTP/2\r\n\r\n", b"400"),
        (b"GET /livez HTTP/1.1\r\nno header\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),
        (b"GET /livez HTTP/1.1\r\nX: " + b"x" * MOST_HEAD_BYTES, b"400"),
    ],
)
def test_one_request_one_answer(server: HttpServer, request_: bytes, status: bytes) -> None:
    """Whatever is asked has one status, a length that is true, and no word of how it came about."""
    head, _, body = ask(server, request_).partition(b"\r\n\r\n")

    assert status == head.split()[1]
    assert b"Connection: close" in head
    assert b"secret" not in body
    assert (len(body) == 0) == request_.startswith(b"HEAD")
    if body:
        assert f"Content-Length: {len(body)}".encode() in head


def test_a_route_has_the_request(server: HttpServer) -> None:
    """A route gets the method, the query and the headers, by names in lower case."""
    assert ask(server, b"GET /echo?a=b HTTP/1.1\r\nACCEPT:  x/y\r\n\r\n").endswith(b"\r\n\r\nGET a=b x/y")


def test_a_bug_is_a_line_in_the_log(server: HttpServer, log: Log) -> None:
    """A bug is logged with its path, and a flood of it not more often than other errors."""
    for _ in range(50):
        ask(server, b"GET /bug HTTP/1.1\r\n\r\n")

    lines = log.of("http_error")
    assert "/bug" == lines[0]["path"]
    assert 20 <= len(lines) < 25


def test_pipelined_requests_have_one_answer(server: HttpServer) -> None:
    """Of many requests on one connection the first is answered; the others cost no memory."""
    assert 1 == ask(server, b"GET /livez HTTP/1.1\r\n\r\n" * 1000).count(b"HTTP/1.1 ")


def test_the_next_takes_the_place_of_the_oldest(server: HttpServer) -> None:
    """No more than eight connections are open; the ninth closes the oldest."""
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(MOST_CONNECTIONS + 3)]

        assert [b""] * 3 == [read(client) for client in clients[:3]]
        for client in clients[3:]:
            client.sendall(b"GET /livez HTTP/1.1\r\n\r\n")
            assert read(client).endswith(b"ok\n")


@pytest.mark.parametrize("sends", [b"", b"GET /livez HTTP/1.1\r\nX: "])
def test_idle_clients_keep_no_probe_from_its_answer(server: HttpServer, sends: bytes) -> None:
    """However many connect and sit there, a probe is answered within its second, and few descriptors are used."""
    with ExitStack() as stack:
        before = descriptors()
        for _ in range(SEVERAL):
            client = stack.enter_context(connect(server))
            with suppress(ConnectionError):
                client.sendall(sends)
        for _ in range(20):
            assert_probe_is_answered(server)
        assert descriptors() - before <= SEVERAL + MOST_CONNECTIONS + 1


def test_a_slow_client_has_a_limited_time(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that drips in its request, and one that does not read its answer, are closed in time."""
    monkeypatch.setattr(http, "LONGEST_S", 0.3)
    with connect(server) as dripping, connect(server) as reading:
        reading.sendall(b"GET /big HTTP/1.1\r\n\r\n")
        wait_until(lambda: not _sends(dripping, b"G"))

        assert len(read(reading)) < BIG


def test_a_big_answer_is_whole(server: HttpServer) -> None:
    """An answer that no buffer holds is sent to its last byte."""
    assert len(ask(server, b"GET /big HTTP/1.1\r\n\r\n").partition(b"\r\n\r\n")[2]) == BIG


def test_no_descriptor_left_ends_nothing(server: HttpServer) -> None:
    """While the process has no descriptor left nobody is answered; then whoever waits is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as client, ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors() + 10, hard))
        try:
            with suppress(OSError):
                while True:
                    stack.callback(os.close, os.open(os.devnull, os.O_RDONLY))
            client.connect(("127.0.0.1", server.port))
            client.sendall(b"GET /livez HTTP/1.1\r\n\r\n")
            client.settimeout(0.3)
            with pytest.raises(TimeoutError):
                client.recv(1)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        client.settimeout(DEADLINE_S)
        assert read(client).endswith(b"ok\n")


def test_it_is_asleep_when_nobody_asks(server: HttpServer) -> None:
    """Without a client it takes no time of the processor, however long connections are idle."""
    assert_probe_is_answered(server)
    with connect(server):
        times = [time.process_time()]
        for _ in range(3):
            time.sleep(0.1)
            times.append(time.process_time())

    assert min(after - before for before, after in pairwise(times)) < 0.02


def test_a_stop_closes_the_port(log: Log) -> None:
    """After a stop nobody is answered, and the port is free."""
    server = HttpServer("127.0.0.1", 0, ROUTES, log.logger())
    server.start()
    port = server.port
    server.stop()
    socket.create_server(("127.0.0.1", port)).close()

    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


@pytest.mark.parametrize(("host", "why"), [("127.0.0.1", "Address already in use"), ("nowhere.invalid", "")])
def test_an_address_that_cannot_be_had_is_one_line(log: Log, host: str, why: str) -> None:
    """A port that somebody has, and a host that there is not, are one line with the names of the settings."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"^EXPIRER_HTTP_HOST={host}, EXPIRER_HTTP_PORT={port}: {why}"):
            HttpServer(host, port, ROUTES, log.logger())


@pytest.mark.slow
def test_no_crowd_disturbs_a_worker(own_server: RedisServer) -> None:
    """While hundreds of clients sit on half a request or never read, a worker expires, and takes no more memory."""
    port = free_port()
    with (
        own_server.client() as redis,
        Program(own_server.url, "--http-port", str(port)) as program,
        ExitStack() as stack,
    ):
        program.wait_for("http_started")
        address = ("127.0.0.1", port)
        keys = ShardKeys.of("inventory")
        wait_until(lambda: redis.zcard(keys.workers) and redis.pubsub_numsub(keys.wake)[0][1])
        taken = len(list(Path(f"/proc/{program.pid}/fd").iterdir()))
        bytes_before = _resident_bytes(program.pid)
        for number in range(SEVERAL):
            client = stack.enter_context(socket.create_connection(address, DEADLINE_S))
            with suppress(OSError):
                client.sendall(b"GET /metrics HTTP/1.1\r\n" + (b"X: " if number % 2 else b"\r\n") * 1000)
        backlog = Backlog(redis)
        backlog.add(5)
        redis.publish(backlog.shop.keys.wake, "1")
        program.wait_for("processing_completed")
        with socket.create_connection(address, DEADLINE_S) as probe:
            probe.sendall(b"GET /livez HTTP/1.1\r\n\r\n")
            assert read(probe).endswith(b"ok\n")

        assert len(list(Path(f"/proc/{program.pid}/fd").iterdir())) <= taken + MOST_CONNECTIONS + 1
        assert _resident_bytes(program.pid) < bytes_before + 5 * 2**20
        backlog.assert_expired_once()


def _resident_bytes(pid: int) -> int:
    [pages] = Path(f"/proc/{pid}/statm").read_text().split()[1:2]
    return int(pages) * resource.getpagesize()


def _sends(client: socket.socket, data: bytes) -> bool:
    try:
        return client.send(data) > 0
    except OSError:
        return False
