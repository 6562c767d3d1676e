"""Names beside points, where they touch nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sparseq.run.report.charts.style import INK, SOFT

__all__ = ["label_points"]

_DIRECTIONS = [(1, 0), (0, 1), (-1, 0), (0, -1), (0.8, 0.8), (-0.8, 0.8), (0.8, -0.8), (-0.8, -0.8)]
_GAPS = (3, 12, 24, 38, 54, 72)


def label_points(
    axes: Any,
    points: Sequence[tuple[float, float]],
    names: Sequence[str],
    bold: set[int],
    lines: Sequence[tuple[tuple[float, float], tuple[float, float]]] = (),
) -> None:
    """Name every point where its text touches no point and no other text.

    A name that stands away from its point has a line to it.

    Args:
        axes: drawn already, with their limits and layout settled.
        points: in data coordinates.
        names: of the points.
        bold: positions of the names that stand out.
        lines: ends of horizontal and vertical lines, in data coordinates, that no name crosses
            where there is room elsewhere.
    """
    from matplotlib.transforms import Bbox

    renderer = axes.figure.canvas.get_renderer()
    pixels = axes.figure.dpi / 72  # in a point
    radius = 5 * pixels
    centres = [axes.transData.transform(point) for point in points]
    taken = [Bbox.from_extents(x - radius, y - radius, x + radius, y + radius) for x, y in centres]
    taken += [text.get_window_extent(renderer) for text in axes.texts]
    crossed = []
    for ends in lines:
        (x0, x1), (y0, y1) = np.sort(axes.transData.transform(ends).T)
        crossed.append(Bbox.from_extents(x0 - pixels, y0 - pixels, x1 + pixels, y1 + pixels))
    for position, (name, point, (x, y)) in enumerate(zip(names, points, centres, strict=True)):
        text = axes.annotate(
            name,
            point,
            xytext=(0, 0),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8.5,
            fontweight="bold" if position in bold else "normal",
            color=INK,
            zorder=7,
        )
        size = text.get_window_extent(renderer)
        wide, high = size.width / 2 + 2 * pixels, size.height / 2 + 1 * pixels
        places: list[tuple[int, int, float, float, Any, int]] = []
        for gap in _GAPS:
            for right, up in _DIRECTIONS:
                across = right * (radius + gap * pixels + wide)
                along = up * (radius + gap * pixels + high)
                box = Bbox.from_extents(
                    x + across - wide, y + along - high, x + across + wide, y + along + high
                )
                inside = axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1
                inside = inside and axes.bbox.y0 <= box.y0 and box.y1 <= axes.bbox.y1
                hidden = 4 * sum(box.overlaps(other) for other in taken) + 40 * (not inside)
                hidden += sum(box.overlaps(other) for other in crossed)
                places.append((hidden, len(places), across, along, box, gap))
        _, _, across, along, box, gap = min(places, key=lambda place: place[:2])
        taken.append(box)
        text.set_position((across / pixels, along / pixels))
        if gap > _GAPS[0]:
            # From the point to the near side of the text.
            near = along - high * (1 if along > 0 else -1) if along else 0.0
            side = across - wide * (1 if across > 0 else -1) if not along else across
            end = axes.transData.inverted().transform((x + side, y + near))
            axes.plot(*zip(point, end, strict=True), color=SOFT, linewidth=0.7, zorder=4)
