"""A file's float parts in float16, for engines: strongly typed networks take types from the file.

Integers stay what they are, inputs and outputs float32 (a Cast stands behind and before them).
Scales become float16 as well, because DequantizeLinear's result has its scale's type; where that
would change a layer's weights by more than float16 changes any float, the layer is named.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sparseq.export.engine.source import Array, Source
from sparseq.export.require import require

_TINIEST = float(np.finfo(np.float16).smallest_subnormal)
_GREATEST = float(np.finfo(np.float16).max)
_TOLERANCE = 2.0**-10


def _narrowed(array: Array, where: str, scale: bool, caller: str) -> Array:
    """Values as float16.

    Raises:
        ValueError: one is too large, or the scales are too small.
    """
    finite = array[np.isfinite(array)]
    if finite.size and np.abs(finite).max() > _GREATEST:
        raise ValueError(
            f"{caller}: half: {where} holds {np.abs(finite).max():.3g}, and float16 ends at 65504; "
            f"build with half=False"
        )
    if not scale:
        return array.astype(np.float16)
    narrow = np.maximum(array, _TINIEST).astype(np.float16)  # a scale of 0 is none
    if np.abs(narrow.astype(np.float64) - array).max() > _TOLERANCE * array.max():
        raise ValueError(
            f"{caller}: half: the scales of {where} (the largest is {array.max():.3g}) are too "
            f"small for float16; build with half=False"
        )
    return narrow


def to_half(source: Source) -> bytes:
    """The file as bytes, with float16 for float32.

    Args:
        source: what `tensorrt` builds from; not changed.

    Raises:
        ValueError: a value that float16 does not hold, or an opset before 19, whose
            QuantizeLinear has no float16.
    """
    onnx = require("onnx")
    opset = next((o.version for o in source.proto.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset < 19:
        raise ValueError(
            f"{source.caller}: half needs ONNX opset 19 or newer, and the file has {opset}; export "
            f"with opset=21"
        )
    proto = onnx.ModelProto()
    proto.CopyFrom(source.proto)
    graph = proto.graph
    scales = {
        node.input[1]: node
        for node in graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
    }
    for tensor in graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            user = scales.get(tensor.name)
            where = source.where(user) if user is not None else f"the constant {tensor.name}"
            array = onnx.numpy_helper.to_array(tensor)
            narrow = _narrowed(array, where, user is not None, source.caller)
            tensor.CopyFrom(onnx.numpy_helper.from_array(narrow, tensor.name))
    for node in graph.node:
        _narrow_attributes(onnx, node)
    _cast_ends(onnx, graph)
    del graph.value_info[:]
    checked = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    onnx.checker.check_model(checked, full_check=True)
    data: bytes = checked.SerializeToString()
    return data


def _narrow_attributes(onnx: Any, node: Any) -> None:
    """Types that a node names itself."""
    single, half = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
    for attribute in node.attribute:
        if attribute.name in ("to", "dtype", "output_dtype") and attribute.i == single:
            attribute.i = half
        if attribute.HasField("t") and attribute.t.data_type == single:
            array = onnx.numpy_helper.to_array(attribute.t).astype(np.float16)
            attribute.t.CopyFrom(onnx.numpy_helper.from_array(array, attribute.t.name))
    if node.op_type == "Constant":  # lists of floats are float32 by definition
        for attribute in list(node.attribute):
            if attribute.name in ("value_float", "value_floats"):
                values = attribute.f if attribute.name == "value_float" else list(attribute.floats)
                node.attribute.remove(attribute)
                tensor = onnx.numpy_helper.from_array(np.asarray(values, np.float16))
                node.attribute.append(onnx.helper.make_attribute("value", tensor))


def _cast_ends(onnx: Any, graph: Any) -> None:
    """Put a Cast behind each float input and before each float output."""
    single, half = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
    constants = {t.name for t in graph.initializer}
    for value in graph.input:
        if value.type.tensor_type.elem_type == single and value.name not in constants:
            inner = f"{value.name}.half"
            for node in graph.node:
                for index, name in enumerate(node.input):
                    if name == value.name:
                        node.input[index] = inner
            cast = onnx.helper.make_node("Cast", [value.name], [inner], name=inner, to=half)
            graph.node.insert(0, cast)
    for value in graph.output:
        if value.type.tensor_type.elem_type == single:
            inner = f"{value.name}.half"
            for node in graph.node:
                for names in (node.input, node.output):
                    for index, name in enumerate(names):
                        if name == value.name:
                            names[index] = inner
            cast = onnx.helper.make_node("Cast", [inner], [value.name], name=inner, to=single)
            graph.node.append(cast)
