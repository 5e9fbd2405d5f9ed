"""Logs what a worker does: after the commit, and nothing if nothing happened."""

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

from expirer.config.durations import LONGEST, to_ms
from expirer.config.layout import LAYOUT
from expirer.config.settings import Settings
from expirer.connection.errors import location
from expirer.connection.server_checks import checks
from expirer.contract.control import Pause
from expirer.contract.keys import ShardKeys
from expirer.version import __version__
from expirer.worker.batch import Batch, Tick

_LINES_AT_ONCE = 20
_S_PER_LINE = 10.0


def log_start(log: FilteringBoundLogger, settings: Settings, keys: ShardKeys) -> None:
    """Log which program starts, with which settings, on which layout."""
    log.info(
        "job_started",
        version=__version__,
        redis=location(settings),
        namespace=settings.namespace,
        shards=settings.shards,
        interval_ms=to_ms(settings.interval),
        batch_size=settings.batch_size,
        layout=_describe_layout(settings, keys),
    )


def warn_of_host(log: FilteringBoundLogger, client: Redis, settings: Settings) -> None:
    """Warn of what makes a server unfit, as far as one INFO says."""
    with suppress(RedisError, OSError):  # a host may hide it; the first tick tells of a dead one
        for remark in checks(cast("dict[str, object]", client.info()), settings):
            if remark.level != "ok":
                log.warning("host_risk", what=remark.what, finding=remark.finding, advice=remark.remedy)


def log_stop(log: FilteringBoundLogger, done: Tick) -> None:
    """Log what was done in the worker's whole life."""
    log.info("job_stopped", expired=done.expired, units=done.units)


class LogLimiter:
    """Lets the first lines through at once, then one every ten seconds.

    An hour without Redis is then 380 lines, however many shards there are and however fast they retry.
    """

    def __init__(self) -> None:
        self._lines = 0.0
        self._at = -math.inf
        self._suppressed = 0
        self._lock = threading.Lock()

    def take(self) -> dict[str, int] | None:
        """Return what to add to the line: how many were suppressed before it, if any; None: suppress it."""
        with self._lock:
            now = time.monotonic()
            self._lines = min(_LINES_AT_ONCE, self._lines + (now - self._at) / _S_PER_LINE)
            self._at = now
            if self._lines < 1:
                self._suppressed += 1
                return None
            self._lines -= 1
            suppressed, self._suppressed = self._suppressed, 0
            return {"suppressed": suppressed} if suppressed else {}


class Limits:
    """The limiters of the lines about errors, shared by the workers of a process."""

    def __init__(self) -> None:
        self.errors = LogLimiter()
        self.recoveries = LogLimiter()


class ShardEvents:
    """Logs what happens on one shard; what lasts is logged once, not every tick."""

    def __init__(self, log: FilteringBoundLogger, settings: Settings, limits: Limits) -> None:
        self._log = log
        self._settings = settings
        self._limits = limits
        self._pause: Pause | None = None
        self._is_far = False
        self._disagreements: list[str] = []

    def log_recovery(self, batch: Batch, failures: int, down_s: float) -> None:
        """Log that errors are over."""
        if (more := self._limits.recoveries.take()) is not None:
            overdue = batch.due + batch.overdue
            down_ms = round(down_s * 1000)
            self._log.info("processing_recovered", failures=failures, down_ms=down_ms, overdue=overdue, **more)

    def log_batch(self, batch: Batch, *, is_first: bool) -> None:
        """Log what a batch did, and first what has changed."""
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
        self._log_outcomes(batch)

    def log_brake(self, batch: Batch) -> str:
        """Log why the brake is about to be pulled; return the reason."""
        settings = self._settings
        if batch.held == "clock":
            limit = settings.max_clock_jump.total_seconds()
            reason = f"the server's clock jumped ahead by more than EXPIRER_MAX_CLOCK_JUMP ({limit:g}s)"
        else:
            reason = f"{batch.overdue} overdue, more than EXPIRER_BRAKE_ABOVE ({settings.brake_above})"
        self._log.error("brake_pulled", reason=reason, overdue=batch.overdue, advice="look, then: expirer resume")
        return reason

    def log_disagreements(self, lines: list[str]) -> None:
        """Warn of settings on which the live workers disagree, once for each change."""
        for line in lines if lines != self._disagreements else ():
            self._log.warning("settings_disagree", finding=line, advice="give all workers of the inventory the same")
        self._disagreements = lines

    def log_conflict(self) -> None:
        """Log that the control key changed first."""
        self._log.warning("concurrency_conflict", error="the control key changed; nothing was done")

    def log_error(self, error: Exception, why: str, retry_s: float) -> None:
        """Log what went wrong, without a secret; with a traceback only if it is a bug of ours."""
        if (more := self._limits.errors.take()) is not None:
            self._log.error(
                "processing_error",
                error=type(error).__name__,
                message=why,
                retry_in_ms=round(retry_s * 1000),
                exc_info=error if not isinstance(error, RedisError | OSError) else None,
                **more,
            )

    def log_drain(self, done: Tick, elapsed_s: float) -> None:
        """Log in one line what a drain did, if anything."""
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

    def _log_outcomes(self, batch: Batch) -> None:
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
