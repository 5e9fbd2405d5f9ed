"""The front door: reads the command line, runs the verb, and says every mistake in one line."""

from __future__ import annotations

import argparse
import difflib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import expirer
from expirer.commands import GROUPS, VERBS, Verb
from expirer.config.address import CONNECTION
from expirer.config.environment import variable
from expirer.config.settings import ConfigurationError, Settings, default_text


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, and names the nearest flag to a misspelt one."""

    def error(self, message: str) -> NoReturn:
        # Nothing but the name of a flag is repeated: a value in the wrong place may be a URL with a password.
        unknown = message.removeprefix("unrecognized arguments: ")
        if "VERB" in message:
            message = f"the first argument is one of {', '.join(dict.fromkeys(name.split()[0] for name in VERBS))}"
        elif "ACTION" in message:
            actions = (name.split()[1] for name in VERBS if self.prog.endswith(f" {name.split()[0]}"))
            message = f"{self.prog.split()[-1]} is followed by one of {', '.join(actions)}"
        elif unknown != message:
            flag = unknown.split()[0].partition("=")[0]
            options = (option for verb in VERBS.values() for option in verb.options if option.startswith("-"))
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
    verb: Verb = values.pop("verb")
    flags = {name: value for name, value in values.items() if name in Settings.model_fields and value is not None}
    try:
        return verb.run(flags, {name: value for name, value in values.items() if name not in Settings.model_fields})
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
    groups: dict[str, Any] = {}
    for name, verb in VERBS.items():
        word, _, action = name.partition(" ")
        if action and word not in groups:
            group = verbs.add_parser(word, help=GROUPS[word], description=GROUPS[word], allow_abbrev=False)
            groups[word] = group.add_subparsers(required=True, metavar="ACTION")
        _add_verb(groups[word] if action else verbs, action or word, verb)
    return parser


def _add_verb(parsers: Any, name: str, verb: Verb) -> None:  # noqa: ANN401  # argparse does not export the type
    parser = parsers.add_parser(
        name,
        help=verb.summary,
        description=f"{verb.summary[0].upper()}{verb.summary[1:]}.\n{verb.detail}",
        epilog=f"Example:\n  {verb.example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(verb=verb)
    for option, described in verb.options.items():
        parser.add_argument(option, **described)
    is_demo = verb is VERBS["demo"]
    settings = parser.add_argument_group(
        "settings", None if is_demo else "Each is also an environment variable; a flag wins over it."
    )
    for setting, field in Settings.model_fields.items():
        if is_demo and setting not in CONNECTION:
            continue
        default = default_text(setting)
        default = f"; default {default}" if default else ""
        also = "" if is_demo else f" [{variable(setting)}]"
        settings.add_argument(_flag(setting), metavar="…", help=f"{field.description}{default}{also}")


def _flag(setting: str) -> str:
    return "--" + setting.replace("_", "-")


def _complain(problem: str) -> None:
    from expirer.operate.terminal import shown  # noqa: PLC0415  # only where something is wrong

    sys.stderr.write(f"expirer: {shown(problem)}\n")
