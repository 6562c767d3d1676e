"""What tools/cuda_check.py reads out of compiled kernels."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GEMM = ROOT / "tests" / "cuda" / "kernels" / "gemm.cu"


def tool(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


cuda_sass, cuda_tidy = tool("cuda_sass"), tool("cuda_tidy")


@pytest.mark.parametrize(
    "architecture, registers, shared, threads, want",
    [
        (80, 32, 0, 256, 1.0),
        (80, 33, 0, 256, 0.75),  # 40 a thread: 12 warps of each partition, 6 blocks of 8 warps
        (80, 255, 0, 128, 0.125),  # 2 warps of each partition
        (80, 32, 48 << 10, 128, 3 * 4 / 64),  # 49 KB each with what is reserved
        (86, 32, 0, 64, 16 * 2 / 48),  # 16 blocks are the limit
        (90, 128, 100 << 10, 128, 2 * 4 / 64),
        (80, 16, 0, 33, 32 * 2 / 64),
        (120, 40, 0, 256, 1.0),
    ],
)
def test_occupancy(architecture, registers, shared, threads, want) -> None:
    assert cuda_sass.occupancy(architecture, registers, shared, threads) == want


def test_what_is_missing_is_named() -> None:
    found = {"gemm<true>": Counter({"IMMA.SP": 3}), "other": Counter()}
    assert cuda_sass.missing(found, {"gemm": ("IMMA.SP",)}) == []
    assert cuda_sass.missing(found, {"gemm": ("IMMA.SP", "LDSM")}) == ["gemm<true> has no LDSM"]
    assert "no kernel matches 'conv'" in cuda_sass.missing(found, {"conv": ("IMMA",)})[0]


def test_instructions_of_the_small_gemm(nvcc: None, tmp_path: Path) -> None:
    program = cuda_sass.disassembler()
    if program is None:
        pytest.skip("no cuobjdump and nvdisasm")
    binary = tmp_path / "gemm.cubin"
    command = ["nvcc", "-std=c++20", "-arch=sm_80", "-cubin", GEMM, "-o", binary]
    subprocess.run(command, check=True)
    found = cuda_sass.counts(program, binary)
    dense, sparse = (next(v for k, v in found.items() if f"ILb{bit}E" in k) for bit in (0, 1))
    # 2 x 4 tiles of a warp; dense: two halves of k; 4 matrices of b and 2 or 4 of a
    assert (dense["IMMA"], dense["IMMA.SP"], dense["LDSM"]) == (16, 0, 8)
    assert (sparse["IMMA"], sparse["IMMA.SP"], sparse["LDSM"]) == (0, 8, 6)
    assert dense["LDGSTS"] > 0 and sparse["LDGSTS"] > 0
    sizes = cuda_sass.block_sizes(GEMM, ["-std=c++20"])
    assert set(sizes) == set(found) and set(sizes.values()) == {128}


def test_clang_tidy_finds_a_product_that_overflows(nvcc: None, tmp_path: Path) -> None:
    source = tmp_path / "wide.cu"
    text = (
        "#include <cstdint>\n__global__ void f(float* y, int n) {{ y[{}(blockIdx.x) * n] = 0; }}\n"
    )
    source.write_text(text.format("int"))
    found = cuda_tidy.findings([source])
    if found is None:
        pytest.skip("no clang-tidy")
    assert len(found) == 1 and "implicit-widening-of-multiplication-result" in found[0]
    source.write_text(text.format("int64_t"))
    assert cuda_tidy.findings([source]) == []
