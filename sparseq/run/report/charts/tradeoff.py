"""Accuracy against what it costs, with the Pareto front."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from sparseq.run.report.charts.label import label_points
from sparseq.run.report.charts.style import (
    CYCLE,
    INK,
    LIMIT,
    PAPER,
    SOFT,
    finish,
    new,
    settle,
    shortened,
)
from sparseq.run.report.pareto import front
from sparseq.run.results import Variant

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["colour_of", "trade_off"]

_WIDE = 5.0
"""Costs that lie further apart than this factor are drawn on a logarithmic scale."""


def trade_off(
    variants: Sequence[Variant],
    cost: Callable[[Variant], float],
    *,
    best: str,
    limit: float,
    title: str,
    unit: str,
) -> Figure:
    """Return the chart of accuracy against a cost.

    Colour tells float from INT8, filling dense from pruned (half: 2:4), shape the network from the
    distilled one; bars are one standard deviation over the seeds.

    Args:
        variants: the baseline first.
        cost: of a variant; less is better.
        best: name of the variant to deploy.
        limit: the largest acceptable drop in points.
        title: of the chart.
        unit: name and unit of the cost.
    """
    costs = [cost(variant) for variant in variants]
    accuracies = [variant.accuracy for variant in variants]
    kept = sorted(
        front([(c, -a) for c, a in zip(costs, accuracies, strict=True)]), key=costs.__getitem__
    )
    with new(4.3) as (figure, grid):
        axes = grid[0, 0]
        logarithmic = max(costs) > _WIDE * min(costs)
        finish(
            axes,
            title=title,
            across=f"{unit} (less is better{', log' if logarithmic else ''})",
            up="test accuracy, %",
        )
        _limits(axes, variants, costs, variants[0].accuracy - limit, logarithmic)
        right = axes.get_xlim()[1]
        steps = [(costs[i], accuracies[i]) for i in kept]
        # right to the next one's cost, then up to it
        corners = [steps[0]]
        for point in [*steps[1:], (right, steps[-1][1])]:
            corners += [(point[0], corners[-1][1]), point]
        axes.plot(*zip(*corners, strict=True), color=SOFT, linewidth=1.4, zorder=2)
        for variant, across in zip(variants, costs, strict=True):
            _mark(axes, variant, across, variant.name == best)
        floor = variants[0].accuracy - limit
        axes.axhline(floor, color=LIMIT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate(
            f"limit: baseline \N{MINUS SIGN} {limit:g} points", (1, floor),
            xycoords=("axes fraction", "data"), xytext=(-2, 3), textcoords="offset points",
            ha="right", fontsize=8, color=LIMIT,
        )  # fmt: skip
        _legend(figure, variants)
        settle(figure)  # labels are measured
        names = [shortened(v.name, 18) + " (best)" * (v.name == best) for v in variants]
        marked = {i for i, variant in enumerate(variants) if i == 0 or variant.name == best}
        lines = list(pairwise(corners))
        lines.append(((axes.get_xlim()[0], floor), (right, floor)))
        lines += [
            ((c, v.accuracy - v.spread), (c, v.accuracy + v.spread))
            for c, v in zip(costs, variants, strict=True)
            if v.spread
        ]
        label_points(axes, list(zip(costs, accuracies, strict=True)), names, marked, lines)
        return figure


def colour_of(variant: Variant) -> str:
    """Return blue for float, orange for INT8."""
    return CYCLE[1] if "Q" in variant.chain else CYCLE[0]


def _style(chain: str) -> dict[str, Any]:
    filling = "full" if "P" in chain else "left" if "S" in chain else "none"
    return {
        "marker": "D" if "D" in chain else "o",
        "markersize": 6.5 if "D" in chain else 7.5,
        "fillstyle": filling,
        "markerfacecoloralt": PAPER,
        "markeredgewidth": 1.5,
        "linestyle": "",
    }


def _mark(axes: Any, variant: Variant, across: float, best: bool) -> None:
    if variant.spread:
        axes.errorbar(
            across, variant.accuracy, yerr=variant.spread, color=colour_of(variant),
            elinewidth=1, capsize=2, zorder=3,
        )  # fmt: skip
    if best:
        axes.plot(
            across, variant.accuracy, marker="o", markersize=15, fillstyle="none", color=INK,
            markeredgewidth=1.2, zorder=4,
        )  # fmt: skip
    axes.plot(
        across, variant.accuracy, marker=_style(variant.chain)["marker"], color=PAPER,
        markersize=7, zorder=4, linestyle="",
    )  # fmt: skip
    axes.plot(across, variant.accuracy, color=colour_of(variant), zorder=5, **_style(variant.chain))


def _limits(
    axes: Any, variants: Sequence[Variant], costs: list[float], floor: float, logarithmic: bool
) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    if logarithmic:
        axes.set_xscale("log")
        ratio = (max(costs) / min(costs)) ** 0.14
        axes.set_xlim(min(costs) / ratio, max(costs) * ratio)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(lambda tick, _: f"{tick:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(0, 1.15 * max(costs))
    low = min([floor, *(variant.accuracy - variant.spread for variant in variants)])
    high = max(variant.accuracy + variant.spread for variant in variants)
    room = (high - low) or 1.0
    axes.set_ylim(low - 0.1 * room, high + 0.16 * room)
    axes.yaxis.set_major_formatter(lambda tick, _: f"{tick:g}" if tick <= 100 else "")


def _legend(figure: Figure, variants: Sequence[Variant]) -> None:
    from matplotlib.lines import Line2D

    chains = "".join(variant.chain for variant in variants)
    entries = [("float", CYCLE[0], ""), ("INT8", CYCLE[1], "Q"), ("pruned", SOFT, "P")]
    entries += [("2:4", SOFT, "S"), ("distilled", SOFT, "D")]
    handles = [
        Line2D([], [], color=colour, label=label, **_style(letter))
        for label, colour, letter in entries
        if not letter or letter in chains
    ]
    handles.append(Line2D([], [], color=SOFT, linewidth=1.4, label="Pareto front"))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8,
        labelcolor=INK, handletextpad=0.4, columnspacing=1.2,
    )  # fmt: skip
