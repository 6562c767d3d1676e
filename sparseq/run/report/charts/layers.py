"""Layers: sparsity and bits of one variant, and of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sparseq.run.report.charts.style import CYCLE, INK, PAPER, SOFT, finish, new, shortened
from sparseq.run.results import Variant

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["all_layers", "layers_of"]


def _bits(bits: int | None) -> str:
    return "float" if bits is None else f"{bits} bits"


def layers_of(variant: Variant) -> Figure:
    """Return bars of each layer's share of zeros, in the colour of its bits."""
    layers = variant.layers
    with new(1.3 + 0.21 * len(layers)) as (figure, grid):
        axes = grid[0, 0]
        finish(axes, title=f"Layers of {shortened(variant.name)}", across="zeros, % of the weights",
               grid="x")  # fmt: skip
        kinds = sorted({layer.bits for layer in layers}, key=lambda bits: bits or 99)
        for number, bits in enumerate(reversed(kinds)):
            places = [i for i, layer in enumerate(layers) if layer.bits == bits]
            axes.barh(places, [100 * layers[i].sparsity for i in places], height=0.68, zorder=3,
                      color=CYCLE[number % len(CYCLE)], label=_bits(bits))  # fmt: skip
        for place, layer in enumerate(layers):
            axes.annotate(
                f"{100 * layer.sparsity:.0f} %, {_bits(layer.bits)}", (100 * layer.sparsity, place),
                xytext=(4, 0), textcoords="offset points", va="center", fontsize=8, color=INK,
                zorder=5,
            )  # fmt: skip
        axes.set_yticks(range(len(layers)), [shortened(layer.name) for layer in layers], fontsize=8)
        axes.set_ylim(len(layers) - 0.4, -0.6)
        axes.set_xlim(0, 135)  # room for the last number
        axes.set_xticks(range(0, 101, 20))
        return figure


def all_layers(variants: Sequence[Variant]) -> Figure:
    """Return a map: a row for every layer, a column for every variant.

    The colour is the share of zeros, the number in a cell the bits of the weights (f: float);
    where a variant lacks the layer the cell is empty.
    """
    names = list(dict.fromkeys(layer.name for variant in variants for layer in variant.layers))
    from matplotlib import colormaps

    with new(1.5 + 0.2 * len(names)) as (figure, grid):
        axes = grid[0, 0]
        finish(axes, title="Zeros and bits of every layer", grid="")
        places = {name: place for place, name in enumerate(names)}
        cells = [
            (column, places[layer.name], layer)
            for column, variant in enumerate(variants)
            for layer in variant.layers
        ]
        values = np.full((len(names), len(variants)), np.nan)
        for column, row, layer in cells:
            values[row, column] = 100 * layer.sparsity
        colours = colormaps["Blues"].resampled(20)
        drawn = axes.pcolormesh(values, cmap=colours, vmin=0, vmax=100, edgecolor=PAPER,
                                linewidth=1)  # fmt: skip
        for column, row, layer in cells:
            axes.annotate(
                "f" if layer.bits is None else str(layer.bits), (column + 0.5, row + 0.5),
                ha="center", va="center", fontsize=7.5,
                color=_readable(colours(layer.sparsity)),
            )  # fmt: skip
        axes.set_xticks([i + 0.5 for i in range(len(variants))],
                        [shortened(v.name, 12) for v in variants], rotation=45, ha="right",
                        rotation_mode="anchor", fontsize=8)  # fmt: skip
        axes.set_yticks([i + 0.5 for i in range(len(names))], [shortened(n) for n in names],
                        fontsize=8)  # fmt: skip
        axes.invert_yaxis()
        axes.spines[:].set_visible(False)
        bar = figure.colorbar(drawn, ax=axes, location="bottom", shrink=0.8, aspect=30, pad=0.02)
        bar.set_label("zeros, % of the weights", color=SOFT)
        bar.ax.tick_params(colors=INK, length=0)
        bar.outline.set_visible(False)
        bar.solids.set_rasterized(False)
        bar.solids.set_edgecolor("face")
        return figure


def _readable(colour: Sequence[float]) -> str:
    """Black or white, whichever contrasts more: WCAG 2's relative luminance decides."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "white" if luminance < 0.179 else "black"
