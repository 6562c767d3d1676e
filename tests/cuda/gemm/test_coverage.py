"""Every line of the products' kernels ran in some test of this folder."""

from __future__ import annotations

from pathlib import Path

from ptx.coverage import report
from simulated import Gpu

GEMM = Path(__file__).parents[3] / "csrc" / "gemm"


def lines_of(file: str, text: str) -> str:
    """A pattern of the places in a file that hold a text, as instructions name them."""
    lines = (GEMM / file).read_text().splitlines()
    numbers = [str(number) for number, line in enumerate(lines, 1) if text in line]
    assert numbers, f"{file} no longer has {text!r}: see what it was exempt for"
    return rf"{file.replace('.', '[.]')}:({'|'.join(numbers)})\b"


OUTPUT_TYPE = lines_of("finish.cuh", "by_element(f.output_type")
WEIGHT_SUM = lines_of("finish.cuh", "f.weight_sum + first")
ROW_ZERO = lines_of("finish.cuh", "__ldg(f.row_zero + m)")

# PTX that no test runs: patterns of a kernel and its instructions, with reasons
NOT_COVERED = {
    r"(pack_dense|pack_plain|pack_sparse|finish_parts)\w+: .*`(div|rem)\.s64": (
        "nvcc's division where 32 bits do not hold the elements of a weight or a row"
    ),
    rf": `bra\.uni [^`]+` \(PTX line \d+, \S+ in {OUTPUT_TYPE}\)$": (
        "results of no type: that is what a residual may have"
    ),
    rf"(SparseFloat|finish_partsIf)\w+: .*`ld\.global\.nc\.s32 .*{WEIGHT_SUM}": (
        "weight sums of float16 or bfloat16: float_product passes none"
    ),
    rf"direct\w+: .*({WEIGHT_SUM}|{ROW_ZERO})": (
        "zero points after the sum: the direct kernel has them in it, so passes none on"
    ),
    r"direct\w+: `ld\.global\.nc\.s32 [^`]+` \(PTX line \d+, \S+ in finish\.cuh:\d+\)$": (
        "x_zero after the sum, likewise"
    ),
    r"finish_parts\w+: `bra\.uni [^`]+` \(PTX line \d+, product\.cuh:\d+\)$": (
        "a sum of no parts: this kernel is launched for two and more"
    ),
    r"finish_parts\w+: `mov\.(u32 %r\d+, 0|f32 %f\d+, 0f00000000)` ": (
        "zeros, as the sum of no parts"
    ),
}


def test_every_line_of_every_kernel_ran(machine: Gpu, whole_folder: None) -> None:
    lines = report(machine.coverage, NOT_COVERED)
    assert not lines, "\n".join(lines)
