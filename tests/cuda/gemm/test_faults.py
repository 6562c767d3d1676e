"""Faults planted into the kernels of the products are found, and where they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gemm_cases import check_convolution, check_floats, check_linear, check_rows
from gemm_on_gpu import DENSE, SPARSE
from planted import WRONG_RESULT, Fault, assert_found
from simulated import Gpu

RACE, OUTSIDE = "shared-memory race|cp.async has in flight", "out-of-bounds global"
FILES = ("launch_dense.cu", "launch_sparse.cu", "launch_float.cu")
PRODUCT, LOADER, MMA, PACK = (f"gemm/{n}.cuh" for n in ("product", "loader", "mma", "pack"))


def only(kernel: str, file: str, header: str = "launch_product.cuh") -> tuple[str, str]:
    """A source, and code for it with this one kernel, which compiles soon."""
    code = f"namespace sparseq::gemm {{ namespace {{ template __global__ void {kernel}; }} }}"
    return f"gemm/{file}", f'#include "{header}"\n{code}\n'


def product(of: str, source: str = "rows") -> tuple[str, str]:
    file = FILES[("DenseInt8", "SparseInt8", "SparseFloat").index(of.partition("<")[0])]
    return only(f"product<{of}, false, Source::{source}>(const Task)", file)


INT8, SPARSE_INT8, HALF = map(product, ("DenseInt8<true>", "SparseInt8<true>", "SparseFloat<Half>"))
IMAGES, ANY = (product("DenseInt8<false>", "windows"), product("DenseInt8<true>", "any"))
PARTS = only("finish_parts<int32_t>(const Task, Divider, int32_t)", FILES[0])
ROWS = only("quantize_rows<float, 1, 256>(const cuda::RowGrid)", "launch.cu", "rows.cuh")

IN_STEP = "await_copies<Tile::kStages - 2>();\n      __syncthreads();"
AFTER_STEPS = "    __syncthreads();  // the tiles are read"
BEFORE_STORE = "    __syncthreads();\n    if (mine"
ROW_GUARD = "if (row >= task.window.count) continue;"


# five steps: the last one is in the first stage, where the constants of the outputs go afterwards


def linear(gpu: Gpu) -> None:
    check_linear(gpu, 37, 70, 272, DENSE)


def linear_24(gpu: Gpu) -> None:
    check_linear(gpu, 37, 70, 528, SPARSE)


def halves(gpu: Gpu) -> None:
    check_floats(gpu, 37, 70, 264, torch.float16)


def unaligned(gpu: Gpu) -> None:
    check_linear(gpu, 5, 7, 67, DENSE, offset=1)


def images(gpu: Gpu) -> None:
    check_convolution(gpu, "3x3", DENSE, signed=False)


def parts(gpu: Gpu) -> None:
    check_linear(gpu, 5, 70, 272, DENSE, splits=2)


def packing(gpu: Gpu) -> None:
    check_linear(gpu, 3, 9, 40, DENSE)


def long_rows(gpu: Gpu) -> None:
    check_rows(gpu, torch.linspace(-3, 5, 2 * 1091).reshape(2, 1091), 0, 255)


Check = Callable[[Gpu], None]
FAULTS: dict[str, tuple[Check, Fault]] = {
    **{
        f"no barrier {where}, {check.__name__}": (check, Fault(PRODUCT, right, wrong, RACE, *code))
        for check, code in ((linear, INT8), (linear_24, SPARSE_INT8), (halves, HALF))
        for where, right, wrong in (
            ("in a step", IN_STEP, IN_STEP.partition("\n")[0]),
            ("after the steps", AFTER_STEPS, "    //"),
            ("before the results", BEFORE_STORE, "    if (mine"),
        )
    },
    "copies not waited for": (
        linear,
        Fault(PRODUCT, "<Tile::kStages - 2>()", "<Tile::kStages - 1>()", RACE, *INT8),
    ),
    "tiles not copied": (
        linear,
        Fault(PRODUCT, "if (begin + s < end) {", "if (begin + s + 3 < end) {", "uninit", *INT8),
    ),
    "the wrong chunk": (
        linear,
        Fault(PRODUCT, "kHalf * 2 * kChunk", "kHalf * kChunk", WRONG_RESULT, *INT8),
    ),
    "metadata of the other half": (
        linear_24,
        Fault(MMA, "words + kStep;", "words + (1 - kStep);", WRONG_RESULT, *SPARSE_INT8),
    ),
    "metadata of the first step": (
        linear_24,
        Fault(PRODUCT, "words[0][i] = words[1][i];", "(void)i;", WRONG_RESULT, *SPARSE_INT8),
    ),
    "a selector out of range": (
        linear_24,
        Fault(MMA, '"s32.s8.s8.s32", "0x0"', '"s32.s8.s8.s32", "0x1"', "selector 1", *SPARSE_INT8),
    ),
    "the wrong selector": (
        halves,
        Fault(MMA, '.f16.f32", "0x1"', '.f16.f32", "0x0"', WRONG_RESULT, *HALF),
    ),
    "a row too many": (
        linear,
        Fault(PRODUCT, ROW_GUARD, ROW_GUARD.replace(">=", ">"), OUTSIDE, *INT8),
    ),
    "a row too many, of parts": (
        parts,
        Fault(PRODUCT, ROW_GUARD, ROW_GUARD.replace(">=", ">"), "race|out-of-bounds", *INT8),
    ),
    "an output too many": (
        linear,
        Fault(
            PRODUCT,
            "first, left < 8 ? left : 8);\n        outputs.row(task.finish, v",
            "first, left < 8 ? left + 1 : 8);\n        outputs.row(task.finish, v",
            "race|out-of-bounds",
            *INT8,
        ),
    ),
    "an output too many, of parts": (
        parts,
        Fault(
            PRODUCT,
            "left < 8 ? left : 8);\n  outputs.row",
            "left < 8 ? left + 1 : 8);\n  outputs.row",
            "race|out-of-bounds",
            *PARTS,
        ),
    ),
    "a part left out": (
        parts,
        Fault(
            PRODUCT,
            "int s = 0; s < task.splits",
            "int s = 1; s < task.splits",
            WRONG_RESULT,
            *PARTS,
        ),
    ),
    "a part too many": (
        parts,
        Fault(PRODUCT, "s < task.splits", "s <= task.splits", OUTSIDE, *PARTS),
    ),
    "a row of x too many": (
        linear,
        Fault(LOADER, "r < w.count ? at", "r <= w.count ? at", OUTSIDE, *INT8),
    ),
    "a byte of x too many": (
        unaligned,
        Fault(LOADER, "left < 4 ? left : 4;", "left < 4 ? left + 1 : 4;", OUTSIDE, *ANY),
    ),
    "padding of zeros": (
        images,
        Fault(LOADER, "store_16(at, zero_)", "store_16(at, 0)", WRONG_RESULT, *IMAGES),
    ),
    "a line of the image too many": (
        images,
        Fault(LOADER, "< uint32_t(w.height)", "<= uint32_t(w.height)", f"{OUTSIDE}|wrong", *IMAGES),
    ),
    "a weight too many": (
        packing,
        Fault(
            PACK,
            "c >= s.in_channels) return 0;",
            "c > s.in_channels) return 0;",
            OUTSIDE,
            "gemm/launch.cu",
        ),
    ),
    "no barrier in a row": (
        long_rows,
        Fault("gemm/rows.cuh", "    __syncthreads();\n", "", RACE, *ROWS),
    ),
    "a value of a row too many": (
        long_rows,
        Fault(
            "gemm/rows.cuh", "if (c < g.columns) load", "if (c <= g.columns) load", OUTSIDE, *ROWS
        ),
    ),
}


@pytest.mark.parametrize("check", dict.fromkeys(check for check, _ in FAULTS.values()))
def test_sound_kernels_pass(gpu: Gpu, check: Check) -> None:
    check(gpu)


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(gpu: Gpu, tmp_path: Path, name: str) -> None:
    check, fault = FAULTS[name]
    assert_found(gpu, fault, tmp_path, lambda: check(gpu))
