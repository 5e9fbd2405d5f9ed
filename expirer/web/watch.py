"""Looks at Redis every few seconds, whether anybody looks at the page or not."""

from __future__ import annotations

import time

from redis.exceptions import RedisError

from expirer.config.settings import Settings
from expirer.connection.connect import Servers
from expirer.connection.errors import describe, lacks_right
from expirer.operate.snapshot import Camera, Picture
from expirer.web.history import PERIOD_MS, History
from expirer.web.page import View
from expirer.web.probes import refused_keys
from expirer.web.quarantine import Quarantine, look
from expirer.worker.events import RightsJournal

_PERIOD_S = PERIOD_MS / 1000


class Watch:
    """Keeps the last picture, what was before, and why there is no newer one.

    One thread looks; any thread may ask for the view, which never waits for Redis.
    """

    def __init__(self, servers: Servers, settings: Settings, worker: str) -> None:
        self._servers = servers
        self._settings = settings
        self._worker = worker
        self._camera = Camera(servers, settings)
        self._history = History()
        self._seen: tuple[Picture | None, Quarantine, str, int] = (None, Quarantine(), "", _now())
        """The last picture, the quarantine then, the error since, and when that picture was taken, or the start."""
        self.missing_right = ""
        """Which right Redis refused at the last look that it answered; empty: none."""

    def look(self) -> None:
        """Look once; raise nothing, or the last picture would pass for the present."""
        try:
            picture = self._camera.take()
            quarantine = look(self._servers, self._settings, picture.shards)
        except Exception as error:  # noqa: BLE001  # see above
            name = "" if isinstance(error, (RedisError, OSError)) and str(error) else f"{type(error).__name__}: "
            before, quarantine, _, since = self._seen
            why = f"{name}{describe(error, self._settings)}"
            if lacks_right(error):
                if refused := refused_keys(self._servers, self._settings):
                    why = f"{why}; it may not use {', '.join(refused)}"
                self.missing_right = why
            self._seen = (before, quarantine, why, since)
        else:
            now = _now()
            self._history.add(picture, now)
            self._seen = (picture, quarantine, "", now)
            self.missing_right = quarantine.error if quarantine.lacks_right else ""

    def run(self, journal: RightsJournal) -> None:
        """Look for ever; where a look takes long, the server rests as long, up to a period."""
        while True:
            began_at = time.monotonic()
            self.look()
            journal.tell(self.missing_right)
            took_s = time.monotonic() - began_at
            time.sleep(max(_PERIOD_S - took_s, min(took_s, _PERIOD_S)))

    def view(self, *, is_still: bool = False) -> View:
        """Return what a page shows now."""
        picture, quarantine, error, silent_since = self._seen
        return View(
            settings=self._settings,
            worker=self._worker,
            now=_now(),
            picture=picture,
            quarantine=quarantine,
            points=self._history.points,
            error=error,
            silent_since=silent_since,
            is_still=is_still,
        )


def _now() -> int:
    return time.time_ns() // 1_000_000
