"""A build with CUDA serves on CUDA every op but the CPU's own, with or without a GPU at hand."""

from __future__ import annotations

import pytest
import sparseq._C as core
import torch

import sparseq.ops  # noqa: F401  (registers the ops)

CPU_ONLY = {"sparseq::network"}  # elsewhere a lowered model runs layer by layer
BUILT_WITH = core.build_info().get("cuda")


def names() -> list[str]:
    found = torch._C._dispatch_get_all_op_names()
    return sorted(name for name in found if name.startswith("sparseq::"))


def test_there_are_ops() -> None:
    assert "sparseq::fake_quantize" in names()


@pytest.mark.skipif(BUILT_WITH is None, reason="sparseq was built without CUDA")
@pytest.mark.parametrize("name", [name for name in names() if name not in CPU_ONLY])
def test_every_op_has_a_cuda_kernel(name: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")


@pytest.mark.skipif(BUILT_WITH is None, reason="sparseq was built without CUDA")
def test_the_build_names_its_architectures() -> None:
    assert core.build_info()["cuda_architectures"]
