"""What the network may do to a batch: it is done as a whole or not at all, wherever the connection breaks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import redis

from expirer.config.settings import Settings
from expirer.connection.connect import Servers, connect
from expirer.worker.worker import Worker
from tests.conftest import Log
from tests.program import Backlog
from tests.proxy import CLEAR, Conditions, Proxy, Way
from tests.servers import RedisServer

pytestmark = pytest.mark.slow


@pytest.fixture
def proxy(own_server: RedisServer) -> Iterator[Proxy]:
    """Stand between the worker and the server."""
    with Proxy(own_server.port) as proxy:
        yield proxy


@pytest.fixture
def client(own_server: RedisServer) -> Iterator[redis.Redis]:
    """Connect to the server itself."""
    with own_server.client() as client:
        yield client


@pytest.mark.parametrize("way", ["request", "reply"])
def test_a_cut_at_any_byte_loses_and_doubles_nothing(client: redis.Redis, proxy: Proxy, log: Log, way: Way) -> None:
    """Cut at every byte of two batches and their replies, one after the other: each batch is whole or nothing."""
    settings = Settings(redis_url=proxy.url, batch_size=2)
    seen = set()
    with connect(settings) as worker_client:
        worker = Worker(Servers.of(worker_client, settings).shards[0], log.logger())
        worker.tick()
        for byte in itertools.count():
            client.flushall()
            backlog = Backlog(client)
            backlog.add(3)
            worker_client.connection_pool.disconnect()
            proxy.conditions = Conditions(cut=(way, byte))

            errors, was_cut = worker.tick().errors, proxy.has_cut

            proxy.conditions = CLEAR
            backlog.assert_conserved()
            seen.add((errors, len(backlog.expired())))
            assert worker.tick().errors == 0
            backlog.assert_expired_once()
            if not was_cut:
                break

    assert {(1, 0), (1, 2), (1, 3), (0, 3)} >= seen
    assert byte > {"request": 800, "reply": 200}[way]
