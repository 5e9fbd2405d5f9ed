"""The commands: the function that each one calls, its options, and its help."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from importlib import import_module
from typing import Any

from expirer.config.durations import LONGEST, parse_duration
from expirer.config.settings import GROUPS
from expirer.contract.numbers import integer


@dataclass(frozen=True, slots=True)
class Command:
    """One command; its function is imported when it runs."""

    function: str
    """`module:function` of this package: takes the settings, and the options by name; returns the exit code."""
    summary: str
    detail: str
    example: str
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Flag -> argparse's keywords for it. `dest` is the function's parameter; `function` chooses another function."""
    settings: tuple[str, ...] = ("connection", "inventory", "layout")
    """The groups of settings that its help lists."""


def resolve(function: str) -> Callable[..., int]:
    """Import a command's function."""
    module, _, name = function.partition(":")
    found: Callable[..., int] = getattr(import_module(f"expirer.{module}"), name)
    return found


def _duration(text: str) -> timedelta:
    with suppress(ValueError):
        if timedelta(0) < (duration := parse_duration(text)) <= LONGEST:
            return duration
    raise argparse.ArgumentTypeError("must be a duration such as 90s, 30m or 2h")


def _count(text: str) -> int:
    if count := integer(text, least=1):
        return count
    raise argparse.ArgumentTypeError("must be a whole number, 1 or more")


def _option(text: str, metavar: str, **keywords: object) -> dict[str, Any]:
    return {"help": text, "metavar": metavar, **keywords}


def _switch(text: str, dest: str) -> dict[str, Any]:
    return {"help": text, "dest": dest, "action": "store_true"}


def _instead(text: str, function: str) -> dict[str, Any]:
    return {"help": text, "dest": "function", "action": "store_const", "const": function}


_CANARY = _instead("reserve a unit of a test product, and wait for a live worker to expire it", "operate.canary:canary")
_DRY_RUN = _instead("show what the next batch would do; write nothing", "operate.pause:preview")
_ALL = _switch("every entry", "is_all")
_FORCE = _switch("even if there never was such a reservation (reservation_missing)", "is_forced")
_JSON = _switch("print JSON, for programs", "as_json")
_REPAIR = _switch("show the repairs, ask, and do them", "is_repair")
_YES = _switch("do not ask for confirmation", "is_sure")
_FOR = _option("resume after this time, such as 30m", "DURATION", dest="duration", type=_duration)
_ID = _option("such as order-1:mug", "RESERVATION_ID")
_LATENESS = _option("how long the oldest reservation may be overdue; default 10s", "DURATION", type=_duration)
_LIMIT = _option("list at most N; default 20", "N", type=_count, default=20)
_PRODUCT = _option("only this product", "PRODUCT", dest="product_id")
_UNNAMED = _option("the product, if the reservation does not name it", "PRODUCT", dest="product_id")
_QUANTITY = _option("how many units", "N", type=int, required=True)
_REASON = _option("only entries with this reason, such as stock_missing", "REASON")
_WHY = _option("why, for your colleagues", "TEXT", default="")
_SHARD = _option("only this shard; default all", "N", type=int)
_START = _option("begin earlier: a duration such as 10m, `start`, or a stream id; default now", "START", dest="start")
_TO = _option("the new number of shards", "N", dest="shards", type=int, required=True)
_WITHIN = _option("only those due within it", "DURATION", type=_duration)

SECTIONS: dict[str, dict[str, Command]] = {
    "run": {
        "run": Command(
            "worker.process:run",
            "Expire reservations as they fall due, until stopped (the sidecar)",
            "On SIGTERM, SIGINT or SIGHUP it finishes its batch and exits 0 within a second.",
            "EXPIRER_REDIS_URL=redis://redis:6379/0 expirer run --interval 30s",
            settings=tuple(GROUPS),
        ),
        "once": Command(
            "worker.process:run_once",
            "Expire what is due now, then exit (for cron or a Kubernetes CronJob)",
            "Exits 0 when done; 1 if Redis failed, the control key changed meanwhile, or the brake was pulled.",
            "expirer once --redis-url redis://redis:6379/0 --batch-size 500",
            {"--dry-run": _DRY_RUN},
            settings=tuple(GROUPS),
        ),
        "web": Command(
            "web.server:serve",
            "Serve a page and the inventory's metrics, read from Redis (one per inventory)",
            "Listens on port 9878 unless EXPIRER_HTTP_PORT says otherwise. Runs until SIGTERM, SIGINT or SIGHUP.",
            "EXPIRER_REDIS_URL=redis://redis:6379/0 expirer web --http-port 9878",
            settings=tuple(GROUPS),
        ),
        "demo": Command(
            "demo:run",
            "Watch a small simulated shop for about 15 seconds",
            "Uses an embedded Redis, or with --redis-url a real one, from which it removes its keys at the end.",
            "expirer demo",
            settings=("connection",),
        ),
    },
    "look": {
        "check": Command(
            "operate.check:check",
            "Check before a deployment that this Redis, its permissions and this layout will work",
            "Works on scratch keys of the namespace and removes them. Exits 1 if a line says failure.",
            "expirer check --redis-url redis://redis:6379/0",
            {"--canary": _CANARY, "--json": _JSON},
        ),
        "status": Command(
            "operate.status:status",
            "Show overdue reservations, live workers and pauses. The exit code makes it a probe",
            "Exits 0 if healthy; 1 without a live worker, with a reservation overdue for longer than --max-lateness,\n"
            "or without Redis.",
            "expirer status --json --max-lateness 30s",
            {"--json": _JSON, "--max-lateness": {**_LATENESS, "default": timedelta(seconds=10)}},
        ),
        "top": Command(
            "operate.top:top",
            "Watch backlog, lateness, rate, products and workers on a live screen",
            "Quit with q or Ctrl-C. Reads once a second, writes nothing, and reconnects after an outage of Redis.",
            "expirer top",
        ),
        "pending": Command(
            "operate.inspect:pending",
            "List the reservations that fall due next",
            "Reads the next 10,000 of each shard at most; writes nothing. Exits 1 if Redis failed.",
            "expirer pending --product mug --due-within 5m",
            {"--product": _PRODUCT, "--due-within": _WITHIN, "--limit": _LIMIT, "--json": _JSON},
        ),
        "show": Command(
            "operate.inspect:show",
            "Show everything about one reservation",
            "Its fields, its index entry, its quarantine entry and its event. Exits 1 if there is no trace of it.",
            "expirer show order-1:mug",
            {"reservation_id": _ID, "--json": _JSON},
        ),
        "tail": Command(
            "operate.tail:tail",
            "Follow the events of expired reservations, like tail -f",
            "Runs until Ctrl-C or SIGTERM. After an outage of Redis it goes on where it was.",
            "expirer tail --from 10m --json",
            {"--from": _START, "--json": _JSON},
        ),
    },
    "pause and repair": {
        "pause": Command(
            "operate.pause:pause",
            "Pause expiry on all workers",
            "Reservations stay Active and keep their units. With --for it ends at that time. Exits 1 if Redis failed.",
            "expirer pause --for 30m --reason 'payment outage'",
            {"--for": _FOR, "--reason": _WHY, "--shard": _SHARD},
        ),
        "resume": Command(
            "operate.pause:resume",
            "Resume expiry, and release the backlog that the brake is holding back",
            "Shows first what would expire. If the brake was pulled it asks, or needs --yes. Exits 1 if Redis failed.",
            "expirer resume --yes",
            {"--yes": _YES, "--shard": _SHARD},
        ),
        "quarantine list": Command(
            "operate.quarantine:list_",
            "List the entries that could not be expired, and why",
            "Writes nothing. Exits 1 if Redis failed.",
            "expirer quarantine list --reason stock_missing",
            {"--reason": _REASON, "--json": _JSON},
        ),
        "quarantine show": Command(
            "operate.quarantine:show",
            "Show everything about one entry, and what to do about it",
            "Writes nothing. Exits 1 if it is not in quarantine.",
            "expirer quarantine show order-1:mug",
            {"reservation_id": _ID, "--json": _JSON},
        ),
        "quarantine requeue": Command(
            "operate.quarantine:requeue",
            "Put entries back into the index, after you have fixed the cause",
            "The next tick expires each of them, or quarantines it again. Exits 1 if one could not be put back.",
            "expirer quarantine requeue --reason stock_missing",
            {"ids": {**_ID, "nargs": "*"}, "--reason": _REASON, "--all": _ALL},
        ),
        "quarantine release": Command(
            "operate.quarantine:release",
            "Give the units of one entry back, in the quantity that you name",
            "Moves them from reserved to available and marks the reservation Expired. Exits 1 if that is refused.",
            "expirer quarantine release order-1:mug --quantity 2",
            {"reservation_id": _ID, "--quantity": _QUANTITY, "--product": _UNNAMED, "--force": _FORCE},
        ),
        "quarantine drop": Command(
            "operate.quarantine:drop",
            "Remove entries without changing any counter",
            "Marks the reservations Expired. Asks, or needs --yes. Exits 1 if one is not in quarantine.",
            "expirer quarantine drop --yes order-1:mug",
            {"ids": {**_ID, "nargs": "+"}, "--yes": _YES},
        ),
        "audit": Command(
            "operate.audit:audit",
            "Compare every reservation, index entry and counter; repair them with --repair",
            "Reads the whole database in small slices, safe beside live traffic. Exits 1 if something is wrong.",
            "expirer audit --repair",
            {"--product": _PRODUCT, "--json": _JSON, "--repair": _REPAIR, "--yes": _YES},
        ),
        "reshard": Command(
            "operate.reshard:reshard",
            "Move the inventory to another number of shards, while no checkout runs",
            "Pauses expiry, moves product by product, and audits. You may interrupt and repeat it.\n"
            "Exits 1 if something is left to do.",
            "expirer reshard --to 16",
            {"--to": _TO, "--yes": _YES},
        ),
    },
}
"""Section of the help -> name -> command."""

COMMANDS = {name: command for section in SECTIONS.values() for name, command in section.items()}
"""By name, which is two words if the first is one of FAMILIES."""

FAMILIES = {"quarantine": "Handle what could not be expired: list, show, requeue, release, drop"}
