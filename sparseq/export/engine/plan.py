"""What a TensorRT-RTX plan says of itself: operations, tensors and their constants.

A plan holds one or more compiled graphs. Each begins with the bytes `NLYM`, a length, and a text
that names every region, tensor and operation with its operands; the constants follow at the end, in
the order of their `offset`, each at a multiple of 128 bytes. That was found out from plans of
TensorRT-RTX 1.7 and is documented nowhere: what does not read so is an error, never a guess.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

MAGIC = b"NLYM"
_ALIGNMENT = 128
_CHECKSUM = 8
_WIDTHS = {"int8": np.int8, "half": np.float16, "float": np.float32, "int32": np.int32}
_ENTRY = re.compile(r"^  (?:  )?(\w+) ?= ?\{", re.MULTILINE)
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[{}]', re.DOTALL)
_FIELD = re.compile(r"(?:^|\s)(\w+) ?= ?(\{|\"(?:[^\"\\]|\\.)*\"|[^\s{}\"]+)", re.DOTALL)
_WORD = re.compile(r'"((?:[^"\\]|\\.)*)"|([^\s"]+)', re.DOTALL)
_LAYER = re.compile(r"\[ONNX Layer: (.*?)\]", re.DOTALL)


class PlanError(ValueError):
    """The file is not a plan of TensorRT-RTX, or of a version whose plans read differently."""


@dataclass(frozen=True)
class PlanTensor:
    """One tensor of a graph.

    Attributes:
        name: as the operations call it.
        dims: its sizes; those that are known only at run time are None.
        dtype: "int8", "half", "float", ...
        strides: elements from one index to the next, by dimension.
        index: of a constant, its place among the constants.
        bytes: of a constant, how many.
    """

    name: str
    dims: tuple[int | None, ...]
    dtype: str
    strides: tuple[int, ...]
    index: int | None
    bytes: int


@dataclass(frozen=True)
class Operation:
    """One step of a graph: `kind` is the plan's own word ("corrltn" is a convolution)."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    kernel: str
    layers: tuple[str, ...]
    chosen_on_device: bool

    @property
    def nodes(self) -> tuple[str, ...]:
        """The ONNX nodes that it computes: TensorRT-RTX joins names, and numbers those it moved."""
        return tuple(re.sub(r"_U\d+$", "", name) for name in self.name.split("+"))


def _closing(text: str, start: int) -> int:
    """Where the bracket ends that was opened just before start."""
    depth = 1
    for found in _BRACKETS.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(found.group(), 0)
        if not depth:
            return found.start()
    raise PlanError("audit: a bracket in the plan's text is never closed")


def _fields(body: str) -> dict[str, str]:
    """`key=value` pairs of one entry; of a bracketed value what is inside."""
    fields: dict[str, str] = {}
    position = 0
    while found := _FIELD.search(body, position):
        key, value = found.groups()
        position = found.end()
        if value == "{":
            end = _closing(body, position)
            value, position = body[position:end], end + 1
        elif value.startswith('"'):
            value = value[1:-1]
        fields.setdefault(key, value)
    return fields


def _words(text: str) -> tuple[str, ...]:
    return tuple(quoted or bare for quoted, bare in _WORD.findall(text))


def _entries(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    position = 0
    while found := _ENTRY.search(text, position):
        if found.group(1) == "accelerators":  # holds the entries that are meant
            position = found.end()
            continue
        end = _closing(text, found.end())
        yield found.group(1), _fields(text[found.end() : end])
        position = end + 1


class Graph:
    """One compiled graph of a plan.

    Args:
        data: the whole plan.
        start: where its MAGIC is.

    Raises:
        PlanError: the text does not read as expected.
    """

    def __init__(self, data: bytes, start: int) -> None:
        self.data = data
        (length,) = struct.unpack_from("<Q", data, start + 8)
        raw = data[start + 16 : start + 16 + length]
        if not raw.startswith(b"header {") or len(raw) != length:
            raise PlanError("audit: the plan's text is not where its header says")
        self.tensors: dict[str, PlanTensor] = {}
        self.operations: list[Operation] = []
        for kind, fields in _entries(raw.decode(errors="replace")):
            if kind in ("tensor", "sub_tensor"):
                self._add_tensor(fields)
            elif "name" in fields and ("output" in fields or "output_args" in fields):
                self.operations.append(_operation(kind, fields))

    def _add_tensor(self, fields: dict[str, str]) -> None:
        try:
            dims = tuple(int(d) if d.isdigit() else None for d in _words(fields["dims"]))
            strides = tuple(int(s) if s.isdigit() else 0 for s in _words(fields["strides"]))
            size = int(fields.get("const_payload_size", 0))
            tensor = PlanTensor(
                name=fields["name"],
                dims=dims,
                dtype=fields["type"],
                strides=strides,
                index=int(fields["offset"]) if size else None,
                bytes=size,
            )
        except (KeyError, ValueError) as error:
            raise PlanError(f"audit: a tensor of the plan does not read: {fields}") from error
        self.tensors[tensor.name] = tensor

    @cached_property
    def _places(self) -> dict[int, int]:
        """Index of a constant -> where it begins, counted from the first constant."""
        sizes = {t.index: t.bytes for t in self.tensors.values() if t.index is not None}
        places, position = {}, 0
        for index in sorted(sizes):
            places[index] = position
            position += _padded(sizes[index])
        return places

    def place(self, tensor: PlanTensor) -> int:
        """Where a constant begins, counted from the first constant."""
        if tensor.index is None:
            raise ValueError(f"place: {tensor.name} is no constant")
        return self._places[tensor.index]

    def constant(self, tensor: PlanTensor, base: int) -> Array | None:
        """A constant's values, indexed by its dims; None if it does not lie within the plan.

        Args:
            tensor: of this graph.
            base: where the graph's constants begin in the plan.
        """
        kind = _WIDTHS.get(tensor.dtype)
        if kind is None or tensor.index is None or None in tensor.dims:
            return None
        begin = base + self.place(tensor)
        raw = self.data[begin : begin + tensor.bytes] if begin >= 0 else b""
        dims = tuple(d for d in tensor.dims if d is not None)
        width = np.dtype(kind).itemsize
        reach = 1 + sum((d - 1) * s for d, s in zip(dims, tensor.strides, strict=True))
        if not prod(dims) or len(raw) < max(reach * width, tensor.bytes):
            return None
        flat = np.frombuffer(raw, kind)
        return np.lib.stride_tricks.as_strided(flat, dims, [s * width for s in tensor.strides])

    def bases(self) -> list[int]:
        """Where the constants may begin, most likely first: a caller tries whose values are right.

        The last graph's constants end the plan but for a checksum of eight bytes.
        """
        sizes = {t.index: t.bytes for t in self.tensors.values() if t.index is not None}
        if not sizes:
            return []
        last = max(sizes)
        ends = (self._places[last] + sizes[last], _padded(self._places[last] + sizes[last]))
        return [len(self.data) - _CHECKSUM - end for end in ends]


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _operation(kind: str, fields: dict[str, str]) -> Operation:
    return Operation(
        kind=kind,
        name=fields["name"],
        inputs=_words(fields.get("input", fields.get("input_args", ""))),
        outputs=_words(fields.get("output", fields.get("output_args", ""))),
        kernel=fields.get("kernel", fields.get("fqn", "")),
        layers=tuple(_LAYER.findall(fields.get("layers", ""))),
        chosen_on_device=fields.get("runtime_tactic") == "true",
    )


def read_plan(data: bytes) -> list[Graph]:
    """The graphs of a plan.

    Args:
        data: the plan as TensorRT-RTX serialised it.

    Raises:
        PlanError: it holds no graph that reads.
    """
    starts = [m.start() for m in re.finditer(re.escape(MAGIC), data)]
    graphs = [Graph(data, s) for s in starts if data[s + 16 : s + 24] == b"header {"]
    if not graphs:
        raise PlanError("audit: the file holds no graph of TensorRT-RTX")
    return graphs
