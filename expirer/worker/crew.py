"""The workers of one process: one for all shards of a server, or one for each where there are several servers."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from redis.exceptions import RedisError
from structlog.typing import FilteringBoundLogger

from expirer.config.settings import Settings
from expirer.connection.connect import Servers
from expirer.contract.keys import shard_keys
from expirer.worker.batch import Tick
from expirer.worker.events import Pace, log_start, log_stop, warn_of_host
from expirer.worker.tally import Tally
from expirer.worker.worker import Worker, new_id


class Crew:
    """Workers under one name, each on a thread of its own: a server that hangs delays only its own shards.

    Args:
        tally: where they count; None: in memory of their own.

    """

    def __init__(
        self, servers: Servers, settings: Settings, log: FilteringBoundLogger, tally: Tally | None = None
    ) -> None:
        self.id = new_id()
        self._servers = servers
        self._settings = settings
        self._log = log.bind(worker=self.id)
        self._tally = tally or Tally(settings.shards)
        paces = Pace(), Pace()
        self._workers = [
            Worker(
                servers.shards[lane[0]],
                settings,
                log,
                id_=self.id,
                numbers=lane,
                tally=self._tally,
                paces=paces,
            )
            for lane in servers.lanes()
        ]

    def run(self) -> None:
        """Tick until stopped; no error of Redis ends it."""
        if len(self._workers) == 1:
            self._workers[0].run()
            return
        self._together(Worker.work)

    def run_once(self) -> Tick:
        """Tick once, with the first and the last line that `run` would log."""
        if len(self._workers) == 1:
            return self._workers[0].run_once()
        return self._together(Worker.tick)

    def stop(self) -> None:
        """Let `run` return once each batch under way is whole; safe in a signal handler, and more than once."""
        for worker in self._workers:
            worker.stop()

    def _together(self, act: Callable[[Worker], Tick]) -> Tick:
        """Let all do something, and say so; where one fails the others are stopped, and its error is raised."""

        def guarded(worker: Worker) -> Tick:
            try:
                return act(worker)
            except BaseException:
                self.stop()
                raise

        self._tally.start()
        log_start(self._log, self._settings, shard_keys(self._settings)[0])
        with ThreadPoolExecutor(len(self._workers) + 1, "expirer-worker") as pool:
            pool.submit(self._warn_of_hosts)  # the work does not wait for what a server that hangs would tell of itself
            done = sum(pool.map(guarded, self._workers), Tick())
        log_stop(self._log, done)
        return done

    def _warn_of_hosts(self) -> None:
        with suppress(RedisError, OSError):
            for client in self._servers.each().values():
                warn_of_host(self._log, client, self._settings)
