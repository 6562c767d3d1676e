"""INT8 linear and convolution, with all that they can do before and after: defined."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sparseq.reference.affine import dequantize, quantize
from sparseq.reference.functions import activate


def _centred(q: Tensor, zero: Tensor | None) -> Tensor:
    """Integers relative to their zero point, exact in float64; zero has one value or one a row."""
    if zero is None:
        return q.double()
    return q.double() - zero.double().reshape(
        [-1] + [1] * (q.dim() - 1) if zero.numel() > 1 else ()
    )


def row_grid(x: Tensor, x_min: int, x_max: int) -> tuple[Tensor, Tensor]:
    """Scale (float32) and zero point (int32) of each row of x, shaped `[..., 1]`: dynamic INT8.

    The range is that of the row and 0, NaN left out. With x_min < 0 it is made symmetric: `scale =
    absmax / x_max`, zero point 0, integers in [-x_max, x_max]. Else `scale = (max - min) / (x_max -
    x_min)`, `zero_point = clamp(rne(x_min - min / scale), x_min, x_max)`. A scale that is not
    positive and finite becomes 1.
    """
    x = torch.where(x.isnan(), 0.0, x.float())
    if x.shape[-1] == 0:
        x = x.new_zeros((*x.shape[:-1], 1))
    low, high = x.amin(-1, True).clamp(max=0), x.amax(-1, True).clamp(min=0)
    if x_min < 0:
        scale = torch.maximum(-low, high) / x_max
    else:
        scale = (high - low) / (x_max - x_min)
    scale = torch.where((scale > 0) & (scale < math.inf), scale, torch.ones_like(scale))
    if x_min < 0:
        return scale, torch.zeros_like(scale, dtype=torch.int32)
    return scale, (x_min - low / scale).round().clamp(x_min, x_max).to(torch.int32)


def _quantized_input(
    x: Tensor, x_scale: Tensor | None, x_zero: Tensor | None, x_min: int, x_max: int
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """X as integers relative to its zero point, exact in float64; its scale; its scale by row."""
    if not x.is_floating_point():
        return _centred(x, x_zero), x_scale, None
    if x_scale is not None:
        return _centred(quantize(x, x_scale, x_zero, x_min, x_max), x_zero), x_scale, None
    scale, zero = row_grid(x, x_min, x_max)
    low = -x_max if x_min < 0 else x_min
    q = torch.where(x.isnan(), 0.0, (x.float() / scale)).round()
    return torch.minimum(torch.maximum(q, low - zero), x_max - zero).double(), None, scale


def _finish(
    acc: Tensor,
    channel_dim: int,
    scale: Tensor,
    x_scale: Tensor | None,
    row_scale: Tensor | None,
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
    residual_scale: Tensor | None,
    residual_zero: Tensor | None,
    dtype: torch.dtype,
    y_scale: Tensor | None,
    y_zero: Tensor | None,
    y_min: int,
    y_max: int,
) -> Tensor:
    """From the exact sum to y; each step rounds to float32 once, in this order.

    `((acc * (scale * x_scale)) * row_scale) + bias + residual`, activation, then dtype: integers by
    `quantize`.
    """
    shape = [1] * acc.dim()
    shape[channel_dim] = -1
    multiplier = scale if x_scale is None else scale * x_scale.reshape(())
    y = (acc + 0.0).float() * multiplier.reshape(shape)  # an integer sum has no -0
    if row_scale is not None:
        y = y * row_scale
    if bias is not None:
        y = y + bias.reshape(shape)
    if residual is not None:
        if residual_scale is not None and not residual.is_floating_point():
            residual = dequantize(residual, residual_scale, residual_zero)
        y = y + residual.float()
    y = activate(y, activation)
    if dtype.is_floating_point or y_scale is None:
        return y.to(dtype)
    return quantize(y, y_scale, y_zero, y_min, y_max)


def _dtype_of(x: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype or (x.dtype if x.is_floating_point() else torch.float32)


def int8_linear(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    x_zero: Tensor | None,
    weight_zero: Tensor | None,
    bias: Tensor | None,
    tiles: Tensor | None = None,
    *,
    x_scale: Tensor | None = None,
    x_min: int = -128,
    x_max: int = 127,
    activation: str = "none",
    residual: Tensor | None = None,
    residual_scale: Tensor | None = None,
    residual_zero: Tensor | None = None,
    dtype: torch.dtype | None = None,
    y_scale: Tensor | None = None,
    y_zero: Tensor | None = None,
    y_min: int = -128,
    y_max: int = 127,
) -> Tensor:
    """`y[m, n] = float32(sum_k (q[m, k] - zx) * (w[n, k] - zw[n])) * scale[n] + bias[n]`, finished.

    q is x, or x quantised: on x_scale and x_zero, or where they are None on `row_grid`.
    """
    q, x_scale, row_scale = _quantized_input(x, x_scale, x_zero, x_min, x_max)
    acc = q @ _centred(weight, weight_zero).T
    after = (bias, activation, residual, residual_scale, residual_zero)
    stored = (_dtype_of(x, dtype), y_scale, y_zero, y_min, y_max)
    return _finish(acc, -1, scale, x_scale, row_scale, *after, *stored)


def int8_conv2d(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    x_zero: Tensor | None,
    weight_zero: Tensor | None,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    tiles: Tensor | None = None,
    *,
    x_scale: Tensor | None = None,
    x_min: int = -128,
    x_max: int = 127,
    activation: str = "none",
    residual: Tensor | None = None,
    residual_scale: Tensor | None = None,
    residual_zero: Tensor | None = None,
    dtype: torch.dtype | None = None,
    y_scale: Tensor | None = None,
    y_zero: Tensor | None = None,
    y_min: int = -128,
    y_max: int = 127,
) -> Tensor:
    """As `int8_linear` for every window of x; padding is the zero point, so adds nothing."""
    q, x_scale, row_scale = _quantized_input(x, x_scale, x_zero, x_min, x_max)
    acc = torch.nn.functional.conv2d(
        q, _centred(weight, weight_zero), None, stride, padding, dilation, groups
    )
    after = (bias, activation, residual, residual_scale, residual_zero)
    stored = (_dtype_of(x, dtype), y_scale, y_zero, y_min, y_max)
    return _finish(acc, 1, scale, x_scale, row_scale, *after, *stored)
