"""What share of the micro-kernels' own speed in L1 whole layers reach: `make bench ARGS=roof`.

One thread, best of many runs, every vector ISA that this CPU has; bell-shaped weights. On AVX2 a
layer mixes classes of blocks, so that its roof lies between theirs; its share is of the
fastest.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from sparseq import _C, bench
from sparseq.files import atomic_path

HERE = Path(__file__).parent
CSRC = HERE.parent / "csrc"
ISAS = {
    "avx2": ("Avx2Micro", "kernels_avx2"),
    "avx_vnni": ("DotMicro<AvxVnni>", "kernels_avx_vnni"),
    "avx512_vnni": ("DotMicro<Avx512>", "kernels_avx512_vnni"),
}
SHARED = [
    CSRC / f"{name}.cpp"
    for name in (
        *("gemm/pack", "gemm/plan", "gemm/winograd", "gemm/amx"),
        *("sparse24/pack", "sparse24/format"),
    )
]
FLAGS = "-std=c++20 -O3 -ffp-contract=off -fno-math-errno".split()


def defines(isa: str) -> list[str]:
    """What roof.cpp is compiled for an ISA with."""
    micro, table = ISAS[isa]
    return [f'-DSOURCE="{CSRC}/gemm/{isa}.cpp"', f"-DMICRO={micro}", f"-DKERNELS={table}"]


def measure(isa: str, folder: str) -> list[list[str]]:
    """Compile and run for one ISA: rows of ISA, kind, work, GMAC/s."""
    program = f"{folder}/{isa}"
    command = [
        "g++",
        *FLAGS,
        *defines(isa),
        str(HERE / "roof.cpp"),
        *map(str, SHARED),
        "-o",
        program,
    ]
    subprocess.run(command, check=True)
    done = subprocess.run([program], check=True, capture_output=True, text=True)
    return [line.split("|") for line in done.stdout.splitlines()]


def main() -> None:
    lines = ["| ISA | weight | work | GMAC/s | share of L1 |", "|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        for isa in (name for name in ISAS if name in _C.supported_isas()):
            roof: dict[str, float] = {}
            for name, kind, work, rate in measure(isa, folder):
                in_l1 = work.startswith("L1")
                if in_l1:
                    roof[kind] = max(roof.get(kind, 0.0), float(rate))
                share = "" if in_l1 else f"{float(rate) / roof[kind]:.0%}"
                lines.append(f"| {name} | {kind} | {work} | {rate} | {share} |")
    about = "\n".join(f"- {key}: {value}" for key, value in bench.environment().items())
    text = (
        f"# roof\n\n{' '.join(__doc__.splitlines()[2:])}\n\n" + "\n".join(lines) + f"\n\n{about}\n"
    )
    with atomic_path(HERE / "results" / "roof.md") as path:
        path.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
