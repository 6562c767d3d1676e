"""The picture of a diagnosis."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

from sparseq.files import atomic_path

if TYPE_CHECKING:
    from sparseq.analysis.diagnosis import Diagnosis

_INK, _PALE = "#2b2f36", "#d9dde3"
_COLOURS = {2: "#7f1d1d", 3: "#b3261e", 4: "#e0701a", 5: "#f0a04b", 6: "#d8b13a", 7: "#7fae4a"}
_COLOURS |= {8: "#2f77b4", 16: "#7c6bb0", 32: "#8a919c"}
_LOSS = "#4a5568"
CEILING = 150.0  # dB: float32 rounds there; bars end, where nothing is lost too


def draw(diagnosis: Diagnosis, path: str | os.PathLike[str]) -> None:
    """Ratios by layer, coloured by the weight's bits, beside what each layer adds to the loss."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Diagnosis.plot needs the package matplotlib: pip install 'sparseq[run]'"
        ) from error

    rows = diagnosis.rows
    # a Figure of its own, not pyplot's: no global state, nothing to close
    height = 1.9 + 0.3 * max(len(rows), 3) + 0.34 * len(diagnosis.parts) + 0.5
    figure = Figure(figsize=(12.5, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(
        f"{diagnosis.loss}: float {diagnosis.float_loss:.4g}, "
        f"quantised {diagnosis.quantised_loss:.4g}",
        fontsize=13,
        fontweight="bold",
        color=_INK,
    )
    grid = figure.add_gridspec(
        2, 2, width_ratios=(1.35, 1), height_ratios=(max(len(rows), 3), 0.9 + len(diagnosis.parts))
    )
    ratios, losses = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
    _ratios(ratios, diagnosis)
    _bars(losses, [row.name for row in rows], [row.added for row in rows], [r.share for r in rows])
    losses.set_yticklabels([])
    title = "loss added by this layer alone, and its share"
    losses.set_title(title, fontsize=11, color=_INK, pad=24)
    left, right = figure.add_subplot(grid[1, 0]), figure.add_subplot(grid[1, 1])
    names = [part.part for part in diagnosis.parts]
    _decibel_bars(left, names, [part.sqnr for part in diagnosis.parts], ["#8a919c"] * len(names))
    left.set_title("SQNR of the network's output with one part alone, dB", fontsize=11, color=_INK)
    _bars(
        right,
        names,
        [part.added for part in diagnosis.parts],
        [part.share for part in diagnosis.parts],
    )
    right.set_yticklabels([])
    right.set_title("loss added by this part alone, and its share", fontsize=11, color=_INK)
    for axes in figure.axes:
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(_PALE)
        axes.tick_params(colors=_INK, length=0, labelsize=9)
        axes.grid(axis="x", color=_PALE, linewidth=0.6)
        axes.set_axisbelow(True)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def _shown(value: float) -> float:
    """A ratio as the length of its bar."""
    return 0.0 if math.isnan(value) else min(max(value, 0.0), CEILING)


def _decibel_bars(
    axes: Any,
    names: list[str],
    values: list[float],
    colours: list[str],
    marks: list[float] | None = None,
) -> None:
    """Bars with their numbers, inside where there is room, else behind the bar and its mark."""
    places = range(len(names))
    lengths = [_shown(value) for value in values]
    axes.barh(places, lengths, color=colours, height=0.64, zorder=3)
    greatest = max([*lengths, *(marks or []), 1.0])
    for place, value, length in zip(places, values, lengths, strict=True):
        text = "exact" if value == math.inf else f"{value:.1f}"
        inside = length > 0.12 * greatest
        mark = marks[place] if marks else length
        if not inside and length <= mark < length + 0.075 * greatest:
            length = mark
        axes.annotate(
            text,
            (length, place),
            xytext=(-5 if inside else 5, 0),
            textcoords="offset points",
            ha="right" if inside else "left",
            va="center",
            fontsize=8.5,
            color="white" if inside else _INK,
            zorder=6,
        )
    axes.set_yticks(places, names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 1.06 * greatest)


def _ratios(axes: Any, diagnosis: Diagnosis) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    rows = diagnosis.rows
    colours = [_COLOURS[row.bits] for row in rows]
    alone = [_shown(row.alone) for row in rows]
    _decibel_bars(axes, [row.name for row in rows], [row.sqnr for row in rows], colours, alone)
    axes.scatter(alone, range(len(rows)), marker="|", s=130, linewidth=2, color=_INK, zorder=5)
    handles: list[Any] = [
        Patch(color=_COLOURS[bits], label=f"{bits} bits") for bits in sorted({r.bits for r in rows})
    ]
    handles.append(
        Line2D([], [], marker="|", linestyle="", markersize=11, markeredgewidth=2, color=_INK,
               label="this layer alone")
    )  # fmt: skip
    axes.legend(
        handles=handles,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=len(handles),
        frameon=False,
        fontsize=9,
        labelcolor=_INK,
    )
    axes.set_title("SQNR of each layer's output, dB", fontsize=11, color=_INK, pad=24)
    for place, (label, row) in enumerate(zip(axes.get_yticklabels(), rows, strict=True)):
        if row.name == diagnosis.fall:
            label.set_fontweight("bold")
            label.set_color("#b3261e")
            axes.axhspan(place - 0.48, place + 0.48, color="#b3261e", alpha=0.08, zorder=0)


def _bars(axes: Any, names: list[str], values: list[float], shares: list[float]) -> None:
    places = range(len(names))
    colours = [_LOSS if value >= 0 else "#5d9e6b" for value in values]
    axes.barh(places, values, color=colours, height=0.64, zorder=3)
    axes.axvline(0, color=_INK, linewidth=0.8, zorder=4)
    for place, value, share in zip(places, values, shares, strict=True):
        axes.annotate(
            f"{value:+.2g}  {share:.0%}",
            (max(value, 0.0), place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=_INK,
            zorder=6,
        )
    axes.set_yticks(places, names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    high, low = max([*values, 0.0]), min([*values, 0.0])
    span = (high - low) or 1.0
    axes.set_xlim(low - 0.04 * span, high + 0.32 * span)
    axes.ticklabel_format(axis="x", style="sci", scilimits=(-3, 4))
