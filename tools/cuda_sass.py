"""What cuda_check reads out of compiled kernels: their machine instructions and their occupancy."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

# opcodes worth counting, as patterns of SASS; the sparse ones are not counted as dense
OPCODES = {
    "IMMA": r"IMMA\.(?!SP)\S*",
    "IMMA.SP": r"IMMA\.SP\S*",
    "HMMA": r"HMMA\.(?!SP)\S*",
    "HMMA.SP": r"HMMA\.SP\S*",
    "LDGSTS": r"LDGSTS\S*",
    "LDSM": r"LDSM\S*",
}
# what kernels must contain: patterns of their readable names to keys of OPCODES
EXPECTED: dict[str, tuple[str, ...]] = {
    r"product<DenseInt8": ("IMMA", "LDGSTS", "LDSM"),
    r"product<SparseInt8": ("IMMA.SP", "LDGSTS", "LDSM"),
    r"product<SparseFloat": ("HMMA.SP", "LDGSTS", "LDSM"),
}
# bytes of dynamic shared memory by the same patterns: ptxas knows only the static ones
DYNAMIC_SHARED: dict[str, int] = {}

# per multiprocessor: threads, blocks, bytes of shared memory (CUDA programming guide, table of
# technical specifications per compute capability)
LIMITS = {
    80: (2048, 32, 164 << 10),
    86: (1536, 16, 100 << 10),
    89: (1536, 24, 100 << 10),
    90: (2048, 32, 228 << 10),
    100: (2048, 32, 228 << 10),
    120: (1536, 24, 100 << 10),
}
REGISTERS, REGISTER_UNIT, PARTITIONS = 65536, 256, 4
RESERVED_SHARED, SHARED_UNIT = 1024, 128


def occupancy(architecture: int, registers: int, shared: int, threads: int) -> float:
    """The share of a multiprocessor's threads that blocks of a kernel fill, at most."""
    most_threads, most_blocks, most_shared = LIMITS[architecture]
    warps = -(-threads // 32)
    per_warp = -(-max(registers, 1) * 32 // REGISTER_UNIT) * REGISTER_UNIT
    by_registers = REGISTERS // PARTITIONS // per_warp * PARTITIONS // warps
    per_block = -(-shared // SHARED_UNIT) * SHARED_UNIT + RESERVED_SHARED
    by_threads = most_threads // (32 * warps)
    blocks = min(most_blocks, by_registers, by_threads, most_shared // per_block)
    return blocks * warps * 32 / most_threads


def disassembler() -> Path | None:
    """The toolkit's cuobjdump, or the one that comes with triton; either needs nvdisasm too."""
    found = shutil.which("cuobjdump")
    if found and shutil.which("nvdisasm"):
        return Path(found)
    triton = importlib.util.find_spec("triton")
    if triton is None or triton.origin is None:
        return None
    path = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return path if path.is_file() else None


def counts(tool: Path, binary: Path) -> dict[str, Counter[str]]:
    """How often each of OPCODES occurs, by kernel."""
    text = subprocess.run(
        [tool, "-sass", binary],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": f"{tool.parent}:/usr/bin:/bin"},
    ).stdout
    found = {}
    for part in re.split(r"^\s*Function : ", text, flags=re.M)[1:]:
        name, _, body = part.partition("\n")
        opcodes = re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?\S+\s+)?([A-Z][\w.]*)", body, re.M)
        if not opcodes:
            raise SystemExit(f"cuda_check: no instructions understood in the SASS of {name}")
        kinds = Counter(
            key for o in opcodes for key, pattern in OPCODES.items() if re.fullmatch(pattern, o)
        )
        found[name.strip()] = kinds
    return found


def missing(found: dict[str, Counter[str]], expected: dict[str, tuple[str, ...]]) -> list[str]:
    """What kernels, by readable name, lack of what they must contain."""
    lines = []
    for pattern, wanted in expected.items():
        names = [name for name in found if re.search(pattern, name)]
        if not names:
            lines.append(f"no kernel matches {pattern!r}, which expects {', '.join(wanted)}")
        lines += [f"{name} has no {w}" for name in names for w in wanted if not found[name][w]]
    return lines


def block_sizes(source: Path, flags: list[str]) -> dict[str, int]:
    """The threads of a block that each kernel's launch bounds name, from its PTX."""
    command = ["nvcc", *flags, "-arch=compute_80", "-ptx", str(source), "-o", "-"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    sizes = {}
    for m in re.finditer(r"\.entry\s+([\w$]+)[^{]*?\.maxntid\s+(\d+)(?:, (\d+), (\d+))?", text):
        sizes[m[1]] = int(m[2]) * int(m[3] or 1) * int(m[4] or 1)
    return sizes
