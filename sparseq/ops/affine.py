"""The affine family: quantize, dequantize, minmax, INT4 packing; fake_quantize is in training.py.

One scheme covers them all, per tensor (axis None), per channel (axis) or per group (group_size):

    q = clamp(rne(x / scale) + zero_point, quant_min, quant_max)        y = (q - zero_point) * scale

with true division and rounding half to even, as ONNX QuantizeLinear. NaN gives zero_point,
infinities saturate. `sparseq.reference` defines every op in plain torch; the kernels equal it bit
for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparseq.ops.check import (
    arranged_like,
    check_affine,
    check_float,
    check_grouping,
    check_int4,
    check_not_empty,
    check_tensor,
)
from sparseq.reference import scale_shape

_ops = torch.ops.sparseq


def quantize(
    x: Tensor,
    scale: Tensor | float,
    zero_point: Tensor | int | None,
    quant_min: int,
    quant_max: int,
    axis: int | None = None,
    group_size: int | None = None,
) -> Tensor:
    """Quantise: `q = clamp(rne(x / scale) + zero_point, quant_min, quant_max)`.

    Args:
        x: float32, float16 or bfloat16, any shape and strides; computed in float32.
        scale: float32, positive and finite: one element (axis None), `[C]` (axis), or one per
            group.
        zero_point: int32, as scale in shape, inside the range; or None for 0.
        quant_min: least integer, in [-128, 127] or [0, 255].
        quant_max: greatest integer, greater than quant_min.
        axis: the channel axis, negative from the end; None for one scale.
        group_size: cut into groups of this many neighbours: with axis 0 each channel's elements,
            flattened; with the last axis or None the last dimension. Must divide its length.

    Returns:
        int8 if quant_min < 0 else uint8, in x's shape and strides.

    Raises:
        ValueError: a shape, a range, or a scale that is not positive and finite.
        TypeError: a dtype.

    Reference:
        ONNX operator QuantizeLinear; Jacob et al. 2018, eq. 1.
    """
    scale, zero_point = check_affine(
        "quantize", x, scale, zero_point, quant_min, quant_max, axis, group_size
    )
    return _ops.quantize(x, scale, zero_point, quant_min, quant_max, axis, group_size)


def dequantize(
    q: Tensor,
    scale: Tensor | float,
    zero_point: Tensor | int | None,
    quant_min: int | None = None,
    quant_max: int | None = None,
    axis: int | None = None,
    group_size: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Dequantise: `y = (q - zero_point) * scale`.

    Args:
        q: int8 or uint8, any shape and strides.
        scale: as for `quantize`.
        zero_point: as for `quantize`.
        quant_min: with quant_max, the range q was quantised to, checked against q's dtype only;
            they may be left out.
        quant_max: see quant_min.
        axis: as for `quantize`.
        group_size: as for `quantize`.
        dtype: of the result: float32, float16 or bfloat16.

    Returns:
        `dtype`, in q's shape and strides.

    Raises:
        ValueError: a shape, or a scale that is not positive and finite.
        TypeError: a dtype.
    """
    check_tensor("dequantize", "q", q)
    low, high = (-128, 127) if q.dtype == torch.int8 else (0, 255)
    if quant_min is not None and (quant_min < 0) != (low < 0):
        name = str(q.dtype).removeprefix("torch.")
        wanted = "negative" if low < 0 else "at least 0"
        raise ValueError(f"dequantize: quant_min must be {wanted} for {name}, got {quant_min}")
    scale, zero_point = check_affine(
        "dequantize",
        q,
        scale,
        zero_point,
        low if quant_min is None else quant_min,
        high if quant_max is None else quant_max,
        axis,
        group_size,
    )
    check_float("dequantize", "dtype", dtype)
    return _ops.dequantize(q, scale, zero_point, axis, group_size, dtype)


def minmax(
    x: Tensor, axis: int | None = None, group_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Least and greatest value per tensor, channel or group, in one pass.

    Args:
        x: float32, float16 or bfloat16, not empty.
        axis: as for `quantize`.
        group_size: as for `quantize`.

    Returns:
        (min, max), float32, shaped as the matching scale; NaN where x holds a NaN. No gradient.

    Raises:
        ValueError: an empty x, an axis out of range, or a group_size that does not divide.
        TypeError: a dtype.
    """
    check_tensor("minmax", "x", x)
    check_float("minmax", "x", x.dtype)
    check_grouping("minmax", x, axis, group_size)
    check_not_empty("minmax", x)
    return _ops.minmax(x.detach(), axis, group_size)


def pack_int4(q: Tensor) -> Tensor:
    """Pack two 4-bit integers to a byte along the last dimension, the first in the low bits.

    Args:
        q: int8 in [-8, 7] or uint8 in [0, 15], `[..., K]`; only the low four bits are kept.

    Returns:
        uint8 `[..., ceil(K / 2)]`; an odd last value is paired with 0.

    Raises:
        TypeError: q is not int8 or uint8.
        ValueError: q has no dimension.

    Reference:
        ONNX's storage of INT4 tensors.
    """
    check_int4("pack_int4", "q", q, (torch.int8, torch.uint8))
    return _ops.pack_int4(q)


def unpack_int4(packed: Tensor, columns: int, signed: bool = True) -> Tensor:
    """The inverse of `pack_int4`.

    Args:
        packed: uint8 `[..., ceil(columns / 2)]`.
        columns: length of the last dimension of the result.
        signed: whether the nibbles are two's complement.

    Returns:
        int8 (signed) or uint8 `[..., columns]`.

    Raises:
        TypeError: packed is not uint8.
        ValueError: its last dimension does not fit columns.
    """
    check_int4("unpack_int4", "packed", packed, (torch.uint8,))
    if columns < 0 or packed.shape[-1] != (columns + 1) // 2:
        raise ValueError(
            f"unpack_int4: packed must have {(columns + 1) // 2} bytes a row for {columns} "
            f"columns, got shape {tuple(packed.shape)}"
        )
    return _ops.unpack_int4(packed, columns, signed)


# --- fake kernels (shapes, dtypes, strides) ---


@torch.library.register_fake("sparseq::quantize")
def _(x, scale, zero_point, quant_min, quant_max, axis, group_size):  # type: ignore[no-untyped-def]
    return arranged_like(x, group_size, torch.int8 if quant_min < 0 else torch.uint8)


@torch.library.register_fake("sparseq::dequantize")
def _(q, scale, zero_point, axis, group_size, dtype):  # type: ignore[no-untyped-def]
    return arranged_like(q, group_size, dtype)


@torch.library.register_fake("sparseq::minmax")
def _(x, axis, group_size):  # type: ignore[no-untyped-def]
    shape = scale_shape(x.shape, axis, group_size)
    return x.new_empty(shape, dtype=torch.float32), x.new_empty(shape, dtype=torch.float32)


@torch.library.register_fake("sparseq::pack_int4")
def _(q):  # type: ignore[no-untyped-def]
    return q.new_empty((*q.shape[:-1], (q.shape[-1] + 1) // 2), dtype=torch.uint8)


@torch.library.register_fake("sparseq::unpack_int4")
def _(packed, columns, signed):  # type: ignore[no-untyped-def]
    dtype = torch.int8 if signed else torch.uint8
    return packed.new_empty((*packed.shape[:-1], columns), dtype=dtype)
