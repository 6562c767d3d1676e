"""Linear layers whose weights alone are small, for few rows of x: INT4, and 2:4 floats.

With few rows a linear layer is as fast as its weight can be read. The kernels read the canonical
form itself, an eighth of float32 (INT4) or 53 % of it (2:4), and compute in float32:

    y = x @ weight.T + bias

A row's result does not depend on the other rows, the number of threads or the ISA. The exception
is 2:4 on a GPU's tensor cores (`linear_24`), which is for many rows too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparseq.ops.check import check_float, check_shapes, check_tensor

_ops = torch.ops.sparseq


def _check(
    op: str, argument: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    """TypeError or ValueError unless tensor has this dtype and shape."""
    check_tensor(op, argument, tensor)
    if tensor.dtype != dtype:
        wanted, got = (str(d).removeprefix("torch.") for d in (dtype, tensor.dtype))
        raise TypeError(f"{op}: {argument} must be {wanted}, got {got}")
    if tensor.shape != shape:
        raise ValueError(
            f"{op}: {argument} must have shape {shape}, got shape {tuple(tensor.shape)}"
        )


def _check_x(op: str, x: Tensor, weight_name: str, weight: Tensor) -> int:
    """K, after a look at x; the weight must be a matrix."""
    check_tensor(op, "x", x)
    check_float(op, "x", x.dtype)
    if x.dim() == 0:
        raise ValueError(f"{op}: x must have at least one dimension, got a scalar")
    check_tensor(op, weight_name, weight)
    if weight.dim() != 2:
        raise ValueError(
            f"{op}: {weight_name} must have two dimensions, got shape {tuple(weight.shape)}"
        )
    return x.shape[-1]


def int4_linear(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    bias: Tensor | None = None,
    signed: bool = True,
) -> Tensor:
    """Weight-only INT4 linear: `y = x @ w.T + bias` with `w = (q - zero_point) * scale`.

    w is what `dequantize` gives, group by group of K / G neighbours; products are summed in
    float32. Fastest where a group is the whole row or its size a multiple of 128; then 8, 16, 32
    and 64; then other multiples of 8. Any other size is decoded value by value, many times slower.

    Args:
        x: float32, float16 or bfloat16 `[..., K]`, any strides.
        packed: uint8 `[N, ceil(K / 2)]`, as `pack_int4` makes it.
        scale: float32 `[N, G]`, with G a divisor of K; its values are not checked.
        zero_point: int32 `[N, G]`, or None for 0.
        bias: float32 `[N]`, or None.
        signed: whether q is in [-8, 7]; else in [0, 15].

    Returns:
        x's dtype, `[..., N]`. It has no gradient.

    Raises:
        TypeError: a dtype.
        ValueError: a shape.

    Reference:
        Frantar et al. 2023, GPTQ, section 4 (the kernel); ONNX operator MatMulNBits.
    """
    op = "int4_linear"
    columns = _check_x(op, x, "packed", packed)
    outputs = packed.shape[0]
    _check(op, "packed", packed, torch.uint8, (outputs, (columns + 1) // 2))
    check_tensor(op, "scale", scale)
    if scale.dim() != 2 or scale.shape[1] < 1 or columns % scale.shape[1]:
        raise ValueError(
            f"{op}: scale must be [N, G] with G a divisor of K = {columns}, "
            f"got shape {tuple(scale.shape)}"
        )
    grid = (outputs, scale.shape[1])
    _check(op, "scale", scale, torch.float32, grid)
    if zero_point is not None:
        _check(op, "zero_point", zero_point, torch.int32, grid)
    if bias is not None:
        _check(op, "bias", bias, torch.float32, (outputs,))
    return _ops.int4_linear(x, packed, scale, zero_point, bias, signed)


def linear_24(
    x: Tensor,
    values: Tensor,
    indices: Tensor,
    bias: Tensor | None = None,
    tiles: Tensor | None = None,
) -> Tensor:
    """2:4 sparse linear of floats: `y[m, n] = sum_i values[n, i] * x[m, column(n, i)] + bias[n]`.

    Of every 4 neighbouring columns 2 are kept: the value i is in group `i // 2`, at the position
    that bits `2 i` and `2 i + 1` of its row of indices name. Columns past K count as 0; what is in
    a column that is not kept, even NaN, is not looked at. Products are summed in float32.

    On a GPU, values and x of one 16-bit type are multiplied on its tensor cores, from tiles: those
    given, or made for the call where x has more than 8 rows. Their sums round in another order,
    which depends on the number of rows.

    Args:
        x: float32, float16 or bfloat16 `[..., K]`, any strides.
        values: float32, float16 or bfloat16 `[N, 2 * ceil(K / 4)]`, ascending column order.
        indices: uint8 `[N, ceil(ceil(K / 4) / 2)]`, 4 bits a group, low nibble first: the first
            kept position in bits 0-1, the second in bits 2-3. Any byte is safe; positions that do
            not ascend, which are no 2:4, mean 0 and 1 on tensor cores.
        bias: float32 `[N]`, or None.
        tiles: what `tiles_24` made of values and indices, or None.

    Returns:
        x's dtype, `[..., N]`. It has no gradient.

    Raises:
        TypeError: a dtype.
        ValueError: a shape.

    Reference:
        Mishra et al. 2021, Accelerating Sparse Deep Neural Networks, section 3 (2:4).
    """
    op = "linear_24"
    columns = _check_x(op, x, "values", values)
    _check_24(op, values, indices, columns)
    if bias is not None:
        _check(op, "bias", bias, torch.float32, (values.shape[0],))
    if tiles is not None:
        check_tensor(op, "tiles", tiles)
    return _ops.linear_24(x, values, indices, bias, tiles)


def tiles_24(values: Tensor, indices: Tensor, columns: int) -> Tensor:
    """Pack a 2:4 weight for `linear_24` on this machine: done once, on load; never saved.

    Tiles are what tensor cores read: of float16 and bfloat16 values on a GPU. The other kernels
    read the canonical form itself: for them there are none, and the result is empty.

    Args:
        values: float32, float16 or bfloat16 `[N, 2 * ceil(columns / 4)]`.
        indices: uint8 `[N, ceil(ceil(columns / 4) / 2)]`, as `pack_24` makes them.
        columns: K.

    Returns:
        uint8 on values' device, of a length and content that depend on the machine.

    Raises:
        TypeError: a dtype.
        ValueError: a shape.

    Reference:
        Mishra et al. 2021, Accelerating Sparse Deep Neural Networks, section 3 (2:4).
    """
    op = "tiles_24"
    check_tensor(op, "values", values)
    if values.dim() != 2:
        raise ValueError(f"{op}: values must have two dimensions, got shape {tuple(values.shape)}")
    if columns < 0:
        raise ValueError(f"{op}: columns must be at least 0, got {columns}")
    _check_24(op, values, indices, columns)
    return _ops.tiles_24(values, indices, columns)


def _check_24(op: str, values: Tensor, indices: Tensor, columns: int) -> None:
    """TypeError or ValueError unless values and indices are those of a 2:4 weight [N, columns]."""
    groups, outputs = (columns + 3) // 4, values.shape[0]
    check_float(op, "values", values.dtype)
    _check(op, "values", values, values.dtype, (outputs, 2 * groups))
    _check(op, "indices", indices, torch.uint8, (outputs, (groups + 1) // 2))


@torch.library.register_fake("sparseq::int4_linear")
def _(x, packed, scale, zero_point, bias, signed=True):  # type: ignore[no-untyped-def]
    check_shapes(
        "int4_linear: x must be [..., K] and packed [N, ceil(K / 2)]",
        x.dim() >= 1 and packed.dim() == 2 and packed.shape[1] == (x.shape[-1] + 1) // 2, x, packed,
    )  # fmt: skip
    return x.new_empty((*x.shape[:-1], packed.shape[0]))


@torch.library.register_fake("sparseq::linear_24")
def _(x, values, indices, bias, tiles=None):  # type: ignore[no-untyped-def]
    fits = x.dim() >= 1 and values.dim() == 2 and values.shape[1] == (x.shape[-1] + 3) // 4 * 2
    check_shapes("linear_24: x must be [..., K] and values [N, 2 * ceil(K / 4)]", fits, x, values)
    return x.new_empty((*x.shape[:-1], values.shape[0]))


@torch.library.register_fake("sparseq::tiles_24")
def _(values, indices, columns):  # type: ignore[no-untyped-def]
    size = torch.library.get_ctx().new_dynamic_size()
    return values.new_empty(size, dtype=torch.uint8)
