"""clang-tidy on device code: what multiplies in 32 bits and is then used as 64, among others."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CHECKS = (
    "-*,bugprone-implicit-widening-of-multiplication-result,bugprone-integer-division,"
    "bugprone-infinite-loop,bugprone-misplaced-widening-cast,bugprone-sizeof-expression,"
    "bugprone-suspicious-memset-usage,bugprone-too-small-loop-variable,bugprone-use-after-move"
)
OPTIONS = (
    "{CheckOptions: {bugprone-implicit-widening-of-multiplication-result.IgnoreConstantIntExpr: "
    "true}}"
)


def program() -> str | None:
    """clang-tidy, of this environment or on PATH."""
    beside = Path(sys.executable).with_name("clang-tidy")
    return str(beside) if beside.is_file() else shutil.which("clang-tidy")


def toolkit() -> Path | None:
    """CUDA's folder, which clang needs for its headers and libdevice."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return None
    done = subprocess.run(
        [nvcc, "-dryrun", "-E", "-x", "cu", "/dev/null"], capture_output=True, text=True
    )
    top = re.search(r"TOP=(\S+)", done.stderr)
    return Path(top[1]).resolve() if top else None


def findings(sources: list[Path]) -> list[str] | None:
    """clang-tidy's warnings on .cu files without torch headers; None where it cannot run."""
    tidy, cuda = program(), toolkit()
    if tidy is None or cuda is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        # clang's wrapper includes this header, which not every toolkit has; no kernel uses it
        if not (cuda / "include" / "curand_mtgp32_kernel.h").is_file():
            (Path(folder) / "curand_mtgp32_kernel.h").touch()
        compiler = ["-x", "cuda", "--cuda-device-only", "--cuda-gpu-arch=sm_80", "-std=c++20"]
        compiler += [f"--cuda-path={cuda}", "-I", folder, "-Wno-unknown-cuda-version"]
        arguments = [f"--checks={CHECKS}", f"--config={OPTIONS}", "--header-filter=.*", "--quiet"]
        found: set[str] = set()
        for source in sources:
            done = subprocess.run(
                [tidy, str(source), *arguments, "--", *compiler], capture_output=True, text=True
            )
            lines = re.findall(
                r"^(?:\S+): (?:warning|error): .*$|^\S+ error: .*$", done.stdout, re.M
            )
            found.update(lines)
            if done.returncode and not lines:
                found.add(f"{source}: clang-tidy failed: {done.stderr.strip()[-500:]}")
    return sorted(found)
