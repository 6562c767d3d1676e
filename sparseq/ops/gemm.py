"""INT8 products with an exact int32 sum: linear and two-dimensional convolution, float32 out.

y = float32(sum (x - x_zero) * (w - w_zero)) * scale + bias
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparseq.ops.check import check_tensor

_ops = torch.ops.sparseq

MAX_DEPTH = 33025  # products of one sum that surely fit int32: (2^31 - 1) / 255^2


def _check_bytes(op: str, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        check_tensor(op, name, tensor)
        if tensor.dtype not in (torch.int8, torch.uint8):
            got = str(tensor.dtype).removeprefix("torch.")
            raise TypeError(f"{op}: {name} must be int8 or uint8, got {got}")


def _check_weight(
    op: str,
    weight: Tensor,
    scale: Tensor,
    x_zero: Tensor | None,
    weight_zero: Tensor | None,
    bias: Tensor | None,
) -> None:
    outputs, depth = weight.shape[0], weight[0].numel() if weight.shape[0] else 0
    if depth > MAX_DEPTH:
        raise ValueError(
            f"{op}: weight must have at most {MAX_DEPTH} inputs an output for an exact int32 sum, "
            f"got {depth}"
        )
    for name, tensor in (("scale", scale), ("bias", bias)):
        if tensor is not None and (tensor.shape != (outputs,) or tensor.dtype != torch.float32):
            got = f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
            raise ValueError(f"{op}: {name} must be float32 of shape ({outputs},), got {got}")
    for name, tensor, count in (("x_zero", x_zero, 1), ("weight_zero", weight_zero, outputs)):
        if tensor is not None and (tensor.numel() != count or tensor.dtype != torch.int32):
            got = f"{tensor.numel()} of {str(tensor.dtype).removeprefix('torch.')}"
            raise ValueError(f"{op}: {name} must hold {count} int32 values, got {got}")


def _check_windows(x: Tensor, weight: Tensor, **arguments: Sequence[int]) -> None:
    for name, values in arguments.items():
        least = 0 if name == "padding" else 1
        if len(values) != 2 or min(values) < least:
            raise ValueError(
                f"int8_conv2d: {name} must be two numbers of at least {least}, got {tuple(values)}"
            )
    for d in range(2):
        padded = x.shape[d + 2] + 2 * arguments["padding"][d]
        if padded <= arguments["dilation"][d] * (weight.shape[d + 2] - 1):
            raise ValueError(
                "int8_conv2d: weight must not be larger than the padded x, got "
                f"{tuple(weight.shape)} and {tuple(x.shape)}"
            )


def int8_linear(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    x_zero: Tensor | None = None,
    weight_zero: Tensor | None = None,
    bias: Tensor | None = None,
    tiles: Tensor | None = None,
) -> Tensor:
    """INT8 linear: `y[m, n] = (sum_k (x[m, k] - zx) (w[n, k] - zw[n])) * scale[n] + bias[n]`.

    The sum is exact in int32 at the full 8-bit range, on every ISA; it is rounded to float32 once.

    Args:
        x: int8 or uint8 `[..., K]`, K at most 33025.
        weight: int8 or uint8 `[N, K]`.
        scale: float32 `[N]`: x's scale times the weight's.
        x_zero: int32, one element, or None for 0.
        weight_zero: int32 `[N]`, or None for 0.
        bias: float32 `[N]`, or None.
        tiles: what `int8_tiles` made of weight; without them they are made anew in each call.

    Returns:
        float32 `[..., N]`.

    Raises:
        TypeError: x or weight is not int8 or uint8.
        ValueError: a shape.

    Reference:
        Jacob et al. 2018, section 2.2-2.4.
    """
    _check_bytes("int8_linear", x=x, weight=weight)
    if weight.dim() != 2 or x.dim() < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            "int8_linear: x must be [..., K] and weight [N, K], got "
            f"{tuple(x.shape)} and {tuple(weight.shape)}"
        )
    _check_weight("int8_linear", weight, scale, x_zero, weight_zero, bias)
    return _ops.int8_linear(x, weight, scale, x_zero, weight_zero, bias, tiles)


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
) -> Tensor:
    """INT8 convolution: as `int8_linear` over every window; padding counts as real zero.

    Args:
        x: int8 or uint8 `[N, C, H, W]`, any strides.
        weight: int8 or uint8 `[O, C / groups, kH, kW]`, at most 33025 elements an output.
        scale: float32 `[O]`.
        x_zero: int32, one element, or None for 0.
        weight_zero: int32 `[O]`, or None for 0.
        bias: float32 `[O]`, or None.
        stride: two values, as `torch.nn.functional.conv2d`.
        padding: two values.
        dilation: two values.
        groups: divides C and O.
        tiles: what `int8_tiles` made of weight and groups; else made anew in each call.

    Returns:
        float32 `[N, O, H', W']`, channels_last.

    Raises:
        TypeError: x or weight is not int8 or uint8.
        ValueError: a shape.
    """
    _check_bytes("int8_conv2d", x=x, weight=weight)
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
    _check_weight("int8_conv2d", weight, scale, x_zero, weight_zero, bias)
    _check_windows(x, weight, stride=stride, padding=padding, dilation=dilation)
    return _ops.int8_conv2d(
        x,
        weight,
        scale,
        x_zero,
        weight_zero,
        bias,
        list(stride),
        list(padding),
        list(dilation),
        groups,
        tiles,
    )


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


@torch.library.register_fake("sparseq::int8_linear")
def _(x, weight, scale, x_zero, weight_zero, bias, tiles=None):  # type: ignore[no-untyped-def]
    return x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=torch.float32)


@torch.library.register_fake("sparseq::int8_conv2d")
def _(x, weight, scale, x_zero, weight_zero, bias, stride, padding, dilation, groups, tiles=None):  # type: ignore[no-untyped-def]
    spatial = [
        (x.shape[d + 2] + 2 * padding[d] - dilation[d] * (weight.shape[d + 2] - 1) - 1) // stride[d]
        + 1
        for d in range(2)
    ]
    y = x.new_empty((x.shape[0], weight.shape[0], *spatial), dtype=torch.float32)
    return torch.empty_like(y, memory_format=torch.channels_last)


@torch.library.register_fake("sparseq::int8_tiles")
def _(weight, groups, kind="auto"):  # type: ignore[no-untyped-def]
    size = torch.library.get_ctx().new_dynamic_size()
    return weight.new_empty(size, dtype=torch.uint8)
