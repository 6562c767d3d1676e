"""The trade-off chart: accuracy against latency with size as area, and speed-up bars."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sparseq.run.exercise import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw", "figure"]

_INK = "#2b2f36"
_PALE = "#d9dde3"
_SURROUND = "#8a919c"
# Blue is float, orange INT8; light is dense, full colour pruned: the colour tells the technique.
_FLOAT = ("#9cc4e4", "#2f77b4")
_INT8 = ("#f7be8a", "#e0701a")


def draw(rows: Sequence[Row], path: str | os.PathLike[str], *, title: str, limit: float) -> None:
    """Draw the chart as a PNG; see :func:`figure`."""
    figure(rows, title=title, limit=limit).savefig(path, format="png")


def figure(rows: Sequence[Row], *, title: str, limit: float) -> Figure:
    """Return the chart as a figure that belongs to no display.

    Args:
        rows: the measured variants, the baseline first.
        title: heading, one line.
        limit: the largest drop in points that is acceptable; drawn as a line.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("figure: rows must hold at least one variant, got none")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # A Figure of its own, not pyplot's: no global state, nothing to close.
    out = Figure(figsize=(13, 6), dpi=140, layout="constrained")
    FigureCanvasAgg(out)
    out.suptitle(title, fontsize=14, fontweight="bold", color=_INK)
    trade, bars = out.subplots(1, 2, width_ratios=(1.6, 1))
    _trade_off(trade, rows, limit)
    _speed_ups(bars, rows)
    for axes in (trade, bars):
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_PALE)
        axes.tick_params(colors=_INK, length=0)
        axes.set_axisbelow(True)
    out.draw_without_rendering()  # fixes the layout, so that labels can be measured
    out.set_layout_engine("none")
    _label(trade, rows)
    return out


def _colour(row: Row) -> str:
    techniques = row.name.split("+")
    return (_INT8 if "Q" in techniques else _FLOAT)["P" in techniques]


def _area(row: Row, rows: Sequence[Row]) -> float:
    """Return the bubble's area in square points: proportional to the size on disk."""
    return max(2600 * row.size_mb / max(other.size_mb for other in rows), 25)


def _trade_off(axes: Any, rows: Sequence[Row], limit: float) -> None:
    from matplotlib.lines import Line2D

    times = [row.ms_per_image for row in rows]
    accuracies = [row.accuracy for row in rows]
    for row in sorted(rows, key=lambda row: -row.size_mb):  # small bubbles in front
        axes.scatter(
            row.ms_per_image,
            row.accuracy,
            s=_area(row, rows),
            color=_colour(row),
            edgecolor=_INK,
            linewidth=0.8,
            alpha=0.85,
            zorder=3,
        )
    axes.set_xlim(0, 1.18 * max(times))
    floor = rows[0].accuracy - limit
    low, high = min([floor, *accuracies]), max(accuracies)
    axes.set_ylim(low - 0.12 * (high - low), high + 0.25 * (high - low))
    axes.yaxis.set_major_formatter(lambda tick, _: f"{tick:g}" if tick <= 100 else "")
    axes.axhline(floor, color="#b3261e", linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.annotate(
        f"baseline - {limit:g} points",
        (1, floor),
        xycoords=("axes fraction", "data"),
        xytext=(-4, 4),
        textcoords="offset points",
        ha="right",
        fontsize=9,
        color="#b3261e",
    )
    axes.set_title("Accuracy against time; area = size on disk", fontsize=11, color=_INK)
    axes.set_xlabel("milliseconds per image, batch 1 (less is better)", color=_INK)
    axes.set_ylabel("test accuracy, %", color=_INK)
    axes.grid(color=_PALE, linewidth=0.6)
    kinds = {
        "float, dense": _FLOAT[0],
        "float, pruned": _FLOAT[1],
        "INT8, dense": _INT8[0],
        "INT8, pruned": _INT8[1],
    }
    axes.legend(
        handles=[
            Line2D([], [], marker="o", linestyle="", markersize=8, color=colour, label=kind)
            for kind, colour in kinds.items()
        ],
        loc="upper center",
        bbox_to_anchor=(0.5, -0.1),
        ncols=4,
        frameon=False,
        fontsize=9,
        labelcolor=_INK,
    )


def _speed_ups(axes: Any, rows: Sequence[Row]) -> None:
    names = [row.name for row in rows]
    factors = [row.speedup for row in rows]
    axes.barh(names, factors, color=[_colour(row) for row in rows], height=0.62, zorder=3)
    axes.axvline(1, color=_SURROUND, linewidth=1, zorder=4)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.45 * max(factors))
    for position, row in enumerate(rows):
        axes.annotate(
            f"{row.speedup:.2f}x   {row.size_mb:.2f} MB",
            (row.speedup, position),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9.5,
            color=_INK,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
            zorder=5,
        )
    axes.set_title("Speed-up over the baseline, and size", fontsize=11, color=_INK)
    axes.set_xlabel("times faster (more is better)", color=_INK)
    axes.grid(axis="x", color=_PALE, linewidth=0.6)


def _label(axes: Any, rows: Sequence[Row]) -> None:
    """Name every bubble where its text touches no bubble and no other text."""
    from matplotlib.transforms import Bbox

    renderer = axes.figure.canvas.get_renderer()
    pixels = axes.figure.dpi / 72  # in a point
    centres = [axes.transData.transform((row.ms_per_image, row.accuracy)) for row in rows]
    radii = [pixels * math.sqrt(_area(row, rows) / math.pi) for row in rows]
    taken = [
        Bbox.from_extents(x - r, y - r, x + r, y + r)
        for (x, y), r in zip(centres, radii, strict=True)
    ]
    directions = [(1, 0), (0, 1), (-1, 0), (0, -1), (0.8, 0.8), (-0.8, 0.8), (0.8, -0.8)]
    for row, (x, y), radius in zip(rows, centres, radii, strict=True):
        text = axes.annotate(
            row.name,
            (row.ms_per_image, row.accuracy),
            xytext=(0, 0),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=10.5,
            fontweight="bold",
            color=_INK,
            zorder=6,
        )
        size = text.get_window_extent(renderer)
        half_width, half_height = size.width / 2 + 3, size.height / 2 + 2
        places: list[tuple[int, int, float, float, Bbox, int]] = []
        for gap in (3, 14, 28, 44, 62):
            for right, up in directions:
                across = right * (radius + gap * pixels + half_width)
                along = up * (radius + gap * pixels + half_height)
                box = Bbox.from_extents(
                    x + across - half_width,
                    y + along - half_height,
                    x + across + half_width,
                    y + along + half_height,
                )
                inside = axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1
                inside = inside and axes.bbox.y0 <= box.y0 and box.y1 <= axes.bbox.y1
                hidden = sum(box.overlaps(other) for other in taken) + 10 * (not inside)
                places.append((hidden, len(places), across, along, box, gap))
        _, _, across, along, box, gap = min(places, key=lambda place: place[:2])
        taken.append(box)
        text.set_position((across / pixels, along / pixels))
        if gap > 3:
            # From the bubble's centre to the near side of the text.
            near = along - half_height * (1 if along > 0 else -1) if along else 0.0
            side = across - half_width * (1 if across > 0 else -1) if not along else across
            start = axes.transData.inverted().transform((x, y))
            end = axes.transData.inverted().transform((x + side, y + near))
            axes.plot(*zip(start, end, strict=True), color=_SURROUND, linewidth=0.8, zorder=4)
