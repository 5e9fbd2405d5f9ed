"""What `expirer top` shows, on any terminal, and how it leaves."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest
import redis

from expirer import cli
from expirer.config.settings import Settings
from expirer.connection.connect import Servers
from expirer.contract.clock import worker_clock
from expirer.operate.snapshot import Sampler, Snapshot
from expirer.operate.top import _watch
from tests.conftest import Tool
from tests.inventory import Inventory
from tests.program import DEADLINE_S, wait_until
from tests.servers import RedisServer

pytestmark = pytest.mark.slow

HOUR_MS = 60 * 60 * 1000


def test_no_failure_ends_the_watch() -> None:
    """Whatever error there is, it is shown: a watch that had died would leave the last snapshot on the screen."""

    class Broken(Sampler):
        def __init__(self) -> None:
            super().__init__(Servers.of(redis.Redis(), Settings()).shards)
            self.failures: list[BaseException] = [OverflowError("too much"), TimeoutError(), SystemExit()]

        def sample(self) -> Snapshot:
            raise self.failures.pop(0)

    seen: SimpleQueue[Snapshot | str] = SimpleQueue()
    with pytest.raises(SystemExit):
        _watch(seen, Broken(), Settings())
    assert [seen.get(), seen.get()] == ["OverflowError: too much", "TimeoutError"]


class Terminal:
    """`expirer top` at a terminal of 80 columns and 24 lines; what it writes is kept."""

    def __init__(self, url: str, **environment: str) -> None:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.before = termios.tcgetattr(theirs)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("EXPIRER_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "expirer", "top", "--redis-url", url],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env={**kept, "TERM": "xterm", "LC_ALL": "C.UTF-8", **environment},
        )
        self._ours, self._theirs = ours, theirs
        self.written = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while data := os.read(self._ours, 4096):
            self.written += data

    def types(self, text: str) -> None:
        """Press keys."""
        os.write(self._ours, text.encode())

    def settings(self) -> list[object]:
        """Return the terminal's settings: echo, line by line and so on."""
        return termios.tcgetattr(self._theirs)

    def close(self) -> None:
        """End what still runs."""
        self.process.kill()
        self.process.wait()


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    """Return a function that opens a terminal with the program on it."""
    opened: list[Terminal] = []

    def start(url: str, **environment: str) -> Terminal:
        opened.append(Terminal(url, **environment))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def press_q(terminal: Terminal) -> None:
    """Press q."""
    terminal.types("q")


def press_ctrl_c(terminal: Terminal) -> None:
    """Send what Ctrl-C sends to the program in front."""
    terminal.process.send_signal(signal.SIGINT)


def send_sigterm(terminal: Terminal) -> None:
    """Send SIGTERM."""
    terminal.process.send_signal(signal.SIGTERM)


@pytest.mark.parametrize(("leave", "code"), [(press_q, 0), (press_ctrl_c, 130), (send_sigterm, 0)])
@pytest.mark.parametrize("is_hanging", [False, True])
def test_it_leaves_cleanly(
    own_server: RedisServer,
    terminal: Callable[..., Terminal],
    leave: Callable[[Terminal], None],
    code: int,
    is_hanging: bool,  # noqa: FBT001  # a case
) -> None:
    """By q, Ctrl-C and SIGTERM it leaves, while Redis answers and while it hangs, and the terminal is as it was."""
    opened = terminal(own_server.url)
    wait_until(lambda: b"healthy" in opened.written or b"no live worker" in opened.written)
    if is_hanging:
        own_server.signal(signal.SIGSTOP)
    leave(opened)

    assert code == opened.process.wait(DEADLINE_S)
    assert opened.before == opened.settings()
    assert b"Traceback" not in opened.written


def test_no_redis_is_waited_for(terminal: Callable[..., Terminal]) -> None:
    """Where no Redis answers it says so without the password, and waits; q leaves."""
    opened = terminal("redis://ann:hunter2@127.0.0.1:1/0")
    wait_until(lambda: b"no answer for 0 s" in opened.written)
    press_q(opened)

    assert opened.process.wait(DEADLINE_S) == 0
    assert b"hunter2" not in opened.written


def test_an_unknown_terminal_is_one_line(own_server: RedisServer, terminal: Callable[..., Terminal]) -> None:
    """A TERM that nobody knows is one line, exit 1."""
    opened = terminal(own_server.url, TERM="abacus")

    assert opened.process.wait(DEADLINE_S) == 1
    wait_until(lambda: b"prints the same once" in opened.written)
    assert opened.written.startswith(b"expirer: this terminal (TERM=abacus) cannot show it")


@pytest.mark.parametrize("term", ["", "dumb"])
def test_a_terminal_without_a_cursor_is_one_line(
    own_server: RedisServer, terminal: Callable[..., Terminal], term: str
) -> None:
    """No TERM, or one that cannot move its cursor, is one line, exit 1."""
    opened = terminal(own_server.url, TERM=term)

    assert opened.process.wait(DEADLINE_S) == 1
    wait_until(lambda: b"prints the same once" in opened.written)
    assert opened.written.startswith(f"expirer: this terminal (TERM={term}) cannot show it".encode())
    assert opened.written.count(b"\n") == 1


def test_a_locale_that_is_not_installed_is_drawn_in_ascii(
    own_server: RedisServer, terminal: Callable[..., Terminal]
) -> None:
    """A login from afar may bring a locale that the host does not have."""
    opened = terminal(own_server.url, LC_ALL="xx_YY.UTF-8")
    wait_until(lambda: b"at most 0" in opened.written)
    press_q(opened)

    assert opened.process.wait(DEADLINE_S) == 0
    assert opened.written.isascii()


def test_a_closed_input_is_one_line() -> None:
    """Where standard input or output was closed before the start it says what to use instead."""
    for closed in ("<&-", ">&-"):
        command = f"{sys.executable} -m expirer top --redis-url redis://127.0.0.1:1/0 {closed}"
        done = subprocess.run(["/bin/sh", "-c", command], stdin=subprocess.DEVNULL, capture_output=True, check=False)

        assert done.returncode == 1
        assert done.stderr == b"expirer: top needs a terminal; expirer status prints the same once\n"


def test_a_terminal_that_goes_away_ends_it(own_server: RedisServer) -> None:
    """It ends when the connection to the terminal is lost, even without a SIGHUP."""
    ours, theirs = pty.openpty()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EXPIRER_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "expirer", "top", "--redis-url", own_server.url],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        env={**kept, "TERM": "xterm", "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    os.close(theirs)
    try:
        written = b""
        while b"at most 0" not in written:
            written += os.read(ours, 4096)
        os.close(ours)

        assert process.wait(DEADLINE_S) in (1, 120)  # 120: Python could not say why either
    finally:
        process.kill()
        process.wait()


def test_without_a_terminal_it_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """In a pipe it says what to use instead, exit 1."""
    assert cli.main(["top", "--redis-url", "redis://127.0.0.1:1/0"]) == 1
    assert capsys.readouterr() == ("", "expirer: top needs a terminal; expirer status prints the same once\n")


class Tmux:
    """A terminal whose screen can be captured."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    def run(self, *arguments: str) -> str:
        """Run one tmux command."""
        ours = ("COLUMNS", "EXPIRER_", "LINES", "TMUX")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        environment = {**kept, "LC_ALL": "C.UTF-8"}
        command = ["tmux", "-u", "-S", str(self._socket), "-f", os.devnull, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        return done.stdout

    def start(self, url: str) -> None:
        """Run the program at a screen of 80 columns and 24 lines, then say its exit code."""
        program = f"trap : INT; {sys.executable} -m expirer top --redis-url '{url}'; echo code $?; exec cat"
        self.run("new-session", "-d", "-x", "80", "-y", "24", program)

    def screen(self) -> str:
        """Return the screen."""
        return self.run("capture-pane", "-p")

    def wait_for(self, *patterns: str) -> None:
        """Return as soon as all are on one screen; it may be seen while it is being drawn."""

        def shows_all() -> bool:
            screen = self.screen()
            return all(re.search(pattern, screen, re.MULTILINE) for pattern in patterns)

        wait_until(shows_all)


@pytest.fixture
def tmux(tool: Tool, tmp_path: Path) -> Iterator[Tmux]:
    """Return a terminal multiplexer of its own."""
    tool("tmux")
    tmux = Tmux(tmp_path / "tmux")
    yield tmux
    tmux.run("kill-server")


def test_an_operators_screen(own_server: RedisServer, tmux: Tmux) -> None:
    """The screen shows what is there, follows a resize, outlives an outage, and gives the terminal back on q."""
    with own_server.client() as client:
        shop = Inventory(client)
        now = int(worker_clock())
        shop.stock("mug", 5, 5)
        shop.hold("mug", 2, now - HOUR_MS)
        shop.hold("mug", 3, now + HOUR_MS)
        client.zadd(shop.keys.workers, {"shop-1:7:abcd": now})
        tmux.start(own_server.url)
        tmux.wait_for(
            "^the oldest overdue is too old$",
            "^active       2, 0 quarantined$",
            r"^overdue      1, 2 units, the oldest for 3,6\d\d\.\d{3} s$",
            "^mug +5 +2$",
            "^shop-1:7:abcd ",
        )
        shop.assert_conserved({"mug": 10})

        tmux.run("resize-window", "-x", "60", "-y", "12")
        tmux.wait_for("^.{60}$")
        assert len(tmux.screen().splitlines()) == 12

    own_server.stop()
    tmux.wait_for("^no answer for", "^active       2, 0 quarantined$")
    own_server.start()
    tmux.wait_for("no live worker", "^active       0, 0 quarantined$")

    tmux.run("send-keys", "q")
    tmux.wait_for("^code 0$")
    assert "active" not in tmux.screen()


def test_ctrl_c_at_the_keyboard(own_server: RedisServer, tmux: Tmux) -> None:
    """Typed at the keyboard, Ctrl-C ends it with 130 and gives the terminal back."""
    tmux.start(own_server.url)
    tmux.wait_for("no live worker")
    tmux.run("send-keys", "C-c")
    tmux.wait_for("^code 130$")

    assert tmux.screen().splitlines()[0] == "code 130"


def test_a_hang_is_said_before_it_is_an_error(own_server: RedisServer, tmux: Tmux) -> None:
    """A server that hangs is told long before its time-out, and its return too."""
    tmux.start(f"{own_server.url}?socket_timeout=600")
    tmux.wait_for("no live worker")
    own_server.signal(signal.SIGSTOP)
    tmux.wait_for("^no answer for")
    own_server.signal(signal.SIGCONT)
    tmux.wait_for("no live worker")


def test_a_lasting_error_is_said(own_server: RedisServer, tmux: Tmux) -> None:
    """An index of another type, or a missing right, is shown as an outage is."""
    with own_server.client() as client:
        client.set(Inventory(client).keys.index, "x")
        tmux.start(own_server.url)
        tmux.wait_for("^no answer for.*WRONGTYPE")
        client.delete(Inventory(client).keys.index)
        tmux.wait_for("no live worker")
        client.execute_command("ACL", "SETUSER", "default", "-xrevrange")
        tmux.wait_for("^no answer for.*xrevrange")
