"""The report: RESULTS.md from the results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.bars import BARS
from benchmarks.bench import Part
from benchmarks.figures import Round, number, numbers, spread
from benchmarks.results import PartResult, Results

_HEAD = """# Results

Made by `make bench` (`python -m benchmarks`), which anyone can run; do not edit. The systems took
turns within each round, on one machine, each case on a redis-server of its own. Figures are medians over the rounds,
with the least and the most; a ratio is taken within each round. `benchmarks/results.json` has every round.
"""


_QUICK = "**A smoke test (`--quick`): one round, a tenth of the sizes that the text below names. It proves nothing.**\n"


def render(results: Results, parts: dict[str, Part], *, is_quick: bool) -> str:
    """Return the report as Markdown."""
    blocks = [
        _HEAD,
        *[_QUICK] * is_quick,
        "## The bars\n",
        _bars(results),
        "## Machine and versions\n",
        _machines(results, parts),
        _systems(results),
    ]
    for name, part in parts.items():
        if name in results.parts:
            blocks += [_part(part, results.parts[name])]
    return "\n".join(blocks)


def _bars(results: Results) -> str:
    rows = []
    for bar in BARS:
        values = bar.values(results.parts[bar.part].rounds) if bar.part in results.parts else []
        verdict = "not measured" if not values else "holds" if bar.holds(values) else "**does not hold**"
        rows.append((bar.what, f"{bar.sign} {bar.limit:g} {bar.against}", spread(values), verdict))
    return _table(("what", "bar", "measured", ""), rows)


def _machines(results: Results, parts: dict[str, Part]) -> str:
    """Return a column for each machine; the same twice is one."""
    measured_on: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for name, part in parts.items():
        if name in results.parts:
            measured_on.setdefault(tuple(results.parts[name].machine.items()), []).append(part.title)
    titles = ("measured", *(", ".join(names) for names in measured_on.values()))
    machines = [dict(machine) for machine in measured_on]
    names = dict.fromkeys(name for machine in machines for name in machine)
    return _table(titles, ((name, *(machine.get(name, "") for machine in machines)) for name in names))


def _systems(results: Results) -> str:
    systems = [(name, one["version"], one["settings"]) for name, one in results.systems.items()]
    missing = [(name, "**missing**", reason) for name, reason in results.missing.items()]
    return _table(("system", "version", "settings"), [*systems, *missing])


def _part(part: Part, result: PartResult) -> str:
    cases = list(dict.fromkeys(case for figures in result.rounds for case in figures))
    count = len(result.rounds)
    lines = [
        f"## {part.title}\n",
        f"{part.method} Measured {result.measured_at}, {count} round{'s' * (count > 1)}.\n",
    ]
    if part.chart:
        lines.append(f"![{part.title}](charts/{part.chart})\n")
    head = ["", *part.units.values()] + ([part.ratio.title] if part.ratio else [])
    rows = [
        [case, *(_cell(result.rounds, case, name) for name in part.units), *_ratio(part, result.rounds, case)]
        for case in cases
    ]
    return "\n".join([*lines, _table(head, rows)])


def _cell(rounds: Sequence[Round], case: str, name: str) -> str:
    values = [figures[case][name] for figures in rounds if name in figures.get(case, {})]
    if any(isinstance(value, str) for value in values):
        return "; ".join(sorted({str(value) for value in values}))
    return spread(numbers(rounds, case, name))


def _ratio(part: Part, rounds: Sequence[Round], case: str) -> list[str]:
    if part.ratio is None:
        return []
    base, name = part.ratio.baseline(case), part.ratio.figure
    both = [figures for figures in rounds if name in figures.get(case, {}) and name in figures.get(base, {})]
    return [spread([number(figures[case], name) / number(figures[base], name) for figures in both])]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
