"""The 2:4 CUDA kernels without a GPU: see test_affine_ptx.py."""

from __future__ import annotations

import ctypes
import math
from pathlib import Path

import pytest
import torch
from planted import WRONG_RESULT, Fault, assert_found
from ptx.coverage import report
from torch import Tensor

from sparseq import reference

FLOATS = [torch.float32, torch.float16, torch.bfloat16]
INFINITY = {torch.float32: 0x7F800000, torch.float16: 0x7C00, torch.bfloat16: 0x7F80}
BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32}
SHAPES = [(1, 1), (3, 8), (5, 37), (70, 66), (3, 12, 3, 3), (2, 7, 1, 5), (5, 6, 2, 2)]
NO_FAULT = torch.full((1,), -1, dtype=torch.int64)
NOT_2_4, BAD_INDEX, BAD_PADDING = 1, 2, 3


@pytest.fixture(scope="module")
def sparse_machine(build_gpu):
    gpu = build_gpu("csrc/sparse24/launch.cu", "tests/cuda/sparse24_abi.cpp")
    gpu.library.fault_of.restype = ctypes.c_int64
    return gpu


@pytest.fixture
def gpu(sparse_machine):
    sparse_machine.reset()
    return sparse_machine


def sizes(shape: tuple[int, ...]) -> list[ctypes.c_int64]:
    return [ctypes.c_int64(n) for n in (*shape[:2], math.prod(shape[2:]))]


def float_weight(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Ties, zeros of both signs, NaN and infinities among them."""
    random = torch.Generator().manual_seed(sum(shape))
    weight = torch.randint(-3, 4, shape, generator=random) * 0.5
    pick = torch.rand(shape, generator=random)
    weight = torch.where(pick < 0.1, math.nan, torch.where(pick > 0.9, -math.inf, weight))
    return torch.where((pick > 0.4) & (pick < 0.5), -0.0, weight).to(dtype)


def sparse_weight(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if dtype == torch.int8:
        random = torch.Generator().manual_seed(sum(shape))
        weight = torch.randint(-128, 128, shape, generator=random).to(dtype)
        return weight * reference.mask_24(torch.rand(shape, generator=random))
    weight = float_weight(shape, dtype)
    return torch.where(reference.mask_24(weight.nan_to_num(9.0)), weight, torch.zeros_like(weight))


def fault(gpu, word: ctypes.c_void_p, columns: int) -> tuple[int, int, int]:
    number = int(gpu.take(word, (1,), torch.int64))
    found = gpu.library.fault_of(ctypes.c_uint64(number), ctypes.c_int64(columns))
    return found >> 56, found >> 28 & (1 << 28) - 1, found & (1 << 28) - 1


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_mask(gpu, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    weight = float_weight(shape, dtype)
    mask = gpu.room(shape, torch.uint8)
    gpu.call(
        "mask_24", weight.element_size(), gpu.put(weight), INFINITY[dtype], mask, *sizes(shape)
    )
    assert torch.equal(gpu.take(mask, shape, torch.uint8).bool(), reference.mask_24(weight))


@pytest.mark.parametrize("dtype", [torch.int8, *FLOATS])
@pytest.mark.parametrize("shape", SHAPES)
def test_pack_and_unpack(gpu, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    weight = sparse_weight(shape, dtype)
    want_values, want_indices = reference.pack_24(weight)
    size, bits = weight.element_size(), BITS[weight.element_size()]
    values = gpu.room(tuple(want_values.shape), dtype)
    indices = gpu.room(tuple(want_indices.shape), torch.uint8)
    word = gpu.put(NO_FAULT)
    gpu.call("pack_24", size, gpu.put(weight), values, indices, word, *sizes(shape))
    got = gpu.take(values, tuple(want_values.shape), dtype)
    assert torch.equal(got.view(bits), want_values.view(bits))
    assert torch.equal(gpu.take(indices, tuple(want_indices.shape), torch.uint8), want_indices)
    back = gpu.room(shape, dtype)
    gpu.call("unpack_24", size, values, indices, back, word, *sizes(shape))
    want = reference.unpack_24(want_values, want_indices, shape[1])
    assert torch.equal(gpu.take(back, shape, dtype).view(bits), want.view(bits))
    assert fault(gpu, word, shape[1]) == (0, 0, 0)


@pytest.mark.parametrize("dtype", [torch.int8, *FLOATS])
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("group", [2, 3])  # two share a byte of indices
def test_the_first_fault_is_named(gpu, group: int, seed: int, dtype: torch.dtype) -> None:
    gpu.reset(schedule="random", seed=seed)
    shape = (40, 38)
    weight = sparse_weight(shape, dtype)
    for row, column in ((17, 4 * group), (17, 32), (18, 0), (18, 4), (39, 8)):
        weight[row, column : column + 3] = 7
    values = gpu.room((40, 20), dtype)
    indices = gpu.room((40, 5), torch.uint8)
    word = gpu.put(NO_FAULT)
    gpu.call(
        "pack_24", weight.element_size(), gpu.put(weight), values, indices, word, *sizes(shape)
    )
    assert fault(gpu, word, 38) == (NOT_2_4, 17, group)


@pytest.mark.parametrize("dtype", [torch.int8, *FLOATS])
@pytest.mark.parametrize(
    "columns, byte, value, last, error, group",
    [
        (19, 1, 0x41, (1, 1), BAD_INDEX, 2),
        (19, 1, 0x14, (1, 1), BAD_INDEX, 3),
        (19, 2, 0x05, (1, 1), BAD_INDEX, 4),
        (19, 2, 0x0E, (0, 5), BAD_PADDING, 4),
        (17, 2, 0x0D, (5, 0), BAD_PADDING, 4),
        (15, 1, 0xE4, (0, 5), BAD_PADDING, 3),
        (13, 1, 0xD4, (5, 0), BAD_PADDING, 3),
        (19, 2, 0x14, (1, 1), BAD_PADDING, 5),
        (19, 2, 0x0E, (5, 0), 0, 0),
        (17, 2, 0x0E, (0, 0), 0, 0),
        (13, 1, 0xE4, (0, 0), 0, 0),
    ],
)
def test_bytes_of_any_kind(
    gpu,
    columns: int,
    byte: int,
    value: int,
    last: tuple[int, int],
    error: int,
    group: int,
    dtype: torch.dtype,
) -> None:
    """Pairs out of order, values past the last column, bits past the last group."""
    weight = torch.ones((6, columns), dtype=dtype) * (torch.arange(columns) % 4 < 2)
    values, indices = reference.pack_24(weight)
    values[3, -2:] = torch.tensor(last)
    indices[3, byte] = value
    word = gpu.put(NO_FAULT)
    back = gpu.room((6, columns), dtype)
    arguments = gpu.put(values), gpu.put(indices), back, word
    gpu.call("unpack_24", weight.element_size(), *arguments, *sizes((6, columns)))
    assert fault(gpu, word, columns) == (error, 3 if error else 0, group)
    got = gpu.take(back, (6, columns), dtype)
    others = torch.arange(6) != 3
    assert torch.equal(got[others], weight[others])
    if not error:
        assert torch.equal(got, reference.unpack_24(values, indices, columns))


@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (2, 4, 0, 3)])
def test_empty(gpu, shape: tuple[int, ...]) -> None:
    weight = gpu.put(torch.zeros(shape))
    gpu.call("mask_24", 4, weight, INFINITY[torch.float32], weight, *sizes(shape))
    gpu.call("pack_24", 4, weight, weight, weight, gpu.put(NO_FAULT), *sizes(shape))
    assert gpu.launched == []


FAULTS = {
    "a row too many": (
        "if (output >= s.outputs) return;",
        "if (output > s.outputs) return;",
        "out-of-bounds global",
    ),
    "a column too many": (
        "left < 4 ? left < 0",
        "left < 3 ? left < 0",
        "global-memory race|bounds",
    ),
    "places in the wrong order": (
        "first | second << 2) <<",
        "second | first << 2) <<",
        WRONG_RESULT,
    ),
    "the earlier of equals loses": ("bc + bd >= 1 + ab", "bc + bd >= 2 + ab", WRONG_RESULT),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(gpu, tmp_path: Path, name: str) -> None:
    def check() -> None:
        test_mask(gpu, (5, 39), torch.float32)
        test_pack_and_unpack(gpu, (5, 39), torch.float32)

    check()
    fault = Fault("sparse24/compress.cuh", *FAULTS[name], "sparse24/launch.cu")
    assert_found(gpu, fault, tmp_path, check)


def test_every_line_of_every_kernel_ran(sparse_machine, whole_file: None) -> None:
    lines = report(sparse_machine.coverage, {})
    assert not lines, "\n".join(lines)
