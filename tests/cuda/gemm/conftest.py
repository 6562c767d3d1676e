"""One simulated GPU for all tests of the products: compiling their kernels takes a while."""

from __future__ import annotations

import ctypes

import pytest
from gemm_on_gpu import FOLDER, SOURCES
from simulated import Gpu


@pytest.fixture(scope="session")
def machine(build_gpu) -> Gpu:
    gpu = build_gpu(*(FOLDER + source for source in SOURCES), "tests/cuda/gemm_abi.cpp")
    gpu.library.tiles_size.restype = gpu.library.workspace_size.restype = ctypes.c_int64
    return gpu


@pytest.fixture
def gpu(machine: Gpu) -> Gpu:
    machine.reset()
    return machine
