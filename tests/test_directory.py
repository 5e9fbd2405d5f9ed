"""What the program promises of those who know where the primary is, whatever they answer and however long it takes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from expirer.connection.directory import Cluster, HostPort, Sentinels
from expirer.connection.locate import located
from redis.exceptions import ConnectionError as NoConnection

from expirer import cli
from expirer.config.settings import Settings
from expirer.connection import directory
from expirer.connection.connect import connect_all
from expirer.worker.batch import Batch, Tick
from expirer.worker.worker import Worker
from tests.beds import SERVICE, Replicated
from tests.conftest import Log
from tests.program import DEADLINE_S, Backlog
from tests.servers import RedisServer, free_port

GREETED = b"+OK\r\n" * 3
"""What a connection says first is answered."""
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
    liar: Callable[[bytes], int], log: Log, capsys: pytest.CaptureFixture[str], kind: str, what: str
) -> None:
    """A Sentinel or a node that answers nonsense is named in a line; the worker tries again, and a verb ends."""
    address = f"127.0.0.1:{liar(GREETED[5 * (kind == 'sentinels') :] + NONSENSE[what])}"
    flags = {"redis_sentinels": address} if kind == "sentinels" else {"redis_cluster": "true"}
    settings = Settings(**flags, redis_url="redis://localhost" if kind == "sentinels" else f"redis://{address}")  # type: ignore[arg-type]
    worker = Worker(connect_all(settings).shards[0], log.logger())

    assert [Tick(errors=1), Tick(errors=1)] == [worker.tick(), worker.tick()]
    errors = log.of("processing_error")
    assert all(f"{address}: its answer to " in error["message"] and not error["exc_info"] for error in errors)
    words = [word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", value)]
    assert 1 == cli.main(["once", "--redis-url", settings.redis_url.get_secret_value(), *words])
    assert "Traceback" not in capsys.readouterr().err


def test_who_answers_nonsense_is_passed_over(liar: Callable[[bytes], int], replicated: Replicated) -> None:
    """One Sentinel that answers nonsense costs nothing where another answers well."""
    port = liar(GREETED[5:] + NONSENSE["a port that is none"])
    addresses = [("127.0.0.1", port), ("127.0.0.1", replicated.sentinels[0].port)]
    sentinels = Sentinels(SERVICE, addresses, {"protocol": 2})

    assert {replicated.primary().port} == {sentinels.primary()[1] for _ in range(2)}


def test_a_node_without_the_name_that_it_announces_has_its_address(liar: Callable[[bytes], int]) -> None:
    """A Cluster whose nodes should go by host names, and have none, is reached by the addresses that it tells."""
    node = b"*4\r\n$1\r\n?\r\n:7000\r\n$2\r\nid\r\n*2\r\n$2\r\nip\r\n$9\r\n127.0.0.7\r\n"
    port = liar(GREETED + b"*1\r\n*3\r\n:0\r\n:16383\r\n" + node)

    assert ("127.0.0.7", 7000) == Cluster([("127.0.0.1", port)], {"protocol": 2, "client_name": "x"}).primary(5)


def test_a_question_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many nodes hang, a question ends after some seconds, and the next one goes to the others."""
    monkeypatch.setattr(directory, "_QUESTION_S", 0.0)
    addresses = [("127.0.0.1", 1), ("127.0.0.1", 2)]
    cluster = Cluster(addresses, {"protocol": 2})
    asked = []
    for _ in addresses:
        with pytest.raises(NoConnection, match="no time was left to ask more of them") as raised:
            cluster.primary(0)
        asked.append(str(raised.value).partition(": ")[0])

    assert ["127.0.0.1:1", "127.0.0.1:2"] == asked


class Door:
    """A lock, and whether somebody waits for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.is_awaited = threading.Event()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self.is_awaited.set()
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_who_waited_takes_the_failure_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no node answers, shards that waited meanwhile ask none again: sixteen would wait sixteen times as long."""
    cluster, door = Cluster([("127.0.0.1", 1)], {"protocol": 2}), Door()
    asked = []

    def fail_once_awaited(_: object) -> Iterator[object]:
        asked.append(1)
        assert door.is_awaited.wait(DEADLINE_S)
        raise NoConnection("nobody answers")

    monkeypatch.setattr(cluster, "_lock", door)
    monkeypatch.setattr(directory._Directory, "ask", fail_once_awaited)
    with ThreadPoolExecutor() as threads:
        questions = [threads.submit(cluster.primary, slot) for slot in (1, 2)]

    assert ["nobody answers"] * 2 == [str(question.exception()) for question in questions]
    assert 1 == len(asked)


def test_a_drain_leaves_a_primary_that_is_given_up(
    own_server: RedisServer, server_binary: Path, tmp_path: Path, log: Log
) -> None:
    """Once another is known to be the primary a drain goes on there, and takes not one more batch where it was."""
    (tmp_path / "other").mkdir()
    other = RedisServer(server_binary, tmp_path / "other", port=free_port())
    other.start()
    primary = [own_server.port]
    client = located(lambda: ("127.0.0.1", primary[0]), {}, lambda: ("127.0.0.1", primary[0]))
    worker = Worker(client, Settings(batch_size=10), log.logger())
    expire_batch = worker._shards[0].expiry.expire_batch

    def given_up_after_it(*, go_on: bool) -> Batch:
        batch = expire_batch(go_on=go_on)
        primary[0] = other.port
        return batch

    worker._shards[0].expiry.expire_batch = given_up_after_it  # type: ignore[assignment, method-assign]
    try:
        with own_server.client() as old, other.client() as new:
            backlogs = Backlog(old), Backlog(new)
            for backlog in backlogs:
                backlog.add(100)
            worker.tick()

            assert [80, 0] == [backlog.left() for backlog in backlogs]
            backlogs[0].assert_conserved()
            backlogs[1].assert_expired_once()
    finally:
        other.stop()


class Slow(Sentinels):
    """Sentinels that have answered once, and hang since."""

    def __init__(self) -> None:
        super().__init__(SERVICE, [], {})
        self._primary, self._looks_at = ("old", 1), 0.0
        self.answers, self.has_answered = threading.Event(), threading.Event()

    def primary(self) -> HostPort:
        """Answer when it is told to."""
        self.answers.wait()
        self._primary = ("new", 2)
        self.has_answered.set()
        return self._primary


def test_who_is_connected_waits_for_no_sentinel() -> None:
    """A connection that stands is told where the primary was last seen, at once; the Sentinels are asked beside it."""
    sentinels = Slow()

    assert [("old", 1), ("old", 1)] == [sentinels.last_primary(), sentinels.last_primary()]
    sentinels.answers.set()
    sentinels.has_answered.wait()
    assert ("new", 2) == sentinels.last_primary()
