"""Arguments of the ops, checked in Python so that errors are ValueError and TypeError.

Values are looked at only where that is free of surprises: eager tensors on the CPU. Under
torch.compile and torch.export, and on a GPU (where a look is a synchronisation), shapes and dtypes
are checked and values are not.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sparseq.reference import scale_shape

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_tensor(op: str, argument: str, value: object) -> None:
    """TypeError unless value is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {argument} must be a tensor, got {type(value).__name__}")


def check_not_empty(op: str, x: Tensor) -> None:
    """ValueError if x has no elements."""
    if x.numel() == 0:
        raise ValueError(f"{op}: x must not be empty, got shape {tuple(x.shape)}")


def check_float(op: str, argument: str, dtype: torch.dtype) -> None:
    """TypeError unless dtype is one the kernels compute on."""
    if dtype not in FLOATS:
        raise TypeError(
            f"{op}: {argument} must be float32, float16 or bfloat16, got {_name(dtype)}"
        )


def check_int4(op: str, argument: str, q: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    """TypeError or ValueError unless q is a tensor of bytes with a last dimension."""
    check_tensor(op, argument, q)
    if q.dtype not in dtypes:
        wanted = " or ".join(map(_name, dtypes))
        raise TypeError(f"{op}: {argument} must be {wanted}, got {_name(q.dtype)}")
    if q.dim() == 0:
        raise ValueError(f"{op}: {argument} must have at least one dimension, got a scalar")


def check_grouping(op: str, x: Tensor, axis: int | None, group_size: int | None) -> None:
    """ValueError unless axis exists in x and group_size divides what it cuts."""
    dim = x.dim()
    if axis is not None and not -dim <= axis < dim:
        raise ValueError(f"{op}: axis must be in [{-dim}, {dim - 1}], got {axis}")
    if group_size is None:
        return
    if dim == 0 or (axis is not None and axis % dim not in (0, dim - 1)):
        raise ValueError(f"{op}: axis must be 0 or the last one with group_size, got {axis}")
    if group_size < 1:
        raise ValueError(f"{op}: group_size must be at least 1, got {group_size}")
    first = axis is not None and axis % dim == 0 and dim > 1
    length = math.prod(x.shape[1:]) if first else x.shape[-1]
    if length % group_size:
        raise ValueError(
            f"{op}: group_size must divide the {length} elements it cuts "
            f"(x of shape {tuple(x.shape)}, axis {axis}), got {group_size}"
        )


def arranged_like(x: Tensor, group_size: int | None, dtype: torch.dtype) -> Tensor:
    """What a kernel gives for x: its shape and, without groups, its strides."""
    if group_size is not None:  # groups are row-major: the kernel makes x contiguous
        return torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)
    return torch.empty_like(x, dtype=dtype)


def values_visible(x: Tensor) -> bool:
    """Whether values may be looked at: x is a plain tensor on the CPU, and nothing is traced."""
    return (
        x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and type(x) in (Tensor, torch.nn.Parameter)
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
    )


def check_affine(
    op: str,
    x: Tensor,
    scale: Tensor | float,
    zero_point: Tensor | int | None,
    quant_min: int,
    quant_max: int,
    axis: int | None,
    group_size: int | None,
) -> tuple[Tensor, Tensor | None]:
    """Check the arguments of an affine op; numbers become tensors, integer zero points int32."""
    check_tensor(op, "q" if op == "dequantize" else "x", x)
    if op == "dequantize":
        if x.dtype not in (torch.int8, torch.uint8):
            raise TypeError(f"{op}: q must be int8 or uint8, got {_name(x.dtype)}")
    else:
        check_float(op, "x", x.dtype)
    low, high = (-128, 127) if quant_min < 0 else (0, 255)
    if not low <= quant_min < quant_max <= high:
        raise ValueError(
            f"{op}: quant_min and quant_max must lie in [-128, 127] or [0, 255] with "
            f"quant_min < quant_max, got {quant_min} and {quant_max}"
        )
    check_grouping(op, x, axis, group_size)
    if not isinstance(scale, Tensor):
        if not isinstance(scale, (int, float)):
            raise TypeError(f"{op}: scale must be a tensor or a number, got {type(scale).__name__}")
        scale = torch.tensor(scale, dtype=torch.float32, device=x.device)
    if zero_point is None:
        _check_zero(op, 0, 0, quant_min, quant_max)
    elif isinstance(zero_point, int):
        _check_zero(op, zero_point, zero_point, quant_min, quant_max)
        zero_point = torch.full(scale.shape, zero_point, dtype=torch.int32, device=x.device)
    else:
        check_tensor(op, "zero_point", zero_point)
    given = zero_point
    if scale.dtype != torch.float32:
        raise TypeError(f"{op}: scale must be float32, got {_name(scale.dtype)}")
    check_scale_shape(op, "scale", scale, x, axis, group_size)
    if zero_point is not None:
        if zero_point.dtype not in (torch.float32, *INTEGERS):
            raise TypeError(
                f"{op}: zero_point must be an integer tensor or float32, "
                f"got {_name(zero_point.dtype)}"
            )
        if zero_point.dtype not in (torch.float32, torch.int32):
            zero_point = zero_point.to(torch.int32)
        check_scale_shape(op, "zero_point", zero_point, x, axis, group_size)
    if values_visible(scale) and scale.numel():
        _check_values(op, scale, given, quant_min, quant_max)
    return scale, zero_point


def check_scale_shape(
    op: str, argument: str, values: Tensor, x: Tensor, axis: int | None, group_size: int | None
) -> None:
    """ValueError unless there is one value a tensor, channel or group of x, on its device."""
    if values.device != x.device:
        raise ValueError(f"{op}: {argument} must be on {x.device}, got {values.device}")
    wanted = scale_shape(x.shape, axis, group_size)
    if values.shape == wanted or (not wanted and values.numel() == 1):
        return
    text = "one element" if not wanted else f"shape {wanted}"
    raise ValueError(
        f"{op}: {argument} must have {text} for x of shape {tuple(x.shape)}, axis {axis}, "
        f"group_size {group_size}; got shape {tuple(values.shape)}"
    )


def _check_values(
    op: str, scale: Tensor, zero_point: Tensor | None, quant_min: int, quant_max: int
) -> None:
    least, greatest = (float(v) for v in scale.detach().aminmax())
    if not (least > 0 and math.isfinite(greatest)):
        bad = least if not least > 0 else greatest
        raise ValueError(f"{op}: scale must be positive and finite, got {bad}")
    if zero_point is not None and not zero_point.dtype.is_floating_point:
        first, last = (int(v) for v in zero_point.aminmax())
        _check_zero(op, first, last, quant_min, quant_max)


def _check_zero(op: str, first: int, last: int, quant_min: int, quant_max: int) -> None:
    """ValueError unless the zero points, from first to last, lie in range; None stands for 0."""
    if first < quant_min or last > quant_max:
        bad = first if first < quant_min else last
        raise ValueError(f"{op}: zero_point must lie in [{quant_min}, {quant_max}], got {bad}")


def check_shapes(wanted: str, right: bool, *tensors: Tensor) -> None:
    """What a kernel checks, in its fake, where there are only shapes.

    Raises:
        RuntimeError: they are not right.
    """
    torch._check(
        right, lambda: f"{wanted}, got {' and '.join(str(tuple(t.shape)) for t in tensors)}"
    )
