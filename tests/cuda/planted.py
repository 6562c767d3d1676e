"""Faults planted into kernels, which the interpreter or a comparison must find."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from ptx import PtxError
from simulated import Gpu

ROOT = Path(__file__).parents[2]
WRONG_RESULT = "a wrong result"


@dataclass(frozen=True)
class Fault:
    """A text of a file of csrc replaced by another, and what tells of it."""

    file: str
    right: str
    wrong: str
    found: str  # pattern of the error's message, or WRONG_RESULT
    source: str  # the .cu file to compile
    kernels: str = ""  # C++ that instantiates what is launched; empty: all of the source

    def plant(self, folder: Path) -> Path:
        """The path of the source in a copy of csrc that has the fault."""
        copy = folder / "csrc"
        shutil.copytree(ROOT / "csrc", copy)
        text = (copy / self.file).read_text()
        assert text.count(self.right) == 1, "the kernels have changed: plant the fault anew"
        (copy / self.file).write_text(text.replace(self.right, self.wrong))
        if self.kernels:
            (copy / self.source).write_text(self.kernels)
        return copy / self.source


@contextmanager
def with_fault(gpu: Gpu, fault: Fault, folder: Path) -> Iterator[None]:
    """Replaces kernels by faulty ones."""
    kernels = gpu.modules.copy()
    try:
        gpu.replace(fault.plant(folder))
        assert gpu.modules.keys() == kernels.keys(), "a kernel that nothing launches"
        yield
    finally:
        gpu.modules = kernels


def assert_found(gpu: Gpu, fault: Fault, folder: Path, check: Callable[[], object]) -> None:
    """`check`, which passes with sound kernels, fails with the fault; errors say where."""
    with with_fault(gpu, fault, folder):
        if fault.found == WRONG_RESULT:
            with pytest.raises(AssertionError):
                check()
            return
        with pytest.raises(PtxError, match=fault.found) as caught:
            check()
        assert re.search(r"PTX line \d+, \w+\.(cuh|hpp|h):\d+", str(caught.value))
