"""Reads the command line, runs one command, and reports every mistake in one line."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

import expirer
from expirer.commands import COMMANDS, FAMILIES, SECTIONS, Command, resolve
from expirer.config.environment import variable
from expirer.config.settings import GROUPS, ConfigurationError, Settings, default_text, load
from expirer.contract.text import printable


class _Parser(argparse.ArgumentParser):
    """Reports a mistake in one line, and names the flag nearest to a misspelt one."""

    def error(self, message: str) -> NoReturn:
        # Of what was typed only the name of a flag is repeated: a value in the wrong place may hold a password.
        unknown = message.removeprefix("unrecognized arguments: ")
        if "COMMAND" in message:
            words = self.prog.split()[1:]
            names = (name.split() for name in COMMANDS)
            choices = dict.fromkeys(name[len(words)] for name in names if name[: len(words)] == words)
            first = f"{words[0]} is followed by one of" if words else "the first argument is one of"
            message = f"{first} {', '.join(choices)}"
        elif unknown != message:
            flag = unknown.split()[0].partition("=")[0]
            options = (option for command in COMMANDS.values() for option in command.options if option.startswith("-"))
            flags = [*map(_flag, Settings.model_fields), *options]
            nearest = difflib.get_close_matches(flag, flags, n=1, cutoff=0)[0]
            if not flag.startswith("-"):
                message = "a value without a flag; a flag and its value are written --flag value"
            elif flag == nearest:
                message = f"{flag} is a flag of another command"
            else:
                message = f"{flag} is not a flag; the nearest is {nearest}"
        _complain(message)
        raise SystemExit(2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code: 0 done, 1 failed, 2 wrong usage or configuration."""
    options = vars(_build_parser().parse_args(arguments))
    function = options.pop("function")
    flags = {name: options.pop(_SETTING + name) for name in Settings.model_fields if _SETTING + name in options}
    if function == COMMANDS["demo"].function:  # the Redis that the environment names may be production's
        options["is_embedded"] = not {"redis_url", "redis_sentinels"} & flags.keys()
    try:
        return resolve(function)(load(flags), **options)
    except ModuleNotFoundError as error:
        _complain(f"{error.name} is not installed: pip install 'expirer[http]'")
        return 2
    except ConfigurationError as error:
        for problem in error.problems:
            _complain(problem)
        return 2


_OTHERS = "The other settings of expirer run --help are accepted, too.\n\n"
_SETTING = "setting "
"""Before a setting's name, to tell it from an option's."""


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="expirer",
        usage="expirer COMMAND [--flag value …]",
        description=f"{expirer.__doc__}\n\n{_list_commands()}\n\nFor each command there is expirer COMMAND --help.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"expirer {expirer.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", prog="expirer", help=argparse.SUPPRESS)
    families: dict[str, Any] = {}
    for name, command in COMMANDS.items():
        first, _, second = name.partition(" ")
        if second and first not in families:
            family = commands.add_parser(first, description=FAMILIES[first], allow_abbrev=False)
            families[first] = family.add_subparsers(required=True, metavar="COMMAND")
        has_ids = not all(option.startswith("-") for option in command.options)
        added = (families[first] if second else commands).add_parser(
            second or first,
            usage=f"%(prog)s [--flag value …]{' RESERVATION_ID …' * has_ids}",
            help=command.summary,
            description=f"{command.summary}.\n{command.detail}",
            epilog=f"{_OTHERS * ('timing' not in command.settings)}Example:\n  {command.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        _add_flags(added, command)
    return parser


def _list_commands() -> str:
    lines = []
    for section, commands in SECTIONS.items():
        summaries = {name.split()[0]: FAMILIES.get(name.split()[0], one.summary) for name, one in commands.items()}
        lines += [f"{section}:", *(f"  {name:<12}{summary}" for name, summary in summaries.items())]
    return "\n".join(lines)


def _add_flags(parser: argparse.ArgumentParser, command: Command) -> None:
    """Add a command's options and all settings, of which its help lists those that matter to it."""
    parser.set_defaults(function=command.function)
    for option, keywords in command.options.items():
        parser.add_argument(option, **keywords)
    for title, names in GROUPS.items():
        if command.function == COMMANDS["demo"].function and title not in command.settings:
            continue
        section = parser.add_argument_group(f"{title} settings")
        for name in names:
            default = default_text(name)
            text = f"{Settings.model_fields[name].description}{default and f'; default {default}'} [{variable(name)}]"
            text = text if title in command.settings else argparse.SUPPRESS
            section.add_argument(_flag(name), dest=_SETTING + name, metavar="…", default=argparse.SUPPRESS, help=text)


def _flag(setting: str) -> str:
    return "--" + setting.replace("_", "-")


def _complain(problem: str) -> None:
    with suppress(OSError):
        sys.stderr.write(f"expirer: {printable(problem)}\n")
