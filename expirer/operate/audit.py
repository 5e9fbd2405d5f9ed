"""Compares every reservation, index entry, counter and quarantine entry, and repairs what can be known."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import partial
from itertools import chain, starmap
from typing import Any, NoReturn, TypeVar

from redis.exceptions import WatchError
from tqdm import tqdm

from expirer.config.settings import ConfigurationError, Settings
from expirer.connection.connect import Servers
from expirer.contract.shard import Shard
from expirer.contract.text import decode, encode, printable
from expirer.operate.findings import Finding, is_without_record, judge, judge_counters
from expirer.operate.inventory_scan import InventoryScan
from expirer.operate.key_tracking import TrackingLostError
from expirer.operate.recount import Count, Recount
from expirer.operate.terminal import confirms, reporting_errors, who
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
    with reporting_errors(settings) as servers, closing(_Audit(servers, settings, product_id)) as audit_:
        plans = []
        for finding in audit_.findings():
            sys.stdout.write(f"{_line(finding, as_json=as_json)}\n")
            if is_repair:
                sys.stdout.write(f"  {finding.plan or 'left as it is: what is right cannot be known'}\n")
                plans += [finding] if finding.plan else []
        audit_.summarize(as_json=as_json)
        left = audit_.found
        if plans and not is_sure and not confirms(f"Repair {len(plans):,} of {left:,}?"):
            sys.stderr.write("expirer: nothing was changed; repeat this with --yes to repair\n")
        elif is_repair:
            done = audit_.repair(plans)
            left -= done["repaired"] + done["repaired meanwhile"]
            counts = ", ".join(f"{count:,} {name}" for name, count in sorted(done.items()))
            sys.stdout.write(f"{counts or '0 repaired'}, {left:,} left as they are\n")
        return 1 if left or audit_.not_compared else 0
    return 1


class _Audit:
    """One pass over an inventory."""

    def __init__(self, servers: Servers, settings: Settings, product_id: str | None) -> None:
        self._scan = InventoryScan(servers, None if product_id is None else encode(product_id))
        self._log = build_logger(settings)
        self._by = who()
        self._began_at = time.monotonic()
        self.found = self._products = self._untracked = self._without_record = 0
        self._unsettled: dict[tuple[int, bytes], str] = {}
        """Why a product was not compared."""

    def close(self) -> None:
        """Stop tracking."""
        self._scan.close()

    @property
    def not_compared(self) -> int:
        """How many products were not compared."""
        return self._untracked + len(self._unsettled)

    def findings(self) -> Iterator[Finding]:
        """Yield what is wrong, each read again after it was suspected: first reservations, then counters."""
        for find in (self._of_reservations, self._of_products):
            for finding in find():
                self.found += 1
                yield finding

    def repair(self, plans: list[Finding]) -> Counter[str]:
        """Repair what was found and still is wrong, each in one transaction; return how many were."""
        done: Counter[str] = Counter()
        for finding in tqdm(plans, "repairing", unit="", disable=None, leave=False):
            step = partial(self._repair_reservation, finding)
            if finding.id_name == "product_id":
                step = partial(self._repair_counters, finding, Recount(self._scan, finding.shard, finding.id))
            done[_attempts(step, self._log_conflict) or "given up"] += 1
        return done

    def summarize(self, *, as_json: bool) -> None:
        """Print how much was read, and what was not compared."""
        seconds = time.monotonic() - self._began_at
        if as_json:
            summary = {
                "findings": self.found,
                "reservations": self._scan.reservations,
                "products": self._products,
                "not_compared": self.not_compared,
                "remarks": list(self._remarks()),
                "seconds": round(seconds, 3),
            }
            sys.stdout.write(json.dumps({"summary": summary}) + "\n")
            return
        sys.stdout.writelines(f"remark: {printable(remark)}\n" for remark in self._remarks())
        gap = f", not compared: {self.not_compared:,}" if self.not_compared else ""
        sys.stdout.write(
            f"{self.found:,} found (Active reservations: {self._scan.reservations:,},"
            f" products: {self._products:,}{gap}, {seconds:,.1f} s)\n"
        )

    def _remarks(self) -> Iterator[str]:
        if self._untracked:
            yield f"{self._untracked:,} products: not compared, CLIENT TRACKING failed: {self._scan.tracking_error}"
        for (_, product_id), why in self._unsettled.items():
            yield f"{decode(product_id)}: not compared, {why}"
        if self._without_record:
            what = "in quarantine have no reservation: their units are not counted as held"
            yield f"{self._without_record:,} {what}; drop them"

    def _of_reservations(self) -> Iterator[Finding]:
        suspects: dict[tuple[int, bytes], None] = {}
        now = self._scan.shards[0].now()
        with self._bar("reservations") as bar:
            for number, row in self._scan.walk(partial(self._on_keys, bar)):
                self._without_record += is_without_record(row)
                if judge(self._scan.shards[number], row, now):
                    suspects[number, row.id] = None
        return chain.from_iterable(starmap(self._judge, self._settled(suspects)))

    def _of_products(self) -> Iterator[Finding]:
        suspects: dict[tuple[int, bytes], None] = {}
        with self._bar("products") as bar:
            for number, product_id in self._scan.products(partial(self._on_keys, bar)):
                self._products += 1
                if self._judge_counters(number, product_id):
                    suspects[number, product_id] = None
        return filter(None, starmap(self._judge_counters, self._settled(suspects)))

    def _settled(self, suspects: Iterable[tuple[int, bytes]]) -> Iterable[tuple[int, bytes]]:
        if suspects:
            time.sleep(_SETTLE_S)
        return suspects

    def _judge(self, number: int, id_: bytes) -> list[Finding]:
        shard = self._scan.shards[number]
        (row,) = self._scan.examine(number, [id_])
        return judge(shard, row, shard.now())

    def _judge_counters(self, number: int, product_id: bytes) -> Finding | None:
        count = self._count(self._scan.shards[number], product_id)
        return judge_counters(self._scan.shards[number], product_id, count) if count else None

    def _count(self, shard: Shard, product_id: bytes) -> Count | None:
        """Count a product; if that cannot be done, keep why."""
        count = None
        if not self._scan.tracking_error:
            try:
                count = _attempts(Recount(self._scan, shard, product_id).read)
            except TrackingLostError as error:
                self._scan.tracking_error = str(error)
        if self._scan.tracking_error:
            self._untracked += 1
        elif count is None:
            self._unsettled[shard.number, product_id] = "it was written all the time"
        elif not count.is_certain and shard.settings.field_reserved:
            self._unsettled[shard.number, product_id] = "a hold of it has no quantity"
        return count

    def _repair_reservation(self, finding: Finding) -> str:
        shard, keys = finding.shard, finding.shard.keys
        reservation = keys.reservation_prefix.encode() + finding.id
        with shard.client.pipeline() as transaction:
            pipe: Any = transaction
            pipe.watch(reservation, keys.quarantine)
            current = [found for found in self._judge(shard.number, finding.id) if found.kind == finding.kind]
            if not current or current[0].plan != finding.plan:
                return "changed meanwhile" if current else "repaired meanwhile"
            pipe.multi()
            for name, key, *values in current[0].commands:
                pipe.execute_command(name, reservation if key == "reservation" else getattr(keys, str(key)), *values)
            pipe.xadd(*self._record(finding))
            pipe.publish(keys.wake, "1")
            pipe.execute()
        self._log_repair("reservation_repaired", finding)
        return "repaired"

    def _repair_counters(self, finding: Finding, recount: Recount) -> str:
        try:
            with recount.commit() as (pipe, count):
                current = judge_counters(finding.shard, finding.id, count)
                if current and current.counters:
                    pipe.hset(recount.key, mapping=current.counters)
                    pipe.xadd(*self._record(current))
        except TrackingLostError as error:
            self._log.warning("counters_not_repaired", product_id=decode(finding.id), error=str(error))
            return "not counted again"
        if current is None or not current.counters:
            return "repaired meanwhile" if current is None else "beyond repair"
        self._log_repair("counters_repaired", current)
        return "repaired"

    def _record(self, finding: Finding) -> tuple[Any, ...]:
        fields = {"operation": "repair", "by": self._by, "kind": finding.kind, finding.id_name: finding.id}
        fields |= {"detail": finding.detail, "plan": finding.plan}
        return finding.shard.keys.operations, fields, "*", _OPERATIONS

    def _log_repair(self, event: str, finding: Finding) -> None:
        what = {"shard": finding.shard.number, "kind": finding.kind, finding.id_name: decode(finding.id)}
        self._log.warning(event, **what, detail=finding.detail, plan=finding.plan, by=self._by)

    def _log_conflict(self) -> None:
        self._log.warning("concurrency_conflict", error="somebody else wrote meanwhile; nothing was done")

    def _bar(self, what: str) -> tqdm[NoReturn]:
        return tqdm(total=self._scan.size(), desc=what, unit=" keys", unit_scale=True, disable=None, leave=False)

    def _on_keys(self, bar: tqdm[NoReturn], count: int) -> None:
        bar.update(count)
        self._scan.follow()


def _attempts(step: Callable[[], _Result], on_conflict: Callable[[], object] = lambda: None) -> _Result | None:
    """Return what the step returns once it meets no conflict; None if it always does."""
    for attempt in range(_ATTEMPTS):
        try:
            return step()
        except WatchError:
            on_conflict()
            time.sleep(0.001 * min(attempt, 20))
    return None


def _line(finding: Finding, *, as_json: bool = False) -> str:
    if as_json:
        what = {"shard": finding.shard.number, "kind": finding.kind, finding.id_name: decode(finding.id)}
        return json.dumps({**what, "detail": finding.detail, "plan": finding.plan or None})
    return f"{finding.kind}  {printable(decode(finding.id))}: {finding.detail}"
