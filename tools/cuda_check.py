"""Compiles every kernel of csrc for every architecture, warnings as errors, and reports them.

`python tools/cuda_check.py` needs nvcc and torch's headers, no GPU. It prints what ptxas says of
each kernel (registers by architecture, shared memory, spills), its occupancy and, where there is a
disassembler, its tensor-core and copy instructions; it writes the same tables to
benchmarks/results/cuda_check.md. It exits with 1 if a file does not compile cleanly, a kernel
spills to local memory or lacks an instruction that cuda_sass.EXPECTED names, or clang-tidy finds
something.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import cuda_sass
import cuda_tidy

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "cuda_check.md"
ARCHITECTURES = (80, 86, 89, 90, 100, 120)
# the version of torch's stable ABI that setup.py builds for: said there alone
TARGET = re.findall(r'"TORCH_TARGET_VERSION", "(\w+)"', (ROOT / "setup.py").read_text())[0]
FLAGS = [
    *("-std=c++20", "-O3", "--fmad=false", "-lineinfo"),
    *("-Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra,-Werror,-fPIC"),
    *("-DUSE_CUDA", "-DSPARSEQ_WITH_CUDA", f"-DTORCH_TARGET_VERSION={TARGET}"),
]


@dataclass(frozen=True)
class Kernel:
    """What ptxas reports of one kernel on one architecture."""

    name: str
    architecture: int
    registers: int
    shared: int
    spilled: int  # bytes stored to and loaded from local memory, and stack


@dataclass(frozen=True)
class Compiled:
    """One run of nvcc."""

    source: Path
    architecture: int
    ok: bool
    output: str
    sass: dict[str, Counter[str]] = field(default_factory=dict)  # opcodes of each kernel


def torch_includes() -> list[str]:
    """Torch's headers, as system headers: their warnings are not ours."""
    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None:
        raise SystemExit("cuda_check: needs torch, whose headers the bindings include")
    return ["-isystem", str(Path(torch.origin).parent / "include")]


def compile_one(source: Path, architecture: int, whole: bool, includes: list[str]) -> Compiled:
    """All of the file as the build compiles it, or only its device code."""
    with tempfile.TemporaryDirectory() as folder:
        what = [f"-arch=sm_{architecture}", "-c" if whole else "-cubin", str(source)]
        command = ["nvcc", *FLAGS, *includes, "-Xptxas", "-v", *what, "-o", f"{folder}/out"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        sass, tool = {}, cuda_sass.disassembler()
        if tool is not None and done.returncode == 0 and "entry function" in done.stderr:
            sass = cuda_sass.counts(tool, Path(folder, "out"))
    return Compiled(source, architecture, done.returncode == 0, done.stdout + done.stderr, sass)


def compile_all(sources: list[Path]) -> list[Compiled]:
    """Every file whole for the first architecture, then for the others those that hold kernels."""
    includes = torch_includes()
    first, *others = ARCHITECTURES
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        whole = list(pool.map(lambda s: compile_one(s, first, True, includes), sources))
        with_kernels = [r.source for r in whole if not r.ok or "entry function" in r.output]
        jobs = [(source, a) for a in others for source in with_kernels]
        device = pool.map(lambda job: compile_one(job[0], job[1], False, includes), jobs)
        return whole + list(device)


def readable(mangled: list[str]) -> dict[str, str]:
    """Kernel names as in the source, without namespaces and arguments."""
    if not shutil.which("c++filt"):
        return {name: name for name in mangled}
    done = subprocess.run(
        ["c++filt"], input="\n".join(mangled), capture_output=True, text=True, check=True
    )
    names = {}
    for name, full in zip(mangled, done.stdout.splitlines(), strict=True):
        short = re.sub(r"\(anonymous namespace\)::|\b_GLOBAL__N__\w+::|\b\w+::", "", full)
        short = re.sub(r"\((?:bool|int)\)", "", short.removeprefix("void "))
        names[name] = short.partition("(")[0].replace(" >", ">")
    return names


ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\S+)' for 'sm_(?P<architecture>\d+)a?'"
    r".*?(?P<stack>\d+) bytes stack frame"
    r", (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
    r".*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.S,
)


def kernels_of(compiled: Compiled) -> list[Kernel]:
    """The kernels in the output of `ptxas -v`; how many it must name is checked."""
    found = []
    for m in ENTRY.finditer(compiled.output):
        shared = re.search(r"(\d+) bytes smem", m["rest"])
        spilled = int(m["stack"]) + int(m["stores"]) + int(m["loads"])
        size = int(shared[1]) if shared else 0
        found.append(Kernel(m["name"], int(m["architecture"]), int(m["registers"]), size, spilled))
    entries = compiled.output.count("Compiling entry function")
    if len(found) != entries:
        message = f"cuda_check: {len(found)} of {entries} kernels understood in ptxas' output:"
        raise SystemExit(f"{message}\n{compiled.output}")
    return found


def table(kernels: list[Kernel]) -> list[str]:
    """One markdown row per kernel."""
    names = readable(sorted({k.name for k in kernels}))
    rows: dict[str, dict[int, Kernel]] = defaultdict(dict)
    for k in kernels:
        rows[names[k.name]][k.architecture] = k
    lines = [
        "| kernel | "
        + " | ".join(f"sm_{a}" for a in ARCHITECTURES)
        + " | shared bytes | spilled bytes |",
        "|---|" + "---:|" * (len(ARCHITECTURES) + 2),
    ]
    for name, by in sorted(rows.items()):
        registers = " | ".join(str(by[a].registers) if a in by else "-" for a in ARCHITECTURES)
        shared, spilled = max(k.shared for k in by.values()), max(k.spilled for k in by.values())
        lines.append(f"| `{name}` | {registers} | {shared} | {spilled} |")
    return lines


def by_pattern(name: str, patterns: dict[str, int]) -> int:
    """The number of the first pattern that a name matches, or 0."""
    return next((n for pattern, n in patterns.items() if re.search(pattern, name)), 0)


def occupancy_table(kernels: list[Kernel], blocks: dict[str, int]) -> list[str]:
    """Threads that fit a multiprocessor, in percent, for blocks of the launch bounds' size."""
    names = readable(sorted({k.name for k in kernels}))
    rows: dict[str, dict[int, str]] = defaultdict(dict)
    for k in kernels:
        if k.name in blocks:
            shared = k.shared + by_pattern(names[k.name], cuda_sass.DYNAMIC_SHARED)
            share = cuda_sass.occupancy(k.architecture, k.registers, shared, blocks[k.name])
            rows[f"`{names[k.name]}` | {blocks[k.name]}"][k.architecture] = f"{share:.0%}"
    head = " | ".join(f"sm_{a}" for a in ARCHITECTURES)
    lines = [f"| kernel | threads | {head} |", "|---|" + "---:|" * (len(ARCHITECTURES) + 1)]
    for label, by in sorted(rows.items()):
        lines.append(f"| {label} | " + " | ".join(by.get(a, "-") for a in ARCHITECTURES) + " |")
    return lines


def sass_table(results: list[Compiled]) -> tuple[list[str], list[str]]:
    """Counts of instructions on every architecture, and what is missing of them."""
    names = readable(sorted({name for r in results for name in r.sass}))
    lines = ["| kernel | architecture | " + " | ".join(cuda_sass.OPCODES) + " |"]
    lines.append("|---|---|" + "---:|" * len(cuda_sass.OPCODES))
    absent: list[str] = []
    for r in sorted(results, key=lambda r: r.architecture):
        for name, found in sorted(r.sass.items()):
            if found:
                row = " | ".join(str(found[o]) for o in cuda_sass.OPCODES)
                lines.append(f"| `{names[name]}` | sm_{r.architecture} | {row} |")
    for architecture in ARCHITECTURES:
        here = [r for r in results if r.architecture == architecture]
        together = {names[name]: found for r in here for name, found in r.sass.items()}
        if together:
            lack = cuda_sass.missing(together, cuda_sass.EXPECTED)
            absent += [f"sm_{architecture}: {line}" for line in lack]
    return lines, absent


def write_aside(path: Path, text: str) -> None:
    """All of the file or none of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    aside.write_text(text)
    aside.replace(path)


def main() -> int:
    """Run the check; the exit status."""
    if shutil.which("nvcc") is None:
        print("cuda_check: needs nvcc on PATH", file=sys.stderr)
        return 1
    sources = sorted((ROOT / "csrc").rglob("*.cu"))
    started = time.monotonic()
    results = compile_all(sources)
    failed = [r for r in results if not r.ok]
    for r in failed:
        where = f"{r.source.relative_to(ROOT)} for sm_{r.architecture}"
        print(f"cuda_check: {where}:\n{r.output}", file=sys.stderr)
    if failed:
        return 1
    kernels = [k for r in results for k in kernels_of(r)]
    spilling = sorted({k.name for k in kernels if k.spilled})
    with_kernels = {r.source for r in results if "entry function" in r.output}
    blocks: dict[str, int] = {}
    for source in sorted(with_kernels):
        blocks |= cuda_sass.block_sizes(source, FLAGS + torch_includes())
    version = subprocess.run(
        ["nvcc", "--version"], capture_output=True, text=True, check=True
    ).stdout
    release = re.search(r"release [^\n]*", version)
    targets = ", ".join(f"sm_{a}" for a in ARCHITECTURES)
    lines = [
        "# CUDA check",
        "",
        f"nvcc {release[0] if release else 'of unknown release'}. {len(sources)} files compiled,",
        f"kernels for {targets}, warnings as errors.",
        f"{len({k.name for k in kernels})} kernels; {len(spilling)} of them spill.",
        "Registers per thread by architecture, as ptxas reports them; nothing ran on a device.",
        "",
        *table(kernels),
        "",
        "The share of a multiprocessor's threads that blocks of this size can fill.",
        "",
        *occupancy_table(kernels, blocks),
    ]
    counted, problems = sass_table(results)
    if cuda_sass.disassembler() is None:
        print("cuda_check: no disassembler found: instructions are not checked", file=sys.stderr)
    elif len(counted) > 2:
        lines += [
            "",
            "Machine instructions, of kernels that have any of these.",
            "",
            *counted,
        ]
    found = cuda_tidy.findings(sorted(with_kernels))
    if found is None:
        print("cuda_check: no clang-tidy found: device code is not linted", file=sys.stderr)
    problems += found or []
    write_aside(RESULT, "\n".join(lines) + "\n")
    print("\n".join(lines))
    print(f"\n{RESULT.relative_to(ROOT)} written, {time.monotonic() - started:.0f} s")
    for name, short in readable(spilling).items() if spilling else ():
        print(f"cuda_check: {short} spills to local memory ({name})", file=sys.stderr)
    for problem in problems:
        print(f"cuda_check: {problem}", file=sys.stderr)
    return 1 if spilling or problems else 0


if __name__ == "__main__":
    sys.exit(main())
