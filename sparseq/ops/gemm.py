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
    return _ops.int8_linear(x, weight, scale, x_zero, weight_zero, bias)


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

    Returns:
        float32 `[N, O, H', W']`.

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
            "int8_conv2d: x must be [N, C, H, W] and weight [O, C / groups, kH, kW] with O a multiple "
            f"of groups = {groups}, got {tuple(x.shape)} and {tuple(weight.shape)}"
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
    )


@torch.library.register_fake("sparseq::int8_linear")
def _(x, weight, scale, x_zero, weight_zero, bias):  # type: ignore[no-untyped-def]
    return x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=torch.float32)


@torch.library.register_fake("sparseq::int8_conv2d")
def _(x, weight, scale, x_zero, weight_zero, bias, stride, padding, dilation, groups):  # type: ignore[no-untyped-def]
    spatial = [
        (x.shape[d + 2] + 2 * padding[d] - dilation[d] * (weight.shape[d + 2] - 1) - 1) // stride[d]
        + 1
        for d in range(2)
    ]
    return x.new_empty((x.shape[0], weight.shape[0], *spatial), dtype=torch.float32)
