"""The verbs of the command line: what each is called, what it takes, what it does."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from expirer.config.durations import LONGEST, parse_duration
from expirer.config.settings import ConfigurationError, load
from expirer.worker import process

# What the sidecar does not need is imported where it is used.


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb; `options` are argparse's, in order of appearance."""

    run: Callable[[dict[str, str], dict[str, Any]], int]
    """Takes the settings given as flags, and the options; returns the exit code."""
    summary: str
    detail: str
    example: str
    options: dict[str, dict[str, Any]] = field(default_factory=dict)


def _run(flags: dict[str, str], _options: dict[str, Any]) -> int:
    return process.run(load(flags))


def _web(flags: dict[str, str], _options: dict[str, Any]) -> int:
    try:
        from expirer.web import server  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigurationError([f"expirer web needs {error.name}: pip install 'expirer[http]'"]) from None
    return server.serve(load(flags))


def _once(flags: dict[str, str], options: dict[str, Any]) -> int:
    from expirer.operate import pause  # noqa: PLC0415

    settings = load(flags)
    return pause.preview(settings) if options["dry_run"] else process.run_once(settings)


def _status(flags: dict[str, str], options: dict[str, Any]) -> int:
    from expirer.operate.status import status  # noqa: PLC0415

    return status(load(flags), options["max_lateness"], as_json=options["json"])


def _pending(flags: dict[str, str], options: dict[str, Any]) -> int:
    from expirer.operate.inspect import pending  # noqa: PLC0415

    product_id, due_within, limit = options["product"], options["due_within"], options["limit"]
    return pending(load(flags), product_id, due_within, limit, as_json=options["json"])


def _show(flags: dict[str, str], options: dict[str, Any]) -> int:
    from expirer.operate.inspect import show  # noqa: PLC0415

    return show(load(flags), options["reservation_id"], as_json=options["json"])


def _tail(flags: dict[str, str], options: dict[str, Any]) -> int:
    from expirer.operate.tail import tail  # noqa: PLC0415

    return tail(load(flags), options["from"], as_json=options["json"])


def _top(flags: dict[str, str], _options: dict[str, Any]) -> int:
    from expirer.operate.top import top  # noqa: PLC0415

    return top(load(flags))


def _pause(flags: dict[str, str], options: dict[str, Any]) -> int:
    from expirer.operate import pause  # noqa: PLC0415

    return pause.pause(load(flags), options["for"], options["reason"], options["shard"])


def _resume(flags: dict[str, str], options: dict[str, Any]) -> int:
    from expirer.operate import pause  # noqa: PLC0415

    return pause.resume(load(flags), options["shard"], is_sure=options["yes"])


def _quarantine_list(flags: dict[str, str], options: dict[str, Any]) -> int:
    from expirer.operate import quarantine  # noqa: PLC0415

    return quarantine.list_(load(flags), options["reason"], as_json=options["json"])


def _quarantine_show(flags: dict[str, str], options: dict[str, Any]) -> int:
    from expirer.operate import quarantine  # noqa: PLC0415

    return quarantine.show(load(flags), options["reservation_id"], as_json=options["json"])


def _quarantine_requeue(flags: dict[str, str], options: dict[str, Any]) -> int:
    from expirer.operate import quarantine  # noqa: PLC0415

    return quarantine.requeue(load(flags), options["reservation_ids"], options["reason"], is_all=options["all"])


def _quarantine_release(flags: dict[str, str], options: dict[str, Any]) -> int:
    from expirer.operate import quarantine  # noqa: PLC0415

    return quarantine.release(load(flags), options["reservation_id"], options["quantity"], options["product"])


def _quarantine_drop(flags: dict[str, str], options: dict[str, Any]) -> int:
    from expirer.operate import quarantine  # noqa: PLC0415

    return quarantine.drop(load(flags), options["reservation_ids"], is_sure=options["yes"])


def _audit(flags: dict[str, str], options: dict[str, Any]) -> int:
    from expirer.operate import audit  # noqa: PLC0415

    settings, product_id = load(flags), options["product"]
    if not options["repair"]:
        return audit.audit(settings, product_id, as_json=options["json"])
    if options["json"]:
        raise ConfigurationError(["--json goes with audit alone; a repair writes what it does into the log"])
    return audit.repair(settings, product_id, is_sure=options["yes"])


def _reshard(flags: dict[str, str], options: dict[str, Any]) -> int:
    from expirer.operate.reshard import reshard  # noqa: PLC0415

    return reshard(load(flags), options["to"], is_sure=options["yes"])


def _check(flags: dict[str, str], options: dict[str, Any]) -> int:
    from expirer.operate import canary, check  # noqa: PLC0415

    verb = canary.canary if options["canary"] else check.check
    return verb(load(flags), as_json=options["json"])


def _demo(flags: dict[str, str], _options: dict[str, Any]) -> int:
    from expirer import demo  # noqa: PLC0415

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it removes its keys
    return demo.run(load(flags), embedded=not {"redis_url", "redis_sentinels"} & flags.keys())


def _duration(text: str) -> timedelta:
    with suppress(ValueError):
        duration = parse_duration(text)
        if isinstance(duration, timedelta) and timedelta(0) < duration <= LONGEST:
            return duration
    raise argparse.ArgumentTypeError("needs a duration such as 90s, 30m or 2h")


def _count(text: str) -> int:
    if text.isdecimal() and int(text):
        return int(text)
    raise argparse.ArgumentTypeError("needs a number from 1")


_JSON: dict[str, Any] = {"action": "store_true", "help": "JSON, for programs"}
_PRODUCT: dict[str, Any] = {"metavar": "P", "help": "only of this product"}
_REASON: dict[str, Any] = {"metavar": "REASON", "help": "only of this reason, such as stock_missing"}
_RESERVATION_ID: dict[str, Any] = {"metavar": "RESERVATION_ID", "help": "such as order-1:mug"}
_SHARD: dict[str, Any] = {"type": int, "metavar": "N", "help": "only this shard; default all"}
_YES: dict[str, Any] = {"action": "store_true", "help": "do not ask"}

VERBS = {
    "run": Verb(
        _run,
        "release the units of due reservations until stopped (the sidecar)",
        "Runs until SIGTERM or SIGINT; then finishes its batch and exits 0 within a second.",
        "EXPIRER_REDIS_URL=redis://redis:6379/0 expirer run --interval 30s",
    ),
    "web": Verb(
        _web,
        "serve a page and the inventory's metrics, read from Redis (one per inventory)",
        "Listens on port 9878 unless EXPIRER_HTTP_PORT says otherwise. Runs until SIGTERM or SIGINT.",
        "EXPIRER_REDIS_URL=redis://redis:6379/0 expirer web --http-port 9878",
    ),
    "once": Verb(
        _once,
        "release what is due now, then exit (cron, Kubernetes CronJob)",
        "Exits 0 when done or nothing was due; 1 when Redis failed, the control key moved, or the brake was pulled.",
        "expirer once --redis-url redis://redis:6379/0 --batch-size 500",
        {"--dry-run": {"action": "store_true", "help": "say what the next batch would do, and write nothing"}},
    ),
    "check": Verb(
        _check,
        "say whether this Redis, these rights and this layout will serve, before a deployment",
        "Works on scratch keys of the namespace and removes them. Exits 1 where a line is a failure.",
        "expirer check --redis-url redis://redis:6379/0",
        {
            "--canary": {
                "action": "store_true",
                "help": "make a hold of its own, and wait for a live worker to expire it",
            },
            "--json": _JSON,
        },
    ),
    "status": Verb(
        _status,
        "look: what is due, how late, who works, what is held (also a probe)",
        "Exits 0 when healthy; 1 without a live worker, with an overdue older than --max-lateness, or without Redis.",
        "expirer status --json --max-lateness 30s",
        {
            "--json": _JSON,
            "--max-lateness": {
                "type": _duration,
                "metavar": "DURATION",
                "default": timedelta(seconds=10),
                "help": "how long the oldest overdue reservation may wait; default 10s",
            },
        },
    ),
    "top": Verb(
        _top,
        "watch a live screen of backlog, lateness, rate, products and workers",
        "Leave with q or Ctrl-C. Reads only, once a second; survives an outage of Redis.",
        "expirer top",
    ),
    "pending": Verb(
        _pending,
        "list the reservations that fall due next",
        "Looks at the next 10,000 of each shard at most; only reads. Exits 1 when Redis failed.",
        "expirer pending --product mug --due-within 5m",
        {
            "--product": _PRODUCT,
            "--due-within": {
                "type": _duration,
                "metavar": "DURATION",
                "help": "only what falls due within it, such as 5m",
            },
            "--limit": {"type": _count, "metavar": "N", "default": 20, "help": "at most so many; default 20"},
            "--json": _JSON,
        },
    ),
    "show": Verb(
        _show,
        "tell everything that is known of one reservation",
        "Its fields, its place in the index, its quarantine entry, its event. Exits 1 where there is no trace of it.",
        "expirer show order-1:mug",
        {"reservation_id": _RESERVATION_ID, "--json": _JSON},
    ),
    "tail": Verb(
        _tail,
        "follow the events of expired reservations, like tail -f",
        "Runs until Ctrl-C or SIGTERM; waits out an outage of Redis and loses nothing that the stream still has.",
        "expirer tail --from 10m --json",
        {
            "--from": {
                "metavar": "START",
                "help": "begin earlier: a duration such as 10m, `start`, or an id of the stream; default now",
            },
            "--json": _JSON,
        },
    ),
    "pause": Verb(
        _pause,
        "hold: from then on nothing expires, on any worker",
        "Reservations stay Active and their units held. Ends by itself with --for. Exits 1 when Redis failed.",
        "expirer pause --for 30m --reason 'payment outage'",
        {
            "--for": {"type": _duration, "metavar": "DURATION", "help": "resume by itself after it, such as 30m"},
            "--reason": {"default": "", "metavar": "TEXT", "help": "why, for those who look later"},
            "--shard": _SHARD,
        },
    ),
    "resume": Verb(
        _resume,
        "go on, and let go what the brake holds",
        "Says first what would expire. Where the brake holds it asks, or wants --yes. Exits 1 when Redis failed.",
        "expirer resume --yes",
        {"--yes": _YES, "--shard": _SHARD},
    ),
    "quarantine list": Verb(
        _quarantine_list,
        "list what could not be expired, and why",
        "Only reads. Exits 1 when Redis failed.",
        "expirer quarantine list --reason stock_missing",
        {"--reason": _REASON, "--json": _JSON},
    ),
    "quarantine show": Verb(
        _quarantine_show,
        "tell everything that is known of one entry, and what to do about it",
        "Only reads. Exits 1 where it is not in quarantine.",
        "expirer quarantine show order-1:mug",
        {"reservation_id": _RESERVATION_ID, "--json": _JSON},
    ),
    "quarantine requeue": Verb(
        _quarantine_requeue,
        "put entries back into the index, once their cause was mended",
        "The next tick expires each, or quarantines it anew. Exits 1 where one could not be put back.",
        "expirer quarantine requeue --reason stock_missing",
        {
            "reservation_ids": {"nargs": "*", "metavar": "RESERVATION_ID", "help": "such as order-1:mug"},
            "--reason": _REASON,
            "--all": {"action": "store_true", "help": "every entry"},
        },
    ),
    "quarantine release": Verb(
        _quarantine_release,
        "free the units of one entry by hand, as many as you say",
        "They go from reserved to available, and the reservation is marked Expired. Exits 1 where that is refused.",
        "expirer quarantine release order-1:mug --quantity 2",
        {
            "reservation_id": _RESERVATION_ID,
            "--quantity": {"type": int, "metavar": "N", "required": True, "help": "how many units"},
            "--product": {"metavar": "P", "help": "of which product, where the reservation cannot say"},
        },
    ),
    "quarantine drop": Verb(
        _quarantine_drop,
        "give up on entries: they leave the quarantine, and no counter is touched",
        "The reservation is marked Expired. Asks, or wants --yes. Exits 1 where one is not there.",
        "expirer quarantine drop --yes order-1:mug",
        {
            "reservation_ids": {"nargs": "+", "metavar": "RESERVATION_ID", "help": "such as order-1:mug"},
            "--yes": _YES,
        },
    ),
    "audit": Verb(
        _audit,
        "compare every reservation, index entry and counter, and mend them with --repair",
        "Walks the whole database in small slices, safe beside live traffic. Exits 1 when something is wrong.",
        "expirer audit --repair",
        {
            "--product": _PRODUCT,
            "--json": _JSON,
            "--repair": {"action": "store_true", "help": "show what would mend it, ask, and mend what can be known"},
            "--yes": _YES,
        },
    ),
    "reshard": Verb(
        _reshard,
        "move the inventory to more shards, in a window without checkouts",
        "Pauses expiry, moves product by product, audits. May be interrupted and repeated. Exits 1 where it is undone.",
        "expirer reshard --to 16",
        {
            "--to": {"type": int, "metavar": "N", "required": True, "help": "how many shards there will be"},
            "--yes": _YES,
        },
    ),
    "demo": Verb(
        _demo,
        "watch a small simulated shop for about 15 seconds",
        "Uses an embedded Redis, or a real one with --redis-url, where it removes its keys at the end.",
        "expirer demo",
    ),
}
"""By name; of two words where a verb has actions."""

GROUPS = {"quarantine": "mend what could not be expired: list, show, requeue, release, drop"}
"""The verbs of two words: what the first is about."""
