"""Drop-in modules that run on integers: SparseQuantLinear and SparseQuantConv2d."""

from __future__ import annotations

from torch import nn

from sparseq.nn.conv2d import SparseQuantConv2d
from sparseq.nn.layer import InputGrid, SparseQuantLayer
from sparseq.nn.linear import SparseQuantLinear

__all__ = [
    "INTEGER_LAYERS",
    "InputGrid",
    "SparseQuantConv2d",
    "SparseQuantLayer",
    "SparseQuantLinear",
    "integer_type",
]

INTEGER_LAYERS: dict[type[nn.Module], type[SparseQuantLayer]] = {
    nn.Linear: SparseQuantLinear,
    nn.Conv2d: SparseQuantConv2d,
}


def integer_type(layer: nn.Module) -> type[SparseQuantLayer] | None:
    """The integer module for a float layer, or None."""
    for float_type, kind in INTEGER_LAYERS.items():
        if isinstance(layer, float_type):
            return kind
    return None
