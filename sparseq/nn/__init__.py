"""Drop-in modules that run on integers, and attention whose projections are layers."""

from __future__ import annotations

from torch import Tensor, nn

from sparseq.nn.attention import MultiheadAttention, projections, take_over
from sparseq.nn.conv1d import SparseQuantConv1d
from sparseq.nn.conv2d import SparseQuantConv2d
from sparseq.nn.conv_transpose2d import SparseQuantConvTranspose2d
from sparseq.nn.embedding import SparseQuantEmbedding
from sparseq.nn.grid import InputGrid
from sparseq.nn.layer import SparseQuantLayer
from sparseq.nn.linear import SparseQuantLinear
from sparseq.nn.own_forward import own_forward

__all__ = [
    "INTEGER_LAYERS",
    "InputGrid",
    "MultiheadAttention",
    "SparseQuantConv1d",
    "SparseQuantConv2d",
    "SparseQuantConvTranspose2d",
    "SparseQuantEmbedding",
    "SparseQuantLayer",
    "SparseQuantLinear",
    "integer_type",
    "outputs_first",
    "own_forward",
    "projections",
    "take_over",
]

INTEGER_LAYERS: dict[type[nn.Module], type[SparseQuantLayer]] = {
    nn.Linear: SparseQuantLinear,
    nn.Conv1d: SparseQuantConv1d,
    nn.Conv2d: SparseQuantConv2d,
    nn.ConvTranspose2d: SparseQuantConvTranspose2d,
    nn.Embedding: SparseQuantEmbedding,
}


def integer_type(layer: nn.Module) -> type[SparseQuantLayer] | None:
    """The integer module for a float layer, or None."""
    for float_type, kind in INTEGER_LAYERS.items():
        if isinstance(layer, float_type):
            return kind
    return None


def outputs_first(layer: nn.Module, weight: Tensor) -> Tensor:
    """A float layer's weight in the order that is stored: `[out, in / groups, ...]`.

    Its own inverse: the same call puts it back.
    """
    kind = integer_type(layer)
    return weight if kind is None else kind.outputs_first(layer, weight)
