"""The targets: what must be reached, as figures of one round, and whether it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks import audit, drain, fleet, flood, foreground, lateness, scaling
from benchmarks.figures import Round, number
from benchmarks.systems import BULLMQ_100, CELERY, EXPIRER, RAW


@dataclass(frozen=True, slots=True)
class Target:
    """One promise; `measure` raises KeyError where a round lacks what it compares."""

    what: str
    part: str
    sign: str
    limit: float
    measure: Callable[[Round], float]
    against: str
    """Its unit, or what it is a ratio to."""

    def values(self, rounds: Sequence[Round]) -> list[float]:
        """Return the figure of every round that has it."""
        found = []
        for figures in rounds:
            try:
                found.append(self.measure(figures))
            except (KeyError, ZeroDivisionError):
                continue
        return found

    def holds(self, values: Sequence[float]) -> bool:
        """Say whether the median reaches it."""
        return median(values) >= self.limit if self.sign == "≥" else median(values) <= self.limit


def _ratio(figure: str, case: str, to: str) -> Callable[[Round], float]:
    return lambda figures: number(figures[case], figure) / number(figures[to], figure)


def _fleet_ratio(figure: str) -> Callable[[Round], float]:
    return lambda figures: number(_fleet(figures), figure) / number(figures[fleet.ONE], figure)


def _fleet(figures: Round) -> dict[str, float | str | list[float]]:
    return next(values for case, values in figures.items() if case != fleet.ONE)


def _growth(is_family: Callable[[str], bool]) -> Callable[[Round], float]:
    """Return the cost of the largest case over that of the smallest."""

    def measure(figures: Round) -> float:
        family = sorted(filter(is_family, figures), key=scaling.size)
        return number(figures[family[-1]], "usec") / number(figures[family[0]], "usec")

    return measure


_OURS = foreground.batch_case(100)
_FLOOD = lateness.flood_case(EXPIRER), lateness.flood_case(BULLMQ_100)

TARGETS = (
    Target("Drain", "drain", "≥", 0.8, _ratio("rate", drain.LARGE, drain.RAW_LARGE), "× raw Redis"),
    Target("Drain", "drain", "≥", 10, _ratio("rate", EXPIRER, BULLMQ_100), f"× {BULLMQ_100}"),
    Target(
        "Drain with a JSON line each",
        "drain",
        "≥",
        0.5,
        _ratio("rate", drain.LOGGED, drain.LARGE),
        "× the silent drain",
    ),
    Target("Lateness, 500 over 10 s, p99", "lateness", "≤", 1.0, _ratio("p99", EXPIRER, CELERY), f"× {CELERY}"),
    Target(
        "Lateness, 500 over 10 s, p99", "lateness", "≤", 0.05, _ratio("p99", EXPIRER, BULLMQ_100), f"× {BULLMQ_100}"
    ),
    Target("Lateness, 1,000 a second, p99", "lateness", "≤", 0.2, _ratio("p99", *_FLOOD), f"× {BULLMQ_100}"),
    Target("A shorter hold, p99", "lateness", "≤", 2, _ratio("p99", lateness.SHORTER, EXPIRER), "× 500 over 10 s"),
    *(
        Target(
            f"Foreground {verb}, p99", "foreground", "≤", limit, _ratio(f"{verb}_during_p99", _OURS, to), f"× {against}"
        )
        for to, limit, against in ((RAW, 2, "the raw replay"), (foreground.ONE_SCRIPT, 0.05, "one script"))
        for verb in foreground.VERBS
    ),
    Target("Server time, largest backlog", "scaling", "≤", 1.3, _growth(scaling.is_backlog), "× the smallest"),
    Target("Server time, most not due", "scaling", "≤", 1.3, _growth(scaling.is_beside), "× the fewest"),
    Target("Idle", "idle", "≤", 0.1, lambda figures: number(figures[EXPIRER], "per_s"), "client commands/s"),
    Target("Peak RSS, a million drained", "memory", "≤", 50, lambda figures: number(figures[EXPIRER], "rss"), "MB"),
    Target("Fleet, client commands/s", "fleet", "≤", 2, _fleet_ratio("per_s"), f"× {fleet.ONE}"),
    Target("Fleet, lateness p99", "fleet", "≤", 1.5, _fleet_ratio("p99"), f"× {fleet.ONE}"),
    *(
        Target(f"Audit, {verb} p99", "audit", "≤", 2, _ratio(f"{verb}_p99", audit.BESIDE, audit.IDLE), "× idle")
        for verb in foreground.VERBS
    ),
    Target(
        "Audit of a million, peak RSS", "audit", "≤", 3, _ratio("rss", audit.BESIDE, audit.EMPTY), "× an empty one's"
    ),
    Target(
        "A flood on the HTTP port, p99",
        "flood",
        "≤",
        1.5,
        _ratio("p99", flood.OURS, flood.BYSTANDER),
        "× on another's",
    ),
    Target("Fleet, released twice", "fleet", "≤", 0, lambda figures: number(_fleet(figures), "twice"), "reservations"),
)
