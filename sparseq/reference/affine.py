"""The affine ops and their gradients, minmax, histogram, INT4 packing: defined."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def expand_channels(
    values: Tensor, x: Tensor, axis: int | None = None, group_size: int | None = None
) -> Tensor:
    """Spread one value per tensor, channel or group over x's elements.

    Args:
        values: one element (axis None), `[C]` (axis), or one per group of neighbours (group_size).
        x: the tensor whose shape is wanted.
        axis: the channel axis.
        group_size: elements of a group, neighbours in row-major order.

    Returns:
        A tensor that broadcasts against x.
    """
    if group_size is not None:
        return values.reshape(-1, 1).expand(-1, group_size).reshape(x.shape)
    if axis is None:
        return values.reshape(())
    shape = [1] * x.dim()
    shape[axis] = -1
    return values.reshape(shape)


def _grid(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    quant_min: float,
    quant_max: float,
    axis: int | None,
    group_size: int | None,
) -> tuple[Tensor, Tensor]:
    """The scale and the rounded, clamped zero point, spread over x; both float32."""
    zero = torch.zeros_like(scale) if zero_point is None else zero_point.float()
    zero = zero.round().nan_to_num(0.0).clamp(quant_min, quant_max)
    return expand_channels(scale, x, axis, group_size), expand_channels(zero, x, axis, group_size)


def quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    quant_min: int,
    quant_max: int,
    axis: int | None = None,
    group_size: int | None = None,
) -> Tensor:
    """`q = clamp(rne(x / scale) + zero_point, quant_min, quant_max)`; NaN gives zero_point."""
    s, z = _grid(x, scale, zero_point, quant_min, quant_max, axis, group_size)
    steps = (x.float() / s).round()
    steps = torch.where(steps.isnan(), torch.zeros_like(steps), steps)
    q = torch.minimum(torch.maximum(steps, quant_min - z), quant_max - z) + z
    return q.to(torch.int8 if quant_min < 0 else torch.uint8)


def dequantize(
    q: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    axis: int | None = None,
    group_size: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """`y = (q - zero_point) * scale`."""
    s, z = _grid(q, scale, zero_point, -math.inf, math.inf, axis, group_size)
    return ((q.float() - z) * s).to(dtype)


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    quant_min: int,
    quant_max: int,
    axis: int | None = None,
    group_size: int | None = None,
    grad_factor: float = 1.0,
) -> Tensor:
    """`dequantize(quantize(x))`, in x's dtype."""
    if zero_point is not None:
        zero_point = zero_point.float().round().nan_to_num(0.0).clamp(quant_min, quant_max)
    q = quantize(x, scale, zero_point, quant_min, quant_max, axis, group_size)
    return dequantize(q, scale, zero_point, axis, group_size, x.dtype)


def _inside(steps: Tensor, zero: Tensor, quant_min: int, quant_max: int) -> Tensor:
    return (steps >= quant_min - zero) & (steps <= quant_max - zero)


def fake_quantize_backward(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    quant_min: int,
    quant_max: int,
    axis: int | None = None,
    group_size: int | None = None,
) -> Tensor:
    """Straight-through: `grad` where `rne(x / scale)` falls inside the range, else zero."""
    s, z = _grid(x, scale, zero_point, quant_min, quant_max, axis, group_size)
    inside = _inside((x.float() / s).round(), z, quant_min, quant_max)
    return torch.where(inside, grad, torch.zeros_like(grad))


def fake_quantize_learned_backward(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    quant_min: int,
    quant_max: int,
    axis: int | None = None,
    group_size: int | None = None,
    grad_factor: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, scale and zero point; the last two summed in float64.

    `dy/dscale = v - x/scale` inside and `clamp(v)` outside (LSQ, Esser et al. 2020, eq. 3), with
    `v = rne(x/scale)`; `dy/dzero_point = -scale` outside, 0 inside (LSQ+, Bhalgat et al. 2020).
    """
    s, z = _grid(x, scale, zero_point, quant_min, quant_max, axis, group_size)
    ratio = x.float() / s
    steps = ratio.round()
    inside = _inside(steps, z, quant_min, quant_max)
    known = torch.where(steps.isnan(), torch.zeros_like(steps), steps)
    clamped = torch.minimum(torch.maximum(known, quant_min - z), quant_max - z)
    wide = grad.double()
    per_scale = wide * torch.where(inside, steps - ratio, clamped).double()
    per_zero = torch.where(inside, torch.zeros_like(wide), -wide * s.double())
    return (
        torch.where(inside, grad, torch.zeros_like(grad)),
        (_sum_channels(per_scale, axis, group_size) * grad_factor).float().reshape(scale.shape),
        (_sum_channels(per_zero, axis, group_size) * grad_factor).float().reshape(scale.shape),
    )


def _rows(x: Tensor, axis: int | None, group_size: int | None) -> Tensor:
    """X as one row per tensor, channel or group."""
    if group_size is not None:
        return x.reshape(-1, group_size)
    return x.reshape(1, -1) if axis is None else x.movedim(axis, 0).unsqueeze(-1).flatten(1)


def _sum_channels(x: Tensor, axis: int | None, group_size: int | None) -> Tensor:
    return _rows(x, axis, group_size).sum(1)


def scale_shape(
    shape: torch.Size | tuple[int, ...], axis: int | None, group_size: int | None
) -> tuple[int, ...]:
    """The shape of scale and zero point for an x of `shape`: `()`, `(C,)` or one per group.

    Groups are neighbours in row-major order: with axis 0 they cut each channel's elements,
    flattened (`(C, numel / C / group_size)`); with the last axis, or None, they cut the last
    dimension.
    """
    if group_size is None:
        return () if axis is None else (shape[axis],)
    if axis is not None and len(shape) > 1 and axis % len(shape) == 0:
        return (shape[0], math.prod(shape[1:]) // group_size)
    return (*shape[:-1], shape[-1] // group_size)


def minmax(
    x: Tensor, axis: int | None = None, group_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Least and greatest value per tensor, channel or group, float32; NaN where there is one."""
    rows = _rows(x.float(), axis, group_size)
    shape = scale_shape(x.shape, axis, group_size)
    return rows.amin(1).reshape(shape), rows.amax(1).reshape(shape)


def fake_quantize_observed(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    quant_min: int,
    quant_max: int,
    axis: int | None = None,
    group_size: int | None = None,
    grad_factor: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """`fake_quantize(x)` and `minmax(x)`."""
    y = fake_quantize(x, scale, zero_point, quant_min, quant_max, axis, group_size, grad_factor)
    return y, *minmax(x, axis, group_size)


def histogram(
    x: Tensor, limit: Tensor, bins: int, axis: int | None = None, group_size: int | None = None
) -> Tensor:
    """`counts[c, i]`: how many x have `clamp(floor(x / limit_c * h) + h, 0, bins - 1) = i`.

    With `h = bins / 2`, and in float64, where this is exact. NaN is not counted.
    """
    rows = _rows(x.double(), axis, group_size)
    place = torch.floor(rows * (bins // 2) / limit.double().reshape(-1, 1)) + bins // 2
    place = torch.where(place.isnan(), bins, place.clamp(0, bins - 1)).long()
    counts = torch.zeros(limit.numel(), bins + 1, dtype=torch.int64, device=x.device)
    if x.numel():
        counts.scatter_add_(1, place, torch.ones_like(place))
    return counts[:, :bins].reshape(*limit.shape, bins)


def pack_int4(q: Tensor) -> Tensor:
    """`byte[i] = (q[2i] & 15) | (q[2i+1] & 15) << 4` along the last dimension; odd ends get a 0."""
    padded = torch.nn.functional.pad(q, (0, q.shape[-1] % 2)).to(torch.int16) & 15
    return (padded[..., 0::2] | (padded[..., 1::2] << 4)).to(torch.uint8)


def unpack_int4(packed: Tensor, columns: int, signed: bool) -> Tensor:
    """The inverse of `pack_int4`: int8 in [-8, 7] if signed, else uint8 in [0, 15]."""
    wide = packed.to(torch.int16)
    q = torch.stack((wide & 15, wide >> 4), dim=-1).flatten(-2)[..., :columns]
    return ((q ^ 8) - 8).to(torch.int8) if signed else q.to(torch.uint8)
