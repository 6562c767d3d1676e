"""INT8 products of rows, dense and 2:4: tiles, copies, the order of threads, sums in parts.

As in test_affine_ptx.py: compiled launchers, kernels executed from nvcc's PTX, results compared
with sparseq.reference bit for bit.
"""

from __future__ import annotations

import ctypes

import pytest
from gemm_cases import check_linear
from gemm_on_gpu import DENSE, SPARSE, Weights
from simulated import Gpu

# rows, outputs, depth: edge tiles, one to five steps, everything odd
SHAPES = [(1, 1, 1), (5, 7, 16), (33, 65, 64), (37, 130, 208), (70, 64, 400)]


@pytest.mark.parametrize("kind", [DENSE, SPARSE])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("rows, outputs, depth", SHAPES)
def test_linear(gpu: Gpu, rows: int, outputs: int, depth: int, kind: int, signed: bool) -> None:
    check_linear(gpu, rows, outputs, depth, kind, signed)


@pytest.mark.parametrize("kind", [DENSE, SPARSE])
@pytest.mark.parametrize("rows, outputs, depth", [(129, 70, 336), (64, 200, 80), (257, 128, 256)])
def test_large_tiles(gpu: Gpu, rows: int, outputs: int, depth: int, kind: int) -> None:
    check_linear(gpu, rows, outputs, depth, kind, rows % 2 == 0, large=True)


@pytest.mark.parametrize("kind", [DENSE, SPARSE])
@pytest.mark.parametrize("signed", [True, False])
def test_extremes_are_exact(gpu: Gpu, kind: int, signed: bool) -> None:
    check_linear(gpu, 40, 72, 2112, kind, signed, extreme=True)


@pytest.mark.parametrize("kind", [DENSE, SPARSE])
@pytest.mark.parametrize("depth", [30, 33, 37, 132, 150, 259])
@pytest.mark.parametrize("offset, pitch", [(0, 0), (4, 8), (1, 3)])
def test_any_alignment(gpu: Gpu, kind: int, depth: int, offset: int, pitch: int) -> None:
    """Copies of 16 and 4 bytes, and bytes; y on any boundary, too."""
    check_linear(gpu, 9, 21, depth, kind, offset=offset, pitch=pitch, y_offset=offset)


@pytest.mark.parametrize("kind", [DENSE, SPARSE])
@pytest.mark.parametrize("depth, pitch", [(40, 8), (90, 6), (200, 24)])
def test_rows_end_within_a_chunk(gpu: Gpu, kind: int, depth: int, pitch: int) -> None:
    """Rows at multiples of 16 bytes: 16 are copied at a time, and at the end fewer."""
    check_linear(gpu, 35, 66, depth, kind, signed=False, pitch=pitch)


@pytest.mark.parametrize("kind", [DENSE, SPARSE])
@pytest.mark.parametrize("rows, outputs, depth", [(3, 70, 1040), (40, 64, 640), (2, 9, 333)])
@pytest.mark.parametrize("splits", [2, 5])
def test_sum_in_parts(
    gpu: Gpu, kind: int, rows: int, outputs: int, depth: int, splits: int
) -> None:
    check_linear(gpu, rows, outputs, depth, kind, rows % 2 == 0, splits=splits)
    kernels = gpu.launched[-2:]
    assert "product" in kernels[0] and "finish_parts" in kernels[1]


@pytest.mark.parametrize("kind", [DENSE, SPARSE])
@pytest.mark.parametrize("signed", [True, False])
def test_large_tiles_in_parts(gpu: Gpu, kind: int, signed: bool) -> None:
    check_linear(gpu, 20, 70, 1040, kind, signed, large=True, splits=2)


@pytest.mark.parametrize("rows, outputs, depth", [(21, 70, 52), (9, 130, 300)])
def test_tiles_from_the_canonical_form(gpu: Gpu, rows: int, outputs: int, depth: int) -> None:
    check_linear(gpu, rows, outputs, depth, SPARSE, canonical=True)


@pytest.mark.parametrize("schedule_seed", [1, 2])
@pytest.mark.parametrize("kind", [DENSE, SPARSE])
def test_order_of_threads_changes_no_bit(gpu: Gpu, kind: int, schedule_seed: int) -> None:
    """Warps run ahead of each other, over more steps than the pipeline has stages."""
    depth = 64 * 5 * (1 + kind)
    gpu.reset(schedule="random", seed=schedule_seed)
    check_linear(gpu, 9, 70, depth, kind)
    check_linear(gpu, 20, 70, depth, kind, large=True)
    check_linear(gpu, 9, 33, depth, kind, splits=2)
    check_linear(gpu, 3, 20, depth - 3, kind)


def test_the_cut(gpu: Gpu) -> None:
    """Few rows of a deep layer are cut until every multiprocessor has two blocks."""
    splits = ctypes.c_int64()

    def cut(rows: int, outputs: int, depth: int, kind: int = DENSE) -> tuple[int, int]:
        weights = Weights(kind, 1, 1, outputs, 1, depth, None)
        large = gpu.library.chosen(
            ctypes.byref(weights), ctypes.c_int64(rows), 108, ctypes.byref(splits)
        )
        return large, splits.value

    assert cut(4096, 4096, 4096) == (1, 1)
    assert cut(4096, 4096, 4096, SPARSE) == (1, 1)
    assert cut(64, 256, 256) == (0, 1)
    large, parts = cut(1, 1024, 4096)
    assert not large and 2 <= parts <= 8
    assert cut(1, 65536, 4096) == (0, 1)
    assert cut(256, 16, 128) == (0, 1)
