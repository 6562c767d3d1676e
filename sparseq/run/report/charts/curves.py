"""Training curves: loss and accuracy by epoch, a panel for every technique."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sparseq.run.report.charts.style import CYCLE, INK, finish, new, shortened
from sparseq.run.report.words import TECHNIQUES
from sparseq.run.results import Variant

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Line", "curves", "lines"]

Line = tuple[str, str, "np.ndarray[Any, np.dtype[np.float64]]"]
"""A panel, the first variant that trained it so, and values (seeds, epochs)."""

_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.2)))


def lines(variants: Sequence[Variant], what: Literal["train_losses", "accuracies"]) -> list[Line]:
    """Return the different curves of all variants.

    Variants share their first stages (Q+P starts from what P ended with), and a stage that several
    of them share is one line, in the name of the first of them. Seeds whose training ended early
    are cut to the shortest one.
    """
    out: dict[tuple[str, bytes], Line] = {}
    for variant in variants:
        stages = dict.fromkeys(stage for run in variant.runs for stage in getattr(run, what))
        for stage in stages:
            series = [
                getattr(run, what)[stage] for run in variant.runs if stage in getattr(run, what)
            ]
            epochs = min(map(len, series))
            values = np.array([each[:epochs] for each in series], dtype=float)
            if epochs:
                panel = _panel(stage)
                out.setdefault((panel, values.tobytes()), (panel, variant.name, values))
    return list(out.values())


def curves(
    variants: Sequence[Variant], what: Literal["train_losses", "accuracies"]
) -> Figure | None:
    """Return the panels: means over the seeds as lines, the range of the seeds as bands.

    Args:
        variants: the baseline first.
        what: which of a run's histories.

    Returns:
        None where no history is there.
    """
    found = lines(variants, what)
    if not found:
        return None
    losses = what == "train_losses"
    stages = _in_order(variants, what)
    colours = {
        variant.name: (CYCLE[i % len(CYCLE)], _DASHES[i // len(CYCLE) % len(_DASHES)])
        for i, variant in enumerate(variants)
    }
    columns = min(len(stages), 2)
    rows = math.ceil(len(stages) / columns)
    with new(1.1 + 1.9 * rows, rows, columns) as (figure, grid):
        figure.suptitle(
            "Training loss" if losses else "Test accuracy while training",
            x=0.01, ha="left", color=INK, fontsize=10, fontweight="bold",
        )  # fmt: skip
        for stage, axes in zip(stages, grid.flat, strict=False):
            finish(axes, title=shortened(stage), across="epoch", up="loss" if losses else "%")
            axes.title.set_fontsize(9)
            for _, name, values in (line for line in found if line[0] == stage):
                colour, dash = colours[name]
                epochs = np.arange(1, values.shape[1] + 1)
                axes.plot(epochs, values.mean(0), color=colour, linestyle=dash, linewidth=1.3,
                          marker="o", markersize=2.2)  # fmt: skip
                if len(values) > 1:
                    axes.fill_between(epochs, values.min(0), values.max(0), color=colour,
                                      alpha=0.15, linewidth=0)  # fmt: skip
            axes.xaxis.get_major_locator().set_params(integer=True)
        for axes in list(grid.flat)[len(stages) :]:
            axes.remove()
        _legend(figure, colours, list(dict.fromkeys(name for _, name, _ in found)))
        return figure


def _panel(stage: str) -> str:
    """Return the technique that a stage trains: its name is its chain so far, as "DP"."""
    return TECHNIQUES[stage[-1]] if stage and set(stage) <= set(TECHNIQUES) else stage


def _in_order(variants: Sequence[Variant], what: str) -> list[str]:
    """Return the stages, those first that come first in every chain."""
    latest: dict[str, int] = {}
    for run in (run for variant in variants for run in variant.runs):
        for place, stage in enumerate(getattr(run, what)):
            latest[_panel(stage)] = max(latest.get(_panel(stage), 0), place)
    return sorted(latest, key=latest.__getitem__)


def _legend(figure: Figure, colours: dict[str, tuple[str, Any]], names: list[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colours[name][0], linestyle=colours[name][1], label=shortened(name))
        for name in names
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=8,
                  labelcolor=INK, columnspacing=1.2, handlelength=1.8)  # fmt: skip
