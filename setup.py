"""Builds sparseq._C from csrc/: one shared object with every op, on torch's stable ABI.

Environment: SPARSEQ_CUDA=auto|0|1 (auto: a CUDA torch and nvcc are both there),
TORCH_CUDA_ARCH_LIST, MAX_JOBS; SPARSEQ_SANITIZE=1 for AddressSanitizer and UBSan (`make sanitize`).
A GPU is never needed to build or to import.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

from setuptools import setup

os.chdir(Path(__file__).parent)
ARCHITECTURES = "8.0;8.6;8.9;9.0;10.0;12.0+PTX"


def cuda_home() -> str | None:
    """The toolkit's folder, asked from nvcc itself: that on PATH may be a link or a wrapper."""
    nvcc = shutil.which("nvcc", path=f"{os.environ.get('CUDA_HOME', '')}/bin:{os.environ['PATH']}")
    if nvcc is None:
        return None
    dry = subprocess.run(
        [nvcc, "--dryrun", "-E", "-x", "cu", os.devnull], capture_output=True, text=True
    )
    top = re.search(r"TOP=(\S+)", dry.stderr)
    return str(Path(top[1]).resolve()) if top else None


home = cuda_home()
if home:
    os.environ["CUDA_HOME"] = home

import torch
from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

wanted = os.environ.get("SPARSEQ_CUDA", "auto")
if wanted not in ("auto", "0", "1"):
    raise SystemExit(f"SPARSEQ_CUDA must be auto, 0 or 1, got {wanted!r}")
possible = home is not None and torch.version.cuda is not None
if wanted == "1" and not possible:
    raise SystemExit(
        f"SPARSEQ_CUDA=1 needs nvcc (found: {home}) "
        f"and a CUDA torch (its CUDA: {torch.version.cuda})"
    )
with_cuda = wanted == "1" or (wanted == "auto" and possible)

sources = sorted(str(p) for p in Path("csrc").rglob("*.cpp"))
macros = [
    ("TORCH_TARGET_VERSION", "0x020b000000000000"),  # runs on torch 2.11 and later
    ("SPARSEQ_BUILD_TORCH", f'"{torch.__version__}"'),
]
host = [
    "-std=c++20",
    "-O3",
    "-Wall",
    "-Wextra",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-g0",
]
link = []
if os.environ.get("SPARSEQ_SANITIZE") == "1":
    checks = ["-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all"]
    # Python's own -fwrapv would hide signed overflow
    host += ["-O1", "-g1", "-fno-omit-frame-pointer", "-fno-wrapv", *checks]
    link += checks
flags = {"cxx": host}
if with_cuda:
    sources += sorted(str(p) for p in Path("csrc").rglob("*.cu"))
    architectures = os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ARCHITECTURES)
    macros += [
        ("SPARSEQ_WITH_CUDA", None),
        ("USE_CUDA", None),  # torch's stable headers: declares the stream functions
        ("SPARSEQ_CUDA_VERSION", f'"{torch.version.cuda}"'),
        ("SPARSEQ_CUDA_ARCHITECTURES", f'"{architectures}"'),
    ]
    flags["nvcc"] = [
        "-std=c++20",
        "-O3",
        "--fmad=false",
        "-lineinfo",
        "-Xcompiler",
        "-fvisibility=hidden",
    ]

extension = CUDAExtension if with_cuda else CppExtension
setup(
    ext_modules=[
        extension(
            "sparseq._C",
            sources,
            define_macros=macros,
            extra_compile_args=flags,
            extra_link_args=link,
        )
    ],
    cmdclass={"build_ext": BuildExtension.with_options(use_ninja=True)},
)
