"""Every line of the products' kernels ran in some test of this folder."""

from __future__ import annotations

from simulated import Gpu

# PTX that no test runs: patterns of a kernel and its instructions, with reasons
NOT_COVERED: dict[str, str] = {}


def test_every_line_of_every_kernel_ran(machine: Gpu, whole_folder: None) -> None:
    lines = [line for coverage in machine.coverage for line in coverage.report(NOT_COVERED)]
    assert not lines, "\n".join(lines)
