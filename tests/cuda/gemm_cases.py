"""Operands and comparisons that the tests of the products share."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import torch
from gemm_on_gpu import ELEMENTS, SPARSE, Finish, How, Packed, Windows, multiply
from simulated import Gpu
from torch import Tensor

from sparseq import reference

INF, NAN = math.inf, math.nan


def bytes_of(
    shape: tuple[int, ...], dtype: torch.dtype, seed: int, extreme: bool = False
) -> Tensor:
    low = -128 if dtype == torch.int8 else 0
    random = torch.Generator().manual_seed(seed)
    x = torch.randint(low, low + 256, shape, generator=random)
    if extreme:
        x = torch.where(x % 2 == 0, low, low + 255)
    return x.to(dtype)


def weight_of(shape: tuple[int, ...], sparse: bool, seed: int, extreme: bool = False) -> Tensor:
    weight = bytes_of(shape, torch.int8, seed, extreme)
    if sparse:
        noise = torch.rand(shape, generator=torch.Generator().manual_seed(seed + 1))
        weight = weight * reference.mask_24(noise)
    return weight


def scales(outputs: int, seed: int = 5) -> Tensor:
    return torch.rand(outputs, generator=torch.Generator().manual_seed(seed)) * 0.01 + 1e-4


def zero_of(value: int) -> Tensor:
    return torch.tensor([value], dtype=torch.int32)


WILD = torch.tensor([NAN, INF, -INF, 3e38, -3e38, -0.0, 1e-42, 65519.0])


def wild(n: int, seed: int, amplitude: float) -> Tensor:
    x = torch.randn(n, generator=torch.Generator().manual_seed(seed)) * amplitude
    x[: len(WILD)] = WILD[: min(n, len(WILD))]
    return x[torch.randperm(n, generator=torch.Generator().manual_seed(seed + 1))]


def assert_same(got: Tensor, want: Tensor) -> None:
    assert got.dtype == want.dtype
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(got.nan_to_num(0.5), want.nan_to_num(0.5))


def check_linear(
    gpu: Gpu,
    rows: int,
    outputs: int,
    depth: int,
    kind: int,
    signed: bool = True,
    extreme: bool = False,
    canonical: bool = False,
    **how: Any,
) -> None:
    """A product of rows equals the reference's bit for bit; zero points as far off as they go."""
    x = bytes_of((rows, depth), torch.int8 if signed else torch.uint8, rows + depth, extreme)
    weight = weight_of((outputs, depth), kind == SPARSE, outputs, extreme)
    packed = Packed(gpu, weight, kind, canonical=canonical)
    scale, zero = scales(outputs), zero_of(-128 if signed else 255)
    y = multiply(gpu, packed, x, None, zero, Finish(scale), How(**how))
    assert torch.equal(y, reference.int8_linear(x, weight, scale, zero, None, None))


# input NHWC, weight OIHW, groups, stride, padding, dilation
CONVOLUTIONS = {
    "3x3": ((2, 7, 9, 32), (40, 32, 3, 3), 1, (1, 1), (1, 1), (1, 1)),
    "strided": ((1, 9, 8, 48), (20, 48, 3, 3), 1, (2, 2), (1, 1), (1, 1)),
    "dilated": ((1, 9, 11, 16), (70, 16, 3, 2), 1, (1, 2), (2, 0), (2, 3)),
    "1x1": ((2, 5, 4, 64), (33, 64, 1, 1), 1, (1, 1), (0, 0), (1, 1)),
    "1x1_strided": ((2, 5, 5, 32), (16, 32, 1, 1), 1, (2, 2), (0, 0), (1, 1)),
    "1x1_padded": ((1, 3, 3, 32), (16, 32, 1, 1), 1, (1, 1), (1, 1), (1, 1)),
    "wide_padding": ((1, 3, 3, 32), (12, 32, 5, 5), 1, (1, 1), (4, 4), (1, 1)),
    "groups": ((1, 6, 5, 64), (24, 32, 3, 3), 2, (1, 1), (1, 1), (1, 1)),
    "odd_groups": ((1, 5, 5, 36), (21, 12, 3, 3), 3, (1, 1), (1, 1), (1, 1)),
    "stem": ((2, 11, 10, 3), (24, 3, 7, 7), 1, (2, 2), (3, 3), (1, 1)),
    "channels_20": ((1, 6, 6, 20), (17, 20, 3, 3), 1, (1, 1), (1, 1), (1, 1)),
    # more steps than the pipeline has stages, and a second block of outputs
    "deep": ((1, 7, 10, 80), (70, 80, 3, 3), 1, (1, 1), (1, 1), (1, 1)),
    "deep_words": ((1, 4, 5, 76), (70, 76, 3, 3), 1, (1, 1), (1, 1), (1, 1)),
    "deep_bytes": ((1, 4, 5, 77), (70, 77, 3, 3), 1, (1, 1), (1, 1), (1, 1)),
    "channels_5": ((1, 6, 6, 5), (9, 5, 3, 3), 1, (1, 1), (1, 1), (1, 1)),
}


def check_convolution(gpu: Gpu, case: str, kind: int, signed: bool, **how: Any) -> None:
    """A convolution equals the reference's bit for bit; padding is the zero point."""
    shape, weight_shape, groups, *moves = CONVOLUTIONS[case]
    x = bytes_of(shape, torch.int8 if signed else torch.uint8, 1)
    weight = weight_of(weight_shape, kind == SPARSE, 2)
    zero, scale = zero_of(-77 if signed else 201), scales(weight_shape[0])
    packed = Packed(gpu, weight, kind, groups)
    y = multiply(gpu, packed, x, Windows(*moves), zero, Finish(scale), How(**how))
    x = x.movedim(-1, 1)
    want = reference.int8_conv2d(x, weight, scale, zero, None, None, *moves, groups)
    assert torch.equal(y, want.movedim(1, -1))


def small_operands(
    rows: int, outputs: int, depth: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Small integers: their sums are exact, whatever the order."""
    random = torch.Generator().manual_seed(depth)
    x = torch.randint(-4, 5, (rows, depth), generator=random).to(dtype)
    weight = torch.randint(-4, 5, (outputs, depth), generator=random).to(dtype)
    weight = weight * reference.mask_24(torch.rand(weight.shape, generator=random))
    return x, weight, torch.randint(-9, 9, (outputs,), generator=random).float()


def check_floats(
    gpu: Gpu,
    rows: int,
    outputs: int,
    depth: int,
    dtype: torch.dtype,
    activation: str = "none",
    **how: Any,
) -> None:
    x, weight, bias = small_operands(rows, outputs, depth, dtype)
    packed = Packed(gpu, weight, SPARSE, canonical=True)
    finish = Finish(bias=bias, activation=activation, dtype=dtype)
    call = ("float_product", ELEMENTS.index(dtype))
    y = multiply(gpu, packed, x, None, None, finish, How(call=call, **how))
    want = reference.linear_24(x, *reference.pack_24(weight), bias)
    assert torch.equal(y, want.relu() if activation == "relu" else want)


def quantized_rows(x: Tensor, low: int, high: int) -> tuple[Tensor, Tensor, Tensor]:
    """The reference's row_grid, and the integers on it."""
    scale, zero = reference.row_grid(x, low, high)
    steps = torch.where(x.isnan(), 0.0, x.float() / scale).round()
    least = -high if low < 0 else low
    return scale, zero, torch.minimum(torch.maximum(steps, least - zero), high - zero) + zero


def check_rows(
    gpu: Gpu, x: Tensor, low: int, high: int, pad: int = 0, offset: int = 0, pitch: int = 0
) -> None:
    """Scale, zero point and integers equal the reference's; what is between rows becomes 0."""
    rows, columns = x.shape
    stored = torch.full((rows, columns + pitch), NAN).to(x.dtype)
    stored[:, :columns] = x
    q = gpu.room((rows, columns + pad), torch.uint8)
    scale, zero = gpu.room((rows,), torch.float32), gpu.room((rows,), torch.int32)
    sizes = [ctypes.c_int64(n) for n in (rows, columns, columns + pitch)]
    with_zero = zero if low >= 0 else None
    kind, given = ELEMENTS.index(x.dtype), gpu.put(stored, offset)
    to = q, ctypes.c_int64(columns + pad), scale, with_zero
    gpu.call("quantize_rows", kind, given, *sizes, low, high, *to)
    want_scale, want_zero, want = quantized_rows(x, low, high)
    assert torch.equal(gpu.take(scale, (rows, 1), torch.float32), want_scale)
    if low >= 0:
        assert torch.equal(gpu.take(zero, (rows, 1), torch.int32).float(), want_zero.float())
    got = gpu.take(q, (rows, columns + pad), torch.uint8)
    assert not got[:, columns:].any()
    assert torch.equal(got[:, :columns], want.to(torch.int16).to(torch.uint8))
