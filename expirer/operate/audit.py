"""Compares every reservation, index entry, counter and quarantine entry, and repairs what can be known."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import Any, TypeVar

from redis.exceptions import WatchError
from structlog.typing import FilteringBoundLogger
from tqdm import tqdm

from expirer.config.settings import ConfigurationError, Settings
from expirer.connection.pipeline import Reply
from expirer.contract.text import decode, encode, printable
from expirer.operate.findings import Finding, is_without_record, judge, judge_counters
from expirer.operate.inventory_scan import InventoryScan
from expirer.operate.key_tracking import TrackingLostError
from expirer.operate.recount import Recount
from expirer.operate.terminal import confirms, reporting_errors, who, write_json
from expirer.worker.logs import build_logger

_Result = TypeVar("_Result")

_SETTLE_S = 1.0
"""After it a writer that writes a reservation by single commands is done, so what is wrong stays wrong."""
_ATTEMPTS = 300
"""To read a product's counters and reservations while nobody writes them."""
_OPERATIONS = 10_000


def audit(
    settings: Settings,
    product_id: str | None,
    *,
    as_json: bool = False,
    is_repair: bool = False,
    is_sure: bool = False,
) -> int:
    """Print what is wrong, and repair it if asked to; return 0 if everything was compared and is right, else 1.

    Raises:
        ConfigurationError: a repair has no JSON.

    """
    if is_repair and as_json:
        raise ConfigurationError(["--json is for an audit alone; a repair logs what it does"])
    product = None if product_id is None else encode(product_id)
    with reporting_errors(settings) as servers, closing(InventoryScan(servers, product)) as scan:
        audit_ = _Audit(scan)
        plans = []
        for finding in audit_.findings():
            if as_json:
                write_json(finding.fields())
            else:
                sys.stdout.write(f"{finding.kind}  {printable(decode(finding.id))}: {finding.detail}\n")
            if is_repair:
                sys.stdout.write(f"  {finding.plan or 'left as it is: what is right cannot be known'}\n")
                plans += [finding] if finding.plan else []
        audit_.summarize(as_json=as_json)
        left = audit_.found
        if plans and not is_sure and not confirms(f"Repair {len(plans):,} of {left:,}?"):
            sys.stderr.write("expirer: nothing was changed; repeat this with --yes to repair\n")
        elif is_repair:
            done = _Repair(scan, build_logger(settings)).run(plans)
            left -= done["repaired"] + done["repaired meanwhile"]
            counts = ", ".join(f"{count:,} {name}" for name, count in sorted(done.items()))
            sys.stdout.write(f"{counts or '0 repaired'}, {left:,} left as they are\n")
        return 1 if left or audit_.not_compared else 0
    return 1


class _Audit:
    """One pass over an inventory."""

    def __init__(self, scan: InventoryScan) -> None:
        self._scan = scan
        self._began_at = time.monotonic()
        self.found = self._products = self._untracked = self._without_record = 0
        self._unsettled: dict[tuple[int, bytes], str] = {}
        """Why a product was not compared."""

    @property
    def not_compared(self) -> int:
        """How many products were not compared."""
        return self._untracked + len(self._unsettled)

    def findings(self) -> Iterator[Finding]:
        """Yield what is wrong, each read again after it was suspected: first reservations, then counters."""
        for suspects, judge_again in (
            (self._suspect_reservations, partial(_judge_again, self._scan)),
            (self._suspect_products, self._judge_counters),
        ):
            suspected = dict.fromkeys(suspects())
            if suspected:
                time.sleep(_SETTLE_S)
            for suspect in suspected:
                for finding in judge_again(*suspect):
                    self.found += 1
                    yield finding

    def summarize(self, *, as_json: bool) -> None:
        """Print how much was read, and what was not compared."""
        seconds = time.monotonic() - self._began_at
        reservations, remarks = self._scan.reservations, list(self._remarks())
        if as_json:
            counts = {"findings": self.found, "reservations": reservations, "products": self._products}
            more = {"not_compared": self.not_compared, "remarks": remarks, "seconds": round(seconds, 3)}
            write_json({"summary": counts | more})
            return
        sys.stdout.writelines(f"remark: {printable(remark)}\n" for remark in remarks)
        gap = f", not compared: {self.not_compared:,}" if self.not_compared else ""
        read = f"Active reservations: {reservations:,}, products: {self._products:,}{gap}, {seconds:,.1f} s"
        sys.stdout.write(f"{self.found:,} found ({read})\n")

    def _remarks(self) -> Iterator[str]:
        if self._untracked:
            yield f"{self._untracked:,} products: not compared, CLIENT TRACKING failed: {self._scan.tracking_error}"
        for (_, product_id), why in self._unsettled.items():
            yield f"{decode(product_id)}: not compared, {why}"
        if self._without_record:
            what = "in quarantine have no reservation: their units are not counted as held"
            yield f"{self._without_record:,} {what}; drop them"

    def _suspect_reservations(self) -> Iterator[tuple[int, bytes]]:
        now = self._scan.shards[0].now()
        for row in self._scan.walk():
            self._without_record += is_without_record(row)
            if judge(row, now):
                yield row.shard.number, row.id

    def _suspect_products(self) -> Iterator[tuple[int, bytes]]:
        for product in self._scan.products():
            self._products += 1
            if self._judge_counters(*product):
                yield product

    def _judge_counters(self, number: int, product_id: bytes) -> list[Finding]:
        """Compare a product; if that cannot be done, keep why."""
        shard = self._scan.shards[number]
        try:
            count = _attempts(Recount(self._scan, shard, product_id).read)
        except TrackingLostError:
            self._untracked += 1
            return []
        if count is None:
            self._unsettled[number, product_id] = "it was written all the time"
            return []
        if not count.is_certain and shard.settings.field_reserved:
            self._unsettled[number, product_id] = "a hold of it has no quantity"
        found = judge_counters(shard, product_id, count)
        return [found] if found else []


class _Repair:
    """Repairs what was found and still is wrong, each in one transaction with a record of it."""

    def __init__(self, scan: InventoryScan, log: FilteringBoundLogger) -> None:
        self._scan = scan
        self._log = log
        self._by = who()

    def run(self, plans: list[Finding]) -> Counter[str]:
        """Return how many were repaired, and what became of the others."""
        done: Counter[str] = Counter()
        for finding in tqdm(plans, "repairing", unit="", disable=None, leave=False):
            try:
                step = partial(self._repair_reservation, finding)
                if finding.id_name == "product_id":
                    step = partial(self._repair_counters, finding, Recount(self._scan, finding.shard, finding.id))
                done[_attempts(step, self._log_conflict) or "given up"] += 1
            except TrackingLostError as error:
                self._log.warning("counters_not_repaired", product_id=decode(finding.id), error=str(error))
                done["not counted again"] += 1
        return done

    def _repair_reservation(self, finding: Finding) -> str:
        keys = finding.shard.keys
        with finding.shard.client.pipeline() as transaction:
            pipe: Any = transaction
            pipe.watch(finding.key, keys.quarantine)
            found = _judge_again(self._scan, finding.shard.number, finding.id)
            current = next((one for one in found if one.kind == finding.kind), None)
            if current is None or current.plan != finding.plan:
                return "changed meanwhile" if current else "repaired meanwhile"
            pipe.multi()
            self._queue(pipe, current)
            pipe.publish(keys.wake, "1")
            pipe.execute()
        self._log.warning("reservation_repaired", **current.fields(), by=self._by)
        return "repaired"

    def _repair_counters(self, finding: Finding, recount: Recount) -> str:
        with recount.commit() as (pipe, count):
            current = judge_counters(finding.shard, finding.id, count)
            if current and current.plan:
                self._queue(pipe, current)
        if current is None or not current.plan:
            return "beyond repair" if current else "repaired meanwhile"
        self._log.warning("counters_repaired", **current.fields(), by=self._by)
        return "repaired"

    def _queue(self, pipe: Reply, finding: Finding) -> None:
        for command in finding.commands:
            pipe.execute_command(*command)
        record = {"operation": "repair", "by": self._by, **finding.fields(), finding.id_name: finding.id}
        pipe.xadd(finding.shard.keys.operations, record, maxlen=_OPERATIONS)

    def _log_conflict(self) -> None:
        self._log.warning("concurrency_conflict", error="somebody else wrote meanwhile; nothing was done")


def _judge_again(scan: InventoryScan, number: int, id_: bytes) -> list[Finding]:
    (row,) = scan.examine(number, [id_])
    return judge(row, row.shard.now())


def _attempts(step: Callable[[], _Result], on_conflict: Callable[[], object] = lambda: None) -> _Result | None:
    """Return what the step returns once it meets no conflict; None if it always does."""
    for attempt in range(_ATTEMPTS):
        try:
            return step()
        except WatchError:
            on_conflict()
            time.sleep(0.001 * min(attempt, 20))
    return None
