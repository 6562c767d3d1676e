"""Bars: speed-ups of the variants, effects of the techniques, sensitivity of the layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sparseq.run.report.charts.style import (
    CYCLE,
    GRID,
    INK,
    MARKS,
    SOFT,
    finish,
    new,
    shortened,
)  # fmt: skip
from sparseq.run.report.charts.tradeoff import colour_of
from sparseq.run.report.design import Design
from sparseq.run.results import Variant

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["effects", "sensitivity", "speed_ups"]


def speed_ups(variants: Sequence[Variant], best: str) -> Figure:
    """Return bars of how many times as fast as the baseline each variant is; the best in bold."""
    with new(0.9 + 0.29 * len(variants)) as (figure, grid):
        axes = grid[0, 0]
        finish(
            axes, title="Speed-up over the baseline", across="times as fast (more is better)",
            grid="x",
        )  # fmt: skip
        places = range(len(variants))
        factors = [variant.speedup for variant in variants]
        colours = [colour_of(variant) for variant in variants]
        axes.barh(places, factors, color=colours, height=0.64, zorder=3)
        axes.axvline(1, color=SOFT, linewidth=1, zorder=4)
        axes.set_yticks(places, [shortened(variant.name) for variant in variants])
        axes.set_ylim(len(variants) - 0.4, -0.6)
        axes.set_xlim(0, 1.55 * max(factors))
        for place, variant in enumerate(variants):
            _bold(axes, place, variant.name == best)
            axes.annotate(
                f"{variant.speedup:.2f}x  {variant.ms_per_image:.3g} ms",
                (variant.speedup, place), xytext=(4, 0), textcoords="offset points",
                va="center", fontsize=8.5, color=INK, zorder=5,
                fontweight="bold" if variant.name == best else "normal",
            )  # fmt: skip
        return figure


def _bold(axes: Any, place: int, bold: bool) -> None:
    if bold:
        axes.get_yticklabels()[place].set_fontweight("bold")


def effects(design: Design, sampling: float | None) -> Figure:
    """Return three panels of effects: on accuracy, on time and on size.

    Args:
        design: the factorial.
        sampling: standard error in points of the test set; drawn as a band.
    """
    names = [effect.name for effect in design.accuracy]
    places = range(len(names))
    with new(1.25 + 0.25 * len(names), 1, 3, sharey=True) as (figure, grid):
        for axes, values, title, across in (
            (grid[0, 0], design.accuracy, "Accuracy", "points"),
            (grid[0, 1], design.latency, "Time", "times (log scale)"),
            (grid[0, 2], design.size, "Size", "times (log scale)"),
        ):
            finish(axes, title=title, across=across, grid="x")
            points = axes is grid[0, 0]
            shown = [e.value if points else math.exp(e.value) for e in values]
            if points and sampling is not None:
                axes.axvspan(-sampling, sampling, color=GRID, alpha=0.6, linewidth=0, zorder=0)
            axes.axvline(0 if points else 1, color=SOFT, linewidth=1, zorder=2)
            for place, (value, effect) in enumerate(zip(shown, values, strict=True)):
                axes.errorbar(
                    value, place, xerr=effect.margin if points else None, marker="o",
                    markersize=5, color=CYCLE[0], elinewidth=1.2, capsize=2, zorder=3,
                )  # fmt: skip
            if not points:
                _factor_axis(axes, shown)
        grid[0, 0].set_yticks(places, names)
        grid[0, 0].set_ylim(len(names) - 0.4, -0.6)
        return figure


def _factor_axis(axes: Any, shown: list[float]) -> None:
    from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

    axes.set_xscale("log")
    reach = 1.25 * max([1.3, *(max(value, 1 / value) for value in shown)])
    axes.set_xlim(1 / reach, reach)
    ticks = next(t for t in (1.2, 1.5, 2, 3, 5, 10, 30, 100, math.inf) if t * t > reach or t > 99)
    axes.xaxis.set_major_locator(FixedLocator([1 / ticks, 1, ticks]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda tick, _: f"{tick:.2g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def sensitivity(found: Mapping[str, Mapping[str, float]]) -> Figure:
    """Return a dot for every layer and treatment: what that layer alone loses, largest first."""
    kinds = list(dict.fromkeys(kind for values in found.values() for kind in values))
    layers = sorted(found, key=lambda layer: -max(found[layer].values(), default=0.0))
    with new(1.3 + 0.2 * len(layers)) as (figure, grid):
        axes = grid[0, 0]
        finish(axes, title="Sensitivity", across="loss added by this layer alone")
        for number, kind in enumerate(kinds):
            places = [i for i, layer in enumerate(layers) if kind in found[layer]]
            axes.plot(
                [found[layers[i]][kind] for i in places], places, linestyle="", markersize=5.5,
                marker=MARKS[number % len(MARKS)], color=CYCLE[number % len(CYCLE)],
                label=shortened(kind), zorder=3,
            )  # fmt: skip
        axes.axvline(0, color=SOFT, linewidth=1, zorder=1)
        axes.locator_params(axis="x", nbins=5)  # as many whatever the width: the layout settles
        axes.set_yticks(range(len(layers)), [shortened(layer) for layer in layers], fontsize=8)
        axes.set_ylim(len(layers) - 0.4, -0.6)
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8,
                      labelcolor=INK, handletextpad=0.2)  # fmt: skip
        return figure
