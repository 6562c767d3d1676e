"""The kernels of every ISA, VNNI and AVX-512 too, compiled with SIMDe where need be, and run.

gemm.cpp compares scalar, AVX2, AVX-VNNI, AVX-512-VNNI and AMX with an int64 reference, rows.cpp
scalar, AVX2 and AVX-512 with plain loops: bit for bit. team.cpp has the threads of a program.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
SOURCES = {
    "gemm": [
        *(
            f"gemm/{name}.cpp"
            for name in ("pack", "plan", "winograd", "amx", "scalar", "avx2", "avx_vnni")
        ),
        *("gemm/avx512_vnni.cpp", "gemm/amx_int8.cpp", "sparse24/pack.cpp", "sparse24/format.cpp"),
    ],
    "rows": [f"network/{name}.cpp" for name in ("rows", "scalar", "avx2", "avx512")],
    "team": [],
}
PORTABLE = ["network/avx512.cpp"]  # take <immintrin.h> from portable/
FLAGS = "-O1 -std=c++20 -ffp-contract=off -fno-math-errno -Wno-psabi -pthread"
FLAGS += " -DSPARSEQ_PORTABLE_INTRINSICS"
if os.environ.get("SPARSEQ_SANITIZE") == "1":
    FLAGS += " -g1 -fsanitize=address,undefined -fno-sanitize-recover=all"


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize("name", SOURCES)
def test_every_isa(name, tmp_path):
    probe = "#include <simde/x86/avx512.h>\n"
    found = subprocess.run(
        ["g++", "-E", "-x", "c++", "-"], input=probe, text=True, capture_output=True
    )
    if found.returncode:
        pytest.skip("needs SIMDe's headers (Debian: libsimde-dev)")
    objects = []
    for source in SOURCES[name]:
        objects.append(tmp_path / (source.replace("/", "_") + ".o"))
        command = ["g++", *FLAGS.split(), "-c", str(CSRC / source), "-o", str(objects[-1])]
        if source in PORTABLE:
            command.append(f"-I{HERE / 'portable'}")
        subprocess.run(command, check=True)
    program = tmp_path / name
    command = [
        "g++",
        *FLAGS.split(),
        str(HERE / f"{name}.cpp"),
        *map(str, objects),
        "-o",
        str(program),
    ]
    subprocess.run(command, check=True)
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0 and " 0 failures" in done.stdout, done.stdout + done.stderr
