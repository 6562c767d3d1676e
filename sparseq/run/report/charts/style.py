"""How every chart looks, and how it becomes a file: colours, sizes, SVG for a page, PNG."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CYCLE", "GRID", "INK", "LIMIT", "MARKS", "SOFT", "WIDTH", "finish", "inline_svg",
           "new", "save_png",
    "settle", "shortened"]  # fmt: skip

WIDTH = 4.3
"""Inches: 310 points, so that the text keeps its size on a phone that is 360 pixels wide."""

# The page exchanges these colours, and those of the cycle, for its own, dark or light: they are
# used for nothing else.
INK, SOFT, GRID, PAPER = "#1f2328", "#59636e", "#d8dee4", "#fefefe"
LIMIT = "#b42318"

# Okabe and Ito's palette, which readers of all kinds of colour vision tell apart; its yellow, too
# pale for lines on white, is left out. https://jfly.uni-koeln.de/color/
CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_VARIABLES = {INK: "--ink", SOFT: "--soft", GRID: "--grid", PAPER: "--paper", LIMIT: "--alarm"}
_VARIABLES |= {colour.lower(): f"--c{number}" for number, colour in enumerate(CYCLE)}
MARKS = ("o", "s", "^", "D", "v", "P", "X")
_FONTS: dict[Any, Any] = {
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "svg.fonttype": "none",  # text stays text: it can be selected, and the page colours it
    "text.parse_math": False,  # a name with dollar signs is a name
}


@contextmanager
def new(height: float, rows: int = 1, columns: int = 1, **options: Any) -> Iterator[Any]:
    """Yield a figure and its axes, ``WIDTH`` wide, with the report's font sizes.

    Args:
        height: in inches.
        rows: of axes.
        columns: of axes.
        options: of ``Figure.subplots``.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "charts need the package matplotlib: pip install 'sparseq[run]'"
        ) from error
    with rc_context(_FONTS):
        # A Figure of its own, not pyplot's: no global state, nothing to close.
        figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor=PAPER)
        FigureCanvasAgg(figure)
        yield figure, figure.subplots(rows, columns, squeeze=False, **options)
        settle(figure)


def settle(figure: Figure) -> None:
    """Fix the layout, so that places can be measured and no file works it out again."""
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")


def finish(
    axes: Any, *, title: str = "", across: str = "", up: str = "", grid: str = "both"
) -> None:
    """Give axes their labels, and the quiet look."""
    axes.set_title(title, loc="left", color=INK, fontweight="bold")
    axes.set_xlabel(across, color=SOFT)
    axes.set_ylabel(up, color=SOFT)
    axes.set_facecolor(PAPER)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    axes.tick_params(which="both", colors=INK, length=0)
    if grid:
        axes.grid(axis=grid, color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)


def shortened(name: str, most: int = 22) -> str:
    """Return a name with its middle left out where it is long."""
    half = (most - 1) // 2
    return name if len(name) <= most else f"{name[:half]}\N{HORIZONTAL ELLIPSIS}{name[-half:]}"


def save_png(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as a PNG of 860 pixels' width."""
    figure.savefig(path, format="png", dpi=200)


def inline_svg(figure: Figure, name: str, alt: str) -> str:
    """Return a figure as an SVG element for an HTML page.

    Its colours are the page's CSS variables, its font is the page's, its width follows the page,
    and its ids begin with ``name``, so that those of several charts on a page differ.

    Args:
        figure: of `new`.
        name: of the chart.
        alt: what a reader who does not see it is told.
    """
    from html import escape

    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({**_FONTS, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=False)
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font-family:[^;\"]*", "font-family: inherit", text)
    text = re.sub(r"font: ([^;\"]*?px) [^;\"]*", r"font: \1 var(--font)", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    view = re.search(r'viewBox="([^"]*)"', text)
    assert view is not None
    opening = (
        f'<svg class="chart" viewBox="{view[1]}" role="img" aria-label="{escape(alt)}">'
        f"<title>{escape(alt)}</title>"
    )
    return opening + text[text.index(">") + 1 :]
