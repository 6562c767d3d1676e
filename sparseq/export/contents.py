"""`export.inspect`: what a model file holds, layer by layer, without running it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Entry:
    """One layer of a file.

    Attributes:
        name: of the layer.
        kind: the operator ("Conv", "Gemm", ...) or the module's kind ("Linear", "Conv2d").
        shape: of its weight, as stored; empty for a product of two activations.
        bits: of a stored weight element; None without a weight.
        input_bits: of an element of what it multiplies by; None where the file does not say.
        zeros: share of weight elements that stand for 0.
        two_of_four: whether every 4 neighbouring inputs of the weight hold at most 2 non-zeros, and
            there are zeros.
        size: bytes of the weight in the file.
        macs: multiplications and additions for one input (batch 1); None where the file does not
            say.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    bits: int | None
    input_bits: int | None
    zeros: float
    two_of_four: bool
    size: int
    macs: int | None

    @property
    def parameters(self) -> int:
        """Elements of the weight."""
        count = 1 if self.shape else 0
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found.

    Attributes:
        format: "onnx", "safetensors" or "engine".
        file_size: bytes.
        rows: the layers, in the order of the file.
        facts: what else the file says of itself: opset, producer, sparseq's version and target,
            the plan, the accuracy.
    """

    format: str
    file_size: int
    rows: tuple[Entry, ...]
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """Elements of all weights."""
        return sum(row.parameters for row in self.rows)

    @property
    def zeros(self) -> float:
        """Share of zeros among them."""
        return sum(row.zeros * row.parameters for row in self.rows) / max(self.parameters, 1)

    @property
    def macs(self) -> int | None:
        """Of all layers; None if the file does not say it of one."""
        each = [row.macs for row in self.rows]
        return None if not each or None in each else sum(m for m in each if m is not None)

    def cells(self) -> list[tuple[str, ...]]:
        """The table as text: a head, a line a layer, the total."""
        head = ("layer", "kind", "weight", "bits", "input", "zeros", "2:4", "bytes", "MACs")
        lines = [head]
        for row in self.rows:
            lines.append(
                (
                    row.name,
                    row.kind,
                    "x".join(map(str, row.shape)) or "-",
                    _or_dash(row.bits),
                    _or_dash(row.input_bits),
                    f"{row.zeros:.1%}" if row.shape else "-",
                    "yes" if row.two_of_four else "",
                    f"{row.size:,}" if row.shape else "-",
                    _or_dash(row.macs),
                )
            )
        weights = f"{self.parameters:,} parameters"
        total = ("total", "", weights, "", "", f"{self.zeros:.1%}", "", f"{self.file_size:,}")
        return [*lines, (*total, _or_dash(self.macs))]

    def __str__(self) -> str:
        """The table, and what else the file says."""
        cells = self.cells()
        widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in cells
        ]
        return "\n".join([*lines, *(f"{key}: {value}" for key, value in self.facts.items())])

    def to_markdown(self) -> str:
        """The table as markdown."""
        head, *body = (f"| {' | '.join(line)} |" for line in self.cells())
        return "\n".join([head, "|" + "---|" * len(self.cells()[0]), *body])


def _or_dash(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def is_24(values: Any, axis: int) -> bool:
    """Whether an array with some zeros has at most 2 non-zeros in every 4 along an axis."""
    import numpy as np

    moved = np.moveaxis(values != 0, axis, -1)
    rest = -moved.shape[-1] % 4
    padded = np.pad(moved, [(0, 0)] * (moved.ndim - 1) + [(0, rest)])
    fits = padded.reshape(*padded.shape[:-1], -1, 4).sum(-1) <= 2
    return bool(moved.size and fits.all() and moved.shape[-1] >= 4 and not moved.all())


def inspect(path: str | os.PathLike[str]) -> Inspection:
    """List what a model file holds: layers, bits, sparsity, size, MACs. Nothing in it is run.

    Args:
        path: of an ONNX file (sparseq's or any other, external data beside it), or of a
            safetensors file (`sparseq.save`'s or any other), or of a TensorRT-RTX engine.

    Returns:
        The list; `print` shows it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is of no known format, or damaged.
        ImportError: onnx is missing.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"inspect: path must name a file, got {str(path)!r}")
    with file.open("rb") as stream:
        start = stream.read(9)
    if file.suffix == ".safetensors" or start[8:9] == b"{":
        from sparseq.export.contents_safetensors import read

        rows, facts = read(file)
        return Inspection("safetensors", file.stat().st_size, rows, facts)
    if file.suffix == ".onnx":
        from sparseq.export.contents_onnx import read

        rows, facts = read(file)
        return Inspection("onnx", file.stat().st_size, rows, facts)
    if file.suffix in (".engine", ".plan", ".trt"):
        from sparseq.export.contents_engine import read

        rows, facts = read(file)
        return Inspection("engine", file.stat().st_size, rows, facts)
    raise ValueError(
        f"inspect: path must name an .onnx, .safetensors or .engine file, got {str(path)!r}"
    )


def plain(facts: dict[str, Any]) -> dict[str, str]:
    """What a file says of itself, as text; what is not there is left out."""
    texts = {}
    for key, value in facts.items():
        if value not in (None, "", {}):
            texts[key] = value if isinstance(value, str) else json.dumps(value)
    return texts
