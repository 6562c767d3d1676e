"""INT8 products with an exact int32 sum: linear and two-dimensional convolution.

What comes before and after is part of the op: quantising a float input, adding a residual, an
activation, quantising the result. So a layer is one pass over its input and one over its output.

    q = x, or x quantised                       (clamp(rne(x / x_scale) + x_zero), as ops.quantize)
    y = float32(sum (q - x_zero) * (w - w_zero)) * (scale * x_scale) + bias + residual
    y = activation(y), then stored as dtype     (integers as ops.quantize)

Each step is one float32 operation, so that the result equals that of the separate ops bit for bit.
None of it has a gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparseq.ops.check import check_shapes, check_tensor
from sparseq.ops.check_int8 import check_operands, check_weight, check_windows, fused_arguments

_ops = torch.ops.sparseq


def int8_linear(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    x_zero: Tensor | None = None,
    weight_zero: Tensor | None = None,
    bias: Tensor | None = None,
    tiles: Tensor | None = None,
    *,
    x_scale: Tensor | None = None,
    x_range: tuple[int, int] | None = None,
    activation: str = "none",
    residual: Tensor | None = None,
    residual_scale: Tensor | None = None,
    residual_zero: Tensor | None = None,
    dtype: torch.dtype | None = None,
    y_scale: Tensor | None = None,
    y_zero: Tensor | None = None,
    y_range: tuple[int, int] | None = None,
) -> Tensor:
    """INT8 linear: `y[m, n] = (sum_k (q[m, k] - zx) (w[n, k] - zw[n])) * scale[n] + bias[n]`.

    The sum is exact in int32 at the full 8-bit range, on every ISA; it is rounded to float32 once.
    q is x, or x quantised: on one grid (`clamp(rne(x / x_scale) + x_zero)`, NaN gives x_zero), or
    without x_scale on a grid of each row (last dimension, "per token"), over the range of the row
    and 0, NaN left out. With x_range below 0 that grid is symmetric, `s = absmax / x_range[1]`,
    zero point 0; else `s = (max - min) / (x_range[1] - x_range[0])` and the zero point is
    `rne(x_range[0] - min / s)`; where s is not positive and finite it is 1. Then
    `y = ((sum * (scale * x_scale)) * s[m] + bias) + residual`, the activation, and dtype.

    Args:
        x: int8, uint8, float32, float16 or bfloat16 `[..., K]`, any strides, K at most 33025.
        weight: int8 or uint8 `[N, K]`.
        scale: float32 `[N]`: the weight's scale; x's multiplied in where x_scale is not given.
        x_zero: int32, one element, or None for 0; None for a float x without x_scale.
        weight_zero: int32 `[N]`, or None for 0.
        bias: float32 `[N]`, or None.
        tiles: what `int8_tiles` made of weight; without them they are made anew in each call.
        x_scale: float32, one element, positive and finite.
        x_range: least and greatest integer that a float x is quantised to, in [-128, 127] (the
            default, all of it) or [0, 255].
        activation: "none", "relu", "relu6" or "hardswish", as torch computes them; on the CPU also
            "hardsigmoid", "sigmoid", "silu", "tanh", "gelu" or "gelu_tanh", each a fixed sequence
            of float32 operations (`sparseq.reference.functions`).
        residual: added before the activation: y's shape, float32, float16, bfloat16, or int8 or
            uint8 with residual_scale; any strides.
        residual_scale: float32, one element: `(residual - residual_zero) * residual_scale` is
            added.
        residual_zero: int32, one element, or None for 0.
        dtype: of y: float32, float16 or bfloat16 (rounded to nearest even), int8 or uint8. None
            takes x's if that is floating, else float32.
        y_scale: float32, one element; for int8 and uint8, which hold
            `clamp(rne(y / y_scale) + y_zero)`, y_zero where y is NaN.
        y_zero: int32, one element, or None for 0.
        y_range: least and greatest integer of y; None takes all of dtype's.

    Returns:
        dtype `[..., N]`, contiguous.

    Raises:
        TypeError: a dtype.
        ValueError: a shape, a range, or an argument without the one that it belongs to.

    Reference:
        Jacob et al. 2018, section 2.2-2.4.
    """
    check_operands("int8_linear", x, weight)
    if weight.dim() != 2 or x.dim() < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            "int8_linear: x must be [..., K] and weight [N, K], got "
            f"{tuple(x.shape)} and {tuple(weight.shape)}"
        )
    check_weight("int8_linear", weight, scale, weight_zero, bias)
    options = fused_arguments(
        "int8_linear",
        x,
        (*x.shape[:-1], weight.shape[0]),
        x_zero,
        x_scale,
        x_range,
        activation,
        residual,
        residual_scale,
        residual_zero,
        dtype,
        y_scale,
        y_zero,
        y_range,
    )
    return _ops.int8_linear(x, weight, scale, x_zero, weight_zero, bias, tiles, **options)


def int8_conv2d(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    x_zero: Tensor | None = None,
    weight_zero: Tensor | None = None,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    tiles: Tensor | None = None,
    *,
    x_scale: Tensor | None = None,
    x_range: tuple[int, int] | None = None,
    activation: str = "none",
    residual: Tensor | None = None,
    residual_scale: Tensor | None = None,
    residual_zero: Tensor | None = None,
    dtype: torch.dtype | None = None,
    y_scale: Tensor | None = None,
    y_zero: Tensor | None = None,
    y_range: tuple[int, int] | None = None,
) -> Tensor:
    """INT8 convolution: as `int8_linear` over every window; padding counts as real zero.

    A float x is quantised on one grid: x_scale must be given.

    Args:
        x: int8, uint8, float32, float16 or bfloat16 `[N, C, H, W]`, any strides; channels_last is
            the fastest.
        weight: int8 or uint8 `[O, C / groups, kH, kW]`, at most 33025 elements an output.
        scale: float32 `[O]`, as for `int8_linear`.
        x_zero: int32, one element, or None for 0.
        weight_zero: int32 `[O]`, or None for 0.
        bias: float32 `[O]`, or None.
        stride: two values, as `torch.nn.functional.conv2d`.
        padding: two values.
        dilation: two values.
        groups: divides C and O.
        tiles: what `int8_tiles` made of weight and groups; else made anew in each call.
        x_scale: as for `int8_linear`.
        x_range: as for `int8_linear`.
        activation: as for `int8_linear`.
        residual: as for `int8_linear`, y's shape; copied unless channels_last.
        residual_scale: as for `int8_linear`.
        residual_zero: as for `int8_linear`.
        dtype: as for `int8_linear`.
        y_scale: as for `int8_linear`.
        y_zero: as for `int8_linear`.
        y_range: as for `int8_linear`.

    Returns:
        dtype `[N, O, H', W']`, channels_last.

    Raises:
        TypeError: a dtype.
        ValueError: a shape, a range, or an argument without the one that it belongs to.
    """
    check_operands("int8_conv2d", x, weight)
    shapes_fit = (
        x.dim() == 4
        and weight.dim() == 4
        and groups >= 1
        and x.shape[1] == weight.shape[1] * groups
        and weight.shape[0] % groups == 0
    )
    if not shapes_fit:
        raise ValueError(
            "int8_conv2d: x must be [N, C, H, W] and weight [O, C / groups, kH, kW] with O a "
            f"multiple of groups = {groups}, got {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    check_weight("int8_conv2d", weight, scale, weight_zero, bias)
    check_windows(x, weight, stride=stride, padding=padding, dilation=dilation)
    spatial = _output_size(x, weight, stride, padding, dilation)
    options = fused_arguments(
        "int8_conv2d",
        x,
        (x.shape[0], weight.shape[0], *spatial),
        x_zero,
        x_scale,
        x_range,
        activation,
        residual,
        residual_scale,
        residual_zero,
        dtype,
        y_scale,
        y_zero,
        y_range,
    )
    windows = list(stride), list(padding), list(dilation), groups
    return _ops.int8_conv2d(x, weight, scale, x_zero, weight_zero, bias, *windows, tiles, **options)


def _output_size(
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, int]:
    rows, columns = (
        (x.shape[d + 2] + 2 * padding[d] - dilation[d] * (weight.shape[d + 2] - 1) - 1) // stride[d]
        + 1
        for d in range(2)
    )
    return rows, columns


def int8_tiles(weight: Tensor, groups: int = 1, kind: str = "auto") -> Tensor:
    """Pack a weight for the kernels of this machine: done once, on load; never saved.

    A weight of which every four neighbouring inputs (of every tap) hold at most two non-zeros is
    packed as 2:4, with half the products to do; else dense, or depthwise.

    Args:
        weight: int8 `[N, K]`, or `[O, C / groups, kH, kW]`, not empty.
        groups: of the convolution.
        kind: "auto", "dense", or "2:4"; a depthwise weight is packed as such whatever is asked.

    Returns:
        uint8, of a length and content that depend on the machine's ISA.

    Raises:
        TypeError: weight is not int8.
        ValueError: a shape, or "2:4" for a weight that is not.

    Reference:
        Mishra et al. 2021, Accelerating Sparse Deep Neural Networks, section 3 (2:4).
    """
    check_tensor("int8_tiles", "weight", weight)
    if weight.dtype != torch.int8:
        got = str(weight.dtype).removeprefix("torch.")
        raise TypeError(f"int8_tiles: weight must be int8, got {got}")
    if weight.dim() not in (2, 4) or weight.numel() == 0 or groups < 1 or weight.shape[0] % groups:
        raise ValueError(
            "int8_tiles: weight must be [N, K] or [O, I, kH, kW], not empty, with rows a multiple "
            f"of groups = {groups}, got {tuple(weight.shape)}"
        )
    if kind not in ("auto", "dense", "2:4"):
        raise ValueError(f"int8_tiles: kind must be 'auto', 'dense' or '2:4', got {kind!r}")
    return _ops.int8_tiles(weight, groups, kind)


def tile_kind(tiles: Tensor) -> str:
    """How `int8_tiles` packed a weight: "dense", "2:4" or "depthwise"."""
    return ("dense", "2:4", "depthwise")[int(tiles[4:8].view(torch.int32))]


def _stored(x: Tensor, options: dict[str, Any]) -> torch.dtype:
    """The result's dtype."""
    default = x.dtype if x.is_floating_point() else torch.float32
    return options.get("dtype") or default


@torch.library.register_fake("sparseq::int8_linear")
def _(x, weight, scale, x_zero, weight_zero, bias, tiles=None, **options):  # type: ignore[no-untyped-def]
    check_shapes(
        "int8_linear: x must be [..., K] and weight [N, K]",
        x.dim() >= 1 and weight.dim() == 2 and x.shape[-1] == weight.shape[1], x, weight,
    )  # fmt: skip
    return x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=_stored(x, options))


@torch.library.register_fake("sparseq::int8_conv2d")
def _(  # type: ignore[no-untyped-def]
    x, weight, scale, x_zero, weight_zero, bias, stride, padding, dilation, groups, tiles=None,
    **options,
):  # fmt: skip
    check_shapes(
        f"int8_conv2d: x must be [N, C, H, W] and weight [O, C / groups, kH, kW], groups {groups}",
        x.dim() == weight.dim() == 4 and x.shape[1] == weight.shape[1] * groups, x, weight,
    )  # fmt: skip
    spatial = _output_size(x, weight, stride, padding, dilation)
    too_small = any(isinstance(n, int) and n < 1 for n in spatial)  # no guard on dynamic sizes
    check_shapes("int8_conv2d: x must be at least as large as the kernel", not too_small, x, weight)
    y = x.new_empty((x.shape[0], weight.shape[0], *spatial), dtype=_stored(x, options))
    return torch.empty_like(y, memory_format=torch.channels_last)


@torch.library.register_fake("sparseq::int8_tiles")
def _(weight, groups, kind="auto"):  # type: ignore[no-untyped-def]
    size = torch.library.get_ctx().new_dynamic_size()
    return weight.new_empty(size, dtype=torch.uint8)


# A float x that requires a gradient passes through without one, and without autograd's warning.
_autograd = torch.library.Library("sparseq", "IMPL")
for _name in ("int8_linear", "int8_conv2d"):
    _autograd.impl(_name, torch.library.fallthrough_kernel, "Autograd")
