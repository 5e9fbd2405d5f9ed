"""The front door: one verb for each thing that expirer does."""

from __future__ import annotations

import argparse
import difflib
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import chain
from queue import SimpleQueue
from types import FrameType
from typing import Any, NoReturn

import expirer
from expirer.connect import connect
from expirer.logs import build_logger
from expirer.operate import hold
from expirer.settings import CONNECTION, ConfigurationError, Settings, default_text, load, variable
from expirer.times import LONGEST, parse_duration
from expirer.worker import Worker

_STOP_DEADLINE_S, _FAREWELL_S = 0.75, 0.1
"""Together less than the second in which a stop is promised."""

_HELP = {
    "run": (
        "release the units of due reservations until stopped (the sidecar)",
        "Runs until SIGTERM or SIGINT; then finishes its batch and exits 0 within a second.",
        "EXPIRER_REDIS_URL=redis://redis:6379/0 expirer run --interval 30s",
    ),
    "once": (
        "release what is due now, then exit (cron, Kubernetes CronJob)",
        "Exits 0 when done or nothing was due; 1 when Redis failed, the control key moved, or the brake was pulled.",
        "expirer once --redis-url redis://redis:6379/0 --batch-size 500",
    ),
    "status": (
        "look: what is due, how late, who works, what is held (also a probe)",
        "Exits 0 when healthy; 1 without a live worker, with an overdue older than --max-lateness, or without Redis.",
        "expirer status --json --max-lateness 30s",
    ),
    "pending": (
        "list the reservations that fall due next",
        "Looks at the next 10,000 of each shard at most; only reads. Exits 1 when Redis failed.",
        "expirer pending --product mug --due-within 5m",
    ),
    "show": (
        "tell everything that is known of one reservation",
        "Its fields, its place in the index, its quarantine entry, its event. Exits 1 where there is no trace of it.",
        "expirer show order-1:mug",
    ),
    "pause": (
        "hold: from then on nothing expires, on any worker",
        "Reservations stay Active and their units held. Ends by itself with --for. Exits 1 when Redis failed.",
        "expirer pause --for 30m --reason 'payment outage'",
    ),
    "resume": (
        "go on, and let go what the brake holds",
        "Says first what would expire. Where the brake holds it asks, or wants --yes. Exits 1 when Redis failed.",
        "expirer resume --yes",
    ),
    "demo": (
        "watch a small simulated shop for about 15 seconds",
        "Uses an embedded Redis, or a real one with --redis-url, where it removes its keys at the end.",
        "expirer demo",
    ),
}


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, and names the nearest flag to a misspelt one."""

    def error(self, message: str) -> NoReturn:
        # Nothing but the name of a flag is repeated: a value in the wrong place may be a URL with a password.
        unknown = message.removeprefix("unrecognized arguments: ")
        if "VERB" in message:
            message = f"the first argument is one of {', '.join(_HELP)}"
        elif unknown != message:
            flag = unknown.split()[0].partition("=")[0]
            options = (option for option in chain(*_OPTIONS.values()) if option.startswith("-"))
            flags = [*map(_flag, Settings.model_fields), *options]
            nearest = difflib.get_close_matches(flag, flags, n=1, cutoff=0)[0]
            if not flag.startswith("-"):
                message = "a value without a flag; a flag and its value are written --flag value"
            elif flag == nearest:
                message = f"{flag} is a flag of another verb"
            else:
                message = f"{flag} is not a flag; the nearest is {nearest}"
        _complain(message)
        raise SystemExit(2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code: 0 done, 1 failed, 2 wrong usage or configuration."""
    values = vars(_build_parser().parse_args(arguments))
    verb: Callable[[dict[str, str], dict[str, Any]], int] = values.pop("verb")
    flags = {name: value for name, value in values.items() if name in Settings.model_fields and value is not None}
    try:
        return verb(flags, {name: value for name, value in values.items() if name not in Settings.model_fields})
    except ConfigurationError as error:
        for problem in error.problems:
            _complain(problem)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the exit flushes once more
        return 128 + signal.SIGPIPE


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="expirer",
        description=expirer.__doc__,
        epilog="Each verb has a --help of its own.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"expirer {expirer.__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for name, verb in _VERBS.items():
        summary, detail, example = _HELP[name]
        sub = verbs.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.\n{detail}",
            epilog=f"Example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        sub.set_defaults(verb=verb)
        for option, described in _OPTIONS.get(name, {}).items():
            sub.add_argument(option, **described)
        settings = sub.add_argument_group(
            "settings", None if name == "demo" else "Each is also an environment variable; a flag wins over it."
        )
        for setting, field in Settings.model_fields.items():
            if name == "demo" and setting not in CONNECTION:
                continue
            default = default_text(setting)
            default = f"; default {default}" if default else ""
            also = "" if name == "demo" else f" [{variable(setting)}]"
            settings.add_argument(_flag(setting), metavar="…", help=f"{field.description}{default}{also}")
    return parser


def _run(flags: dict[str, str], _options: dict[str, Any]) -> int:
    settings = load(flags)
    log = build_logger(settings)
    worker = Worker(connect(settings), settings, log)
    code = 1
    news: SimpleQueue[None] = SimpleQueue()

    def work() -> None:
        nonlocal code
        try:
            worker.run()
            code = 0
        finally:
            news.put(None)

    def stop(_number: int, _frame: FrameType | None) -> None:
        worker.stop()
        news.put(None)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    # A thread of its own: a stop need not wait for a server that hangs, nor for a reader of the log.
    thread = threading.Thread(target=work, name="expirer-worker", daemon=True)
    thread.start()
    news.get()
    thread.join(_STOP_DEADLINE_S)
    if not thread.is_alive():
        return code
    error = "no answer in time; the batch under way is whole, or not done"
    farewell = threading.Thread(target=lambda: log.warning("job_stopped", worker=worker.id, error=error), daemon=True)
    farewell.start()
    farewell.join(_FAREWELL_S)
    os._exit(0)  # an ordinary exit would wait for the lock of a log that nobody reads


def _once(flags: dict[str, str], options: dict[str, Any]) -> int:
    settings = load(flags)
    if options["dry_run"]:
        return hold.preview(settings)
    done = Worker(connect(settings), settings, build_logger(settings)).run_once()
    return 1 if done.errors or done.conflicts else 0


def _status(flags: dict[str, str], options: dict[str, Any]) -> int:
    from expirer.operate.status import status  # noqa: PLC0415  # the sidecar does not need it

    return status(load(flags), options["max_lateness"], as_json=options["json"])


def _pending(flags: dict[str, str], options: dict[str, Any]) -> int:
    from expirer.operate.look import pending  # noqa: PLC0415  # the sidecar does not need it

    product_id, due_within, limit = options["product"], options["due_within"], options["limit"]
    return pending(load(flags), product_id, due_within, limit, as_json=options["json"])


def _show(flags: dict[str, str], options: dict[str, Any]) -> int:
    from expirer.operate.look import show  # noqa: PLC0415  # the sidecar does not need it

    return show(load(flags), options["reservation_id"], as_json=options["json"])


def _pause(flags: dict[str, str], options: dict[str, Any]) -> int:
    return hold.pause(load(flags), options["for"], options["reason"], options["shard"])


def _resume(flags: dict[str, str], options: dict[str, Any]) -> int:
    return hold.resume(load(flags), options["shard"], is_sure=options["yes"])


def _demo(flags: dict[str, str], _options: dict[str, Any]) -> int:
    from expirer import demo  # noqa: PLC0415  # the sidecar does not need what the demo imports

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it removes its keys
    return demo.run(load(flags), embedded="redis_url" not in flags)


_VERBS = {
    "run": _run,
    "once": _once,
    "status": _status,
    "pending": _pending,
    "show": _show,
    "pause": _pause,
    "resume": _resume,
    "demo": _demo,
}


def _duration(text: str) -> timedelta:
    with suppress(ValueError):
        duration = parse_duration(text)
        if isinstance(duration, timedelta) and timedelta(0) < duration <= LONGEST:
            return duration
    raise argparse.ArgumentTypeError("needs a duration such as 90s, 30m or 2h")


_SHARD: dict[str, Any] = {"type": int, "metavar": "N", "help": "only this shard; default all"}
_JSON: dict[str, Any] = {"action": "store_true", "help": "JSON, for programs"}
_OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "once": {
        "--dry-run": {"action": "store_true", "help": "say what the next batch would do, and write nothing"},
    },
    "status": {
        "--json": _JSON,
        "--max-lateness": {
            "type": _duration,
            "metavar": "DURATION",
            "default": timedelta(seconds=10),
            "help": "how long the oldest overdue reservation may wait; default 10s",
        },
    },
    "pending": {
        "--product": {"metavar": "P", "help": "only of this product"},
        "--due-within": {"type": _duration, "metavar": "DURATION", "help": "only what falls due within it, such as 5m"},
        "--limit": {"type": int, "metavar": "N", "default": 20, "help": "at most so many; default 20"},
        "--json": _JSON,
    },
    "show": {
        "reservation_id": {"metavar": "RESERVATION_ID", "help": "such as order-1:mug"},
        "--json": _JSON,
    },
    "pause": {
        "--for": {"type": _duration, "metavar": "DURATION", "help": "resume by itself after it, such as 30m"},
        "--reason": {"default": "", "metavar": "TEXT", "help": "why, for those who look later"},
        "--shard": _SHARD,
    },
    "resume": {
        "--yes": {"action": "store_true", "help": "do not ask"},
        "--shard": _SHARD,
    },
}


def _flag(setting: str) -> str:
    return "--" + setting.replace("_", "-")


def _complain(problem: str) -> None:
    sys.stderr.write(f"expirer: {problem}\n")
