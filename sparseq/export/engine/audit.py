"""What an engine really computes with: each layer's operands, and whether its weight is intact."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from sparseq.export.engine.inspector import inspected_layers
from sparseq.export.engine.plan import Array, Graph, Operation, PlanError, PlanTensor, read_plan
from sparseq.export.engine.source import Source, SourceLayer

UNKNOWN = "?"


@dataclass(frozen=True)
class AuditedLayer:
    """One layer of an engine.

    Attributes:
        name: the module's name, or the ONNX node's.
        operation: the engine's operation that computes it; layers on one input may share one.
        kernel: the kernel's name, or "chosen on the device".
        input: type of its input in the engine: "int8", "half", "float".
        weight: type of its weight in the engine.
        output: type of its result.
        integer: whether the model computes it on integers.
        verbatim: whether the model's integers are in the engine, each in its place; None where
            the engine does not show.
        sparse: whether the model's weight is 2:4.
        sparse_kernel: whether a 2:4 kernel runs; None where the engine does not show.
    """

    name: str
    operation: str
    kernel: str
    input: str
    weight: str
    output: str
    integer: bool
    verbatim: bool | None
    sparse: bool
    sparse_kernel: bool | None = None

    @property
    def problem(self) -> str | None:
        """Why the layer does not run as the model has it; None if it does."""
        if not self.integer:
            return None
        if not self.operation:
            return "the engine has no operation of its name"
        if self.input != "int8" or self.weight != "int8":
            return (
                f"it runs on {self.input} inputs and {self.weight} weights; QuantizeLinear and "
                f"DequantizeLinear must stand at its input and at its weight, the weight's scales "
                f"along the output channels"
            )
        if self.verbatim is False:
            return "the weight in the engine is not the file's"
        return None


class EngineAuditError(RuntimeError):
    """A layer of the engine fell back to floating point; `audit` is the whole table."""

    def __init__(self, message: str, audit: EngineAudit) -> None:
        super().__init__(message)
        self.audit = audit


@dataclass(frozen=True)
class EngineAudit:
    """The layers of an engine; as text, a table."""

    layers: tuple[AuditedLayer, ...]

    def problems(self, allow_float: Iterable[str] = ()) -> dict[str, str]:
        """Layer -> why it does not run on integers, but for names that match a pattern."""
        patterns = tuple(allow_float)
        return {
            layer.name: layer.problem
            for layer in self.layers
            if layer.problem and not any(fnmatchcase(layer.name, p) for p in patterns)
        }

    def check(self, allow_float: Iterable[str] = ()) -> None:
        """Raise EngineAuditError, naming the layers, if there are problems."""
        problems = self.problems(allow_float)
        if problems:
            listed = "; ".join(f"layer {name}: {reason}" for name, reason in problems.items())
            raise EngineAuditError(f"audit: {listed}", self)

    def __str__(self) -> str:
        rows = [("layer", "input", "weight", "output", "intact", "2:4", "2:4 kernel", "kernel")]
        for layer in self.layers:
            rows.append(
                (
                    layer.name,
                    layer.input,
                    layer.weight,
                    layer.output,
                    _answer(layer.verbatim),
                    _answer(layer.sparse),
                    _answer(layer.sparse_kernel),
                    layer.kernel if layer.integer else f"{layer.kernel} (float in the model)",
                )
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) for r in rows)
        return "\n".join(line.rstrip() for line in lines)


def _answer(fact: bool | None) -> str:
    return {True: "yes", False: "no", None: UNKNOWN}[fact]


def _rows(stored: Array) -> Iterator[Array]:
    """A constant as `[outputs, inputs]` or `[outputs, inputs, height, width]`, all ways."""
    if stored.ndim == 4 and stored.shape[2:] == (1, 1):
        stored = stored[:, :, 0, 0]
    yield stored
    if stored.ndim == 2:
        yield stored.T


def holds(stored: Array, weight: Array) -> bool:
    """Whether a constant of the engine holds a weight: rows in order, one behind the other.

    The engine may have put other layers' rows beside it (one product for all layers on one
    input), and may have padded the inputs with zeros.

    Args:
        stored: int8, as its operation reads it.
        weight: the file's integers, `[outputs, inputs, ...]`.
    """
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
        self.products = {
            node: operation
            for operation in graph.operations
            if operation.kind != "function"  # what is not a product: they carry the names, too
            for node in operation.nodes
        }
        self.pairs = [
            (self._weight(self.products[layer.node]), layer.weight)
            for layer in layers
            if layer.node in self.products and layer.weight is not None
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

    def audited(self, layer: SourceLayer) -> AuditedLayer | None:
        """The layer as this graph computes it; None if it does not."""
        operation = self.products.get(layer.node)
        if operation is None:
            return None
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
        rows = [row for reader in readers if (row := reader.audited(layer)) is not None]
        # a plan may hold a graph for each device: the worst one counts
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
