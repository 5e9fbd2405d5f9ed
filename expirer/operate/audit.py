"""Compares every reservation, index entry, counter and quarantine entry, and mends what can be known."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import Any, TextIO

from redis.exceptions import WatchError
from tqdm import tqdm

from expirer.config.settings import ConfigurationError, Settings
from expirer.connection.connect import Servers
from expirer.contract.text import readable
from expirer.operate.findings import Count, Finding, judge, judge_counters, mend_counters
from expirer.operate.inventory_scan import InventoryScan, integer
from expirer.operate.server import redis_or_say, server_now
from expirer.operate.terminal import confirms, shown, who
from expirer.worker.logs import build_logger

_SETTLE_S = 1.0
"""A writer that writes a reservation by single commands is through by then; what is wrong still is wrong."""
_ATTEMPTS = 100
"""To read a product's counters and reservations while nobody writes them."""
_OPERATIONS = 10_000


def audit(
    settings: Settings, product_id: str | None, *, as_json: bool, is_repair: bool = False, is_sure: bool = False
) -> int:
    """Print what is wrong, and repair it if asked to; return 1 if something is wrong, else 0."""
    if is_repair and as_json:
        raise ConfigurationError(["--json is for an audit alone; a repair logs what it does"])
    if is_repair:
        return repair(settings, product_id, is_sure=is_sure)
    with redis_or_say(settings) as servers, closing(_Audit(servers, settings, product_id)) as audit_:
        findings = 0
        for finding in audit_.findings():
            findings += 1
            sys.stdout.write(f"{_line(finding, as_json=as_json)}\n")
        audit_.close_report(findings, as_json=as_json)
        return 1 if findings else 0
    return 1


def repair(settings: Settings, product_id: str | None, *, is_sure: bool, answers: TextIO | None = None) -> int:
    """Print what is wrong and what would mend it, then mend it; return 1 where something stays as it is."""
    with redis_or_say(settings) as servers, closing(_Audit(servers, settings, product_id)) as audit_:
        findings = list(audit_.findings())
        for finding in findings:
            sys.stdout.write(f"{_line(finding)}\n  {finding.plan or 'left as it is: what is right cannot be known'}\n")
        audit_.close_report(len(findings), as_json=False)
        plans = [finding for finding in findings if finding.plan]
        if plans and not is_sure and not confirms(f"Mend {len(plans):,} of {len(findings):,}?", answers):
            sys.stderr.write("expirer: nothing was changed; repeat this with --yes to mend\n")
            return 1
        done = audit_.mend(plans)
        left = len(findings) - done["mended"] - done["mended meanwhile"]
        counts = ", ".join(f"{count:,} {name}" for name, count in sorted(done.items()))
        sys.stdout.write(f"{counts or '0 mended'}, {left:,} left as they are\n")
        return 1 if left else 0
    return 1


class _Audit:
    """One pass over an inventory."""

    def __init__(self, servers: Servers, settings: Settings, product_id: str | None) -> None:
        self._servers = servers
        self._settings = settings
        wanted = None if product_id is None else product_id.encode(errors="surrogateescape")
        self._survey = InventoryScan(servers, wanted)
        self._log = build_logger(settings)
        self._by = who()
        self._products = 0
        self._remarks: list[str] = []
        self._began_at = time.monotonic()

    def close(self) -> None:
        """Stop listening to the server."""
        self._survey.close()

    def findings(self) -> Iterator[Finding]:
        """Yield what is wrong, each checked again after it was suspected: first reservations, then counters."""
        yield from self._recheck(self._suspect())
        if self._survey.tracking_error:
            self._remarks.append(
                f"the counters were not compared, without CLIENT TRACKING: {self._survey.tracking_error}"
            )
        else:
            yield from self._count_products()

    def mend(self, plans: list[Finding]) -> Counter[str]:
        """Mend what was found and still is so, each in one transaction; return how many were."""
        done: Counter[str] = Counter()
        for finding in tqdm(plans, "mending", unit="", disable=None, leave=False):
            step = partial(self._mend_reservation, finding)
            if finding.is_of_product:
                recount = _Recount(self._survey, finding.shard, finding.id)
                step = partial(self._mend_counters, finding, recount)
            done[_attempts(step, self._conflict) or "given up"] += 1
        return done

    def close_report(self, findings: int, *, as_json: bool) -> None:
        """Say how much was looked at, and what could not be."""
        seconds = time.monotonic() - self._began_at
        if as_json:
            whole = {
                "findings": findings,
                "reservations": self._survey.reservations,
                "products": self._products,
                "remarks": self._remarks,
                "seconds": round(seconds, 3),
            }
            sys.stdout.write(json.dumps({"summary": whole}) + "\n")
            return
        sys.stdout.writelines(f"remark: {remark}\n" for remark in self._remarks)
        sys.stdout.write(
            f"{findings:,} found (Active reservations: {self._survey.reservations:,},"
            f" products: {self._products:,}, {seconds:,.1f} s)\n"
        )

    def _suspect(self) -> list[tuple[int, bytes]]:
        size = self._survey.size()
        suspects: dict[tuple[int, bytes], None] = {}
        with tqdm(total=size, desc="reservations", unit=" keys", unit_scale=True, disable=None, leave=False) as bar:
            for number, row in self._survey.walk(bar.update):
                if judge(self._settings, number, row, 0):
                    suspects[number, row.id] = None
        return list(suspects)

    def _recheck(self, suspects: list[tuple[int, bytes]]) -> Iterator[Finding]:
        if suspects:
            time.sleep(_SETTLE_S)
        for number, id_ in suspects:
            finding = self._judge(number, id_)
            if finding is not None:
                yield finding

    def _judge(self, number: int, id_: bytes) -> Finding | None:
        (row,) = self._survey.examine(number, [id_])
        return judge(self._settings, number, row, server_now(self._servers.shards[number].client, self._settings))

    def _count_products(self) -> Iterator[Finding]:
        size = self._survey.size()
        suspects = []
        with tqdm(total=size, desc="products", unit=" keys", unit_scale=True, disable=None, leave=False) as bar:
            for number, product_id in self._survey.products(bar.update):
                self._products += 1
                count = self._count(number, product_id)
                if count is None:
                    self._remarks.append(f"{_text(product_id)}: not compared, it was written all the time")
                elif not count.is_certain:
                    self._remarks.append(f"{_text(product_id)}: not compared, a quarantined hold of it has no quantity")
                if count and judge_counters(self._settings, number, product_id, count):
                    suspects.append((number, product_id))
        if suspects:
            time.sleep(_SETTLE_S)
        for number, product_id in suspects:
            count = self._count(number, product_id)
            finding = count and judge_counters(self._settings, number, product_id, count)
            if finding:
                yield finding

    def _count(self, number: int, product_id: bytes) -> Count | None:
        count: Count | None = _attempts(_Recount(self._survey, number, product_id).read, lambda: None)
        return count

    def _mend_reservation(self, finding: Finding) -> str:
        keys = self._survey.shards[finding.shard]
        reservation: Any = keys.reservation_prefix.encode() + finding.id
        with self._servers.shards[finding.shard].client.pipeline() as transaction:
            pipe: Any = transaction
            pipe.watch(reservation, keys.quarantine)
            current = self._judge(finding.shard, finding.id)
            if current is None or current.kind != finding.kind:
                return "mended meanwhile"
            pipe.multi()
            for name, key, *values in current.commands:
                pipe.execute_command(name, reservation if key == "reservation" else getattr(keys, str(key)), *values)
            self._record(pipe, current, reservation_id=finding.id)
            pipe.publish(keys.wake, "1")
            pipe.execute()
        self._log.warning(
            "reservation_repaired",
            kind=current.kind,
            reservation_id=_text(finding.id),
            plan=current.plan,
            shard=finding.shard,
            by=self._by,
        )
        return "mended"

    def _mend_counters(self, finding: Finding, recount: _Recount) -> str:
        settings = self._settings

        def write(pipe: Any, count: Count) -> None:  # noqa: ANN401  # redis-py types its pipeline's replies as Any
            current = judge_counters(settings, finding.shard, finding.id, count)
            values = mend_counters(settings, count)
            if current and current.plan and values:
                pipe.hset(recount.key, mapping=values)
                self._record(pipe, current, product_id=finding.id)

        count = recount.write(write)
        current = judge_counters(settings, finding.shard, finding.id, count)
        if current is None or not current.plan:
            return "mended meanwhile" if current is None else "beyond mending"
        self._log.warning(
            "counters_repaired",
            kind=finding.kind,
            product_id=_text(finding.id),
            available_was=count.available,
            reserved_was=count.reserved,
            reserved=count.held,
            shard=finding.shard,
            by=self._by,
        )
        return "mended"

    def _record(self, pipe: Any, finding: Finding, **of: bytes) -> None:  # noqa: ANN401  # see write
        fields = {"operation": "repair", "by": self._by, "kind": finding.kind, **of}
        fields |= {"detail": finding.detail, "plan": finding.plan}
        operations = self._survey.shards[finding.shard].operations
        pipe.xadd(operations, fields, maxlen=_OPERATIONS, approximate=True)

    def _conflict(self) -> None:
        self._log.warning("concurrency_conflict", error="somebody else wrote meanwhile; nothing was done")


class _Recount:
    """The counters of one product and its Active reservations, read under WATCH of the stock key.

    Whoever begins or ends a reservation writes the product's counters, so a transaction that commits saw them
    all. What an attempt has read is kept: the next one only reads what was written since.
    """

    def __init__(self, survey: InventoryScan, number: int, product_id: bytes) -> None:
        self.key: Any = survey.shards[number].stock_prefix.encode() + product_id
        self._survey = survey
        self._number = number
        self._product_id = product_id
        self._held: dict[bytes, int | None] = {}
        self._is_read = False

    def read(self) -> Count:
        """Return both as they were in one moment; raise WatchError where they were written meanwhile."""
        return self.write(lambda _pipe, _count: None)

    def write(self, act: Callable[[Any, Count], None]) -> Count:
        """Commit what `act` queues, on the counters as they were read; return them as they were before.

        Raises:
            WatchError: they were written meanwhile; nothing was done.

        """
        with self._survey.servers.shards[self._number].client.pipeline() as pipe:
            count = self._watch(pipe)
            pipe.multi()
            act(pipe, count)
            pipe.exists(self.key)  # even where there is nothing to do, the commit proves what was read
            pipe.execute()
        return count

    def _watch(self, pipe: Any) -> Count:  # noqa: ANN401  # redis-py types its pipeline's replies as Any
        settings = self._survey.settings
        self._catch_up()  # most is read before the watch, so that little can happen under it
        pipe.watch(self.key)
        self._survey.require_heard(pipe.connection)
        self._catch_up()
        type_ = pipe.type(self.key).decode()
        available = reserved = None
        if type_ == "hash":
            available, reserved = pipe.hmget(self.key, settings.field_available, settings.field_reserved)
        elif type_ == "string":
            available = pipe.get(self.key)
        quantities = [quantity for quantity in self._held.values() if quantity is not None]
        return Count(
            type=type_,
            available=integer(available) if settings.field_available else None,
            reserved=integer(reserved) if settings.field_reserved else None,
            texts=(available, reserved),
            held=sum(quantities),
            reservations=len(self._held),
            is_certain=len(quantities) == len(self._held),
        )

    def _catch_up(self) -> None:
        """Read what was written since the last time; the first time all that is known of the product."""
        for number, row in self._survey.changed():
            if number == self._number and (row.id in self._held or row.product_id == self._product_id):
                self._take(row)
        ids = self._survey.known(self._number, self._product_id) - self._held.keys() if not self._is_read else ()
        for row in self._survey.examine(self._number, ids):
            self._take(row)
        self._is_read = True

    def _take(self, row: Any) -> None:  # noqa: ANN401
        if row.status == self._survey.settings.status_active and row.product_id == self._product_id:
            self._held[row.id] = row.quantity
        else:
            self._held.pop(row.id, None)


def _attempts(step: Callable[[], Any], tell: Callable[[], None]) -> Any:  # noqa: ANN401  # what the step returns
    """Return what the step returns, once it meets no conflict; None where it always does."""
    for attempt in range(_ATTEMPTS):
        try:
            return step()
        except WatchError:
            tell()
            time.sleep(0.001 * min(attempt, 20))
    return None


def _line(finding: Finding, *, as_json: bool = False) -> str:
    if as_json:
        name = "product_id" if finding.is_of_product else "reservation_id"
        what = {"shard": finding.shard, "kind": finding.kind, name: readable(finding.id)}
        return json.dumps({**what, "detail": finding.detail, "plan": finding.plan or None})
    return f"{finding.kind}  {_text(finding.id)}: {finding.detail}"


def _text(value: bytes) -> str:
    return shown(readable(value))
