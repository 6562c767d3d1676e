"""Rows quantised on their own grids, and products of them."""

from __future__ import annotations

import pytest
import torch
from gemm_cases import (
    INF,
    NAN,
    assert_same,
    check_rows,
    quantized_rows,
    scales,
    weight_of,
    wild,
)
from gemm_on_gpu import DENSE, FLOATS, SPARSE, Finish, How, Packed, multiply
from simulated import Gpu

from sparseq import reference

GRIDS = [(-128, 127), (-100, 100), (0, 255), (3, 17)]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("low, high", GRIDS)
@pytest.mark.parametrize("rows, columns, pad", [(9, 24, 0), (3, 33, 2), (2, 1088, 0), (2, 1091, 1)])
def test_rows_on_their_own_grids(
    gpu: Gpu, dtype: torch.dtype, low: int, high: int, rows: int, columns: int, pad: int
) -> None:
    x = torch.randn((rows, columns), generator=torch.Generator().manual_seed(columns)) * 3
    x[0, :8] = torch.tensor([NAN, 0.0, NAN, 1e-8, -2.0, 5.5, -0.0, NAN])
    x[1, :3] = torch.tensor([INF, -INF, NAN]) if columns % 2 else 1.0
    x[-1] = 0.0 if columns == 24 else x[-1].abs()
    check_rows(gpu, x.to(dtype), low, high, pad)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("low, high", [(-128, 127), (0, 255)])
@pytest.mark.parametrize(
    "rows, columns, how",
    [
        (2, 1016, {"pad": 200, "pitch": 8}),  # a warp's registers, almost full
        (2, 1023, {"pad": 201, "offset": 1}),
        (1, 32 * 256 + 256 * 8 + 40, {"pad": 1288}),  # more than a block's, twice past the end
        (1, 32 * 256 + 256 + 37, {"pad": 1300, "offset": 3}),
    ],
)
def test_rows_that_fill_the_registers(
    gpu: Gpu, dtype: torch.dtype, low: int, high: int, rows: int, columns: int, how: dict
) -> None:
    x = torch.randn((rows, columns), generator=torch.Generator().manual_seed(columns)) * 3
    x[:, -1], x[:, -2] = NAN, -21.0
    check_rows(gpu, x.to(dtype), low, high, **how)


@pytest.mark.parametrize("kind, splits", [(DENSE, 1), (SPARSE, 2)])
@pytest.mark.parametrize("low, high", [(-128, 127), (0, 255)])
def test_products_of_such_rows(gpu: Gpu, kind: int, splits: int, low: int, high: int) -> None:
    x = torch.randn((11, 144), generator=torch.Generator().manual_seed(1))
    weight = weight_of((19, 144), kind == SPARSE, 2)
    row_scale, row_zero, integers = quantized_rows(x, low, high)
    q = integers.to(torch.int8 if low < 0 else torch.uint8)
    finish = Finish(scales(19), row_scale=row_scale.reshape(-1), bias=wild(19, 3, 1.0))
    if low >= 0:
        finish.row_zero = row_zero.reshape(-1).int()
    y = multiply(gpu, Packed(gpu, weight, kind), q, finish=finish, how=How(splits=splits))
    want = reference.int8_linear(
        x, weight, finish.scale, None, None, finish.bias, x_min=low, x_max=high
    )
    assert_same(y, want)
