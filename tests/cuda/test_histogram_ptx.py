"""histogram's CUDA kernels without a GPU: see test_affine_ptx.py."""

from __future__ import annotations

import ctypes
import math
from pathlib import Path

import pytest
import torch
from planted import WRONG_RESULT, Fault, assert_found
from simulated import Gpu
from torch import Tensor

from sparseq import reference, testing

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])


@pytest.fixture(scope="module")
def machine(build_gpu) -> Gpu:
    return build_gpu("csrc/affine/launch_histogram.cu", "tests/cuda/histogram_abi.cpp")


@pytest.fixture
def gpu(machine: Gpu) -> Gpu:
    machine.reset()
    return machine


def values(dtype: torch.dtype, shape: tuple[int, ...], limit: float = 1.0) -> Tensor:
    """Bell-shaped, some of them beyond the limits, edges of bins and what is no number."""
    random = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(shape, generator=random).to(dtype)
    edges = testing.edge_values(dtype, limit / 64)
    count = min(len(edges), x.numel() // 2)
    at = torch.randperm(x.numel(), generator=random)[:count]
    x.view(-1)[at] = edges[torch.randperm(len(edges), generator=random)[:count]]
    return x


def count(
    gpu: Gpu,
    x: Tensor,
    bins: int,
    axis: int | None = None,
    group: int | None = None,
    offset: int = 0,
    limit: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What the kernels count, and what they should."""
    shape = x.shape
    if group is not None:
        layout = (1, x.numel() // group, group)
    elif axis is None:
        layout = (1, 1, x.numel())
    else:
        layout = (math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :]))
    if limit is None:
        random = torch.Generator().manual_seed(bins)
        limit = 2.0 ** torch.randint(-2, 3, (layout[1],), generator=random)
    counts = gpu.room((limit.numel(), bins), torch.int64)
    gpu.call(
        "histogram",
        DTYPES.index(x.dtype),
        *map(ctypes.c_int64, layout),
        gpu.put(x, offset),
        gpu.put(limit),
        ctypes.c_int64(bins),
        ctypes.c_int64(limit.numel()),
        counts,
    )
    want = reference.histogram(x, limit, bins, axis, group)
    return gpu.take(counts, (limit.numel(), bins), torch.int64), want


# shape, axis, group: vectors that fit and that do not, tails, one channel a task and several, some
# of a tile's missing, several parts of a channel
LAYOUTS = {
    "one": ((1,), None, None),
    "short": ((23,), None, None),
    "tensor": ((3, 5, 71), None, None),
    "parts": ((9001,), None, None),
    "weight": ((7, 36), 0, None),
    "ragged_weight": ((5, 33), 0, None),
    "long_channels": ((3, 2048), 0, None),
    "long_ragged_channels": ((2, 1501), 0, None),
    "images": ((2, 3, 8, 8), 1, None),
    "ragged_images": ((2, 5, 7, 7), 1, None),
    "last": ((70, 64), 1, None),
    "ragged_last": ((70, 33), 1, None),
    "few_last": ((600, 3), 1, None),
    "short_runs": ((70, 6, 3), 1, None),
    "groups": ((6, 64), 1, 32),
    "small_groups": ((3, 30), 1, 5),
}
STRAIGHT = "count_straight"


@dtypes
@pytest.mark.parametrize("layout", LAYOUTS)
def test_counts(gpu, dtype: torch.dtype, layout: str) -> None:
    shape, axis, group = LAYOUTS[layout]
    x = values(dtype, shape)
    for bins in (2, 64):
        got, want = count(gpu, x, bins, axis, group)
        assert torch.equal(got, want.reshape(got.shape)), bins


@dtypes
@pytest.mark.parametrize("bins", [256, 2048, 8192, 16384, 65536])
def test_bins(gpu, dtype: torch.dtype, bins: int) -> None:
    """Up to 8192 in shared memory, beyond it, or where values are few, straight to the result."""
    for shape, axis in (((2, 2100), None), ((2, 2100), 0), ((3, 5), 1)):
        gpu.reset()
        got, want = count(gpu, values(dtype, shape), bins, axis)
        assert torch.equal(got, want.reshape(got.shape)), axis
        straight = bins > 8192 or 8 * math.prod(shape) // len(got) < bins
        assert (STRAIGHT in gpu.launched[-1]) == straight


@dtypes
@pytest.mark.parametrize(
    "layout",
    ["tensor", "parts", "weight", "images", "last", "short_runs", "groups", "long_channels"],
)
def test_unaligned_pointers(gpu, dtype: torch.dtype, layout: str) -> None:
    shape, axis, group = LAYOUTS[layout]
    got, want = count(gpu, values(dtype, shape), 64, axis, group, offset=1)
    assert torch.equal(got, want.reshape(got.shape))


@pytest.mark.parametrize("bins", [2, 2048])
def test_limits(gpu, bins: int) -> None:
    """The least and the greatest: x / limit leaves float32 on both sides, the bins stay right."""
    limit = torch.tensor([2.0**-126, 2.0**-100, 2.0**100, 2.0**127])
    x = testing.edge_values().repeat(4, 10)
    x = torch.cat([x, limit[:, None] * torch.linspace(-1.25, 1.25, 81)], dim=1)
    got, want = count(gpu, x, bins, 0, limit=limit)
    assert torch.equal(got, want)


@pytest.mark.parametrize("layout", ["parts", "last", "few_last", "ragged_images", "groups"])
def test_grid_and_schedule_change_nothing(gpu, layout: str) -> None:
    shape, axis, group = LAYOUTS[layout]
    x = values(torch.float16, shape)
    for bins in (16, 2048):
        for blocks, schedule, seed in ((1, "lockstep", 0), (2, "random", 1), (None, "random", 2)):
            gpu.reset(blocks, schedule, seed)
            got, want = count(gpu, x, bins, axis, group)
            assert torch.equal(got, want.reshape(got.shape)), (blocks, schedule)


def test_several_parts_of_one_channel(gpu) -> None:
    """More than the least that a task takes: parts add to the same counts."""
    got, want = count(gpu, values(torch.bfloat16, (9001,)), 16)
    assert torch.equal(got, want)
    assert int(want.sum()) > 2 * 4096


def test_equal_values_meet_in_one_counter(gpu) -> None:
    got, want = count(gpu, torch.full((1000,), 0.3), 64)
    assert torch.equal(got, want) and int(got.max()) == 1000


def test_nothing_but_nan(gpu) -> None:
    for bins in (64, 16384):
        got, _ = count(gpu, torch.full((300,), math.nan), bins)
        assert int(got.abs().sum()) == 0


@pytest.mark.parametrize("shape, axis", [((0,), None), ((3, 0), 0), ((0, 3), 1)])
def test_empty(gpu, shape: tuple[int, ...], axis: int | None) -> None:
    limit = torch.ones(1 if axis is None else 3)
    got, _ = count(gpu, torch.empty(shape), 8, axis, limit=limit)
    assert int(got.abs().sum()) == 0 and gpu.launched == []


RACE = "shared-memory race"
AFTER_CLEARING = "    __syncthreads();\n\n    const int64_t begin"
BEFORE_ADDING = (
    "    }\n    __syncthreads();\n\n#pragma unroll 1\n    for (int i = threadIdx.x; i < ch"
)
FAULTS = {
    "no barrier after clearing": (AFTER_CLEARING, "    const int64_t begin", f"{RACE}|uninit"),
    "no barrier before adding up": (
        BEFORE_ADDING,
        BEFORE_ADDING.replace("    __syncthreads();\n\n", ""),
        RACE,
    ),
    "no barrier before the next task": ("__syncthreads();  // before", "// before", RACE),
    "a plain increment": (
        "atomicAdd(own + c.bin(v[k], inverses[0]), 1u);",
        "++own[c.bin(v[k], inverses[0])];",
        RACE,
    ),
    "no counter for NaN": (
        "const int bins = c.bins(), pitch = bins + 1",
        "const int bins = c.bins(), pitch = bins",
        "",
    ),
    "a channel that the tile lacks": (
        "if (kMany && within >=",
        "if (false && within >=",
        "out-of-bounds global",
    ),
    "a set of counters left out": ("k < t.copies; ++k) sum", "k + 1 < t.copies; ++k) sum", ""),
    "an element of the tail left out": ("k < end - i; ++k", "k + 1 < end - i; ++k", ""),
    "the bins of the next channel": ("channel + (i >> c.log2_bins), i &", "channel, i &", ""),
}
FAULTY = ["parts", "ragged_last", "images", "few_last"]


def faulty_check(gpu: Gpu) -> None:
    gpu.reset(max_blocks=1, schedule="random", seed=3)
    for layout in FAULTY:
        shape, axis, group = LAYOUTS[layout]
        got, want = count(gpu, values(torch.float32, shape), 64, axis, group)
        assert torch.equal(got, want.reshape(got.shape))


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(gpu, tmp_path: Path, name: str) -> None:
    right, wrong, found = FAULTS[name]
    faulty_check(gpu)
    fault = Fault(
        "affine/histogram.cuh", right, wrong, found or WRONG_RESULT, "affine/launch_histogram.cu"
    )
    assert_found(gpu, fault, tmp_path, lambda: faulty_check(gpu))


def test_every_line_of_every_kernel_ran(machine: Gpu, whole_file: None) -> None:
    lines = [line for coverage in machine.coverage for line in coverage.report({})]
    assert not lines, "\n".join(lines)
