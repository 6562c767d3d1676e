"""Arguments of the INT8 products, checked in Python so that errors are ValueError and TypeError."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparseq.ops.check import check_tensor, values_visible
from sparseq.program import ACTIVATIONS

MAX_DEPTH = 33025  # products of one sum that surely fit int32: (2^31 - 1) / 255^2
MAX_WINDOW = 2**31  # stride, padding, dilation: coordinates stay far inside of int64
BYTES = (torch.int8, torch.uint8)
STORED = (torch.int8, torch.uint8, torch.float32, torch.float16, torch.bfloat16)
CUDA_ACTIVATIONS = ("none", "relu", "relu6", "hardswish")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_dtype(op: str, argument: str, dtype: object, wanted: tuple[torch.dtype, ...]) -> None:
    if dtype not in wanted:
        *others, last = map(_name, wanted)
        got = _name(dtype) if isinstance(dtype, torch.dtype) else repr(dtype)
        raise TypeError(f"{op}: {argument} must be {', '.join(others)} or {last}, got {got}")


def check_operands(op: str, x: Tensor, weight: Tensor) -> None:
    """TypeError unless x and weight are tensors of types that the kernels read."""
    check_tensor(op, "x", x)
    check_tensor(op, "weight", weight)
    _check_dtype(op, "x", x.dtype, STORED)
    _check_dtype(op, "weight", weight.dtype, BYTES)


def check_weight(
    op: str, weight: Tensor, scale: Tensor, weight_zero: Tensor | None, bias: Tensor | None
) -> None:
    """ValueError unless each output has a scale, zero point and bias, and few enough inputs."""
    outputs, depth = weight.shape[0], weight[0].numel() if weight.shape[0] else 0
    if depth > MAX_DEPTH:
        raise ValueError(
            f"{op}: weight must have at most {MAX_DEPTH} inputs an output for an exact int32 sum, "
            f"got {depth}"
        )
    for name, tensor in (("scale", scale), ("bias", bias)):
        if tensor is not None and (tensor.shape != (outputs,) or tensor.dtype != torch.float32):
            got = f"{tuple(tensor.shape)} {_name(tensor.dtype)}"
            raise ValueError(f"{op}: {name} must be float32 of shape ({outputs},), got {got}")
    _check_count(op, "weight_zero", weight_zero, outputs, torch.int32)


def check_windows(x: Tensor, weight: Tensor, **arguments: Sequence[int]) -> None:
    """ValueError unless stride, padding and dilation make windows that fit x."""
    for name, values in arguments.items():
        least = 0 if name == "padding" else 1
        if len(values) != 2 or min(values) < least or max(values) > MAX_WINDOW:
            most = " and at most 2^31" if len(values) == 2 and max(values) > MAX_WINDOW else ""
            raise ValueError(
                f"int8_conv2d: {name} must be two numbers of at least {least}{most}, "
                f"got {tuple(values)}"
            )
    for d in range(2):
        padded = x.shape[d + 2] + 2 * arguments["padding"][d]
        if padded <= arguments["dilation"][d] * (weight.shape[d + 2] - 1):
            raise ValueError(
                "int8_conv2d: weight must not be larger than the padded x, got "
                f"{tuple(weight.shape)} and {tuple(x.shape)}"
            )


def _check_count(op: str, name: str, tensor: Tensor | None, count: int, dtype: torch.dtype) -> None:
    if tensor is None:
        return
    check_tensor(op, name, tensor)
    if tensor.numel() != count or tensor.dtype != dtype:
        got = f"{tensor.numel()} of {_name(tensor.dtype)}"
        raise ValueError(f"{op}: {name} must hold {count} {_name(dtype)} values, got {got}")


def _check_grid(
    op: str, prefix: str, scale: Tensor | None, zero: Tensor | None, limits: tuple[int, int]
) -> None:
    """One scale and one zero point, the first positive, the second inside the limits."""
    _check_count(op, f"{prefix}_scale", scale, 1, torch.float32)
    _check_count(op, f"{prefix}_zero", zero, 1, torch.int32)
    if scale is not None and values_visible(scale):
        value = float(scale)
        if not 0 < value < math.inf:
            raise ValueError(f"{op}: {prefix}_scale must be positive and finite, got {value}")
    if zero is None or values_visible(zero):
        point = 0 if zero is None else int(zero)
        if not limits[0] <= point <= limits[1]:
            raise ValueError(
                f"{op}: {prefix}_zero must lie in [{limits[0]}, {limits[1]}], got {point}"
            )


def _limits(op: str, name: str, given: Any, dtype: torch.dtype | None) -> tuple[int, int]:
    """A range of integers within a byte's, by default all of it."""
    full = (0, 255) if dtype == torch.uint8 else (-128, 127)
    if given is None:
        return full
    whole = isinstance(given, (tuple, list)) and len(given) == 2
    if not whole or not all(type(v) is int for v in given):
        raise TypeError(f"{op}: {name} must be two whole numbers, got {given!r}")
    low, high = given
    if dtype is None and low >= 0:
        full = (0, 255)
    if not full[0] <= low < high <= full[1] or (low < 0) != (full[0] < 0):
        bounds = "[-128, 127] or [0, 255]" if dtype is None else f"[{full[0]}, {full[1]}]"
        raise ValueError(
            f"{op}: {name} must lie in {bounds}, the first less than the second, got {given!r}"
        )
    return low, high


def fused_arguments(
    op: str,
    x: Tensor,
    shape: tuple[int, ...],
    x_zero: Tensor | None,
    x_scale: Tensor | None,
    x_range: tuple[int, int] | None,
    activation: str,
    residual: Tensor | None,
    residual_scale: Tensor | None,
    residual_zero: Tensor | None,
    dtype: torch.dtype | None,
    y_scale: Tensor | None,
    y_zero: Tensor | None,
    y_range: tuple[int, int] | None,
) -> dict[str, Any]:
    """Check what goes before and after the product; returns the op's keyword arguments.

    All but `shape`, the result's, are arguments of the op's wrapper, described there.
    """
    floating = x.dtype not in BYTES
    x_low, x_high = _limits(op, "x_range", x_range, None)
    if floating and x_scale is None:
        if op == "int8_conv2d":
            raise ValueError(f"{op}: x_scale must be given for x of {_name(x.dtype)}, got None")
        if x_zero is not None:
            raise ValueError(f"{op}: x_zero must be None without x_scale, got a tensor")
    else:
        byte = (-128, 127) if x.dtype == torch.int8 else (0, 255)
        _check_grid(op, "x", x_scale, x_zero, (x_low, x_high) if floating else byte)
    served = CUDA_ACTIVATIONS if x.is_cuda else ACTIVATIONS
    if activation not in served:
        where = " on CUDA" if x.is_cuda else ""
        raise ValueError(f"{op}: activation must be one of {served}{where}, got {activation!r}")
    if residual is not None:
        check_tensor(op, "residual", residual)
        _check_dtype(op, "residual", residual.dtype, STORED)
        if residual.shape != shape:
            raise ValueError(
                f"{op}: residual must have the shape of the result, {shape}, "
                f"got {tuple(residual.shape)}"
            )
    if residual is not None and residual.dtype in BYTES:
        if residual_scale is None:
            raise ValueError(
                f"{op}: residual_scale must be given for a residual of {_name(residual.dtype)}, "
                "got None"
            )
        byte = (-128, 127) if residual.dtype == torch.int8 else (0, 255)
        _check_grid(op, "residual", residual_scale, residual_zero, byte)
    elif residual_scale is not None or residual_zero is not None:
        raise ValueError(
            f"{op}: residual_scale and residual_zero must be None without a residual of int8 or "
            "uint8, got a tensor"
        )
    if dtype is not None:
        _check_dtype(op, "dtype", dtype, STORED)
    y_low, y_high = _limits(op, "y_range", y_range, dtype if dtype in BYTES else torch.int8)
    if dtype in BYTES:
        if y_scale is None:
            raise ValueError(f"{op}: y_scale must be given for {_name(dtype)}, got None")
        _check_grid(op, "y", y_scale, y_zero, (y_low, y_high))
    elif not (y_scale is None and y_zero is None and y_range is None):
        raise ValueError(
            f"{op}: y_scale, y_zero and y_range must be None unless dtype is int8 or uint8, "
            f"got dtype {dtype if dtype is None else _name(dtype)}"
        )
    return {
        "x_scale": x_scale,
        "x_min": x_low,
        "x_max": x_high,
        "activation": activation,
        "residual": residual,
        "residual_scale": residual_scale,
        "residual_zero": residual_zero,
        "dtype": dtype,
        "y_scale": y_scale,
        "y_zero": y_zero,
        "y_min": y_low,
        "y_max": y_high,
    }
