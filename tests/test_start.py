"""What a program may be given at its start: closed streams, full disks, ASCII, ignored signals and early ones."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGTERM, Signals

import pytest
import redis

from tests.program import DEADLINE_S, Backlog, wait_until
from tests.servers import RedisServer, free_port

pytestmark = pytest.mark.slow

EXPIRER = f"{shlex.quote(sys.executable)} -m expirer"
CLOSED = ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"]


def environment(**variables: str) -> dict[str, str]:
    """Return the environment of the tests, without what makes Python write at once."""
    return {**{name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}, **variables}


def shell(command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a shell's command to its end."""
    words = ["/bin/bash", "-c", f"set -o pipefail; {command}"]
    return subprocess.run(
        words, env=environment(**variables), capture_output=True, text=True, errors="strict", check=False
    )


@pytest.mark.parametrize("streams", [*CLOSED, "2>/dev/full", ">/dev/full 2>/dev/full"])
def test_the_sidecar_expires_whatever_its_streams_are(
    shared_server: RedisServer, server_client: redis.Redis, streams: str
) -> None:
    """With closed or full streams `run` expires, and a stop is exit 0: a log line is lost, no tick."""
    backlog = Backlog(server_client)
    backlog.add(30)
    command = f"exec {EXPIRER} run --redis-url {shared_server.url} {streams}"
    with subprocess.Popen(["/bin/sh", "-c", command], env=environment()) as process:
        try:
            wait_until(lambda: not backlog.left())
            process.send_signal(SIGTERM)
            assert process.wait(DEADLINE_S) == 0
        finally:
            process.kill()
    backlog.assert_expired_once()


@pytest.mark.parametrize("streams", [*CLOSED, "2>/dev/full"])
def test_a_command_works_whatever_its_streams_are(
    shared_server: RedisServer, server_client: redis.Redis, streams: str
) -> None:
    """With closed streams a command does its work, and its exit code says so."""
    backlog = Backlog(server_client)
    backlog.add(3)

    for command in ("once", "audit", "resume --yes"):
        done = shell(f"{EXPIRER} {command} --redis-url {shared_server.url} {streams}")

        assert (0, True) == (done.returncode, "Traceback" not in done.stderr), (command, done.stderr)
    backlog.assert_expired_once()


@pytest.mark.parametrize(("command", "code"), [("run --interval 1d", 2), ("run --help", 0), ("--version", 0)])
def test_a_closed_error_stream_changes_no_exit_code(command: str, code: int) -> None:
    """Where nobody reads the mistake, the exit code tells of it all the same."""
    assert [code] * 2 == [shell(f"{EXPIRER} {command} {to}").returncode for to in ("2>&-", "2>/dev/full")]


@pytest.mark.parametrize("command", ["run --help", "--version"])
def test_a_full_disk_is_one_line(command: str) -> None:
    """Output that cannot be written is one line, and exit 1."""
    done = shell(f"{EXPIRER} {command} >/dev/full")

    assert (1, "expirer: No space left on device\n") == (done.returncode, done.stderr)


@pytest.mark.parametrize("command", ["demo | head -1", "run --help | :"])
def test_a_closed_pipe_is_no_traceback(command: str) -> None:
    """`expirer demo | head -1` ends quietly, with the code that a shell gives it."""
    done = shell(f"{EXPIRER} {command.replace('| :', '| exec true')}")

    assert (done.returncode in (0, 141), done.stderr) == (True, "")


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_every_terminal_can_print_every_text(
    shared_server: RedisServer, server_client: redis.Redis, encoding: str
) -> None:
    """What an ASCII terminal cannot show is escaped: in help, in ids, in the log, and in an error."""
    backlog = Backlog(server_client)
    id_ = backlog.shop.hold("tée…", 1, 4_000_000_000_000, "o1:tée…")
    url = f"--redis-url {shared_server.url}"

    for command, text in (
        ("run --help", "--redis-url"),
        (f"show {shlex.quote(id_)} {url}", "Active"),
        (f"show o9:tée… {url}", ""),
        (f"audit {url}", "found"),
    ):
        done = shell(f"{EXPIRER} {command} | cat", PYTHONIOENCODING=encoding, LC_ALL="C.UTF-8")

        assert "Traceback" not in done.stderr, command
        assert text in done.stdout, (command, done.stderr)


def loading(folder: Path) -> Path:
    """Make a module that says when it is loaded, in place of one that takes long; return what it writes."""
    mark = folder / "loading"
    (folder / "pydantic_settings.py").write_text(
        f"import pathlib, sys, time\npathlib.Path({str(mark)!r}).touch()\ntime.sleep(0.3)\n"
        f"sys.path.remove({str(folder)!r})\ndel sys.modules['pydantic_settings']\nimport pydantic_settings\n"
    )
    return mark


@pytest.mark.parametrize(
    ("command", "number", "code"),
    [
        ("run", SIGTERM, 0),
        ("run", SIGINT, 0),
        ("run", SIGHUP, 0),
        ("web", SIGTERM, 0),
        ("web", SIGINT, 0),
        ("status", SIGTERM, 143),
        ("status", SIGINT, 130),
        ("status", SIGHUP, 129),
    ],
)
def test_a_stop_while_modules_load_is_obeyed(
    tmp_path: Path, shared_server: RedisServer, command: str, number: Signals, code: int
) -> None:
    """A stop that comes before the program has begun ends it: `run` exits 0, a command never as if all were well."""
    mark = loading(tmp_path)
    flags = ("--redis-url", shared_server.url, "--http-port", str(free_port()))
    words = [sys.executable, "-m", "expirer", command, *flags]
    path = environment(PYTHONPATH=str(tmp_path))
    with subprocess.Popen(words, env=path, stderr=subprocess.PIPE) as process:
        wait_until(mark.exists)
        process.send_signal(number)
        _, err = process.communicate(timeout=DEADLINE_S)

    assert (code, False) == (process.returncode, b"Traceback" in err), err


def test_a_stop_at_any_moment_of_the_start_is_obeyed(shared_server: RedisServer) -> None:
    """Twenty stops, spread over the start from its first act on, are exit 0 each, without a traceback."""
    code = (
        "import signal; block = signal.pthread_sigmask\n"
        "def block_and_say(*what): block(*what); print(flush=True)\n"
        "signal.pthread_sigmask = block_and_say\n"
        "from expirer.__main__ import main; raise SystemExit(main())"
    )
    words = [sys.executable, "-c", code, "run", "--redis-url", shared_server.url]
    ends = []
    for n in range(20):
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.002 + n * 0.04)  # the moments are the point of it
            process.send_signal(SIGTERM if n % 2 else SIGINT)
            _, err = process.communicate(timeout=DEADLINE_S)
            ends.append((process.returncode, b"Traceback" in err))

    assert [(0, False)] * 20 == ends


@pytest.mark.parametrize("number", [SIGINT, SIGHUP])
@pytest.mark.parametrize("command", ["run", "tail"])
def test_a_signal_that_is_ignored_stays_ignored(
    shared_server: RedisServer, server_client: redis.Redis, command: str, number: Signals
) -> None:
    """What nohup, or the background of a script, has a program ignore stops neither the sidecar nor a command."""
    backlog = Backlog(server_client)
    script = f"trap '' {number.value}; exec {EXPIRER} {command} --redis-url {shared_server.url}"
    with subprocess.Popen(["/bin/sh", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: any(one["cmd"] in ("xread", "subscribe") for one in server_client.client_list()))
        process.send_signal(number)
        backlog.add(3)
        if command == "run":
            server_client.publish(backlog.shop.keys.wake, "1")
            wait_until(lambda: not backlog.left())
        else:
            shell(f"{EXPIRER} once --redis-url {shared_server.url}")
            assert process.stdout is not None
            assert b"o0:mug" in process.stdout.readline()
        process.send_signal(SIGTERM)

    assert process.returncode == 0
    backlog.assert_expired_once()


@pytest.mark.parametrize(("number", "code"), [(SIGINT, 130), (SIGTERM, 143), (SIGHUP, 129)])
def test_a_stop_is_no_traceback(shared_server: RedisServer, number: Signals, code: int) -> None:
    """Stopped in the midst of its work a command cleans up, and ends without a traceback."""
    with shared_server.client() as client:
        client.flushall()
        words = [sys.executable, "-m", "expirer", "demo", "--redis-url", shared_server.url]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            wait_until(lambda: any(key.endswith(b":reservations") for key in client.scan_iter()))
            process.send_signal(number)
            _, err = process.communicate(timeout=DEADLINE_S)

        assert (code, b"") == (process.returncode, err)
        assert client.keys() == []


@pytest.mark.skipif(
    subprocess.run(["/usr/bin/env", "unshare", "--fork", "--pid", "true"], capture_output=True, check=False).returncode
    != 0,
    reason="needs root, and util-linux",
)
@pytest.mark.parametrize(("command", "code"), [("run", 0), ("demo", 143)])
def test_the_first_process_of_a_container_can_be_stopped(shared_server: RedisServer, command: str, code: int) -> None:
    """As process 1, which gets no signal that it does not handle, it ends at SIGTERM."""
    words = ["/usr/bin/env", "unshare", "--fork", "--pid", "--kill-child", sys.executable, "-m", "expirer", command]
    with subprocess.Popen(
        [*words, "--redis-url", shared_server.url], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        first_words = process.stderr if command == "run" else process.stdout
        assert first_words is not None
        first_words.readline()
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(child), SIGTERM)
        process.communicate(timeout=DEADLINE_S)

    assert code == process.returncode


def test_tests_of_ctrl_c_run_in_the_background_too() -> None:
    """Where SIGINT and SIGHUP are ignored, as in a job of a script, the tests still can send them to the program."""
    test = f"{__file__}::{test_a_stop_is_no_traceback.__name__}"
    done = shell(f"trap '' INT HUP; exec {shlex.quote(sys.executable)} -m pytest -q -n0 --timeout 60 {test}")

    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout
