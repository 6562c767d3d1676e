"""How a stored weight enters its layer in the ONNX graph: the form decides which kernel runs.

torch's exporter leaves `DequantizeLinear(int8 initialiser)` for every weight. For TensorRT that is
the right form. For ONNX Runtime on x86 it is not always (measured with 1.32 on AVX2, one thread):

* Its kernel for uint8 x int8 adds two neighbouring products in 16 bits, which saturates on CPUs
  without VNNI: up to 13 steps off in 20 % of a convolution's outputs. uint8 x uint8 is exact, 1.0
  to 1.5x slower, still faster than float. The file keeps int8; Cast and Add lift it to uint8 when
  the session starts.
* A layer whose result is not quantised again (before a residual addition, say) runs in float, on a
  weight that is dequantised in each call, slower than plain float. As Cast and Mul the weight is
  computed once when the session starts. Where the result is quantised again that form is wrong:
  ONNX Runtime would quantise the float weight anew, with one scale for all channels.
* Where the result is quantised again, the bias becomes int32 in steps of the product's scale. In a
  channel that batch norm has all but switched off it does not fit; as a Sum after the product it
  stays in float, and so does the layer.

All forms give the same numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sparseq.export.require import require
from sparseq.nn import SparseQuantLayer

PRODUCTS = ("Conv", "Gemm", "MatMul")


def may_saturate(layer: SparseQuantLayer) -> bool:
    """Whether two products of one output can leave int16 together, in any order of summation."""
    spec, values = layer.input_spec, layer.weight_values.flatten(1)
    if spec is None or values.dtype == torch.uint8 or values.shape[1] < 2:
        return False
    greatest = spec.quant_max + (128 if spec.signed else 0)
    top = values.int().topk(2, dim=1).values.clamp(min=0).sum(1)
    bottom = values.int().topk(2, dim=1, largest=False).values.clamp(max=0).sum(1)
    return int(top.max()) * greatest > 32767 or int(bottom.min()) * greatest < -32768


def _bias_fits(layer: SparseQuantLayer) -> bool:
    """Whether the bias is a sensible int32 multiple of the product's scale."""
    if layer.bias is None or layer.input_scale is None:
        return True
    scale = layer.weight_scale.reshape(len(layer.bias), -1).amin(1) * layer.input_scale
    return bool((layer.bias.abs() < 2.0**30 * scale).all())


def _reaches_quantizer(value: Any) -> bool:
    """Whether a QuantizeLinear reads value, past nodes that have no other computed input."""
    for node, _ in value.uses():
        if node.op_type == "QuantizeLinear":
            return True
        computed = [i for i in node.inputs if i is not None and i.const_value is None]
        if len(computed) == 1 and _reaches_quantizer(node.outputs[0]):
            return True
    return False


def _products(value: Any) -> list[Any]:
    """The nodes that multiply by the weight `value`, past reshapes and transposes."""
    found = []
    for node, _ in value.uses():
        found += [node] if node.op_type in PRODUCTS else _products(node.outputs[0])
    return found


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
        self.node = node
        self.new: list[Any] = []
        stored, products = node.inputs[0], _products(node.outputs[0])
        again = [p for p in products if _reaches_quantizer(p.outputs[0])]
        fits, direct = _bias_fits(layer), all(p.inputs[1] is node.outputs[0] for p in products)
        narrow = layer.weight_spec.bits <= 4 and self.opset >= 21
        signed = layer.weight_values.dtype == torch.int8
        if narrow:
            self._store_int4(stored, signed)
        if not again or not fits:
            result = self._as_float(stored, layer)
        elif direct and may_saturate(layer):
            result = self._as_uint8(stored, layer)
        elif narrow:  # integer kernels take bytes
            kind = self.ir.DataType.INT8 if signed else self.ir.DataType.UINT8
            result = self._dequantize(self._op("Cast", [stored], to=kind), *node.inputs[1:])
        else:
            return
        self.graph.insert_before(node, self.new)
        name = node.outputs[0].name
        self.ir.convenience.replace_all_uses_with(node.outputs[0], result)
        self.graph.remove(node, safe=True)
        result.name = name
        if not fits:
            for product in again:
                self._bias_apart(product)

    def _op(self, kind: str, inputs: list[Any], **attributes: int) -> Any:
        named = [self.ir.Attr(k, self.ir.AttributeType.INT, int(v)) for k, v in attributes.items()]
        self.new.append(self.ir.Node("", kind, inputs, named))
        result = self.new[-1].outputs[0]
        result.name = f"{self.node.outputs[0].name}.{kind.lower()}{len(self.new)}"
        self.new[-1].name = result.name
        return result

    def _dequantize(self, values: Any, scale: Any, zero: Any = None) -> Any:
        inputs = [values, scale] if zero is None else [values, scale, zero]
        return self._op("DequantizeLinear", inputs, axis=0)

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
        scale, zero = layer.weight_scale, layer.weight_zero_point
        y = self._op("Cast", [stored], to=self.ir.DataType.FLOAT)
        if zero is not None:
            offset = zero.reshape(rows).float().numpy()
            y = self._op("Sub", [y, self._constant(f"{stored.name}.offset", offset)])
        factor = self._constant(f"{stored.name}.scale", scale.reshape(rows).numpy())
        return self._op("Mul", [y, factor])

    def _as_uint8(self, stored: Any, layer: SparseQuantLayer) -> Any:
        zero = layer.weight_zero_point
        y = self._op("Cast", [stored], to=self.ir.DataType.INT16)
        shift = self._constant("sparseq.shift", np.asarray(128, np.int16))
        y = self._op("Cast", [self._op("Add", [y, shift])], to=self.ir.DataType.UINT8)
        shifted = (torch.zeros_like(layer.weight_scale) if zero is None else zero) + 128
        zeros = self._constant(f"{stored.name}.zero_point", shifted.to(torch.uint8).numpy())
        return self._dequantize(y, self.node.inputs[1], zeros)

    def _bias_apart(self, product: Any) -> None:
        """Move a product's bias to a Sum behind it: ONNX Runtime would fold an Add back in."""
        bias = product.inputs[2] if len(product.inputs) > 2 else None
        if bias is None:
            return
        array = bias.const_value.numpy()
        if product.op_type == "Conv":
            array = array.reshape(1, -1, 1, 1)
        shaped = self._constant(f"{bias.name}.shaped", array)
        product.replace_input_with(2, None)
        old = product.outputs[0]
        total = self.ir.Node("", "Sum", [old, shaped], name=f"{product.name}.bias")
        self.graph.insert_after(product, total)
        result = total.outputs[0]
        for user, index in tuple(old.uses()):
            if user is not total:
                user.replace_input_with(index, result)
        result.name, old.name = old.name, f"{old.name}.product"
