"""What a TensorRT-RTX engine holds: its products, and the constants that they multiply by."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from sparseq.export.contents import Entry, is_24, plain
from sparseq.export.engine.plan import Graph, Operation, PlanTensor, read_plan

BITS = {"int8": 8, "half": 16, "bf16": 16, "float": 32}


def _size(dims: tuple[int | None, ...]) -> int:
    """Elements, with 1 for what is known only at run time: the batch."""
    return math.prod(1 if d is None else d for d in dims)


def _entry(graph: Graph, operation: Operation) -> Entry | None:
    """A product by a constant; None for any other operation."""
    operands = [graph.tensors[name] for name in operation.inputs if name in graph.tensors]
    results = [graph.tensors[name] for name in operation.outputs if name in graph.tensors]
    data = [t for t in operands if t.index is None]
    weight = max((t for t in operands if t.index is not None), key=lambda t: t.bytes, default=None)
    if operation.kind == "function" or weight is None or not data or not results:
        return None
    dims = tuple(d or 0 for d in weight.dims)
    if len(dims) < 2 or weight.dtype not in BITS or weight.dtype not in ("int8", "half", "float"):
        return None
    zeros, sparse = _zeros(graph, weight, 1 if len(dims) > 2 else None)
    macs = _size(results[0].dims) * math.prod(dims[1:]) if len(dims) > 2 else None
    if len(dims) == 2:  # [outputs, inputs] or the other way round: the result tells the outputs
        macs = _size(results[0].dims) * math.prod(dims) // max(results[0].dims[-1] or 1, 1)
    return Entry(
        "+".join(node.removesuffix(".product") for node in operation.nodes),
        "Conv" if len(dims) > 2 else "MatMul",
        dims,
        BITS[weight.dtype],
        BITS.get(data[0].dtype),
        zeros,
        sparse,
        weight.bytes,
        macs,
    )


def _zeros(graph: Graph, weight: PlanTensor, axis: int | None) -> tuple[float, bool]:
    """The share of zeros, and whether they are 2:4 (along either axis of a matrix)."""
    values = graph.constant(weight, graph.bases()[0])
    if values is None or not values.size:
        return 0.0, False
    axes = (0, 1) if axis is None else (axis,)
    return float(np.mean(values == 0)), any(is_24(values, a) for a in axes)


def read(path: Path) -> tuple[tuple[Entry, ...], dict[str, str]]:
    """The products of an engine's last graph (there is one for each family of devices).

    Raises:
        ValueError: it is not an engine of TensorRT-RTX.
    """
    try:
        graphs = read_plan(path.read_bytes())
        rows = [row for o in graphs[-1].operations if (row := _entry(graphs[-1], o)) is not None]
    except (ValueError, IndexError) as error:
        detail = str(error).removeprefix("audit: ")
        raise ValueError(f"inspect: {str(path)!r} is no TensorRT-RTX engine: {detail}") from error
    return tuple(rows), plain({"graphs": len(graphs)})
