"""What the program promises of Sentinels and Cluster nodes, whatever they answer and however long it takes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from redis.exceptions import ConnectionError as NoConnection
from redis.exceptions import TimeoutError as TooLate

from expirer import cli
from expirer.config.address import HostPort
from expirer.config.settings import Settings
from expirer.connection import cluster
from expirer.connection.cluster import Cluster
from expirer.connection.connect import connect_all, is_replaced
from expirer.connection.sentinel import Sentinels
from expirer.contract.shard import Shard
from expirer.worker.batch import Tick
from expirer.worker.expiry import Expiry
from expirer.worker.worker import Worker
from tests.conftest import Log
from tests.program import DEADLINE_S, Backlog
from tests.servers import RedisServer, free_port
from tests.topology import SERVICE, Replicated

GREETED = [b"+OK\r\n"] * 3
"""The replies to the first commands of a connection; one to a Sentinel gives itself no name."""
OPTIONS = {"protocol": 2, "socket_timeout": 1.0, "socket_connect_timeout": 1.0}
NONSENSE = {
    "a port that is none": b"*2\r\n$1\r\nx\r\n$3\r\nabc\r\n",
    "a host that is no text": b"*2\r\n$2\r\n\xff\xfe\r\n$4\r\n6379\r\n",
    "too little": b"*1\r\n$1\r\nx\r\n",
    "a number": b":7\r\n",
    "a text": b"+OK\r\n",
    "errors": b"*2\r\n-ERR a\r\n-ERR b\r\n",
    "a short row": b"*1\r\n*1\r\n:0\r\n",
    "a row without nodes": b"*1\r\n*2\r\n:0\r\n:16383\r\n",
    "a short node": b"*1\r\n*3\r\n:0\r\n:16383\r\n*1\r\n$1\r\nx\r\n",
    "slots that are none": b"*1\r\n*3\r\n+a\r\n+b\r\n*2\r\n$1\r\nx\r\n:1\r\n",
}


@pytest.mark.parametrize("what", NONSENSE)
@pytest.mark.parametrize("kind", ["sentinels", "cluster"])
def test_nonsense_is_no_more_than_an_error(
    fake_reply: Callable[..., int], log: Log, capsys: pytest.CaptureFixture[str], kind: str, what: str
) -> None:
    """A Sentinel or a node that answers nonsense is named in a line; the worker tries again, and a command ends."""
    address = f"127.0.0.1:{fake_reply(*GREETED[kind == 'sentinels' :], NONSENSE[what])}"
    flags = {"redis_sentinels": address} if kind == "sentinels" else {"redis_cluster": "true"}
    settings = Settings(**flags, redis_url="redis://localhost" if kind == "sentinels" else f"redis://{address}")  # type: ignore[arg-type]
    worker = Worker(connect_all(settings).shards[0], log.logger())

    assert [Tick(errors=1), Tick(errors=1)] == [worker.tick(), worker.tick()]
    errors = log.of("processing_error")
    assert all(f"{address}: its answer" in error["message"] and not error["exc_info"] for error in errors), errors
    words = [word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", value)]
    assert 1 == cli.main(["once", "--redis-url", settings.redis_url.get_secret_value(), *words])
    assert "Traceback" not in capsys.readouterr().err


def test_a_sentinel_that_answers_nonsense_is_passed_over(
    fake_reply: Callable[..., int], replicated: Replicated
) -> None:
    """One Sentinel that answers nonsense costs nothing if another answers well."""
    port = fake_reply(*GREETED[1:], NONSENSE["a port that is none"])
    addresses = [("127.0.0.1", port), ("127.0.0.1", replicated.sentinels[0].port)]
    sentinels = Sentinels(addresses, sentinel_kwargs={**OPTIONS, "decode_responses": True})  # type: ignore[no-untyped-call]

    assert {replicated.primary().port} == {sentinels.discover_master(SERVICE)[1] for _ in range(2)}


def test_a_node_without_the_name_that_it_announces_has_its_address(fake_reply: Callable[..., int]) -> None:
    """A Cluster whose nodes should go by host names, and have none, is reached by the addresses that it tells."""
    node = b"*4\r\n$1\r\n?\r\n:7000\r\n$2\r\nid\r\n*2\r\n$2\r\nip\r\n$9\r\n127.0.0.7\r\n"
    port = fake_reply(*GREETED[1:], b"*1\r\n*3\r\n:0\r\n:16383\r\n" + node)

    assert [("127.0.0.7", 7000)] == Cluster([("127.0.0.1", port)], OPTIONS).primaries([5])


def test_a_question_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many nodes hang, a question ends after some seconds, and the next one goes to the others."""
    monkeypatch.setattr(cluster, "_QUESTION_S", 0.0)
    addresses = [("127.0.0.1", 1), ("127.0.0.1", 2)]
    nodes = Cluster(addresses, OPTIONS)
    asked = []
    for _ in addresses:
        with pytest.raises(NoConnection, match="no time was left to ask more of them") as raised:
            nodes.primaries([0])
        asked.append(str(raised.value).partition(": ")[0])

    assert ["127.0.0.1:1", "127.0.0.1:2"] == asked


class Door:
    """A lock, and whether another thread waits for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.is_awaited = threading.Event()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self.is_awaited.set()
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_a_thread_that_waited_takes_the_failure_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """If no node answers, shards that waited meanwhile ask none again: sixteen would wait sixteen times as long."""
    nodes, door = Cluster([("127.0.0.1", 1)], OPTIONS), Door()
    asked = []

    def fail_once_awaited(_: object, _node: HostPort) -> None:
        asked.append(1)
        assert door.is_awaited.wait(DEADLINE_S)
        raise NoConnection("nobody answers")

    monkeypatch.setattr(nodes, "_lock", door)
    monkeypatch.setattr(Cluster, "_learn", fail_once_awaited)
    with ThreadPoolExecutor() as threads:
        questions = [threads.submit(nodes.primaries, [slot]) for slot in (1, 2)]

    assert ["127.0.0.1:1: nobody answers"] * 2 == [str(question.exception()) for question in questions]
    assert 1 == len(asked)


class Replacement:
    """Two servers that take writes, of which the Sentinels name one."""

    def __init__(self, old: RedisServer, new: RedisServer) -> None:
        self.named = old
        self.old, self.new = Backlog(old.client()), Backlog(new.client())
        self._new = new

    def discover_master(self, *_: object) -> HostPort:
        """Return the server that is the primary by now."""
        return "127.0.0.1", self.named.port

    def happen(self) -> None:
        """Replace the old primary."""
        self.named = self._new


@pytest.fixture
def replacement(
    own_server: RedisServer, server_binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Replacement]:
    """Run two primaries, and Sentinels that name the first until it is replaced."""
    (tmp_path / "other").mkdir()
    other = RedisServer(server_binary, tmp_path / "other", port=free_port())
    other.start()
    replacement = Replacement(own_server, other)
    monkeypatch.setattr(Sentinels, "discover_master", replacement.discover_master)
    yield replacement
    other.stop()


def shard_of(**settings: object) -> Shard:
    """Return the shard that the program would have with Sentinels."""
    return connect_all(Settings(redis_sentinels="127.0.0.1:1", **settings)).shards[0]  # type: ignore[arg-type]


def test_a_drain_leaves_a_primary_that_was_replaced(replacement: Replacement) -> None:
    """Once the Sentinels name another primary a drain takes not one more batch, and the next drain goes there."""
    for backlog in (replacement.old, replacement.new):
        backlog.add(100)
    expiry = Expiry(shard_of(batch_size=10), "tests")

    for _ in expiry.drain(lambda: True):
        replacement.happen()
    assert [80, 100] == [replacement.old.left(), replacement.new.left()]
    for _ in expiry.drain(lambda: True):
        pass

    assert [80, 0] == [replacement.old.left(), replacement.new.left()]
    replacement.old.assert_conserved()
    replacement.new.assert_expired_once()


def test_an_idle_connection_leaves_a_primary_that_was_replaced(replacement: Replacement, log: Log) -> None:
    """A tick after the replacement works on the new primary, though the old one still answers and takes writes."""
    worker = Worker(shard_of(), log.logger())
    worker.tick()
    replacement.happen()
    for backlog in (replacement.old, replacement.new):
        backlog.add(10)

    assert 10 == worker.tick().expired, log.entries

    assert [10, 0] == [replacement.old.left(), replacement.new.left()]
    replacement.new.assert_expired_once()


class Answers:
    """A client of a Sentinel that gives one answer, and counts the questions."""

    def __init__(self, answer: HostPort | Exception) -> None:
        self.answer = answer
        self.questions = 0
        address = {"host": "127.0.0.1", "port": 26379}
        self.connection_pool = SimpleNamespace(connection_kwargs=address, disconnect=lambda: None)

    def sentinel_get_master_addr_by_name(self, _service: str) -> HostPort:
        """Answer."""
        self.questions += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_sentinels_are_asked_every_few_seconds_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often a drain wants to know, it asks every 5 s; every 30 s while it would wait for no answer."""
    now = [1000.0]
    monkeypatch.setattr("expirer.connection.sentinel.time.monotonic", lambda: now[0])
    pool: Any = shard_of().client.connection_pool
    client = Answers(("a", 1))
    pool.sentinel_manager.sentinels = [client]
    connection = pool.make_connection()
    connection.host, connection.port = "a", 1

    found = []
    for answer, seconds in ((("a", 1), 5), (("b", 1), 5), (TooLate("no answer"), 5), (("b", 1), 25)):
        client.answer = answer
        found.append(({is_replaced(connection) for _ in range(100)}, client.questions))
        now[0] += seconds
    found.append(({is_replaced(connection)}, client.questions))

    assert [({False}, 1), ({True}, 2), ({True}, 3), ({True}, 3), ({True}, 4)] == found


def test_only_sentinels_replace_a_server() -> None:
    """A connection to one server, or of a Cluster, is never said to be replaced."""
    for settings in (Settings(), Settings(redis_cluster=True)):
        assert not is_replaced(connect_all(settings).shards[0].client.connection_pool.make_connection())
