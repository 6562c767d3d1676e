"""How a layer's weight and input are quantised."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sparseq.spec import Quant

DEFAULT_WEIGHT = Quant(axis=0)
DEFAULT_INPUT = Quant(symmetric=False)


@dataclass(frozen=True)
class InputGrid:
    """How a layer's input is quantised: scheme and grid, or None for the input's own range.

    Its own range is each batch's for a convolution, each row's ("per token") for a linear layer.
    """

    spec: Quant
    scale: Tensor | None = None
    zero_point: Tensor | None = None
