"""How a stored weight enters its layer in the ONNX graph: the form decides which kernel runs.

torch's exporter leaves `DequantizeLinear(int8 initialiser)` for every weight. For TensorRT that is the
right form. For ONNX Runtime on x86 it is not (measured with 1.32, AVX2, one thread):

* Its kernel for uint8 x int8 adds two neighbouring products in 16 bits, which saturates on CPUs
  without VNNI: up to 13 steps off in 20 % of a convolution's outputs. uint8 x uint8 is exact, 1.0 to
  1.5x slower, still faster than float. The file keeps int8; Cast and Add lift it to uint8 when the
  session starts.
* A layer whose result is not quantised again (before a residual addition, say) runs in float, on a
  weight that is dequantised in each call, 1.5x slower than plain float. As Cast and Mul the weight is
  computed once when the session starts. Where the result is quantised again that form is wrong: ONNX
  Runtime would quantise the float weight itself, with one scale for all channels.

All forms give the same numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sparseq.export.require import require
from sparseq.nn import SparseQuantLayer


def may_saturate(layer: SparseQuantLayer) -> bool:
    """Whether two products of one output can leave int16 together, in whatever order they are added."""
    spec, values = layer.input_spec, layer.weight_values.flatten(1)
    if spec is None or values.dtype == torch.uint8 or values.shape[1] < 2:
        return False
    greatest = spec.quant_max + (128 if spec.signed else 0)
    top = values.int().topk(2, dim=1).values.clamp(min=0).sum(1)
    bottom = values.int().topk(2, dim=1, largest=False).values.clamp(max=0).sum(1)
    return int(top.max()) * greatest > 32767 or int(bottom.min()) * greatest < -32768


def _quantised_again(value: Any) -> bool:
    """Whether value reaches a QuantizeLinear through nothing but nodes of one computed input."""
    for node, _ in value.uses():
        if node.op_type == "QuantizeLinear":
            return True
        computed = [i for i in node.inputs if i is not None and i.const_value is None]
        if len(computed) == 1 and _quantised_again(node.outputs[0]):
            return True
    return False


def _may_run_on_integers(node: Any, layer: SparseQuantLayer) -> bool:
    """Whether ONNX Runtime may put its integer kernel in: Q/DQ on both sides of a plain product."""
    source = node.inputs[0].producer()
    return (
        layer.integer
        and node.op_type in ("Conv", "Gemm")
        and source is not None
        and source.op_type == "DequantizeLinear"
        and _quantised_again(node.outputs[0])
    )


class WeightForms:
    """Rewrites the weights of one exported graph.

    Args:
        graph: of onnx_ir, changed in place.
        target: as for `sparseq.export.onnx`.
        opset: version of ONNX's operators; INT4 tensors exist from 21 on.
    """

    def __init__(self, graph: Any, target: str, opset: int) -> None:
        self.ir = require("onnx_ir")
        self.graph, self.target, self.opset = graph, target, opset

    def apply(self, node: Any, layer: SparseQuantLayer) -> None:
        """Give one weight its form.

        Args:
            node: the weight's DequantizeLinear.
            layer: the layer it belongs to.
        """
        if self.target != "onnxruntime":
            return
        self.node, self.new = node, []
        stored = node.inputs[0]
        readers = [reader for reader, _ in node.outputs[0].uses()]
        narrow = layer.weight_spec.bits <= 4 and self.opset >= 21
        if narrow:
            self._store_int4(stored, layer.weight_values.dtype == torch.int8)
        if not all(_may_run_on_integers(reader, layer) for reader in readers):
            result = self._as_float(stored, layer)
        elif may_saturate(layer):
            result = self._as_uint8(stored, layer)
        elif narrow:
            signed = layer.weight_values.dtype == torch.int8
            kind = self.ir.DataType.INT8 if signed else self.ir.DataType.UINT8
            node.replace_input_with(0, self._op("Cast", [stored], to=kind))
            result = None
        else:
            return
        self.graph.insert_before(node, self.new)
        if result is not None:
            old = node.outputs[0]
            self.ir.convenience.replace_all_uses_with(old, result)
            self.graph.remove(node, safe=True)
            result.name = old.name

    def _op(self, kind: str, inputs: list[Any], **attributes: Any) -> Any:
        named = [self.ir.Attr(k, self.ir.AttributeType.INT, int(v)) for k, v in attributes.items()]
        self.new.append(self.ir.Node("", kind, inputs, named))
        result = self.new[-1].outputs[0]
        result.name = f"{self.node.inputs[0].name}.{kind.lower()}{len(self.new)}"
        self.new[-1].name = result.name
        return result

    def _constant(self, name: str, array: np.ndarray[Any, Any]) -> Any:
        if name in self.graph.initializers:  # a layer that is called twice
            return self.graph.initializers[name]
        tensor = self.ir.tensor(array, name=name)
        value = self.ir.Value(
            name=name,
            type=self.ir.TensorType(tensor.dtype),
            shape=self.ir.Shape(array.shape),
            const_value=tensor,
        )
        self.graph.initializers.add(value)
        return value

    def _store_int4(self, value: Any, signed: bool) -> None:
        kind = self.ir.DataType.INT4 if signed else self.ir.DataType.UINT4
        array = value.const_value.numpy().astype(kind.numpy())
        value.const_value = self.ir.tensor(array, name=value.name)
        value.type = self.ir.TensorType(kind)

    def _as_float(self, stored: Any, layer: SparseQuantLayer) -> Any:
        rows = [-1] + [1] * (len(stored.shape) - 1)
        scale, zero = layer.weight_scale.reshape(-1), layer.weight_zero_point
        name = stored.name
        y = self._op("Cast", [stored], to=self.ir.DataType.FLOAT)
        if zero is not None:
            offset = zero.reshape(rows).float().numpy()
            y = self._op("Sub", [y, self._constant(f"{name}.offset", offset)])
        return self._op("Mul", [y, self._constant(f"{name}.scale", scale.reshape(rows).numpy())])

    def _as_uint8(self, stored: Any, layer: SparseQuantLayer) -> Any:
        name, zero = stored.name, layer.weight_zero_point
        y = self._op("Cast", [stored], to=self.ir.DataType.INT16)
        shift = self._constant(f"{name}.shift", np.asarray(128, np.int16))
        y = self._op("Cast", [self._op("Add", [y, shift])], to=self.ir.DataType.UINT8)
        shifted = torch.zeros(len(layer.weight_scale)) if zero is None else zero
        zeros = self._constant(f"{name}.zero_point", (shifted + 128).to(torch.uint8).numpy())
        return self._op("DequantizeLinear", [y, self.node.inputs[1], zeros], axis=0)
