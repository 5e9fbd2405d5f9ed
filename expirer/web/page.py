"""The page at `/`: the state of the inventory, for people with a browser."""

from __future__ import annotations

import base64
import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from expirer.config.settings import Settings
from expirer.connection.errors import location
from expirer.contract.reasons import ADVICE
from expirer.operate.snapshot import Snapshot
from expirer.operate.status import BRAKED, NO_LIVE_WORKER, TOO_OLD, ShardStatus
from expirer.version import __version__
from expirer.web.charts import HEIGHT, PERIOD_MS, WIDTH, charts
from expirer.web.format import cut, figure, moment, span
from expirer.web.watch import Reading

_FOLDER = Path(__file__).parent
STYLE = (_FOLDER / "page.css").read_text(encoding="utf-8")
CSP = (
    f"default-src 'none'; style-src 'sha256-{base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()}';"
    " img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The page's Content-Security-Policy: it loads nothing, and runs nothing."""

_ROWS = 10
"""Of products and workers; of pauses half as many."""
_SHARDS = 64
_NAMED = 6
"""More shards than this are counted, not named."""
_ERROR = 300
_TOTALS = {
    "expired": "reservations expired",
    "units": "units given back",
    "skipped": "skipped: had ended already",
    "rescheduled": "rescheduled: had been extended",
    "quarantined": "sent to quarantine",
    "batches": "batches",
}
_WHAT_TO_DO = {
    NO_LIVE_WORKER: "Nothing expires. Start a sidecar, or read in its log why it does not tick.",
    BRAKED: "A worker has paused this by itself. Read the reason; then expirer resume.",
    TOO_OLD: "The workers do not keep up. Look for processing_error in their logs.",
}


@dataclass(frozen=True, slots=True)
class Page:
    """What a page shows, and the moment at which it is shown: Unix ms by this machine's clock."""

    settings: Settings
    reading: Reading
    now: int
    is_still: bool = False
    """The page does not refresh itself."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What people must know first; `state` is `good`, `paused` or `bad`."""

    state: str
    headline: str
    items: tuple[tuple[str, str], ...] = ()
    """A fact, and more about it."""


def render(page: Page) -> str:
    """Return the page as HTML."""
    reading, settings = page.reading, page.settings
    has_events = settings.events_maxlen > 0
    return _template().render(
        page=page,
        reading=reading,
        snapshot=reading.snapshot,
        is_old=reading.is_old(page.now),
        verdict=_verdict(page),
        style=Markup(STYLE),  # noqa: S704  # our own file, and the policy's hash is of these very bytes
        address=location(settings),
        version=__version__,
        period_s=PERIOD_MS // 1000,
        has_events=has_events,
        charts=charts(reading.points, page.now, has_events=has_events) if reading.points else (),
        width=WIDTH,
        height=HEIGHT,
        rows=_ROWS,
        advice=ADVICE,
        **({} if reading.snapshot is None else _tables(reading.snapshot)),
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(cut=cut, span=span, moment=moment, figure=figure)
    return environment.get_template("page.html")


def _tables(snapshot: Snapshot) -> dict[str, object]:
    """Return what the template cannot sum up by itself."""
    # Unhealthy shards first, then busy ones.
    shards = sorted(snapshot.shards, key=lambda shard: (not shard.problems, -shard.overdue, shard.shard))
    return {
        "next_at": min((shard.next_expires_at for shard in snapshot.shards if shard.next_expires_at), default=None),
        "totals": [
            (words, sum(shard.totals.get(name, 0) for shard in snapshot.shards)) for name, words in _TOTALS.items()
        ],
        "live": sum(worker.is_live for worker in snapshot.workers),
        "shards": shards[:_SHARDS],
    }


def _verdict(page: Page) -> Verdict:
    reading, snapshot = page.reading, page.reading.snapshot
    if reading.is_old(page.now):
        why = cut(reading.error, _ERROR) or "no answer"
        below = "There are no figures yet." if snapshot is None else "All figures below are old."
        return Verdict("bad", "Cannot read Redis", ((f"For {span(page.now - reading.at)}: {why}", below),))
    if snapshot is None:
        return Verdict("paused", "Waiting for Redis", (("No answer yet", ""),))
    pauses = tuple(_pauses(snapshot))
    sick = [shard for shard in snapshot.shards if shard.problems]
    if sick:
        return Verdict("bad", "Not healthy", (*_problems(sick, len(snapshot.shards)), *pauses))
    if pauses:
        paused = sum(shard.paused is not None for shard in snapshot.shards)
        some = "" if paused == len(snapshot.shards) else f" in {paused:,} of {len(snapshot.shards):,} shards"
        return Verdict("paused", f"Paused{some}", pauses)
    return Verdict("good", "Healthy")


def _problems(sick: Sequence[ShardStatus], shards: int) -> Iterator[tuple[str, str]]:
    where: defaultdict[str, list[int]] = defaultdict(list)
    for shard in sick:
        for problem in shard.problems:
            where[problem].append(shard.shard)
    for problem, numbers in where.items():
        place = _named(numbers, shards)
        text = cut(problem, _ERROR)
        yield f"{place}: {text}" if place else text[:1].upper() + text[1:], _WHAT_TO_DO.get(problem, "")


def _pauses(snapshot: Snapshot) -> Iterator[tuple[str, str]]:
    """Say who pauses what, since and until when, and why."""
    pauses = snapshot.pauses
    for pause, numbers in pauses[: _ROWS // 2]:
        since = "" if pause.since is None else f" since {moment(pause.since, snapshot.now)}"
        until = "until resumed" if pause.until is None else f"until {moment(pause.until, snapshot.now)}"
        place = _named(numbers, len(snapshot.shards))
        who = Markup("<bdi>{}</bdi>").format(cut(pause.by)) if pause.by else "nobody named"
        how = "braked" if pause.is_brake else "paused"
        what = Markup("{} by {}{} {}").format(f"{place} {how}" if place else how.capitalize(), who, since, until)
        yield what, cut(pause.reason) or "no reason"
    if len(pauses) > _ROWS // 2:
        yield f"And {len(pauses) - _ROWS // 2:,} more pauses", ""


def _named(numbers: Sequence[int], shards: int) -> str:
    """Name the shards; empty if there is only one."""
    if shards == 1:
        return ""
    if len(numbers) == shards:
        return "All shards"
    if len(numbers) > _NAMED:
        return f"{len(numbers):,} shards"
    return f"Shard{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"
