"""The page at `/`: how everything is, for people with a browser."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

import expirer
from expirer.config.settings import Settings
from expirer.connection.errors import location
from expirer.contract.reasons import ADVICE
from expirer.operate.server import is_live
from expirer.operate.snapshot import Picture
from expirer.operate.status import ShardStatus
from expirer.web.charts import HEIGHT, WIDTH, charts
from expirer.web.format import cut, figure, moment, span
from expirer.web.history import PERIOD_MS, Point
from expirer.web.quarantine import Quarantine

_FOLDER = Path(__file__).parent
STYLE = (_FOLDER / "page.css").read_text(encoding="utf-8")
CSP = (
    f"default-src 'none'; style-src 'sha256-{base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()}';"
    " img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The Content-Security-Policy that the page is made for: it loads nothing, and runs nothing."""

_STALE_MS = 3 * PERIOD_MS
"""A last picture that is older is not the present."""
_ROWS = 10
"""Of products and workers; of pauses half as many."""
_SHARDS = 64
_NAMED = 6
"""Shards that are named one by one."""
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
    "no live worker": "Nothing expires. Start a sidecar, or read in its log why it does not tick.",
    "the brake holds": "A worker has paused this by itself. Look at the reason; then expirer resume.",
    "the oldest overdue is too old": "The workers do not keep up. Look for processing_error in their logs.",
}


@dataclass(frozen=True, slots=True)
class View:
    """What is known when the page is asked for; moments are Unix ms by this machine's clock."""

    settings: Settings
    worker: str
    now: int
    silent_since: int
    """When the last picture was taken, or when the looking began."""
    picture: Picture | None = None
    quarantine: Quarantine = field(default_factory=Quarantine)
    """As it was at that picture."""
    points: tuple[Point, ...] = ()
    error: str = ""
    """Why there is no newer picture, without secrets."""
    is_still: bool = False
    """The page does not load itself anew."""

    @property
    def is_old(self) -> bool:
        """Whether the picture is not the present: an error says so, or Redis hangs."""
        return bool(self.error) or self.now - self.silent_since > _STALE_MS


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be known first; `state` is `good`, `held` or `bad`."""

    state: str
    headline: str
    items: tuple[tuple[str, str], ...] = ()
    """What, and more about it."""


def render(view: View) -> str:
    """Return the page as HTML."""
    picture, settings = view.picture, view.settings
    has_events = settings.events_maxlen > 0
    return _template().render(
        view=view,
        picture=picture,
        verdict=_verdict(view),
        style=Markup(STYLE),  # noqa: S704  # our own file, and the policy's hash is of these very bytes
        address=location(settings),
        version=expirer.__version__,
        period_s=PERIOD_MS // 1000,
        has_events=has_events,
        charts=charts(view.points, view.now, has_events=has_events) if view.points else (),
        width=WIDTH,
        height=HEIGHT,
        rows=_ROWS,
        advice=ADVICE,
        **({} if picture is None else _tables(picture, settings)),
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


def _tables(picture: Picture, settings: Settings) -> dict[str, object]:
    """Return what the template does not sum up by itself."""
    totals: Counter[str] = Counter()
    for shard in picture.shards:
        totals.update({name: shard.totals.get(name, 0) for name in _TOTALS})
    workers = [(worker, is_live(settings, worker["last_tick"], picture.now)) for worker in picture.workers]
    return {
        "next_at": min((shard.next_expires_at for shard in picture.shards if shard.next_expires_at), default=None),
        "totals": [(words, totals[name]) for name, words in _TOTALS.items()],
        "workers": workers,
        "live": sum(is_there for _, is_there in workers),
        # The sick first, then the busy.
        "shards": sorted(picture.shards, key=lambda shard: (not shard.problems, -shard.overdue, shard.shard))[:_SHARDS],
    }


def _verdict(view: View) -> Verdict:
    picture = view.picture
    if view.is_old:
        why = cut(view.error, _ERROR) or "no answer"
        below = "There are no figures yet." if picture is None else "All figures below are old."
        return Verdict("bad", "Cannot read Redis", ((f"For {span(view.now - view.silent_since)}: {why}", below),))
    if picture is None:
        return Verdict("held", "Waiting for Redis", (("No answer yet", ""),))
    pauses = tuple(_pauses(picture))
    sick = [shard for shard in picture.shards if shard.problems]
    if sick:
        return Verdict("bad", "Not healthy", (*_problems(sick, len(picture.shards)), *pauses))
    if pauses:
        held = sum(shard.paused is not None for shard in picture.shards)
        some = "" if held == len(picture.shards) else f" in {held:,} of {len(picture.shards):,} shards"
        return Verdict("held", f"Paused{some}", pauses)
    return Verdict("good", "Healthy")


def _problems(sick: Sequence[ShardStatus], shards: int) -> Iterator[tuple[str, str]]:
    where: defaultdict[str, list[int]] = defaultdict(list)
    for shard in sick:
        for problem in shard.problems:
            where[problem].append(shard.shard)
    for problem, numbers in where.items():
        place = _named(numbers, shards)
        yield f"{place}: {problem}" if place else problem[:1].upper() + problem[1:], _WHAT_TO_DO.get(problem, "")


def _pauses(picture: Picture) -> Iterator[tuple[str, str]]:
    """Tell who pauses what, since and until when, and why."""
    pauses = picture.pauses
    for pause, numbers in pauses[: _ROWS // 2]:
        since = "" if pause.since is None else f" since {moment(pause.since, picture.now)}"
        until = "until resumed" if pause.until is None else f"until {moment(pause.until, picture.now)}"
        place = _named(numbers, len(picture.shards))
        who = Markup("<bdi>{}</bdi>").format(cut(pause.by)) if pause.by else "nobody named"
        what = Markup("{}aused by {}{} {}").format(f"{place} p" if place else "P", who, since, until)
        yield what, cut(pause.reason) or "no reason"
    if len(pauses) > _ROWS // 2:
        yield f"And {len(pauses) - _ROWS // 2:,} more pauses", ""


def _named(numbers: Sequence[int], shards: int) -> str:
    """Return which shards are meant; nothing where there is only one."""
    if shards == 1:
        return ""
    if len(numbers) == shards:
        return "All shards"
    if len(numbers) > _NAMED:
        return f"{len(numbers):,} shards"
    return f"Shard{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"
