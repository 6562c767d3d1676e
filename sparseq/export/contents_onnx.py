"""What an ONNX file holds: its products, and the stored weights behind them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from sparseq.export.contents import Entry, is_24, plain
from sparseq.export.require import require
from sparseq.spec import Plan

Array = np.ndarray[Any, Any]

# operator -> positions of its activation and of its weight
PRODUCTS = {
    "Conv": (0, 1),
    "ConvTranspose": (0, 1),
    "Gemm": (0, 1),
    "MatMul": (0, 1),
    "ConvInteger": (0, 1),
    "MatMulInteger": (0, 1),
    "QLinearConv": (0, 3),
    "QLinearMatMul": (0, 3),
    "QGemm": (0, 3),
    "MatMulNBits": (0, 1),
    "Gather": (1, 0),  # an embedding's, where the file says that it is one
}
TRANSPARENT = {  # an activation's integers pass through
    "Reshape", "Transpose", "Flatten", "MaxPool", "Squeeze", "Unsqueeze", "Identity", "Relu",
    "Slice", "Concat", "Clip",
}  # fmt: skip


class _Graph:
    """One graph, with ways from a value back to where it came from."""

    def __init__(self, proto: Any) -> None:
        onnx = require("onnx")
        self.helper, self.numpy = onnx.helper, onnx.numpy_helper
        self.types = onnx.TensorProto
        graph = proto.graph
        self.nodes = list(graph.node)
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.makers = {name: node for node in graph.node for name in node.output}
        values = [*graph.input, *graph.value_info, *graph.output]
        self.shapes = {value.name: _shape(value) for value in values}
        for name, tensor in self.initializers.items():
            self.shapes[name] = tuple(tensor.dims)

    def attribute(self, node: Any, name: str, default: Any = None) -> Any:
        for attribute in node.attribute:
            if attribute.name == name:
                return self.helper.get_attribute_value(attribute)
        return default

    def bits(self, tensor: Any) -> int:
        """Of a stored element."""
        kind = self.types.DataType.Name(tensor.data_type)
        if kind in ("INT4", "UINT4"):
            return 4
        if kind in ("INT2", "UINT2"):
            return 2
        return int(self.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize) * 8

    def constant(self, name: str) -> tuple[Array, Any] | None:
        """A value that is computed from one stored tensor, zero where that stands for 0.

        Returns:
            The values (of a scale of their own: only which are zero counts) and the tensor.
        """
        if name in self.initializers:
            tensor = self.initializers[name]
            return self.numpy.to_array(tensor).astype(np.float32), tensor
        node = self.makers.get(name)
        if node is None or not node.input:
            return None
        found = self.constant(node.input[0])
        if found is None:
            return None
        values, tensor = found
        if node.op_type in ("Cast", "Identity", "QuantizeLinear"):
            return found
        if node.op_type in ("Mul", "Add", "Sub") and len(node.input) == 2:
            other = self.constant(node.input[1])
            if other is None:
                return None
            change = {"Mul": np.multiply, "Add": np.add, "Sub": np.subtract}[node.op_type]
            return change(values, other[0]), tensor
        if node.op_type == "DequantizeLinear":
            zero = self.constant(node.input[2]) if len(node.input) > 2 else None
            if zero is not None:
                axis, block = self.attribute(node, "axis", 1), self.attribute(node, "block_size", 0)
                values = values - _spread(zero[0], values.shape, axis, block)
            return values, tensor
        if node.op_type == "Transpose":
            return values.transpose(self.attribute(node, "perm")), tensor
        if node.op_type == "Reshape":
            shape = self.constant(node.input[1])
            if shape is None:
                return None
            sizes = [int(s) if s else values.shape[d] for d, s in enumerate(shape[0])]
            return values.reshape(sizes), tensor
        return None

    def input_bits(self, name: str) -> int | None:
        """Of the integers that an activation was dequantised from, else of its floats."""
        node = self.makers.get(name)
        while node is not None and node.op_type in TRANSPARENT:
            name = node.input[0]
            node = self.makers.get(name)
        if node is None:
            return 32
        if node.op_type in ("DequantizeLinear", "QuantizeLinear", "DynamicQuantizeLinear"):
            return 8
        return 16 if node.op_type == "Cast" and self.attribute(node, "to") in (10, 16) else 32

    def macs(self, node: Any, weight: tuple[int, ...] | None) -> int | None:
        """At batch 1."""
        if node.op_type == "Gather":
            return 0
        out, activation = self.shapes.get(node.output[0]), self.shapes.get(node.input[0])
        if node.op_type == "ConvTranspose":
            if activation is None or weight is None or None in activation:
                return None
            return math.prod(activation) * math.prod(weight[1:])
        if out is None or None in out:
            return None
        if "Conv" in node.op_type:
            return None if weight is None else math.prod(out) * math.prod(weight[1:])
        if activation is None:
            return None
        depth = activation[0] if self.attribute(node, "transA", 0) else activation[-1]
        return None if depth is None else math.prod(out) * depth


def _shape(value: Any) -> Any:
    """With 1 for what is open (the batch) and None for what is not known; None if nothing is."""
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return None
    return tuple(
        d.dim_value if d.HasField("dim_value") else 1 if d.HasField("dim_param") else None
        for d in kind.shape.dim
    )


def _spread(zero: Array, shape: tuple[int, ...], axis: int, block: int) -> Array:
    """A zero point for each element: of all, of an axis, or of blocks along it."""
    if zero.size == 1:
        return zero.reshape(())
    if block:
        return zero.repeat(block, axis=axis)
    sizes = [1] * len(shape)
    sizes[axis] = -1
    return zero.reshape(sizes)


def _input_axis(graph: _Graph, node: Any, dims: int) -> int:
    """Along which axis of a weight its inputs lie."""
    if node.op_type == "ConvTranspose":
        return 0
    if "Conv" in node.op_type or graph.attribute(node, "transB", 0):
        return 1
    return max(dims - 2, 0)


def _open_batch(proto: Any) -> None:
    """Set open dimensions of the inputs to 1, so that the shapes of everything can be told."""
    for value in proto.graph.input:
        for dimension in value.type.tensor_type.shape.dim:
            if not dimension.HasField("dim_value"):
                dimension.dim_value = 1
    del proto.graph.value_info[:]
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")


def _entry(graph: _Graph, node: Any, names: dict[str, str]) -> Entry:
    activation, position = PRODUCTS[node.op_type]
    found = graph.constant(node.input[position])
    input_bits = 8 if "Q" in node.op_type or "Integer" in node.op_type else None
    if node.op_type == "MatMulNBits" or input_bits is None:
        input_bits = graph.input_bits(node.input[activation])
    if node.op_type == "Gather":  # by indices
        input_bits = None
    name = names.get(node.output[0]) or node.name or node.output[0]
    if found is None:
        return Entry(
            name, node.op_type, (), None, input_bits, 0.0, False, 0, graph.macs(node, None)
        )
    values, tensor = found
    bits = graph.bits(tensor)
    if "Integer" in node.op_type or node.op_type in ("QLinearConv", "QLinearMatMul", "QGemm"):
        place = position + 2 if node.op_type.startswith("Q") else 3
        zero = graph.constant(node.input[place]) if len(node.input) > place else None
        if zero is not None:
            last = values.ndim - 1
            values = values - _spread(
                zero[0], values.shape, 0 if "Conv" in node.op_type else last, 0
            )
    if node.op_type == "MatMulNBits":
        bits = graph.attribute(node, "bits")
        shape = (graph.attribute(node, "N"), graph.attribute(node, "K"))
        size = math.ceil(math.prod(tensor.dims) * graph.bits(tensor) / 8)
        return Entry(
            name, node.op_type, shape, bits, input_bits, 0.0, False, size, graph.macs(node, None)
        )
    size = math.ceil(math.prod(tensor.dims) * bits / 8)
    zeros = float((values == 0).mean()) if values.size else 0.0
    sparse = is_24(values, _input_axis(graph, node, values.ndim))
    shape = tuple(values.shape)
    macs = graph.macs(node, shape)
    maker = graph.makers.get(node.input[position])
    if "MatMul" in node.op_type and maker is not None and maker.op_type == "Transpose":
        shape = shape[::-1]  # as it is stored: outputs first
    return Entry(name, node.op_type, shape, bits, input_bits, zeros, sparse, size, macs)


def _plan(text: str | None) -> str | None:
    """How many layers a plan serves: all of it is in the file's metadata."""
    try:
        return None if text is None else f"{len(Plan.from_json(text).rules)} layers"
    except ValueError:
        return None


def _layer_names(described: str | None) -> dict[str, str]:
    """Output value of a product -> the call of a layer that it is of, as sparseq's files say it."""
    try:
        layers = json.loads(described or "{}")
        outputs = {about["values"]["output"]: call for call, about in layers.items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}  # a file of somebody else's who uses the same key
    return outputs | {f"{call}.product": call for call in layers}


def read(path: Path) -> tuple[tuple[Entry, ...], dict[str, str]]:
    """The products of a file, and what it says of itself.

    Raises:
        ValueError: it is damaged, or no ONNX file.
    """
    onnx = require("onnx")
    try:
        proto = onnx.load(str(path))
        if not proto.graph.node:
            raise ValueError("it holds no graph")
        _open_batch(proto)
        inferred = onnx.shape_inference.infer_shapes(proto)
    except Exception as error:  # protobuf's and onnx's errors share no base class
        text = " ".join(str(error).split())
        raise ValueError(f"inspect: {str(path)!r} is not a sound ONNX file: {text}") from error
    graph = _Graph(inferred)
    properties = {p.key: p.value for p in proto.metadata_props}
    names = _layer_names(properties.get("sparseq_layers"))
    rows = tuple(
        _entry(graph, node, names)
        for node in graph.nodes
        if node.op_type in PRODUCTS and (node.op_type != "Gather" or node.output[0] in names)
    )
    versions = {(o.domain or "ai.onnx"): o.version for o in proto.opset_import}
    facts = {
        "opset": ", ".join(f"{domain} {version}" for domain, version in versions.items()),
        "producer": f"{proto.producer_name} {proto.producer_version}".strip(),
        "target": properties.get("sparseq_target"),
        "accuracy": properties.get("sparseq_accuracy"),
        "plan": _plan(properties.get("sparseq_plan")),
    }
    return rows, plain(facts)
