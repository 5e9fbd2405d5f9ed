"""The charts of the report, as SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import foreground, lateness, scaling
from benchmarks.figures import CDF_POINTS, Figures, Round, number, numbers
from benchmarks.results import Results
from benchmarks.systems import EXPIRER, RAW

_OURS, _RAW, _OTHER = "#c0392b", "#2c3e50", "#7f8c8d"
_OTHERS = "cycler('color', ['#2471a3', '#85c1e9', '#239b56', '#b7950b', '#7d3c98'])"
_LEAST_MS = 0.1
_STYLE = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.prop_cycle": _OTHERS,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 9,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "expirer",
}


def draw(results: Results, folder: Path) -> None:
    """Draw the charts of the parts that were measured."""
    folder.mkdir(exist_ok=True)
    mpl.use("svg")
    makers: dict[str, Callable[[Sequence[Round], Path], None]] = {
        "lateness": _lateness,
        "drain": _drain,
        "foreground": _foreground,
        "scaling": _cost,
    }
    names = {"scaling": "cost"}
    with mpl.rc_context(_STYLE):
        for part, make in makers.items():
            if part in results.parts:
                make(results.parts[part].rounds, folder / f"{names.get(part, part)}.svg")


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def _cases(rounds: Sequence[Round]) -> list[str]:
    return list(rounds[0])


def _list(figures: Figures, name: str) -> list[float]:
    value = figures[name]
    if not isinstance(value, list):
        raise TypeError(f"{name} should be a list")
    return value


def _lateness(rounds: Sequence[Round], path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, width_ratios=(3, 2))
    shares = [100 * point / CDF_POINTS for point in range(1, CDF_POINTS + 1)]
    for case in _cases(rounds):
        curves = [_list(figures[case], "curve") for figures in rounds if case in figures]
        late = [max(_LEAST_MS, median(values)) for values in zip(*curves, strict=True)]
        axis = axes[int(lateness.FLOOD in case)]
        label = case.replace(f", {lateness.FLOOD}", "").replace(
            "a shorter hold written while it sleeps", "shorter hold"
        )
        is_ours = case.startswith(EXPIRER)
        axis.plot(
            late,
            shares,
            label=label,
            linewidth=2.2 if is_ours else 1.3,
            color=_OURS if is_ours else None,
            linestyle="--" if case == lateness.SHORTER else "-",
        )
    for axis, title in zip(axes, ("500 due over 10 s", lateness.FLOOD), strict=True):
        axis.set(xscale="log", xlabel="lateness, ms", title=title)
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)
    axes[0].set_ylabel("released, %")
    _save(figure, path)


def _drain(rounds: Sequence[Round], path: Path) -> None:
    measured = (case for case in _cases(rounds) if numbers(rounds, case, "rate"))
    cases = sorted(measured, key=lambda case: median(numbers(rounds, case, "rate")))
    figure, axis = plt.subplots(figsize=(9, 0.34 * len(cases) + 1))
    for place, case in enumerate(cases):
        rates = numbers(rounds, case, "rate")
        middle = median(rates)
        color = _OURS if case.startswith(EXPIRER) else _RAW if case.startswith(RAW) else _OTHER
        axis.barh(place, middle, color=color, xerr=[[middle - min(rates)], [max(rates) - middle]], capsize=2)
        axis.annotate(f"{middle:,.0f}", (max(rates), place), (6, 0), textcoords="offset points", va="center")
    axis.set(xlabel="reservations per second", yticks=range(len(cases)), yticklabels=cases)
    axis.margins(x=0.12)
    _save(figure, path)


def _foreground(rounds: Sequence[Round], path: Path) -> None:
    cases = [RAW, *(foreground.batch_case(batch) for batch in foreground.BATCHES), foreground.ONE_SCRIPT]
    figure, grid = plt.subplots(2, 3, figsize=(11, 5.5), sharey=True, constrained_layout=True)
    panels: list[Axes] = list(grid.flat)
    for axis, case in zip(panels, cases, strict=True):
        figures = rounds[0][case]
        for verb in foreground.VERBS:
            line = _list(figures, f"{verb}_timeline")
            axis.plot([place * foreground.BIN_S for place in range(len(line))], line, label=verb, linewidth=1)
        axis.axvspan(number(figures, "began"), number(figures, "ended"), color=_OURS, alpha=0.08, linewidth=0)
        axis.set(yscale="log", title=case)
    for axis in grid[:, 0]:
        axis.set_ylabel("longest wait, ms")
    for axis in grid[1]:
        axis.set_xlabel("s; shaded: the drain")
    panels[0].legend()
    _save(figure, path)


def _cost(rounds: Sequence[Round], path: Path) -> None:
    figure, axis = plt.subplots(figsize=(6, 3.5))
    lines = ((scaling.is_backlog, "of a backlog of so many"), (scaling.is_beside, "beside so many that are not due"))
    for is_member, label in lines:
        family = sorted(filter(is_member, _cases(rounds)), key=scaling.size)
        costs = [numbers(rounds, case, "usec") for case in family]
        middle = [median(values) for values in costs]
        below = [value - min(values) for value, values in zip(middle, costs, strict=True)]
        above = [max(values) - value for value, values in zip(middle, costs, strict=True)]
        axis.errorbar(
            [scaling.size(case) for case in family], middle, yerr=[below, above], label=label, marker="o", capsize=3
        )
    axis.set(xscale="log", xlabel="reservations", ylabel="server µs per expired reservation")
    axis.set_ylim(bottom=0)
    axis.legend()
    _save(figure, path)
