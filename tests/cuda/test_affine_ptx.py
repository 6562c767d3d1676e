"""The affine CUDA kernels without a GPU.

Their launchers run as compiled; what they launch is executed from nvcc's PTX by the interpreter in
ptx/, which also checks bounds, alignment, initialisation and races. Results are compared with
sparseq.reference: bit for bit, except sums of rounded floats.
"""

from __future__ import annotations

import ctypes
import math
from pathlib import Path

import pytest
import torch
from affine_on_gpu import DTYPES, Case, assert_same_bits
from planted import WRONG_RESULT, Fault, assert_found
from ptx.coverage import report
from simulated import Gpu

from sparseq import reference

# PTX that no test of this file runs: patterns of a kernel and its instructions, with reasons
NOT_COVERED = {
    r"combine.*: .*`div\.u64": "nvcc's division where 32 bits do not hold the slots of a channel",
}


@pytest.fixture(scope="module")
def machine(build_gpu) -> Gpu:
    made = build_gpu("csrc/affine/launch.cu", "tests/cuda/affine_abi.cpp")
    made.library.slots.restype = ctypes.c_int64
    return made


@pytest.fixture
def gpu(machine: Gpu) -> Gpu:
    machine.reset()
    return machine


# name: shape, axis, group; chosen for vectors that fit, runs that they do not divide, tails, short
# runs, one and several blocks, segments and blocks of rows
LAYOUTS = {
    "one": ((1,), None, None),
    "short": ((5,), None, None),
    "all_but_one": ((23,), None, None),
    "tensor": ((3, 5, 71), None, None),
    "segments": ((40003,), None, None),
    "weight": ((7, 36), 0, None),
    "ragged_weight": ((5, 33), 0, None),
    "long_channels": ((3, 4096), 0, None),
    "images": ((2, 3, 8, 8), 1, None),
    "ragged_images": ((2, 5, 7, 7), 1, None),
    "last": ((130, 64), 1, None),
    "ragged_last": ((70, 33), 1, None),
    "few_last": ((1000, 3), 1, None),
    "short_runs": ((70, 6, 3), 1, None),
    "short_rows": ((9, 5), 0, None),
    "groups": ((6, 64), 1, 32),
    "small_groups": ((3, 30), 1, 5),
    "groups_of_8": ((4, 48), 1, 8),
}
LIMITS = [(0, 255), (-127, 127), (-8, 7), (0, 3)]
layouts = pytest.mark.parametrize("layout", LAYOUTS)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])


@dtypes
@layouts
def test_elementwise(gpu, dtype: torch.dtype, layout: str) -> None:
    shape, axis, group = LAYOUTS[layout]
    case = Case(gpu, dtype, shape, axis, group)
    for op in (case.quantize, case.dequantize, case.fake_quantize, case.backward):
        assert_same_bits(*op())


@dtypes
@pytest.mark.parametrize(
    "zero, limits",
    [
        *((zero, limits) for zero in ("none", "int32", "float32") for limits in LIMITS),
        *((zero, limits) for zero in ("int32", "float32") for limits in ((5, 9), (-9, -2))),
    ],
)
def test_schemes(gpu, dtype: torch.dtype, zero: str, limits: tuple[int, int]) -> None:
    case = Case(gpu, dtype, (6, 5, 11), 1, zero=zero, limits=limits)
    for op in (case.quantize, case.dequantize, case.fake_quantize, case.backward):
        assert_same_bits(*op())
    got, want = case.learned()
    assert_same_bits(got[0], want[0])


@dtypes
@pytest.mark.parametrize("zero", ["none", "int32", "float32"])
@pytest.mark.parametrize(
    "shape, axis, offset",
    [
        ((23,), None, 0),
        ((4, 16), 0, 0),
        ((5, 9), 0, 0),
        ((5, 9), 0, 1),
        ((70, 8), 1, 0),
        ((70, 9), 1, 0),
    ],
)
def test_zero_points_on_every_path(
    gpu, dtype: torch.dtype, zero: str, shape: tuple[int, ...], axis: int | None, offset: int
) -> None:
    case = Case(gpu, dtype, shape, axis, zero=zero, limits=(0, 255), offset=offset)
    for op in (case.quantize, case.dequantize, case.fake_quantize, case.backward):
        assert_same_bits(*op())
    got, want = case.learned()
    assert_same_bits(got[0], want[0])
    assert_same_bits(*Case(gpu, dtype, shape, axis, zero=zero, offset=offset).dequantize())


@dtypes
@pytest.mark.parametrize(
    "layout", ["tensor", "ragged_weight", "images", "last", "short_runs", "groups"]
)
def test_unaligned_pointers(gpu, dtype: torch.dtype, layout: str) -> None:
    shape, axis, group = LAYOUTS[layout]
    case = Case(gpu, dtype, shape, axis, group, offset=1)
    for op in (case.quantize, case.dequantize, case.fake_quantize, case.backward):
        assert_same_bits(*op())
    got, want = case.learned()
    assert_same_bits(got[0], want[0])
    for g, w in zip(*case.minmax(), strict=True):
        assert_same_bits(g, w)


def check_sums(case: Case) -> None:
    got, want = case.learned()
    assert_same_bits(got[0], want[0])
    # terms are at most |grad| * 300 for the scale; a float sum loses a few of its last bits
    rows = reference.affine._rows(case.grad.double().abs(), case.axis, case.group).sum(1)
    for g, w, most in ((got[1], want[1], 300.0), (got[2], want[2], case.scale)):
        assert (g - w.reshape(-1)).abs().le(rows * most * 2**-21).all()


@dtypes
@layouts
def test_learned_backward(gpu, dtype: torch.dtype, layout: str) -> None:
    shape, axis, group = LAYOUTS[layout]
    check_sums(Case(gpu, dtype, shape, axis, group, wild=False))


@dtypes
@layouts
def test_learned_backward_adds_every_term_once(gpu, dtype: torch.dtype, layout: str) -> None:
    """Numbers whose sums are exact in any order: the result is the reference's to the last bit."""
    shape, axis, group = LAYOUTS[layout]
    case = Case(gpu, dtype, shape, axis, group, wild=False, limits=(-8, 7))
    random = torch.Generator().manual_seed(1)
    case.x = (torch.randint(-80, 80, shape, generator=random) * 0.0625).to(dtype)
    case.grad = torch.randint(-2, 3, shape, generator=random).to(dtype)
    case.scale.fill_(0.25)
    case.scheme.scale = gpu.put(case.scale).value
    got, want = case.learned()
    for g, w in zip(got, want, strict=True):
        assert torch.equal(g, w.reshape(g.shape))


@dtypes
@layouts
def test_minmax(gpu, dtype: torch.dtype, layout: str) -> None:
    shape, axis, group = LAYOUTS[layout]
    for wild in (False, True):
        case = Case(gpu, dtype, shape, axis, group, wild=wild)
        for got, want in zip(*case.minmax(), strict=True):
            assert torch.equal(got.nan_to_num(1e30), want.reshape(-1).nan_to_num(1e30))


@dtypes
@layouts
def test_observed(gpu, dtype: torch.dtype, layout: str) -> None:
    """fake_quantize's y, and minmax's range to the last bit."""
    shape, axis, group = LAYOUTS[layout]
    for wild in (False, True):
        case = Case(gpu, dtype, shape, axis, group, wild=wild)
        got, want = case.observed()
        assert_same_bits(got[0], want[0])
        for end, alone, exact in zip(got[1:], case.minmax()[0], want[1:], strict=True):
            assert_same_bits(end, alone)
            assert torch.equal(end.nan_to_num(1e30), exact.reshape(-1).nan_to_num(1e30))


@dtypes
@pytest.mark.parametrize("zero", ["none", "int32", "float32"])
@pytest.mark.parametrize(
    "layout", ["tensor", "ragged_weight", "images", "last", "ragged_last", "groups"]
)
def test_observed_zero_points_and_unaligned_pointers(
    gpu, dtype: torch.dtype, zero: str, layout: str
) -> None:
    shape, axis, group = LAYOUTS[layout]
    for offset in (0, 1):
        got, want = Case(gpu, dtype, shape, axis, group, zero=zero, offset=offset).observed()
        assert_same_bits(got[0], want[0])


@pytest.mark.parametrize(
    "layout, grids",
    [
        ("segments", [(2, "lockstep", 0)]),
        ("last", [(2, "lockstep", 0)]),
        ("few_last", [(1, "lockstep", 0)]),
        ("tensor", [(1, "lockstep", 0), (None, "random", 1)]),
        ("weight", [(1, "lockstep", 0), (None, "random", 1)]),
        ("groups", [(1, "lockstep", 0), (None, "random", 1)]),
        ("ragged_images", [(1, "random", 2)]),
        ("short_runs", [(1, "random", 2)]),
        ("ragged_last", [(1, "random", 2)]),
    ],
)
def test_grid_and_schedule_change_no_bit(gpu, layout: str, grids: list) -> None:
    """The loops over what the grid leaves, and the order of threads."""
    shape, axis, group = LAYOUTS[layout]
    results = []
    for max_blocks, schedule, seed in ((None, "lockstep", 0), *grids):
        gpu.reset(max_blocks, schedule, seed)
        case = Case(gpu, torch.float16, shape, axis, group, wild=False)
        results.append(
            [case.quantize()[0], *case.learned()[0], *case.minmax()[0], *case.observed()[0]]
        )
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert_same_bits(a, b)


@pytest.mark.parametrize("runs", [600, 1100])
def test_many_partials_are_combined_by_a_whole_block(gpu, runs: int) -> None:
    """More partial results of one channel than a warp takes; four rounds of the block and more."""
    case = Case(gpu, torch.float32, (runs, 2, 16), 1, wild=False)
    check_sums(case)
    for got, want in zip(*case.minmax(), strict=True):
        assert_same_bits(got, want)


@pytest.mark.parametrize("shape, axis", [((0,), None), ((3, 0), 0), ((0, 3), 1)])
def test_empty(gpu, shape: tuple[int, ...], axis: int | None) -> None:
    case = Case(gpu, torch.float32, shape, axis)
    for op in (case.quantize, case.fake_quantize, case.backward):
        assert op()[0].shape == shape
    assert gpu.launched == []
    got, want = case.learned()
    for g, w in zip(got[1:], want[1:], strict=True):
        assert torch.equal(g, w.reshape(-1))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    "shape", [(1, 1), (3, 7), (5, 64), (2, 3, 10), (3, 301), (2, 2, 1030), (600,), (4, 0)]
)
@pytest.mark.parametrize("offset", [0, 1])
def test_int4(gpu, shape: tuple[int, ...], signed: bool, offset: int) -> None:
    gpu.max_blocks = 1  # the larger shapes take more than one round
    low, high, dtype = (-8, 8, torch.int8) if signed else (0, 16, torch.uint8)
    q = torch.randint(low, high, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    columns = shape[-1]
    rows = math.prod(shape[:-1])
    want = reference.pack_int4(q)
    sizes = ctypes.c_int64(rows), ctypes.c_int64(columns)
    packed, back = gpu.room(tuple(want.shape), torch.uint8), gpu.room(shape, dtype, offset)
    gpu.call("pack_int4", gpu.put(q, offset), packed, *sizes)
    assert torch.equal(gpu.take(packed, tuple(want.shape), torch.uint8), want)
    gpu.call("unpack_int4", packed, back, *sizes, int(signed))
    assert torch.equal(gpu.take(back, shape, dtype), q)


def test_pack_int4_keeps_the_low_four_bits(gpu) -> None:
    for columns in (256, 255):
        q = torch.arange(2 * columns).to(torch.uint8).reshape(2, columns)
        want = reference.pack_int4(q)
        packed = gpu.room(tuple(want.shape), torch.uint8)
        gpu.call("pack_int4", gpu.put(q), packed, ctypes.c_int64(2), ctypes.c_int64(columns))
        assert torch.equal(gpu.take(packed, tuple(want.shape), torch.uint8), want)


RACE, OUTSIDE = "shared-memory race", "out-of-bounds global|global-memory race"
WARPS_BARRIER = "  __syncthreads();\n  if (threadIdx.x == 0)\n    for"
COLUMNS_BARRIER = "    __syncthreads();\n    if (threadIdx.x < across"
FAULTS = {
    "no barrier between warps": (
        "long_channels",
        WARPS_BARRIER,
        "  if (threadIdx.x == 0) for",
        RACE,
    ),
    "no barrier between rows": ("last", COLUMNS_BARRIER, "    if (threadIdx.x < across", RACE),
    "a column too many": (
        "ragged_last",
        "if (column < shape.columns)",
        "if (column <= shape.columns)",
        OUTSIDE,
    ),
    "a result too many": (
        "ragged_last",
        "left + threadIdx.x < shape.columns",
        "left + threadIdx.x <= shape.columns",
        OUTSIDE,
    ),
    "a value left out": ("all_but_one", "lane; i < last;", "lane; i + 1 < last;", WRONG_RESULT),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(gpu, tmp_path: Path, name: str) -> None:
    layout, right, wrong, found = FAULTS[name]

    def check() -> None:
        shape, axis, group = LAYOUTS[layout]
        case = Case(gpu, torch.float32, shape, axis, group, wild=False)
        case.x.view(-1)[-1] = 1e6  # the last value decides
        for got, want in zip(*case.minmax(), strict=True):
            assert_same_bits(got, want)

    check()
    fault = Fault("affine/kernels.cuh", right, wrong, found, "affine/launch.cu")
    assert_found(gpu, fault, tmp_path, check)


def test_every_line_of_every_kernel_ran(machine: Gpu, whole_file: None) -> None:
    lines = report(machine.coverage, NOT_COVERED)
    assert not lines, "\n".join(lines)
