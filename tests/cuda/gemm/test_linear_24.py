"""2:4 linear layers of 16-bit floats, as the op launches them: tiles of the canonical form."""

from __future__ import annotations

import ctypes

import pytest
import torch
from gemm_on_gpu import ELEMENTS, SPARSE, Finish, How, Packed, multiply
from simulated import Gpu
from torch import Tensor

from sparseq import reference

HALVES = [torch.float16, torch.bfloat16]
MULTIPROCESSORS = 4  # few, so that small products are cut as large ones are


def operands(rows: int, outputs: int, depth: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(depth)
    weight = torch.randn((outputs, depth), generator=random)
    x = torch.randn((rows, depth), generator=random).to(dtype)
    return x, (weight * reference.mask_24(weight)).to(dtype)


def product(gpu: Gpu, packed: Packed, x: Tensor, bias: Tensor | None) -> Tensor:
    """Cut as cut_product says; rows of any number of columns lie next to each other."""
    splits = ctypes.c_int64()
    by, rows = ctypes.byref(packed.structure), ctypes.c_int64(x.shape[0])
    large = gpu.library.chosen(by, rows, MULTIPROCESSORS, ctypes.byref(splits))
    call = ("float_product", ELEMENTS.index(x.dtype))
    how = How(large=bool(large), splits=splits.value, call=call)
    return multiply(gpu, packed, x, None, None, Finish(bias=bias, dtype=x.dtype), how)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    "rows, outputs, depth", [(9, 70, 77), (1, 33, 1090), (70, 300, 128), (3, 1, 6)]
)
def test_products_are_as_exact_as_float32_sums(
    gpu: Gpu, rows: int, outputs: int, depth: int, dtype: torch.dtype
) -> None:
    """Random floats, against exact sums: at most K + 2 roundings of float32, then dtype's."""
    x, weight = operands(rows, outputs, depth, dtype)
    bias = torch.randn(outputs, generator=torch.Generator().manual_seed(1))
    y = product(gpu, Packed(gpu, weight, SPARSE, canonical=True), x, bias).double()
    wide, exact = weight.double().T, x.double() @ weight.double().T + bias
    size = x.double().abs() @ wide.abs() + bias.abs()
    bound = size * (depth + 2) * 2**-24 + exact.abs() * torch.finfo(dtype).eps / 2 * 1.01 + 2**-25
    assert ((y - exact).abs() <= bound).all()


@pytest.mark.parametrize("dtype", HALVES)
def test_positions_that_do_not_ascend_mean_0_and_1(gpu: Gpu, dtype: torch.dtype) -> None:
    """Any byte of indices makes tiles that mma.sp may read, and leaves its neighbours alone."""
    random, depth, outputs = torch.Generator().manual_seed(2), 136, 20
    values = torch.randint(-4, 5, (outputs, depth // 2), generator=random).to(dtype)
    size = (outputs, depth // 8)
    indices = torch.randint(256, size, generator=random, dtype=torch.uint8)
    nibbles = reference.unpack_int4(indices, depth // 4, False)
    first, second = nibbles & 3, nibbles >> 2
    assert (first >= second).any() and (first < second).any()
    wanted = reference.pack_int4(torch.where(first < second, nibbles, 4))
    packed = Packed(gpu, torch.zeros(outputs, depth, dtype=dtype), SPARSE, canonical=True)
    by = ctypes.byref(packed.structure)
    gpu.call("pack_tiles_24", by, gpu.put(values), gpu.put(indices))
    x = torch.randint(-4, 5, (5, depth), generator=random).to(dtype)
    y = product(gpu, packed, x, None)
    assert torch.equal(y, reference.linear_24(x, values, wanted, None))
