"""The process of `expirer run`: a worker for each shard, the listener, HTTP, and the signals that stop them."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from redis.exceptions import RedisError
from structlog.typing import FilteringBoundLogger

from expirer.config.settings import ConfigurationError, Settings
from expirer.connection.connect import Servers, connect_all
from expirer.contract.shard import LATE_TICK_MS
from expirer.worker.batch import Tick
from expirer.worker.events import Limits, log_start, log_stop, warn_of_host
from expirer.worker.http import HttpServer, probe
from expirer.worker.logs import build_logger
from expirer.worker.metrics import ShardMetrics, why_not_alive, why_not_ready
from expirer.worker.wake import WakeListener
from expirer.worker.worker import Worker, new_id

_STOP_DEADLINE_S, _FAREWELL_S = 0.75, 0.1
"""Together less than the second in which a stop is promised."""
_AT_ONCE = 32
"""Shards that `once` works on side by side."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def run(settings: Settings) -> int:
    """Work until SIGTERM, SIGINT or SIGHUP, then end within a second; return the exit code."""
    # Blocked in every thread, and waited for in this one: no handler runs in the midst of anything.
    stops = {number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN}
    signal.pthread_sigmask(signal.SIG_BLOCK, stops)
    log = build_logger(settings)
    servers = connect_all(settings)
    id_ = new_id()
    log = log.bind(worker=id_)
    workers = _workers(servers, log, id_)
    listener = WakeListener(workers, log)
    if settings.http_port:
        _serve(settings, [worker.metrics for worker in workers], listener, log, id_)
    log_start(log, settings, servers.shards[0].keys)
    threading.Thread(target=_warn_of_hosts, args=(servers, settings, log), daemon=True).start()
    listener.start()
    crashes: list[Worker] = []

    def work(worker: Worker) -> None:
        try:
            done[worker.shard.number] = worker.run()
        except BaseException:
            crashes.append(worker)
            os.kill(os.getpid(), signal.SIGTERM)
            raise

    done: dict[int, Tick] = {}
    threads = [threading.Thread(target=work, args=(worker,), daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    signal.sigwait(stops)
    deadline = time.monotonic() + _STOP_DEADLINE_S
    listener.stop()
    for worker in workers:
        worker.stop()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    _say_farewell(log, done, is_whole=not any(thread.is_alive() for thread in threads))
    os._exit(1 if crashes else 0)  # an ordinary exit would wait for a log that nobody reads


def run_once(settings: Settings) -> int:
    """Expire what is due now; return the exit code: 1 if an error, a conflict or the brake stood in the way."""
    log = build_logger(settings)
    with connect_all(settings) as servers:
        workers = _workers(servers, log, "once")
        log_start(log, settings, servers.shards[0].keys)
        _warn_of_hosts(servers, settings, log)
        with ThreadPoolExecutor(min(len(workers), _AT_ONCE)) as pool:
            done = sum(pool.map(Worker.run_once, workers), Tick())
    log_stop(log, done)
    return 1 if done.errors or done.conflicts else 0


def _serve(
    settings: Settings, shards: list[ShardMetrics], listener: WakeListener, log: FilteringBoundLogger, id_: str
) -> None:
    """Serve metrics and probes until the process ends; ConfigurationError if that cannot be."""
    try:
        from expirer.worker.prometheus import WorkerCollector, metrics_route  # noqa: PLC0415  # an extra
    except ImportError as error:
        raise ConfigurationError([f"EXPIRER_HTTP_PORT needs {error.name}: pip install 'expirer[http]'"]) from None
    longest_s = settings.interval.total_seconds() + LATE_TICK_MS / 1000
    routes = {
        "/metrics": metrics_route(WorkerCollector(id_, shards, listener)),
        "/livez": lambda _: probe(why_not_alive(shards)),
        "/readyz": lambda _: probe("\n".join(why_not_ready(shards, longest_s)), note=listener.trouble),
    }
    HttpServer(settings.http_host, settings.http_port, routes, log).start()


def _workers(servers: Servers, log: FilteringBoundLogger, id_: str) -> list[Worker]:
    limits = Limits()
    return [Worker(shard, log, id_=id_, metrics=ShardMetrics(), limits=limits) for shard in servers.shards]


def _warn_of_hosts(servers: Servers, settings: Settings, log: FilteringBoundLogger) -> None:
    with suppress(RedisError, OSError):
        for client in servers.each().values():
            warn_of_host(log, client, settings)


def _say_farewell(log: FilteringBoundLogger, done: dict[int, Tick], *, is_whole: bool) -> None:
    """Log the stop, but do not wait for a reader of the log."""

    def say() -> None:
        if is_whole:
            log_stop(log, sum(done.values(), Tick()))
        else:
            error = "Redis did not answer in time; the last batch was applied completely or not at all"
            log.warning("job_stopped", error=error)

    thread = threading.Thread(target=say, daemon=True)
    thread.start()
    thread.join(_FAREWELL_S)
