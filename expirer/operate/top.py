"""A live screen of backlog, lateness, rate, products and workers."""

from __future__ import annotations

import locale
import os
import signal
import sys
import time
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread

from redis.exceptions import RedisError

from expirer.config.settings import Settings
from expirer.connection.connect import connect_all
from expirer.connection.errors import describe, location
from expirer.contract.text import printable
from expirer.operate.screen import STATE_ROW, Page, lines
from expirer.operate.snapshot import Sampler, Snapshot
from expirer.operate.status import HEALTHY

try:
    import curses
except ImportError:  # not every build of Python has it
    curses = None  # type: ignore[assignment]

_PERIOD_S = 1.0
_KEY_MS = 100


def top(settings: Settings) -> int:
    """Draw until q; return the exit code."""
    if curses is None:
        return _refuse("this Python has no curses")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return _refuse("top needs a terminal")
    with suppress(locale.Error):  # a remote login may bring a locale that this host lacks; ASCII will do
        locale.setlocale(locale.LC_ALL, "")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    page = Page(location(settings), has_events=settings.events_maxlen > 0)
    sampler = Sampler(connect_all(settings).shards)
    seen: SimpleQueue[Snapshot | str] = SimpleQueue()
    try:
        curses.setupterm()
        why = "" if curses.tigetstr("cup") else "it cannot move its cursor"
        if not why:
            # A thread of its own: a server that hangs must not block the keyboard.
            Thread(target=_watch, args=(seen, sampler, settings), daemon=True).start()
            curses.wrapper(_draw, page, seen)
    except curses.error as error:
        why = str(error)
    terminal = f"this terminal (TERM={printable(os.environ.get('TERM', ''))})"
    return _refuse(f"{terminal} cannot show it: {why}") if why else 0


def _refuse(why: str) -> int:
    sys.stderr.write(f"expirer: {why}; expirer status prints the same once\n")
    return 1


def _watch(seen: SimpleQueue[Snapshot | str], sampler: Sampler, settings: Settings) -> None:
    """Put in one snapshot a period, or why there is none."""
    while True:
        began_at = time.monotonic()
        try:
            seen.put(sampler.sample())
        except Exception as error:  # noqa: BLE001  # without this thread the last snapshot would pass for the present
            name = "" if isinstance(error, RedisError | OSError) else f"{type(error).__name__}: "
            seen.put(f"{name}{describe(error, settings)}")
        took_s = time.monotonic() - began_at
        # A snapshot of many shards takes long; then the server rests as long as it worked, up to a period.
        time.sleep(max(_PERIOD_S - took_s, min(took_s, _PERIOD_S)))


def _draw(screen: curses.window, page: Page, seen: SimpleQueue[Snapshot | str]) -> None:
    encoding = locale.getencoding()
    is_unicode = "utf" in encoding.lower()
    with suppress(curses.error):
        curses.use_default_colors()
        curses.curs_set(0)
    screen.timeout(_KEY_MS)
    # A terminal that has gone away gives no key, at once and for ever.
    while screen.getch() not in (ord("q"), ord("Q")) and sys.stdin.isatty():
        while not seen.empty():
            page.add(seen.get())
        height, width = screen.getmaxyx()
        screen.erase()
        for row, line in enumerate(lines(page, width, height, is_unicode=is_unicode)):
            is_alarm = row == STATE_ROW and line != HEALTHY[:width]
            style = curses.A_REVERSE if is_alarm else curses.A_NORMAL
            with suppress(curses.error):  # there is no place for the cursor after the last corner
                screen.addstr(row, 0, line.encode(encoding, "replace").decode(encoding), style)
        screen.refresh()
