"""The report: RESULTS.md from the results."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from benchmarks.bench import Part
from benchmarks.figures import Round, number, numbers, spread
from benchmarks.results import PartResult, Results
from benchmarks.targets import TARGETS

_HEAD = """# Results

Made by `make bench` (`python -m benchmarks`), which anyone can run; do not edit. The systems took
turns within each round, on one machine, each case on a redis-server of its own. Figures are medians over the rounds,
with the least and the most; a ratio is taken within each round. A part that is measured alone changes only its own
section.
"""


_QUICK = "**A smoke test (`--quick`): one round, a tenth of the sizes that the text below names. It proves nothing.**\n"
_TARGETS, _SYSTEMS = "Targets", "Systems"


def update(before: str, results: Results, parts: dict[str, Part], *, is_quick: bool) -> str:
    """Return the report as Markdown: new sections for what was measured, the others as they were before."""
    found = re.split(r"^## (.*)\n\n", before, flags=re.MULTILINE)[1:]
    sections = {title: text.rstrip("\n") + "\n" for title, text in zip(found[::2], found[1::2], strict=True)}
    sections[_TARGETS] = _targets(results, sections.get(_TARGETS, ""))
    if results.systems:
        sections[_SYSTEMS] = _systems(results)
    sections |= {parts[name].title: _part(parts[name], result) for name, result in results.parts.items()}
    titles = [_TARGETS, _SYSTEMS, *(part.title for part in parts.values())]
    blocks = [f"## {title}\n\n{sections[title]}" for title in titles if title in sections]
    return "\n".join([_HEAD, *[_QUICK] * is_quick, *blocks])


def _targets(results: Results, before: str) -> str:
    kept = {tuple(line.split(" | ")[:2]): line for line in before.splitlines()}
    lines = [_table(("what", "target", "measured", ""), []).rstrip("\n")]
    for target in TARGETS:
        name = (f"| {target.what}", f"{target.sign} {target.limit:g} {target.against}")
        if target.part in results.parts or name not in kept:
            values = target.values(results.parts[target.part].rounds) if target.part in results.parts else []
            verdict = "not measured" if not values else "reached" if target.holds(values) else "**not reached**"
            kept[name] = " | ".join([*name, spread(values), f"{verdict} |"])
        lines.append(kept[name])
    return "\n".join([*lines, ""])


def _systems(results: Results) -> str:
    systems = [(name, one["version"], one["settings"]) for name, one in results.systems.items()]
    missing = [(name, "**missing**", reason) for name, reason in results.missing.items()]
    return _table(("system", "version", "settings"), [*systems, *missing])


def _part(part: Part, result: PartResult) -> str:
    cases = list(dict.fromkeys(case for figures in result.rounds for case in figures))
    count = len(result.rounds)
    machine = "; ".join(f"{name} {value}" for name, value in result.machine.items())
    lines = [
        f"{part.method}\n",
        f"Measured {result.measured_at}, {count} round{'s' * (count > 1)}, on: {machine}.\n",
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
