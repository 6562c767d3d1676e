"""Whole kernels in the interpreter: INT8 products, sound and with planted faults.

The sound ones equal NumPy in every schedule; each fault is found, by an error or a wrong result.
"""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch
from ptx import PtxError
from simulated import Gpu

SOURCE = "tests/cuda/kernels/gemm.cu"
SHAPES = [(64, 64, 256), (1, 1, 64), (65, 63, 192), (70, 130, 320), (100, 33, 32), (5, 3, 0)]


class Product:
    """Operands of y = a b^T, of which a may have two of four columns."""

    def __init__(self, kind: str, shape: tuple[int, int, int]) -> None:
        m, n, k = self.shape = shape
        self.kind, random = kind, np.random.default_rng(m * n + k)
        a = random.integers(-128, 128, (m, k)).astype(np.int8)
        b = random.integers(-128, 128, (n, k)).astype(np.int8)
        self.operands = [a, b]
        if kind == "sparse":
            groups = a.reshape(m, -1, 4)
            kept = np.sort(random.random(groups.shape).argsort(2)[:, :, :2], 2)
            values = np.take_along_axis(groups, kept, 2)
            a = np.zeros_like(groups)
            np.put_along_axis(a, kept, values, 2)
            a = a.reshape(m, k)
            nibbles = (kept[..., 0] | kept[..., 1] << 2).astype(np.uint32).reshape(m, k // 32, 8)
            metadata = (nibbles << (4 * np.arange(8, dtype=np.uint32))).sum(2).astype(np.uint32)
            self.operands = [values.reshape(m, k // 2), metadata, b]
        self.want = a.astype(np.int64) @ b.astype(np.int64).T

    def run(self, gpu: Gpu) -> np.ndarray:
        m, n, _ = self.shape
        y = gpu.room((m, n), torch.int32)
        pointers = [gpu.put(torch.from_numpy(x)) for x in self.operands]
        sizes = map(ctypes.c_int, self.shape)
        assert gpu.call(self.kind, *pointers, y, *sizes) == 0
        return gpu.take(y, (m, n), torch.int32).numpy()


@pytest.fixture(scope="module")
def sound(build_gpu) -> Gpu:
    return build_gpu(SOURCE)


kinds = pytest.mark.parametrize("kind", ["dense", "sparse"])


@kinds
@pytest.mark.parametrize("shape", SHAPES)
def test_products(sound: Gpu, kind: str, shape: tuple[int, int, int]) -> None:
    sound.reset()
    product = Product(kind, shape)
    assert np.array_equal(product.run(sound), product.want)


@kinds
@pytest.mark.parametrize("seed", range(3))
def test_any_schedule(sound: Gpu, kind: str, seed: int) -> None:
    sound.reset(schedule="random", seed=seed)
    product = Product(kind, (65, 70, 192))
    assert np.array_equal(product.run(sound), product.want)


FAULTS = {
    "LAST_BARRIER": "shared-memory race: write of byte",
    "FIRST_BARRIER": "shared-memory race: read of byte|cp.async has in flight",
    "WAIT": "cp.async has in flight|shared-memory race",
    "METADATA": "wrong result",
    "SELECTOR": "sparsity selector 1 out of range",
    "SWIZZLE": "wrong result",
    "GUARD": "out-of-bounds global",
    "STORE": "out-of-bounds global|global-memory race",
}


@pytest.fixture(scope="module")
def faulty(build_gpu, request: pytest.FixtureRequest) -> tuple[str, Gpu]:
    return request.param, build_gpu(SOURCE, flags=[f"-DBUG_{request.param}"])


@pytest.mark.parametrize("faulty", FAULTS, indirect=True)
@pytest.mark.parametrize("schedule, seed", [("lockstep", 0), ("random", 1)])
def test_faults_are_found(faulty: tuple[str, Gpu], schedule: str, seed: int) -> None:
    fault, gpu = faulty
    gpu.reset(schedule=schedule, seed=seed)
    product = Product("sparse", (65, 63, 256))
    if FAULTS[fault] == "wrong result":
        assert not np.array_equal(product.run(gpu), product.want)
        return
    with pytest.raises(PtxError, match=FAULTS[fault]) as caught:
        product.run(gpu)
    assert "gemm.cu:" in str(caught.value)


def test_bad_operands_are_found(sound: Gpu) -> None:
    sound.reset()
    for what, index, change in (
        ("2:4 metadata", 1, lambda e: e & ~np.uint32(0xF0) | np.uint32(0x10)),
        ("out-of-bounds global", 2, lambda b: b[:-1].copy()),
    ):
        product = Product("sparse", (64, 64, 128))
        product.operands[index] = change(product.operands[index])
        sound.reset()
        with pytest.raises(PtxError, match=what):
            product.run(sound)


def test_every_line_ran(sound: Gpu, whole_file: None) -> None:
    assert sound.coverage[0].report({}) == []
