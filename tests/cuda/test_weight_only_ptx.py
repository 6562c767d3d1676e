"""The weight-only CUDA kernels without a GPU: see test_affine_ptx.py."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from planted import WRONG_RESULT, Fault, assert_found
from ptx.coverage import report
from simulated import Gpu
from torch import Tensor
from weight_only_on_gpu import FLOATS, Int4, Sparse, integers, normal

from sparseq import reference

SOURCES = ("csrc/weight_only/launch_int4.cu", "csrc/weight_only/launch_sparse.cu")
INF, NAN = math.inf, math.nan
THREADS = 128  # of a block: they share out the columns of an output

dtypes = pytest.mark.parametrize("dtype", FLOATS, ids=str)


@pytest.fixture(scope="module")
def machine(build_gpu) -> Gpu:
    return build_gpu(*SOURCES, "tests/cuda/weight_only_abi.cpp")


@pytest.fixture
def gpu(machine: Gpu) -> Gpu:
    machine.reset()
    return machine


def chosen(gpu: Gpu, kernel: str, rows: int) -> bool:
    """Whether the last launch was of this instance, named as it is mangled."""
    return kernel in gpu.launched[-1] and f"Li{rows}EEE" in gpu.launched[-1]


# rows, outputs, columns, groups, zero, what is chosen; columns beyond what a round of threads takes
INT4 = {
    "groups of 32": (1, 6, 32 * (THREADS + 2), THREADS + 2, True, "WholeInt4ILi16ELb1E"),
    "without zeros": (1, 3, 32 * (THREADS + 1), 1, False, "WholeInt4ILi16ELb0E"),
    "groups of 64": (6, 9, 192, 3, True, "WholeInt4ILi16ELb1E"),
    "rows": (4, 8, 96, 1, False, "WholeInt4ILi16ELb0E"),
    "groups of 8": (1, 5, 8 * (THREADS + 1), THREADS + 1, True, "WholeInt4ILi4ELb1E"),
    "groups of 40": (3, 4, 120, 3, True, "WholeInt4ILi4ELb1E"),
    "one group of 72": (9, 2, 72, 1, False, "WholeInt4ILi4ELb1E"),
    "groups of 7": (5, 3, 7 * 39, 39, True, "AnyInt4"),
    "groups of 1": (2, 5, 9, 9, False, "AnyInt4"),
    "odd": (1, 1, 33, 1, True, "AnyInt4"),
}


@dtypes
@pytest.mark.parametrize("case", INT4)
def test_int4(gpu: Gpu, case: str, dtype: torch.dtype) -> None:
    rows, outputs, columns, groups, zero, kernel = INT4[case]
    weight = Int4(outputs, columns, groups, signed=len(case) % 2 == 0, zero=zero)
    x = integers(rows, columns, dtype)
    assert torch.equal(weight.on(gpu, x), weight.wanted(x))
    assert chosen(gpu, kernel, 1 if rows == 1 and kernel != "AnyInt4" else 4)


@pytest.mark.parametrize("packed_offset, offset", [(4, 0), (1, 0), (0, 1)])
def test_int4_alignment(gpu: Gpu, packed_offset: int, offset: int) -> None:
    weight, x = Int4(5, 96, 3, True, True), integers(3, 96, torch.bfloat16)
    assert torch.equal(weight.on(gpu, x, packed_offset, offset), weight.wanted(x))
    assert chosen(gpu, "WholeInt4ILi4E" if packed_offset == 4 else "AnyInt4", 4)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("groups", [2, 8, 16])
def test_int4_weights_are_those_of_the_definition(gpu: Gpu, groups: int, signed: bool) -> None:
    """Bit for bit, every nibble, huge zero points and tiny scales included."""
    weight = Int4(8, 64, groups, signed, True)
    weight.packed = torch.arange(256, dtype=torch.uint8).reshape(8, 32)
    random, shape = torch.Generator().manual_seed(1), (8, groups)
    scale = torch.tensor([1e-42, 1e-30, 1e-3, 1.0] * 2)[:, None]
    weight.scale = torch.rand(shape, generator=random) * scale
    limits = -(2**31), 2**31 - 1
    weight.zero = torch.randint(*limits, shape, generator=random, dtype=torch.int32)
    weight.bias = torch.zeros(8)
    q = reference.unpack_int4(weight.packed, 64, signed).float()
    size = 64 // groups
    wanted = (q - weight.zero.float().repeat_interleave(size, 1)) * weight.scale.repeat_interleave(
        size, 1
    )
    assert torch.equal(weight.on(gpu, torch.eye(64)), wanted.T)


PAIRS = [(x, v) for x in FLOATS for v in FLOATS]


@pytest.mark.parametrize("dtype, values", PAIRS, ids=str)
@pytest.mark.parametrize("rows, outputs, columns", [(1, 5, 8 * (THREADS + 2)), (6, 9, 40)])
def test_sparse(
    gpu: Gpu, rows: int, outputs: int, columns: int, dtype: torch.dtype, values: torch.dtype
) -> None:
    weight, x = Sparse(outputs, columns, values), integers(rows, columns, dtype)
    assert torch.equal(weight.on(gpu, x), weight.wanted(x))
    mixed = dtype != values and torch.float32 not in (dtype, values)
    assert chosen(gpu, "AnySparse" if mixed else "WholeSparse", 1 if rows == 1 and not mixed else 4)


@pytest.mark.parametrize("dtype, values", PAIRS, ids=str)
def test_sparse_rows_that_end_anywhere(gpu: Gpu, dtype: torch.dtype, values: torch.dtype) -> None:
    for rows, columns in ((1, 1), (2, 6), (5, 27), (3, 8 * THREADS + 9)):
        weight, x = Sparse(3, columns, values), integers(rows, columns, dtype)
        assert torch.equal(weight.on(gpu, x), weight.wanted(x))
        assert chosen(gpu, "AnySparse", 4)


@pytest.mark.parametrize("values_offset, offset", [(1, 0), (0, 1)])
def test_sparse_alignment(gpu: Gpu, values_offset: int, offset: int) -> None:
    weight, x = Sparse(6, 48, torch.float16), integers(2, 48, torch.float16)
    assert torch.equal(weight.on(gpu, x, values_offset, offset), weight.wanted(x))
    assert chosen(gpu, "AnySparse", 4)


@dtypes
@pytest.mark.parametrize("columns", [64, 61])
def test_sparse_takes_any_byte(gpu: Gpu, columns: int, dtype: torch.dtype) -> None:
    """The same position twice, or descending: summed all the same, within the group."""
    weight, x = Sparse(9, columns, dtype, any_byte=True), integers(5, columns, dtype)
    assert torch.equal(weight.on(gpu, x), weight.wanted(x))


def assert_same(got: Tensor, wanted: Tensor) -> None:
    assert torch.equal(got.isnan(), wanted.isnan())
    assert torch.equal(got.nan_to_num(0.5), wanted.nan_to_num(0.5))


@dtypes
@pytest.mark.parametrize("columns, kernel", [(64, "Whole"), (37, "Any")])
def test_int4_of_what_is_not_finite(
    gpu: Gpu, columns: int, kernel: str, dtype: torch.dtype
) -> None:
    """Each in a row of its own, at several columns, the ends among them; then in scales."""
    weight, x = Int4(5, columns, 1, True, False), integers(12, columns, dtype)
    for row in range(12):
        x[row, (row * 7) % columns if row else columns - 1] = (NAN, INF, -INF)[row % 3]
    assert_same(weight.on(gpu, x), weight.wanted(x))
    weight.scale[1], weight.scale[3] = INF, NAN
    x = integers(3, columns, dtype).abs() + 1
    weight.packed.fill_(0x11)
    assert_same(weight.on(gpu, x), weight.wanted(x))
    assert kernel in gpu.launched[-1]


@dtypes
@pytest.mark.parametrize("columns, kernel", [(64, "Whole"), (38, "Any")])
def test_sparse_of_what_is_not_finite(
    gpu: Gpu, columns: int, kernel: str, dtype: torch.dtype
) -> None:
    """In columns that are kept it counts; in the others it is not looked at."""
    weight, x = Sparse(5, columns, dtype), integers(12, columns, dtype)
    for row in range(12):
        x[row, (row * 7) % columns if row else columns - 1] = (NAN, INF, -INF)[row % 3]
    wanted = weight.wanted(x)
    assert 10 < int(wanted.isfinite().sum()) < 50
    assert_same(weight.on(gpu, x), wanted)
    assert kernel in gpu.launched[-1]
    weight.values[2, -1] = INF  # meets a column past the end of 38: a zero
    assert_same(weight.on(gpu, x), weight.wanted(x))


def assert_close(y: Tensor, wanted: Tensor, size: Tensor, chain: int) -> None:
    """Within the error of a sum: a chain's roundings, the threads' 8 sums, the bias, the result."""
    bound = size * (chain + 9) * 2.0**-24 * 1.01
    if y.dtype != torch.float32:
        bound = bound + wanted.abs() * torch.finfo(y.dtype).eps / 2 + 2**-25
    assert ((y.double() - wanted).abs() <= bound).all()


@dtypes
@pytest.mark.parametrize("columns, groups", [(32 * 70, 70), (24 * 11, 11), (45, 9)])
def test_int4_is_as_exact_as_its_chains_are_short(
    gpu: Gpu, columns: int, groups: int, dtype: torch.dtype
) -> None:
    weight, x = Int4(7, columns, groups, True, True, wild=True), normal(5, columns, dtype)
    y = weight.on(gpu, x)
    eye = Int4.wanted(weight, torch.eye(columns)).double() - weight.bias
    size = x.double().abs() @ eye.abs() + weight.bias.abs()
    step = {0: 32, 8: 8}.get(columns % 32, 2)
    wanted = x.double() @ eye + weight.bias
    # eye's weights were rounded once more, with the bias
    assert_close(y, wanted, size + 4 * columns, math.ceil(columns / step / THREADS) * step)


@dtypes
@pytest.mark.parametrize("columns", [8 * 130, 131])
def test_sparse_is_as_exact_as_its_chains_are_short(
    gpu: Gpu, columns: int, dtype: torch.dtype
) -> None:
    weight, x = Sparse(7, columns, dtype, wild=True), normal(5, columns, dtype)
    wanted = reference.linear_24(x.double(), weight.values, weight.indices, None)
    size = reference.linear_24(x.double().abs(), weight.values.abs(), weight.indices, None)
    chain = math.ceil(columns / 8 / THREADS) * 4
    assert_close(weight.on(gpu, x), wanted, size, chain)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kind", ["int4", "sparse"])
def test_rows_and_the_order_of_threads_change_no_bit(gpu: Gpu, kind: str, seed: int) -> None:
    """A row's result is its own, alone or among others, whichever warp runs ahead."""
    dtype, columns = list(FLOATS)[seed], 1056
    if kind == "int4":
        weight: Int4 | Sparse = Int4(6, columns, 33, False, seed == 0, wild=True)
    else:
        weight = Sparse(6, columns, dtype, wild=True)
    x = normal(6, columns, dtype)
    wanted = weight.on(gpu, x)
    gpu.reset(schedule="random", seed=seed)
    for rows in (1, 2, 6):
        assert torch.equal(weight.on(gpu, x[:rows]), wanted[:rows])


def test_empty(gpu: Gpu) -> None:
    for rows, outputs in ((0, 3), (2, 0)):
        Int4(outputs, 8, 1, True, False).on(gpu, torch.ones(rows, 8))
        Sparse(outputs, 8, torch.float32).on(gpu, torch.ones(rows, 8))
    assert gpu.launched == []
    for weight in (Int4(3, 0, 1, True, False), Sparse(3, 0, torch.float32)):
        assert torch.equal(weight.on(gpu, torch.ones(5, 0)), weight.bias.expand(5, 3))


# --- what the interpreter and these tests would notice ---

INT4_FILE, SPARSE_FILE = "launch_int4.cu", "launch_sparse.cu"
FAULTS = {
    "a dropped barrier": (INT4_FILE, "kernels.cuh", "  __syncthreads();\n", "", "race"),
    "an output too many": (
        SPARSE_FILE,
        "kernels.cuh",
        "n >= task.outputs",
        "n > task.outputs",
        "global-memory race|bounds",
    ),
    "a row too many": (
        SPARSE_FILE,
        "kernels.cuh",
        "row + m >= task.count",
        "row + m > task.count",
        "bounds",
    ),
    "a column twice": (
        INT4_FILE,
        "kernels.cuh",
        "i += kThreads",
        "i += kThreads - 1",
        WRONG_RESULT,
    ),
    "rows past the end": (
        INT4_FILE,
        "kernels.cuh",
        ": task.count - 1",
        ": task.count",
        "bounds",
    ),
    "another group": (
        INT4_FILE,
        "int4.cuh",
        "groups + group.divide(i)",
        "groups + group.divide(i / 2)",
        WRONG_RESULT,
    ),
    "another nibble": (INT4_FILE, "int4.cuh", "word >> 16,", "word >> 12,", WRONG_RESULT),
    "the zero point after the scale": (
        INT4_FILE,
        "int4.cuh",
        "if constexpr (kZero) q = q - zero_of;\n      w[k] = q * scale_of;",
        "w[k] = q * scale_of - zero_of;",
        WRONG_RESULT,
    ),
    "positions of the other group": (
        SPARSE_FILE,
        "sparse.cuh",
        "picks.selector(1)",
        "picks.selector(0)",
        WRONG_RESULT,
    ),
    "a position's other bit": (
        SPARSE_FILE,
        "sparse.cuh",
        "at & 2 ? high",
        "at & 1 ? high",
        WRONG_RESULT,
    ),
    "past the last column": (
        SPARSE_FILE,
        "sparse.cuh",
        "if (at < depth)",
        "if (at <= depth)",
        "bounds",
    ),
}


def products(gpu: Gpu) -> None:
    """A few of each kernel."""
    for dtype in (torch.float32, torch.bfloat16):
        for columns, groups in ((4160, 65), (40, 5)):
            weight, x = Int4(6, columns, groups, True, True), integers(3, columns, dtype)
            assert torch.equal(weight.on(gpu, x), weight.wanted(x))
        for columns in (48, 37):
            sparse, x = Sparse(6, columns, dtype), integers(3, columns, dtype)
            assert torch.equal(sparse.on(gpu, x), sparse.wanted(x))


def test_without_a_fault_nothing_is_found(gpu: Gpu) -> None:
    for schedule in ("lockstep", "random"):
        gpu.reset(schedule=schedule, seed=1)
        products(gpu)


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(gpu: Gpu, tmp_path: Path, name: str) -> None:
    source, file, *texts = FAULTS[name]
    fault = Fault(f"weight_only/{file}", *texts, f"weight_only/{source}")
    if fault.found == "race":
        gpu.reset(schedule="random", seed=1)
    assert_found(gpu, fault, tmp_path, lambda: products(gpu))


def test_every_line_of_every_kernel_ran(machine: Gpu, whole_file: None) -> None:
    lines = report(machine.coverage, {})
    assert not lines, "\n".join(lines)
