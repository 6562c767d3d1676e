"""2:4 products of float16 and bfloat16."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gemm_cases import INF, NAN, assert_same, check_floats, small_operands, zero_of
from gemm_on_gpu import ELEMENTS, SPARSE, Finish, How, Packed, Windows, multiply
from simulated import Gpu

from sparseq import reference

HALVES = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    "rows, outputs, depth, how",
    [
        (5, 9, 16, {}),
        (33, 70, 200, {"activation": "relu"}),
        (70, 130, 264, {"large": True}),
        (9, 66, 520, {"splits": 3}),
        (7, 21, 83, {"offset": 1, "pitch": 3}),
        (7, 21, 86, {"y_offset": 1}),
        (7, 21, 86, {"offset": 2, "pitch": 2}),
        (3, 20, 325, {"splits": 2, "offset": 1}),
        (9, 70, 430, {"pitch": 2}),
        (9, 70, 427, {}),
        (9, 66, 520, {"splits": 5, "large": True}),
    ],
)
def test_floats(
    gpu: Gpu, rows: int, outputs: int, depth: int, how: dict[str, Any], dtype: torch.dtype
) -> None:
    check_floats(gpu, rows, outputs, depth, dtype, **how)
    assert ("finish_parts" in gpu.launched[-1]) == ("splits" in how)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("seed", [1, 2])
def test_order_of_threads_changes_no_bit(gpu: Gpu, seed: int, dtype: torch.dtype) -> None:
    gpu.reset(schedule="random", seed=seed)
    check_floats(gpu, 9, 33, 64 * 6, dtype, large=seed == 1)
    check_floats(gpu, 9, 33, 64 * 6, dtype, splits=2)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("splits", [1, 2])
def test_what_is_not_finite_stays_in_its_row(gpu: Gpu, splits: int, dtype: torch.dtype) -> None:
    """There a kept weight of 0 makes NaN of it, and a dropped one does not meet it."""
    x, weight, bias = small_operands(6, 20, 300, dtype)
    x[1, 7], x[2, 130], x[3, 299], x[4, 0] = INF, -INF, NAN, 2048
    weight[:, 0] = torch.where(weight[:, 1:4].abs().sum(1) == 0, 2048, 0)
    packed = Packed(gpu, weight, SPARSE, canonical=True)
    call = ("float_product", ELEMENTS.index(dtype))
    finish = Finish(bias=bias, dtype=torch.float32)
    y = multiply(gpu, packed, x, None, None, finish, How(call=call, splits=splits))
    values, indices = reference.pack_24(weight)
    kept = reference.unpack_24(torch.ones_like(values), indices, 300).bool()
    terms = torch.where(kept, x.double()[:, None] * weight.double()[None], 0.0)
    assert not y[[0, 5]].isnan().any() and not y[1:4].isfinite().all(1).any()
    assert_same(y, (terms.sum(2) + bias.double()).float())


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("channels", [9, 36, 37])
def test_convolution(gpu: Gpu, channels: int, dtype: torch.dtype) -> None:
    """Products of floats read windows in small pieces alone: none of them has 16-byte copies."""
    random = torch.Generator().manual_seed(channels)
    x = torch.randint(-4, 5, (1, 4, 5, channels), generator=random).to(dtype)
    weight = torch.randint(-4, 5, (70, channels, 3, 3), generator=random).to(dtype)
    weight = weight * reference.mask_24(torch.rand(weight.shape, generator=random))
    packed = Packed(gpu, weight, SPARSE, canonical=True)
    how = How(call=("float_product", ELEMENTS.index(dtype)))
    y = multiply(gpu, packed, x, Windows(padding=(1, 1)), zero_of(0), Finish(), how)
    x = x.double().movedim(-1, 1)
    want = torch.nn.functional.conv2d(x, weight.double(), padding=1)
    assert torch.equal(y, want.movedim(1, -1).float())
