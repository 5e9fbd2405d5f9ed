"""The front door: exit codes, help, and one line for every mistake."""

from __future__ import annotations

import inspect
import itertools
import json
import sys

import pytest

from expirer import __version__, demo
from expirer.cli import main
from expirer.commands import COMMANDS, SECTIONS, resolve
from expirer.config.settings import GROUPS, Settings
from expirer.worker.batch import Tick
from tests.inventory import Inventory
from tests.servers import RedisServer

CLOSED = "redis://127.0.0.1:1/0"


def exit_code(*arguments: str) -> int:
    """Run the command line, and return its exit code."""
    try:
        return main(arguments)
    except SystemExit as stopped:
        assert isinstance(stopped.code, int)
        return stopped.code


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """`--version` prints the version."""
    assert exit_code("--version") == 0
    assert f"expirer {__version__}\n" == capsys.readouterr().out


CHOICES = "the first argument is one of " + ", ".join(dict.fromkeys(name.split()[0] for name in COMMANDS))


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_is_a_function(name: str) -> None:
    """The table's functions exist, and take the settings and the options of the table by name."""
    command = COMMANDS[name]
    others = [one["const"] for one in command.options.values() if one.get("dest") == "function"]
    dests = (one.get("dest", option.lstrip("-").replace("-", "_")) for option, one in command.options.items())
    options = {*dests} - {"function"}
    for function in [command.function, *others]:
        parameters = inspect.signature(resolve(function)).parameters
        taken = {*options, "is_embedded"} if name == "demo" else options
        needed = {one.name for one in parameters.values() if one.default is inspect.Parameter.empty}

        assert needed - {"settings"} <= taken <= {*parameters}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example_and_lists_what_matters(capsys: pytest.CaptureFixture[str], name: str) -> None:
    """Each command explains itself, with an example and the groups of settings that matter to it."""
    assert exit_code(*name.split(), "--help") == 0
    text = capsys.readouterr().out

    assert f"Example:\n  {COMMANDS[name].example}" in text
    listed = [title for title in GROUPS if f"\n{title} settings:\n" in text]
    assert listed == [title for title in GROUPS if title in COMMANDS[name].settings]
    assert ("--interval" in text.partition("Example:")[0]) == (name in ("run", "once", "web"))
    assert ("--namespace" in text) == (name != "demo")


def test_help_lists_the_commands_in_sections(capsys: pytest.CaptureFixture[str]) -> None:
    """The help of the program lists every command once, in its section."""
    assert exit_code("--help") == 0
    text = capsys.readouterr().out

    for section, commands in SECTIONS.items():
        listed = text.partition(f"\n{section}:\n")[2]
        names = [line.split()[0] for line in itertools.takewhile(lambda line: line[:1] == " ", listed.splitlines())]
        assert names == list(dict.fromkeys(name.split()[0] for name in commands))


@pytest.mark.parametrize("setting", Settings.model_fields)
def test_every_setting_is_a_flag(capsys: pytest.CaptureFixture[str], setting: str) -> None:
    """The help of the sidecar lists every setting as a flag and as a variable; an operator's command takes it too."""
    flag = f"--{setting.replace('_', '-')}"
    exit_code("run", "--help")
    text = capsys.readouterr().out

    assert f"{flag} " in text
    assert f"[EXPIRER_{setting.upper()}]" in text
    assert exit_code("status", flag, "\0", "--redis-url", "nowhere") == 2
    assert "--redis-url: is not an address" in capsys.readouterr().err or setting == "redis_url"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["run", "--intervall", "5s"], "--intervall is not a flag; the nearest is --interval"),
        (["once", "--batch-size"], "argument --batch-size: expected one argument"),
        (["once", "--batch-size", "0"], "--batch-size=0: must be 1 or more"),
        (["demo", "--redis-url", "localhost"], "--redis-url: is not an address such as"),
        (["once", "--redis-url", "redis://h/0?socket_timeout=soon"], "--redis-url: has a socket_timeout"),
        (["once", "--redis-url", "rediss://h/0?ssl_cert_reqs=maybe"], "the Redis URL: "),
        (["once", "--index-key", "{inventory}:workers"], "'{inventory}:workers' is the name of two keys"),
        ([], CHOICES),
        (["sweep"], CHOICES),
        (["quarantine"], "quarantine is followed by one of list, show, requeue, release, drop"),
        (["quarantine", "free"], "quarantine is followed by one of list, show, requeue, release, drop"),
        (
            ["--redis-url", "redis://:hunter2@h", "run"],
            CHOICES,
        ),
        (["demo", "--shards", "3"], "--shards is a flag of another command"),
        (["run", "redis://:hunter2@h"], "a value without a flag; a flag and its value are written --flag value"),
        (["run", "--redisurl=redis://:hunter2@h"], "--redisurl is not a flag; the nearest is --redis-url"),
    ],
)
def test_wrong_usage_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], problem: str) -> None:
    """Wrong usage exits 2 with one line that names the mistake."""
    assert exit_code(*arguments) == 2
    output = capsys.readouterr()
    assert (output.err.count("\n"), output.out) == (1, "")
    assert output.err.startswith(f"expirer: {problem}")
    assert "hunter2" not in output.err


def test_once_does_one_tick(shared_server: RedisServer, capsys: pytest.CaptureFixture[str]) -> None:
    """`once` expires what is due and exits 0; it exits 0 also when nothing is due."""
    with shared_server.client() as client:
        client.flushall()
        inventory = Inventory(client)
        inventory.stock("mug", 9, 1)
        inventory.hold("mug", expires_at=1)

        assert exit_code("once", "--redis-url", shared_server.url) == 0
        assert '"event": "processing_completed"' in capsys.readouterr().err
        inventory.assert_conserved({"mug": 10})
        assert inventory.counters("mug") == (10, 0)
        assert exit_code("once", "--redis-url", shared_server.url) == 0
        events = [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()]
        assert events == ["job_started", "job_stopped"]


def test_once_fails_where_redis_fails(capsys: pytest.CaptureFixture[str]) -> None:
    """`once` exits 1 where Redis cannot be reached, and says why without a traceback."""
    assert exit_code("once", "--redis-url", CLOSED) == 1
    error = capsys.readouterr().err
    assert '"event": "processing_error"' in error
    assert "Traceback" not in error


@pytest.fixture
def short_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the demo's shop open for a moment only."""
    monkeypatch.setattr(demo, "_OPEN_S", 1.2)
    monkeypatch.setattr(demo, "_SHORTEST_HOLD_S", 0.2)
    monkeypatch.setattr(demo, "_LONGEST_HOLD_S", 0.6)


@pytest.mark.slow
@pytest.mark.usefixtures("short_demo")
def test_the_demo_runs_embedded(capsys: pytest.CaptureFixture[str]) -> None:
    """The demo needs no Redis, ends by itself, and shows a conserved table."""
    assert exit_code("demo") == 0
    output = capsys.readouterr().out
    assert "redis-cli -u redis://127.0.0.1:" in output
    assert "stocked  available   reserved       sold   released    expired" in output
    assert "Conserved: " in output


@pytest.mark.slow
@pytest.mark.usefixtures("short_demo")
def test_the_demo_leaves_nothing_behind(shared_server: RedisServer, capsys: pytest.CaptureFixture[str]) -> None:
    """On a real Redis the demo keeps to its own namespace, and removes it at the end."""
    with shared_server.client() as client:
        client.flushall()
        client.set("theirs", "1")

        assert exit_code("demo", "--redis-url", shared_server.url) == 0
        assert "Conserved: " in capsys.readouterr().out
        assert client.keys() == [b"theirs"]


def test_the_demo_says_when_a_unit_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    """A product whose units do not add up is named, and the demo exits 1."""
    row = {"stocked": 10, "available": 5, "reserved": 0, "sold": 4, "released": 0, "expired": 2}

    assert demo._report({"mug": row}, []) == 1
    assert "BROKEN: available + reserved + sold differs from what was stocked: mug" in capsys.readouterr().out


def test_the_demo_needs_a_redis_or_fakeredis(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without fakeredis the embedded demo says how to get it."""
    monkeypatch.setitem(sys.modules, "fakeredis", None)

    assert exit_code("demo") == 2
    assert "pip install 'expirer[demo]', or give --redis-url" in capsys.readouterr().err


def test_the_demo_fails_where_redis_fails(capsys: pytest.CaptureFixture[str]) -> None:
    """The demo exits 1 with one line where Redis cannot be reached."""
    assert exit_code("demo", "--redis-url", CLOSED) == 1
    assert capsys.readouterr().err.startswith(f"expirer: {CLOSED}: ")


def test_once_fails_where_the_operator_was_faster(shared_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """`once` exits 1 where a conflict left its work undone: there is no next tick to do it."""
    monkeypatch.setattr("expirer.worker.worker.Worker.run_once", lambda _: Tick(conflicts=1))

    assert exit_code("once", "--redis-url", shared_server.url) == 1
