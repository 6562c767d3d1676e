"""The charts of a report, as matplotlib figures that belong to no display."""

from sparseq.run.report.charts.draw import Chart, draw_all
from sparseq.run.report.charts.style import inline_svg, save_png

__all__ = ["Chart", "draw_all", "inline_svg", "save_png"]
