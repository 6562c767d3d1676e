"""benchmarks/roof.cpp calls the micro-kernels itself, and must follow their operands."""

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
spec = importlib.util.spec_from_file_location("roof", BENCHMARKS / "roof.py")
roof = importlib.util.module_from_spec(spec)
spec.loader.exec_module(roof)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize("isa", roof.ISAS)
def test_its_program_compiles(isa):
    subprocess.run(
        ["g++", "-fsyntax-only", *roof.FLAGS, *roof.defines(isa), str(BENCHMARKS / "roof.cpp")],
        check=True,
    )
