"""Says in the log what a worker does: after the commit, and nothing where nothing happened."""

from __future__ import annotations

import logging
import math
import threading
import time
from contextlib import suppress
from typing import cast

from redis import Redis
from redis.exceptions import RedisError
from structlog.typing import FilteringBoundLogger

import expirer
from expirer.config.durations import LONGEST, to_ms
from expirer.config.layout import LAYOUT
from expirer.config.settings import Settings
from expirer.connection.errors import location
from expirer.connection.server_checks import remarks
from expirer.contract.control import BRAKE, Pause
from expirer.contract.keys import ShardKeys
from expirer.worker.batch import Batch, Tick

_LINES_AT_ONCE = 20
_S_PER_LINE = 10.0


def log_start(log: FilteringBoundLogger, settings: Settings, keys: ShardKeys) -> None:
    """Say which program starts, with which settings, on which layout."""
    log.info(
        "job_started",
        version=expirer.__version__,
        redis=location(settings),
        namespace=settings.namespace,
        shards=settings.shards,
        interval_ms=to_ms(settings.interval),
        batch_size=settings.batch_size,
        layout=_describe_layout(settings, keys),
    )


def warn_of_host(log: FilteringBoundLogger, client: Redis, settings: Settings) -> None:
    """Warn of what makes a server unfit, as far as one INFO tells."""
    with suppress(RedisError, OSError):  # a host may hide it; the first tick tells of a dead one
        for remark in remarks(cast("dict[str, object]", client.info()), settings):
            if remark.level != "ok":
                log.warning("host_risk", what=remark.what, finding=remark.finding, advice=remark.way_out)


def log_stop(log: FilteringBoundLogger, done: Tick) -> None:
    """Say what was done in the worker's whole life."""
    log.info("job_stopped", expired=done.expired, units=done.units)


class Pace:
    """Lets the first lines through at once, then one every ten seconds.

    An hour without Redis is then 380 lines, however many shards there are and however fast they retry.
    """

    def __init__(self) -> None:
        self._lines = 0.0
        self._at = -math.inf
        self._held_back = 0
        self._lock = threading.Lock()

    def take(self) -> dict[str, int] | None:
        """Return what to add to the line: how many were held back before it, if any; None: hold it back."""
        with self._lock:
            now = time.monotonic()
            self._lines = min(_LINES_AT_ONCE, self._lines + (now - self._at) / _S_PER_LINE)
            self._at = now
            if self._lines < 1:
                self._held_back += 1
                return None
            self._lines -= 1
            held_back, self._held_back = self._held_back, 0
            return {"held_back": held_back} if held_back else {}


class RightsJournal:
    """Says what the process that serves HTTP may not read: when it begins, and when it is over."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        self._log = log
        self._missing = ""

    def tell(self, missing: str) -> None:
        """Say which right is missing now, unless that was said; empty: none is."""
        if missing and missing != self._missing:
            self._log.warning("right_missing", message=missing)
        elif self._missing and not missing:
            self._log.info("right_given")
        self._missing = missing


class ShardJournal:
    """Says what happens on one shard; what lasts it says once, not every tick.

    Args:
        errors: the pace of the lines about errors, over all shards of a worker.
        recoveries: the pace of the lines that say they are over.

    """

    def __init__(self, log: FilteringBoundLogger, settings: Settings, errors: Pace, recoveries: Pace) -> None:
        self._log = log
        self._settings = settings
        self._errors = errors
        self._recoveries = recoveries
        self._pause: Pause | None = None
        self._is_far = False

    def tell_recovery(self, batch: Batch, failures: int, down_s: float) -> None:
        """Say that errors are over."""
        if (more := self._recoveries.take()) is not None:
            overdue = batch.due + batch.overdue
            down_ms = round(down_s * 1000)
            self._log.info("processing_recovered", failures=failures, down_ms=down_ms, overdue=overdue, **more)

    def tell_batch(self, batch: Batch, *, is_first: bool) -> None:
        """Say what a batch did, and before it what is otherwise than it was."""
        log = self._log
        found = batch.due + batch.overdue
        if batch.pause != self._pause:
            self._pause = pause = batch.pause
            if pause is None:
                log.info("expiry_resumed", overdue=found)
            else:
                log.warning("expiry_paused", by=pause.by, reason=pause.reason, until=pause.until, overdue=found)
        is_far = batch.next_expires_at is not None and batch.next_expires_at - batch.now > to_ms(LONGEST)
        if is_far and not self._is_far:
            advice = "nothing is due for a century: check EXPIRER_SCORE_UNIT"
            log.warning("unit_mismatch", next_expires_at=batch.next_expires_at, advice=advice)
        self._is_far = is_far
        if batch.due and is_first:
            log.info("found_expired_reservations", count=found)
        self._tell_outcomes(batch)

    def tell_brake(self, batch: Batch) -> str:
        """Say why the shard is about to be paused; return it as the reason of the pause."""
        settings = self._settings
        if batch.held == "clock":
            limit = settings.max_clock_jump.total_seconds()
            reason = f"{BRAKE}the server's clock jumped ahead by more than EXPIRER_MAX_CLOCK_JUMP ({limit:g}s)"
        else:
            reason = f"{BRAKE}{batch.overdue} overdue, more than EXPIRER_BRAKE_ABOVE ({settings.brake_above})"
        self._log.error("brake_pulled", reason=reason, overdue=batch.overdue, advice="look, then: expirer resume")
        return reason

    def tell_conflict(self) -> None:
        """Say that the operator's hand was faster."""
        self._log.warning("concurrency_conflict", error="the control key changed; nothing was done")

    def tell_error(self, error: Exception, why: str, retry_s: float) -> None:
        """Say what went wrong, in words without a secret; with a traceback only where it is a bug of ours."""
        if (more := self._errors.take()) is not None:
            self._log.error(
                "processing_error",
                error=type(error).__name__,
                message=why,
                retry_in_ms=round(retry_s * 1000),
                exc_info=error if not isinstance(error, RedisError | OSError) else None,
                **more,
            )

    def tell_drain(self, done: Tick, elapsed_s: float) -> None:
        """Say in one line what a drain did, if anything."""
        if done.due:
            self._log.info(
                "processing_completed",
                count=done.expired,
                units=done.units,
                skipped=done.skipped,
                rescheduled=done.rescheduled,
                quarantined=done.quarantined,
                overdue=done.overdue,
                elapsed_ms=round(elapsed_s * 1000),
            )

    def _tell_outcomes(self, batch: Batch) -> None:
        log = self._log
        for reservation in batch.expired() if log.is_enabled_for(logging.INFO) else ():
            log.info(
                "reservation_expired",
                reservation_id=reservation.reservation_id,
                order_id=reservation.order_id,
                product_id=reservation.product_id,
                quantity=reservation.quantity,
                expires_at=reservation.expires_at,
                lateness_ms=reservation.lateness_ms,
            )
        for reservation_id, reason in batch.quarantined():
            log.error("reservation_quarantined", reservation_id=reservation_id, reason=reason)
        for reservation_id, status in batch.skipped():
            log.debug("reservation_skipped", reservation_id=reservation_id, status=status)
        for reservation_id, expires_at in batch.rescheduled():
            log.debug("reservation_rescheduled", reservation_id=reservation_id, expires_at=expires_at)


def _describe_layout(settings: Settings, keys: ShardKeys) -> str | dict[str, object]:
    if not settings.is_custom_layout:
        return "contract"
    names = {
        "index_key": keys.index,
        "reservation_prefix": keys.reservation_prefix,
        "stock_prefix": keys.stock_prefix,
        "events_key": keys.events,
    }
    return {name: names.get(name, getattr(settings, name)) for name in LAYOUT}
