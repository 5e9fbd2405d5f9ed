"""What `expirer tail` follows, and what it outlives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import pytest
import redis

from expirer import cli
from expirer.contract.keys import ShardKeys
from expirer.operate.tail import _before
from tests.inventory import Inventory
from tests.program import DEADLINE_S, wait_until
from tests.servers import RedisServer

pytestmark = pytest.mark.slow

DUE = 1_795_469_461_999


def expire(client: redis.Redis, number: int, shop: Inventory | None = None) -> None:
    """Write an event as an expiry does."""
    shop = shop or Inventory(client)
    event = {"reservation_id": f"o{number}:mug", "order_id": f"o{number}", "product_id": "mug", "quantity": 2}
    client.xadd(shop.keys.events, {**event, "expires_at": DUE, "expired_at": DUE + 3}, id=f"{DUE + number}-0")  # type: ignore[dict-item]


class Follower:
    """`expirer tail` in a process of its own, whose lines are read as they come."""

    def __init__(self, url: str, *flags: str) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("EXPIRER_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "expirer", "tail", "--redis-url", url, *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.lines: list[str] = []
        self.errors: list[str] = []
        for stream, lines in ((self.process.stdout, self.lines), (self.process.stderr, self.errors)):
            threading.Thread(target=self._read, args=(stream, lines)).start()

    @staticmethod
    def _read(stream: TextIO, lines: list[str]) -> None:
        with stream:
            for line in stream:
                lines.append(line)  # noqa: PERF402  # each is needed as it comes


@contextmanager
def following(url: str, *flags: str) -> Iterator[Follower]:
    """Follow until the block ends."""
    follower = Follower(url, *flags)
    try:
        yield follower
    finally:
        follower.process.kill()
        follower.process.wait()


def is_reading(client: redis.Redis) -> bool:
    """Say whether somebody waits for events."""
    return any(row["cmd"] == "xread" for row in client.client_list())


def test_new_events_are_told_as_they_come(server_client: redis.Redis, shared_server: RedisServer) -> None:
    """Without --from only what is written from now on is printed, at once."""
    expire(server_client, 0)
    with following(shared_server.url) as follower:
        wait_until(lambda: is_reading(server_client))
        expire(server_client, 1)
        wait_until(lambda: follower.lines)
        expire(server_client, 2)
        wait_until(lambda: len(follower.lines) == 2)

    assert follower.lines[0] == "2026-11-23 21:31:02.000 UTC  o1:mug  2 of mug, 3 ms late\n"
    assert follower.lines[1].split()[3] == "o2:mug"


@pytest.mark.parametrize(
    ("start", "first"), [("start", 0), (f"{DUE + 2}-0", 2), (str(DUE + 1), 1), ("36500d", 0), (f"{DUE + 1}-1", 2)]
)
def test_it_begins_where_it_is_told(
    server_client: redis.Redis, shared_server: RedisServer, start: str, first: int
) -> None:
    """--from takes `start`, a duration, a time or an id of the stream; that one is included."""
    for number in range(4):
        expire(server_client, number)
    with following(shared_server.url, "--from", start, "--json") as follower:
        wait_until(lambda: len(follower.lines) == 4 - first)

    rows = [json.loads(line) for line in follower.lines]
    assert [row["reservation_id"] for row in rows] == [f"o{number}:mug" for number in range(first, 4)]
    expected = {"shard": 0, "id": f"{DUE + 3}-0", "reservation_id": "o3:mug", "order_id": "o3", "product_id": "mug"}
    assert rows[-1] == {**expected, "quantity": 2, "expires_at": DUE, "expired_at": DUE + 3}


def test_a_grace_is_no_lateness(server_client: redis.Redis, shared_server: RedisServer) -> None:
    """What the sidecar waits after ExpiresAt because it was told to is not counted as late."""
    expire(server_client, 0)
    with following(shared_server.url, "--from", "start", "--grace", "2ms") as follower:
        wait_until(lambda: follower.lines)

    assert follower.lines[0].endswith("2 of mug, 1 ms late\n")


@pytest.mark.parametrize(("id_", "before"), [("7-3", "7-2"), ("7-0", f"6-{2**64 - 1}"), ("7", f"6-{2**64 - 1}")])
def test_the_reading_begins_just_before(id_: str, before: str) -> None:
    """XREAD excludes the id that it is given, so that one less is asked for."""
    assert before == _before(id_)


def test_shards_are_followed_together(server_client: redis.Redis, shared_server: RedisServer) -> None:
    """With shards every stream is followed, and each line names its shard."""
    shops = [Inventory(server_client, ShardKeys.of("inventory", number, 3)) for number in range(3)]
    with following(shared_server.url, "--shards", "3") as follower:
        wait_until(lambda: is_reading(server_client))
        for number, shop in enumerate(shops):
            expire(server_client, number, shop)
            wait_until(lambda number=number: len(follower.lines) == number + 1)  # type: ignore[misc]

    assert [line.split()[:2] for line in follower.lines] == [["shard", "0"], ["shard", "1"], ["shard", "2"]]


def test_an_outage_loses_nothing(own_server: RedisServer) -> None:
    """A server that goes away is said once, and after its return everything that was written is told."""
    with own_server.client() as client:
        expire(client, 0)
    with following(own_server.url, "--from", "start") as follower:
        wait_until(lambda: follower.lines)
        own_server.stop()
        wait_until(lambda: follower.errors)
        own_server.start()
        with own_server.client() as client:
            expire(client, 0)  # it was not saved
            expire(client, 1)
        wait_until(lambda: len(follower.lines) == 2)
        wait_until(lambda: len(follower.errors) == 2)

    assert follower.errors[0].startswith("expirer: unix://")
    assert follower.errors[0].endswith("; waiting for it\n")
    assert follower.errors[1].endswith(": it is back\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_it_quietly(
    server_client: redis.Redis, shared_server: RedisServer, number: signal.Signals, code: int
) -> None:
    """SIGTERM and Ctrl-C end it without a traceback."""
    with following(shared_server.url) as follower:
        wait_until(lambda: is_reading(server_client))
        follower.process.send_signal(number)

        assert code == follower.process.wait(DEADLINE_S)
    assert follower.errors == []


def test_a_strangers_event_is_shown(server_client: redis.Redis, shared_server: RedisServer) -> None:
    """An entry with other fields, a name that is ours, control characters or numbers that are none harms nothing."""
    events = Inventory(server_client).keys.events
    server_client.xadd(
        events, {"reservation_id": "\x1b[2J", "quantity": "\u00b2", "id": "mine", "shard": "x"}, id="5-1"
    )
    server_client.xadd(events, {b"\xff": b"\xff", "expires_at": "9" * 4301, "expired_at": "\u0661"}, id="6-1")
    with following(shared_server.url, "--from", "start") as follower:
        wait_until(lambda: len(follower.lines) == 2)

    assert follower.lines[0] == "1970-01-01 00:00:00.005 UTC  \\x1b[2J  \u00b2 of ?\n"
    assert follower.lines[1] == "1970-01-01 00:00:00.006 UTC  ?  ? of ?\n"
    with following(shared_server.url, "--from", "start", "--json") as follower:
        wait_until(lambda: len(follower.lines) == 2)

    rows = [json.loads(line) for line in follower.lines]
    assert rows[0] == {"shard": 0, "id": "5-1", "reservation_id": "\x1b[2J", "quantity": "\u00b2"}
    assert (rows[1]["\\xff"], rows[1]["expires_at"]) == ("\\xff", "9" * 4301)


@pytest.mark.parametrize("start", ["yesterday", "-5m", "17-", "", "\u0661" * 13])
def test_a_wrong_start_is_one_line(
    server_client: redis.Redis, shared_server: RedisServer, capsys: pytest.CaptureFixture[str], start: str
) -> None:
    """A start that cannot be read is wrong usage."""
    assert server_client.ping()
    code = cli.main(["tail", f"--from={start}", "--redis-url", shared_server.url])

    assert code == 2
    assert (
        capsys.readouterr().err == f"expirer: --from {start}: a duration such as 10m, `start`, or an id of the stream\n"
    )


def test_a_stream_of_another_type_is_one_line(
    server_client: redis.Redis, shared_server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """A key of another type ends it with one line."""
    server_client.set(Inventory(server_client).keys.events, "x")

    assert cli.main(["tail", "--redis-url", shared_server.url]) == 1
    assert "WRONGTYPE" in capsys.readouterr().err


def test_without_redis_it_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A Redis that is not there at the start ends it with one line."""
    assert cli.main(["tail", "--redis-url", "redis://127.0.0.1:1/0"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_without_events_there_is_nothing_to_follow(capsys: pytest.CaptureFixture[str]) -> None:
    """Where no events are written that is said."""
    assert cli.main(["tail", "--events-maxlen", "0"]) == 2
    assert "EXPIRER_EVENTS_MAXLEN is 0" in capsys.readouterr().err
