"""What an engine really computes with: each layer's operands, and whether its weight is intact."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparseq.export.engine.inspector import inspected_layers
from sparseq.export.engine.plan import Array, Graph, Operation, PlanError, PlanTensor, read_plan
from sparseq.export.engine.source import Source, SourceLayer
from sparseq.export.engine.table import UNKNOWN, AuditedLayer, EngineAudit, EngineAuditError


def _rows(stored: Array) -> Iterator[Array]:
    """A constant as `[outputs, inputs]` or `[outputs, inputs, height, width]`, all ways."""
    if stored.ndim == 4 and stored.shape[2:] == (1, 1):
        stored = stored[:, :, 0, 0]
    yield stored
    if stored.ndim == 2:
        yield stored.T


def _planar(weight: Array) -> Array:
    """A weight along one dimension as the engine has it: of images that are one pixel wide."""
    return weight[..., None] if weight.ndim == 3 else weight


def holds(stored: Array, weight: Array) -> bool:
    """Whether a constant of the engine holds a weight: rows in order, one behind the other.

    The engine may have put other layers' rows beside it (one product for all layers on one
    input), and may have padded the inputs with zeros.

    Args:
        stored: int8, as its operation reads it.
        weight: the file's integers, `[outputs, inputs, ...]`.
    """
    weight = _planar(weight)
    if weight.ndim == 4 and weight.shape[2:] == (1, 1):
        weight = weight[:, :, 0, 0]
    n, k = weight.shape[:2]
    for rows in _rows(stored):
        if rows.ndim != weight.ndim or rows.shape[2:] != weight.shape[2:]:
            continue
        if len(rows) < n or rows.shape[1] < k or rows[:, k:].any():
            continue
        first = (rows[: len(rows) - n + 1, :k] == weight[0]).reshape(len(rows) - n + 1, -1).all(1)
        if any(np.array_equal(rows[i : i + n, :k], weight) for i in np.flatnonzero(first)):
            return True
    return False


def _as_stored(tensor: PlanTensor, weight: Array) -> bytes | None:
    """A weight in the order in which a constant of the engine holds it; None if it does not fit."""
    weight = _planar(weight)
    dims = tuple(d or 0 for d in tensor.dims)
    if weight.ndim == 2 and dims == weight.shape[::-1]:
        weight = weight.T
    if dims != weight.shape or tensor.bytes != weight.size or 0 in dims:
        return None
    flat = np.zeros(tensor.bytes, np.int8)
    reach = sum((d - 1) * s for d, s in zip(dims, tensor.strides, strict=True))
    if reach >= tensor.bytes:
        return None
    np.lib.stride_tricks.as_strided(flat, dims, tensor.strides)[...] = weight
    return flat.tobytes()


class _GraphReader:
    """Finds the layers in one graph of a plan."""

    def __init__(self, graph: Graph, layers: Sequence[SourceLayer]) -> None:
        self.graph = graph
        self.products: dict[str, list[Operation]] = {}
        for operation in graph.operations:
            if operation.kind != "function":  # those are no products, and carry their names, too
                for node in operation.nodes:
                    self.products.setdefault(node, []).append(operation)
        self.pairs = [
            (self._weight(operation), layer.weight)
            for layer in layers
            if layer.weight is not None
            for operation in self.products.get(layer.node, ())
        ]
        self.base = self._find_base()

    def _candidates(self) -> Iterator[int]:
        yield from self.graph.bases()
        for tensor, weight in self.pairs:
            raw = _as_stored(tensor, weight) if tensor is not None and weight is not None else None
            if raw is not None and tensor is not None and (at := self.graph.data.find(raw)) >= 0:
                yield at - self.graph.place(tensor)

    def _find_base(self) -> int | None:
        """Where the constants begin: where most weights are right, which the audit then demands."""
        best, most = None, 0
        for base in dict.fromkeys(self._candidates()):
            right = sum(self._holds(tensor, weight, base) for tensor, weight in self.pairs)
            if right == len(self.pairs):
                return base
            if right > most:
                best, most = base, right
        return best

    def _holds(self, tensor: PlanTensor | None, weight: Array | None, base: int | None) -> bool:
        if tensor is None or weight is None or base is None or tensor.dtype != "int8":
            return False
        stored = self.graph.constant(tensor, base)
        return stored is not None and holds(stored, weight)

    def _operands(self, operation: Operation) -> list[PlanTensor]:
        return [self.graph.tensors[i] for i in operation.inputs if i in self.graph.tensors]

    def _weight(self, operation: Operation) -> PlanTensor | None:
        """The largest constant with the rank of a weight: scales and biases are smaller."""
        constants = [t for t in self._operands(operation) if t.index is not None]
        return max(constants, key=lambda t: t.bytes, default=None)

    def _kind(self, names: Iterable[str]) -> str:
        known = [self.graph.tensors[n] for n in names if n in self.graph.tensors]
        return known[0].dtype if known else UNKNOWN

    def audited(self, layer: SourceLayer) -> Iterator[AuditedLayer]:
        """The layer as each operation of this graph computes it that has its name."""
        for operation in self.products.get(layer.node, ()):
            yield self._audited(layer, operation)

    def _audited(self, layer: SourceLayer, operation: Operation) -> AuditedLayer:
        weight = self._weight(operation)
        data = [t for t in self._operands(operation) if t.index is None]
        return AuditedLayer(
            name=layer.name,
            operation=f"{operation.kind} {operation.name}",
            kernel="chosen on the device" if operation.chosen_on_device else operation.kernel,
            input=data[0].dtype if data else UNKNOWN,
            weight=weight.dtype if weight is not None else UNKNOWN,
            output=self._kind(operation.outputs),
            integer=layer.integer,
            verbatim=self._holds(weight, layer.weight, self.base) if layer.integer else None,
            sparse=layer.is_24,
        )


def _missing(layer: SourceLayer) -> AuditedLayer:
    return AuditedLayer(
        layer.name, "", UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, layer.integer, None, layer.is_24
    )


def audited_plan(data: bytes, source: Source) -> EngineAudit:
    """The table of a TensorRT-RTX plan.

    Args:
        data: the plan.
        source: what it was built from.

    Raises:
        PlanError: it does not read as a plan of TensorRT-RTX.
    """
    layers = tuple(source.layers())
    readers = [_GraphReader(graph, layers) for graph in read_plan(data)]
    found = []
    for layer in layers:
        # a plan may hold more than one graph, and a graph a layer twice: the worst one counts
        rows = [row for reader in readers for row in reader.audited(layer)]
        found.append(next((r for r in rows if r.problem), rows[0] if rows else _missing(layer)))
    return EngineAudit(tuple(found))


def audited_layers(information: Collection[Any], source: Source) -> EngineAudit:
    """The table of a TensorRT engine, from what its inspector tells."""
    rows = inspected_layers(information)
    found = []
    for layer in source.layers():
        row = rows.get(layer.node)
        if row is None:
            found.append(_missing(layer))
            continue
        found.append(
            AuditedLayer(
                name=layer.name,
                integer=layer.integer,
                verbatim=None,
                sparse=layer.is_24,
                **vars(row),
            )
        )
    return EngineAudit(tuple(found))


def audit(
    engine: str | os.PathLike[str],
    onnx: str | os.PathLike[str],
    *,
    allow_float: Iterable[str] = (),
) -> EngineAudit:
    """Read from a TensorRT-RTX engine what each layer computes with; needs no GPU.

    A layer that the model computes on integers must have int8 operands in the engine, and its
    integers must be there, each in its place. Layers that the model keeps in float are listed and
    not held to anything; of a file without sparseq's metadata every layer is. Whether a 2:4 kernel
    runs is decided on the device and not in the engine.

    Args:
        engine: what `tensorrt` wrote with runtime "tensorrt_rtx".
        onnx: the file it was built from.
        allow_float: names of layers, or fnmatch patterns, that may run in floating point.

    Returns:
        The table.

    Raises:
        EngineAuditError: a layer fell back to floating point, or holds another weight; it carries
            the table.
        PlanError: the engine is not one of TensorRT-RTX 1.7, or does not read like one.
        FileNotFoundError, ValueError: `onnx` is missing or not sound.
    """
    patterns = checked_patterns(allow_float, "audit")
    source = Source(onnx, "audit")
    if not Path(engine).is_file():
        raise FileNotFoundError(f"audit: engine must be a file, got {str(engine)!r}")
    found = audited_plan(Path(engine).read_bytes(), source)
    found.check(patterns)
    return found


def checked_patterns(patterns: Iterable[str], caller: str) -> tuple[str, ...]:
    """TypeError unless patterns is some strings, and not one string."""
    given = patterns if isinstance(patterns, str) else tuple(patterns)
    if isinstance(given, str) or not all(isinstance(p, str) for p in given):
        raise TypeError(f"{caller}: allow_float must be a sequence of names, got {patterns!r}")
    return given


__all__ = ["AuditedLayer", "EngineAudit", "EngineAuditError", "PlanError", "audit"]
