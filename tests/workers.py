"""The workers of an inventory in this process, one for each shard, as `expirer run` has them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from expirer.config.settings import Settings
from expirer.connection.connect import connect_all
from expirer.worker.batch import Tick
from expirer.worker.wake import WakeListener
from expirer.worker.worker import Worker
from tests.conftest import Log


class Workers:
    """A worker for each shard, under one name, on the clients that the program would use."""

    def __init__(self, log: Log, **settings: Any) -> None:  # noqa: ANN401  # each is of its type
        self._log = log.logger()
        self.servers = connect_all(Settings(**settings))
        self.each = [Worker(shard, self._log, id_="tests") for shard in self.servers.shards]

    def tick(self) -> Tick:
        """Tick once on every shard; return the sum."""
        with ThreadPoolExecutor(len(self.each)) as threads:
            return sum(threads.map(Worker.tick, self.each), Tick())

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run all until the block ends, with their listener."""
        listener = WakeListener(self.each, self._log)
        threads = [threading.Thread(target=worker.run) for worker in self.each]
        listener.start()
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            listener.stop()
            for worker in self.each:
                worker.stop()
            for thread in threads:
                thread.join()
