"""The ONNX file that an engine is built from: its layers, and what TensorRT would not take."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparseq.export.require import require

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_PASSED = ("Add", "Sum", "Mul", "Cast", "Reshape", "Identity")  # between a product and its output
_CONSTANT = ("Transpose", "Reshape", "Cast", "Identity", "Squeeze", "Unsqueeze", "Clip")
_ADVICE = "prepare with symmetric signed grids, Quant(), and export with target='tensorrt'"

Array = NDArray[Any]


@dataclass(frozen=True)
class SourceLayer:
    """A product with a constant weight.

    Attributes:
        name: of the module, where the file's metadata tell it; else of the node.
        node: the ONNX node's name.
        kind: its operator.
        integer: whether the model computes it on integers.
        weight: the integers as they are stored, out of `[outputs, inputs, ...]`; None for a float.
    """

    name: str
    node: str
    kind: str
    integer: bool
    weight: Array | None

    @property
    def is_24(self) -> bool:
        """Whether of every four neighbouring inputs two at least are zero."""
        w = self.weight
        if w is None or w.ndim < 2 or not w.size or w.shape[1] % 4:
            return False
        groups = np.moveaxis(w, 1, -1).reshape(-1, 4)
        return bool(((groups != 0).sum(1) <= 2).all())


class Source:
    """A checked ONNX file.

    Args:
        path: of the file.
        caller: what error messages begin with.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a sound ONNX model.
    """

    def __init__(self, path: str | os.PathLike[str], caller: str) -> None:
        onnx = require("onnx")
        self.caller = caller
        if not Path(path).is_file():
            raise FileNotFoundError(f"{caller}: onnx must be a file, got {str(path)!r}")
        try:
            self.proto = onnx.load(str(path))
            onnx.checker.check_model(self.proto)
        except Exception as error:  # protobuf's and onnx's errors share no base class
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(
                f"{caller}: {str(path)!r} is not a sound ONNX file: {reason}"
            ) from error
        graph = self.proto.graph
        self.constants = {t.name: t for t in graph.initializer}
        self.producers = {name: node for node in graph.node for name in node.output}
        metadata = {p.key: p.value for p in self.proto.metadata_props}
        self.described: dict[str, Any] | None = None
        if "sparseq_layers" in metadata:
            self.described = json.loads(metadata["sparseq_layers"])
        self._names = self._name_products()

    def array(self, name: str) -> Array | None:
        """A constant's values, or None."""
        if name not in self.constants:
            return None
        return require("onnx").numpy_helper.to_array(self.constants[name])

    def inputs(self) -> dict[str, list[int | None]]:
        """The graph's inputs and their sizes, None for what is open.

        Raises:
            ValueError: an input without a shape.
        """
        found: dict[str, list[int | None]] = {}
        for value in self.proto.graph.input:
            if value.name in self.constants:
                continue
            kind = value.type.tensor_type
            if not kind.HasField("shape"):
                raise ValueError(f"{self.caller}: the input {value.name!r} has no shape")
            dims = kind.shape.dim
            found[value.name] = [d.dim_value if d.HasField("dim_value") else None for d in dims]
        return found

    def _name_products(self) -> dict[str, str]:
        """Output of a product -> the module it belongs to."""
        names: dict[str, str] = {}
        for call, described in (self.described or {}).items():
            value = described["values"]["output"]
            while (node := self.producers.get(value)) is not None:
                if node.op_type in PRODUCTS:
                    names[node.output[0]] = call
                    break
                computed = [i for i in node.input if i and i not in self.constants]
                if node.op_type not in _PASSED or not computed:
                    break
                value = computed[0]
        return names

    def _dequantize(self, value: str) -> Any:
        """The DequantizeLinear that a value comes from, past what leaves its numbers; or None."""
        while (node := self.producers.get(value)) is not None:
            if node.op_type == "DequantizeLinear":
                return node
            if node.op_type not in _CONSTANT:
                return None
            value = node.input[0]
        return None

    def _is_constant(self, value: str) -> bool:
        node = self.producers.get(value)
        if node is None:
            return value in self.constants
        return all(self._is_constant(i) for i in node.input if i)

    def layer_of(self, node_name: str) -> str | None:
        """The module that a node belongs to: its own product, or the next one behind it."""
        graph = self.proto.graph
        frontier = [o for n in graph.node if n.name == node_name for o in n.output]
        seen: set[str] = set()
        while frontier:
            value = frontier.pop(0)
            if value in self._names:
                return self._names[value]
            if value not in seen:
                seen.add(value)
                frontier += [o for n in graph.node if value in n.input for o in n.output]
        return None

    def layers(self) -> Iterator[SourceLayer]:
        """The products with constant weights, in the file's order."""
        for node in self.proto.graph.node:
            if node.op_type not in PRODUCTS or not self._is_constant(node.input[1]):
                continue
            name = self._names.get(node.output[0])
            if self.described is None:
                integer = True  # without our metadata no float layer is known to be meant so
            else:
                integer = name is not None and self.described[name]["input"] is not None
            yield SourceLayer(
                name or node.name, node.name, node.op_type, integer, self._integers(node)
            )

    def _integers(self, node: Any) -> Array | None:
        """The stored integers of a product's weight, outputs first."""
        value, steps = node.input[1], []
        while (producer := self.producers.get(value)) is not None:
            steps.append(producer)
            value = producer.input[0]
        weight = self.array(value)
        if weight is None or weight.dtype.kind not in "iu":
            return None
        for step in reversed(steps):
            if step.op_type == "Transpose":
                perm = next((list(a.ints) for a in step.attribute if a.name == "perm"), None)
                weight = weight.transpose(perm)
            elif step.op_type in ("Reshape", "Squeeze", "Unsqueeze"):
                return None  # groups of a weight-only layer: no integer product
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        rows_last = node.op_type == "MatMul" or (node.op_type == "Gemm" and not transposed)
        if rows_last:
            weight = np.swapaxes(weight, -1, -2)
        return np.swapaxes(weight, 0, 1) if node.op_type == "ConvTranspose" else weight

    def check(self) -> None:
        """Look for what TensorRT refuses in words of its own, or takes for something else.

        Raises:
            ValueError: a zero point that is not 0, an unsigned grid (which TensorRT would read as a
                signed one), a bias in int32; names the layer.
        """
        for node in self.proto.graph.node:
            if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
                continue
            where = self.where(node)
            stored = self.array(node.input[0])
            if stored is not None and stored.dtype == np.int32:
                raise ValueError(
                    f"{self.caller}: {where}: the bias is int32 behind a DequantizeLinear, which "
                    f"TensorRT does not take; leave the bias in float, as export.onnx does"
                )
            zero = self.array(node.input[2]) if len(node.input) > 2 and node.input[2] else None
            if node.op_type == "QuantizeLinear" and zero is None:
                zero = np.zeros(1, np.uint8)  # ONNX's default
            for found in (stored, zero):
                if found is not None and found.dtype == np.uint8:
                    raise ValueError(
                        f"{self.caller}: {where}: {node.op_type} is on uint8, which TensorRT takes "
                        f"for int8; {_ADVICE}"
                    )
            if zero is not None and zero.astype(np.float32).any():
                raise ValueError(
                    f"{self.caller}: {where}: a zero point is {zero.flat[np.argmax(zero != 0)]}, "
                    f"and TensorRT takes only 0; {_ADVICE}"
                )

    def where(self, node: Any) -> str:
        """How to tell the user of a node."""
        layer = self.layer_of(node.name)
        return f"layer {layer}" if layer is not None else f"node {node.name}"
