"""Which kernel a layer runs on: the fastest one in a table of measured times.

The table holds, per instruction set, microseconds of whole layers (float32 in and out) over a grid
of shapes: INT8 dense, INT8 2:4 and float32 on one thread. A layer takes its nearest neighbour in
the logarithms of the shape. The package brings a table for the ISAs it was measured on;
`sparseq tune` measures the machine at hand and keeps the result in the user's cache.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import sparseq._C as core

DENSE, SPARSE, FLOAT, INT4 = "int8", "int8 2:4", "float32", "int4"
KERNELS = (DENSE, SPARSE, FLOAT)
SHIPPED = Path(__file__).with_name("kernels.json")
VERSION = 1
# A change of kernel must be worth it: 2:4 weights are smaller than dense ones, and INT8 ones than
# float32; timings of a few microseconds scatter by this much.
MARGIN = {DENSE: 1.05, FLOAT: 1.15}


@dataclass(frozen=True)
class Work:
    """A layer on a batch, as a matrix product.

    Args:
        rows: output pixels, or rows of a linear layer's input.
        inputs: input channels of one group.
        outputs: output channels of one group.
        taps: kernel height times width.
        groups: of the convolution.
    """

    rows: int
    inputs: int
    outputs: int
    taps: int = 1
    groups: int = 1

    def __str__(self) -> str:
        """Such as 128x1024->1024, or 784x9x64->64 in 2 groups."""
        taps = "" if self.taps == 1 else f"{self.taps}x"
        groups = "" if self.groups == 1 else f" in {self.groups} groups"
        return f"{self.rows}x{taps}{self.inputs}->{self.outputs}{groups}"

    def distance(self, other: Work) -> float:
        """How unlike two shapes are: squared differences of the logarithms."""
        pairs = zip(self._weighed(), other._weighed(), strict=True)
        return sum((math.log2(a) - math.log2(b)) ** 2 for a, b in pairs)

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows, inputs, outputs, taps, groups."""
        return (self.rows, self.inputs, self.outputs, self.taps, self.groups)

    def _weighed(self) -> tuple[int, ...]:
        # twice the weight for taps and groups: they change the kernel, not only its size
        return (self.rows, self.inputs, self.outputs, self.taps**2, self.groups**2)


@dataclass(frozen=True)
class Choice:
    """A kernel, and why that one."""

    kernel: str
    reason: str


def user_table() -> Path:
    """Where `sparseq tune` keeps what it measured."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "sparseq" / "kernels.json"


@lru_cache(maxsize=8)
def _table(isa: str, path: Path, stamp: int) -> dict[Work, dict[str, float]]:
    content: dict[str, Any] = json.loads(path.read_text())
    if content.get("version") != VERSION:
        return {}
    rows = content["isas"].get(isa, [])
    return {Work(*row[:5]): dict(zip(KERNELS, row[5:], strict=True)) for row in rows}


def table(isa: str) -> dict[Work, dict[str, float]]:
    """Measured microseconds by shape and kernel; empty for an ISA that nobody measured."""
    for path in (user_table(), SHIPPED):
        try:
            found = _table(isa, path, path.stat().st_mtime_ns)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            continue  # no table, or none of ours
        if found:
            return found
    return {}


@lru_cache(maxsize=4096)
def choose(work: Work, is_24: bool, isa: str | None = None) -> Choice:
    """The kernel for an INT8 layer.

    Args:
        work: its shape and batch.
        is_24: whether the weight is 2:4, so that the 2:4 kernel serves it.
        isa: the instruction set; None for the one in use.
    """
    isa = isa or core.isa()
    isa = {"avx512": "avx2"}.get(isa, isa)  # without VNNI its INT8 kernels are AVX2's
    best = SPARSE if is_24 else DENSE
    measured = table(isa)
    if not measured:
        return Choice(best, f"not measured on {isa}")
    near = min(measured, key=work.distance)
    times = measured[near]
    where = f"at {near}"
    if is_24:
        ratio = times[DENSE] / times[SPARSE]
        if times[DENSE] * MARGIN[DENSE] < times[SPARSE]:
            best, reason = DENSE, f"dense: 2:4 measured {ratio:.2f}x {where}"
        else:
            reason = f"2:4 measured {ratio:.2f}x dense {where}"
    else:
        reason = f"float32 measured {times[DENSE] / times[FLOAT]:.2f}x {where}"
    if times[FLOAT] * MARGIN[FLOAT] < times[best]:
        return Choice(FLOAT, f"float32 measured {times[best] / times[FLOAT]:.2f}x {best} {where}")
    return Choice(best, reason)
