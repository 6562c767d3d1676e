"""Every op in plain torch: its definition, and the oracle its kernels are tested against.

Slow and plain on purpose. Shapes and dtypes are as documented in `sparseq.ops`; nothing is checked
here.
"""

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


def pack_int4(q: Tensor) -> Tensor:
    """`byte[i] = (q[2i] & 15) | (q[2i+1] & 15) << 4` along the last dimension; odd ends get a 0."""
    padded = torch.nn.functional.pad(q, (0, q.shape[-1] % 2)).to(torch.int16) & 15
    return (padded[..., 0::2] | (padded[..., 1::2] << 4)).to(torch.uint8)


def unpack_int4(packed: Tensor, columns: int, signed: bool) -> Tensor:
    """The inverse of `pack_int4`: int8 in [-8, 7] if signed, else uint8 in [0, 15]."""
    wide = packed.to(torch.int16)
    q = torch.stack((wide & 15, wide >> 4), dim=-1).flatten(-2)[..., :columns]
    return ((q ^ 8) - 8).to(torch.int8) if signed else q.to(torch.uint8)


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
    if activation != "none":
        y = getattr(torch.nn.functional, activation)(y)
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


def int4_linear(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    bias: Tensor | None,
    signed: bool = True,
) -> Tensor:
    """`y = x @ w.T + bias` with `w = (q - zero_point) * scale` in float32, as `dequantize`'s."""
    columns = x.shape[-1]
    q = unpack_int4(packed, columns, signed).float()
    size = columns // scale.shape[1]
    if zero_point is not None:
        q = q - zero_point.float().repeat_interleave(size, 1)
    weight = q * scale.repeat_interleave(size, 1)
    return _linear(x, x.double() @ weight.double().T, bias)


def linear_24(x: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None) -> Tensor:
    """`y[m, n] = sum_i values[n, i] * x[m, column(n, i)] + bias[n]`, x with zeros past its end."""
    kept = values.shape[1]
    pairs = torch.stack([indices >> shift & 3 for shift in (0, 2, 4, 6)], -1).flatten(1)[:, :kept]
    columns = pairs.long() + torch.arange(kept, device=x.device) // 2 * 4
    padded = torch.nn.functional.pad(x, (0, 2 * kept - x.shape[-1])).double()
    return _linear(x, torch.einsum("...nk,nk->...n", padded[..., columns], values.double()), bias)


def _linear(x: Tensor, y: Tensor, bias: Tensor | None) -> Tensor:
    return (y if bias is None else y + bias).to(x.dtype)


def _groups_24(x: Tensor) -> Tensor:
    """[N, C, ...] -> [N, ..., ceil(C / 4), 4]; a tail is filled up with zeros."""
    return torch.nn.functional.pad(x.movedim(1, -1), (0, -x.shape[1] % 4)).unflatten(-1, (-1, 4))


def mask_24(weight: Tensor) -> Tensor:
    """True for the 2 of greatest |w| of every 4 along dimension 1; NaN last, ties to the first."""
    size = weight.abs().double()
    # padded with zeros: so + 2 for what is there, 1 for NaN, and infinity stays above all
    groups = _groups_24(torch.where(size.isnan(), 1.0, size + 2.0))
    order = groups.sort(dim=-1, descending=True, stable=True).indices
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, order[..., :2], True)
    return mask.flatten(-2)[..., : weight.shape[1]].movedim(-1, 1).contiguous()


def pack_24(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Values and indices of a weight that is 2:4; the form is that of `sparseq.ops.sparse24`."""
    groups = _groups_24(weight)
    nonzero = groups != 0
    position = torch.arange(4)
    first = torch.where(nonzero, position, 2).amin(-1, keepdim=True).clamp(max=2)
    last = torch.where(nonzero, position, -1).amax(-1, keepdim=True)
    second = torch.where(last > first, last, torch.where(first < 2, 2, 3))
    kept = groups.where(nonzero, 0).gather(-1, torch.cat((first, second), -1))
    return kept.flatten(-2), pack_int4((first | second << 2).squeeze(-1).to(torch.uint8))


def unpack_24(values: Tensor, indices: Tensor, columns: int) -> Tensor:
    """The inverse of `pack_24`."""
    pairs = values.unflatten(-1, (-1, 2))
    nibbles = unpack_int4(indices, pairs.shape[-2], False).long()
    positions = torch.stack((nibbles & 3, nibbles >> 2), -1)
    groups = values.new_zeros((*pairs.shape[:-1], 4)).scatter_(-1, positions, pairs)
    return groups.flatten(-2)[..., :columns].movedim(-1, 1).contiguous()
