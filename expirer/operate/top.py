"""A live screen of backlog, lateness, rate, products and workers."""

from __future__ import annotations

import locale
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import Any

from redis.exceptions import RedisError

from expirer.connect import connect, location, redact
from expirer.operate.picture import Camera
from expirer.operate.screen import HEALTHY, STATE_ROW, View, lines
from expirer.operate.terminal import shown
from expirer.settings import Settings

_PERIOD_S = 1.0
_KEY_MS = 100


def top(settings: Settings) -> int:
    """Draw until q; return the exit code."""
    try:
        import curses  # noqa: PLC0415  # not every build of Python has it
    except ImportError:
        return _refuse("this Python has no curses")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return _refuse("top needs a terminal")
    locale.setlocale(locale.LC_ALL, "")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    view = View(location(settings))
    camera = Camera(connect(settings), settings)
    try:
        curses.setupterm()
        # A thread of its own: a server that hangs must not hold the keyboard.
        threading.Thread(target=_watch, args=(view, camera, settings), daemon=True).start()
        curses.wrapper(_draw, view)
    except curses.error as error:
        return _refuse(f"this terminal (TERM={shown(os.environ.get('TERM', ''))}) cannot show it: {error}")
    return 0


def _refuse(why: str) -> int:
    sys.stderr.write(f"expirer: {why}; expirer status prints the same once\n")
    return 1


def _watch(view: View, camera: Camera, settings: Settings) -> None:
    while True:
        began_at = time.monotonic()
        try:
            view.add(camera.take())
        except (RedisError, OSError) as error:
            if not view.error:
                view.silent_since = began_at
            view.error = redact(str(error), settings)
        time.sleep(max(_PERIOD_S - (time.monotonic() - began_at), 0.1))


def _draw(screen: Any, view: View) -> None:  # noqa: ANN401  # curses names no type
    import curses  # noqa: PLC0415

    encoding = locale.getencoding()
    is_unicode = "utf" in encoding.lower()
    with suppress(curses.error):
        curses.use_default_colors()
        curses.curs_set(0)
    screen.timeout(_KEY_MS)
    while screen.getch() not in (ord("q"), ord("Q")):
        height, width = screen.getmaxyx()
        screen.erase()
        for row, line in enumerate(lines(view, width, height, is_unicode=is_unicode)):
            style = curses.A_REVERSE if row == STATE_ROW and line != HEALTHY else curses.A_NORMAL
            with suppress(curses.error):  # there is no place for the cursor after the last corner
                screen.addstr(row, 0, line.encode(encoding, "replace").decode(encoding), style)
        screen.refresh()
