"""The front door: `expirer run`, `expirer once`, `expirer demo`."""

from __future__ import annotations

import argparse
import difflib
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import NoReturn

import expirer
from expirer.connect import connect
from expirer.logs import build_logger
from expirer.settings import CONNECTION, ConfigurationError, Settings, default_text, load, variable
from expirer.worker import Worker

_STOP_DEADLINE_S = 0.8
"""A server that hangs must not keep a stopping worker; its batch commits whole or not at all without it."""

_HELP = {
    "run": (
        "release the units of due reservations until stopped (the sidecar)",
        "Runs until SIGTERM or SIGINT; then finishes its batch and exits 0 within a second.",
        "EXPIRER_REDIS_URL=redis://redis:6379/0 expirer run --interval 30s",
    ),
    "once": (
        "release what is due now, then exit (cron, Kubernetes CronJob)",
        "Exits 0 when done, also when nothing was due; 1 when Redis failed.",
        "expirer once --redis-url redis://redis:6379/0 --batch-size 500",
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
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            flag = unknown.split()[0].partition("=")[0]
            flags = [*self._option_string_actions, *(_flag(name) for name in Settings.model_fields)]
            nearest = difflib.get_close_matches(flag, flags, n=1, cutoff=0)[0]
            message = f"{flag} is not a flag; the nearest is {nearest}"
        _complain(message)
        raise SystemExit(2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code: 0 done, 1 failed, 2 wrong usage or configuration."""
    values = vars(_build_parser().parse_args(arguments))
    verb: Callable[[dict[str, str]], int] = values.pop("verb")
    try:
        return verb({name: value for name, value in values.items() if value is not None})
    except ConfigurationError as error:
        for problem in error.problems:
            _complain(problem)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="expirer",
        description=expirer.__doc__,
        epilog="Each verb has a --help of its own.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"expirer {expirer.__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for name, verb in (("run", _run), ("once", _once), ("demo", _demo)):
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
        settings = sub.add_argument_group("settings", "Each is also an environment variable; a flag wins over it.")
        for setting, field in Settings.model_fields.items():
            if name == "demo" and setting not in CONNECTION:
                continue
            default = default_text(setting)
            default = f"; default {default}" if default else ""
            settings.add_argument(
                _flag(setting), metavar="…", help=f"{field.description}{default} [{variable(setting)}]"
            )
    return parser


def _run(flags: dict[str, str]) -> int:
    settings = load(flags)
    worker = Worker(connect(settings), settings, build_logger(settings))

    def stop(_number: int, _frame: FrameType | None) -> None:
        worker.stop()
        signal.setitimer(signal.ITIMER_REAL, _STOP_DEADLINE_S)

    def give_up(_number: int, _frame: FrameType | None) -> None:
        raise _DeadlinePassed

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    signal.signal(signal.SIGALRM, give_up)
    try:
        worker.run()
    except _DeadlinePassed:
        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return 0


def _once(flags: dict[str, str]) -> int:
    settings = load(flags)
    return 1 if Worker(connect(settings), settings, build_logger(settings)).tick().errors else 0


def _demo(flags: dict[str, str]) -> int:
    from expirer import demo  # noqa: PLC0415  # the sidecar does not need what the demo imports

    return demo.run(load(flags), embedded="redis_url" not in flags)


class _DeadlinePassed(BaseException):
    """The worker was told to stop, and Redis did not answer in time."""


def _flag(setting: str) -> str:
    return "--" + setting.replace("_", "-")


def _complain(problem: str) -> None:
    sys.stderr.write(f"expirer: {problem}\n")
