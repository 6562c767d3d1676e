"""The sparse24 family: the 2:4 mask, and the canonical form of a 2:4 weight.

Of every four neighbouring inputs of a row two are kept; a row is one output of a linear layer, or
one output and tap of a convolution. The canonical form is what `sparseq.save` writes:

    values   [rows, 2 * groups]               the kept values, groups = ceil(columns / 4)
    indices  uint8 [rows, ceil(groups / 2)]   four bits a group, the first group in the low bits:
                                              bits 0-1 first kept position, bits 2-3 the second

with first < second. A group of fewer than two non-zeros is filled up with zeros at the positions
that torch and CUTLASS choose: first is the lowest non-zero, but at most 2; second is the other
one, else 2, or 3 after a 2. Positions past the last column hold zeros; unused bits are 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparseq.ops.check import FLOATS, check_float, check_tensor

_ops = torch.ops.sparseq
_ELEMENTS = (torch.int8, *FLOATS)


def _check_elements(op: str, argument: str, tensor: Tensor) -> None:
    check_tensor(op, argument, tensor)
    if tensor.dtype not in _ELEMENTS:
        got = str(tensor.dtype).removeprefix("torch.")
        raise TypeError(f"{op}: {argument} must be int8, float32, float16 or bfloat16, got {got}")


def mask_24(weight: Tensor) -> Tensor:
    """Keep the 2 of greatest magnitude of every 4 neighbours along dimension 1.

    The earlier is kept among equals; NaN counts as the smallest. A tail of fewer than four keeps
    at most two.

    Args:
        weight: float32, float16 or bfloat16 `[N, C, ...]`; every position of the later dimensions
            (tap of a convolution) is ranked for itself.

    Returns:
        bool, the weight's shape, contiguous; True is kept. No gradient.

    Raises:
        TypeError: a dtype.
        ValueError: fewer than two dimensions.

    Reference:
        Mishra et al. 2021, Accelerating Sparse Deep Neural Networks, section 3.
    """
    check_tensor("mask_24", "weight", weight)
    check_float("mask_24", "weight", weight.dtype)
    if weight.dim() < 2:
        raise ValueError(
            f"mask_24: weight must have at least two dimensions, got shape {tuple(weight.shape)}"
        )
    return _ops.mask_24(weight.detach())


def pack_24(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The canonical form of a weight that is 2:4 along dimension 1.

    Args:
        weight: int8, float32, float16 or bfloat16, `[N, K]` or `[O, I, kH, kW]`, with at most two
            non-zeros in every four neighbours. NaN is a non-zero; -0 is a zero, and packed as +0.

    Returns:
        (values, indices), contiguous: weight's dtype `[N, 2 * ceil(K / 4)]` and uint8
        `[N, ceil(ceil(K / 4) / 2)]`, or `[O, kH, kW, ...]` alike. No gradient.

    Raises:
        TypeError: a dtype.
        ValueError: a shape, or a group with more than two non-zeros; the first one is named.

    Reference:
        Mishra et al. 2021, Accelerating Sparse Deep Neural Networks, section 3.
    """
    _check_elements("pack_24", "weight", weight)
    if weight.dim() not in (2, 4):
        raise ValueError(
            f"pack_24: weight must be [N, K] or [O, I, kH, kW], got shape {tuple(weight.shape)}"
        )
    return _ops.pack_24(weight.detach())


def unpack_24(values: Tensor, indices: Tensor, columns: int) -> Tensor:
    """The inverse of `pack_24`: the dense weight. The buffers are checked, whatever is in them.

    Args:
        values: int8, float32, float16 or bfloat16 `[N, 2 * ceil(columns / 4)]` or
            `[O, kH, kW, 2 * ceil(columns / 4)]`.
        indices: uint8 `[N, ceil(ceil(columns / 4) / 2)]`, or `[O, kH, kW, ...]` alike.
        columns: K or I.

    Returns:
        values' dtype, `[N, columns]` or `[O, columns, kH, kW]`, contiguous. No gradient.

    Raises:
        TypeError: a dtype.
        ValueError: shapes that do not fit, positions that do not ascend, a non-zero past the last
            column, or unused bits that are not 0.
    """
    _check_elements("unpack_24", "values", values)
    check_tensor("unpack_24", "indices", indices)
    if indices.dtype != torch.uint8:
        got = str(indices.dtype).removeprefix("torch.")
        raise TypeError(f"unpack_24: indices must be uint8, got {got}")
    groups = (columns + 3) // 4
    fit = (
        columns >= 0
        and values.dim() in (2, 4)
        and values.shape[:-1] == indices.shape[:-1]
        and values.shape[-1] == 2 * groups
        and indices.shape[-1] == (groups + 1) // 2
    )
    if not fit:
        raise ValueError(
            f"unpack_24: values and indices must be [N, {2 * groups}] and [N, {(groups + 1) // 2}],"
            f" or [O, kH, kW, ...] alike, for {columns} columns, got {tuple(values.shape)} and "
            f"{tuple(indices.shape)}"
        )
    return _ops.unpack_24(values.detach(), indices, columns)


@torch.library.register_fake("sparseq::mask_24")
def _(weight):  # type: ignore[no-untyped-def]
    return weight.new_empty(weight.shape, dtype=torch.bool)


@torch.library.register_fake("sparseq::pack_24")
def _(weight):  # type: ignore[no-untyped-def]
    rows, groups = (weight.shape[0], *weight.shape[2:]), (weight.shape[1] + 3) // 4
    indices = weight.new_empty((*rows, (groups + 1) // 2), dtype=torch.uint8)
    return weight.new_empty((*rows, 2 * groups)), indices


@torch.library.register_fake("sparseq::unpack_24")
def _(values, indices, columns):  # type: ignore[no-untyped-def]
    return values.new_empty((values.shape[0], columns, *values.shape[1:-1]))
