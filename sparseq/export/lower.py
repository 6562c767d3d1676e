"""What an integer layer is in ONNX: the form of its product decides which kernel runs.

TensorRT: QuantizeLinear and DequantizeLinear around the float product, int8, bias in float.

ONNX Runtime on x86 (measured with 1.32 on AVX2, one thread, milliseconds):

    product                                     float   this form   int8 weights left as they are
    3x3 convolution, 128 channels, 28x28        3.1     2.9         10.1 (ConvInteger)
    linear 128 x 768 -> 768                     2.5     1.7         2.3 (computes in float)

* `QLinearConv`, `QGemm`: Q/DQ around the product, which ONNX Runtime fuses where the result is
  quantised again at once. A ReLU between is left to the quantiser, which cuts integers instead.
* `ConvInteger`, `MatMulInteger`: everywhere else (before a residual addition, say) the int32 sum,
  then Cast, Mul and Add: the model's own formula, bit for bit. Q/DQ there would run in float.
* float: what ONNX Runtime has no fast exact integer kernel for; `kernels` names each and why.

Weights reach the kernels as uint8: the one for uint8 x int8 adds two neighbouring products in 16
bits, which saturates on CPUs without VNNI (up to 13 steps off in 20 % of a convolution's outputs).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from sparseq.export.activation import UNCUT, Activation, Grid, Range, grid_of
from sparseq.export.join import join
from sparseq.export.nodes import HALVES, Nodes
from sparseq.export.stored import StoredWeight
from sparseq.export.view import quantised_by_rows
from sparseq.nn import SparseQuantConvTranspose2d, SparseQuantEmbedding, SparseQuantLayer

_HALF_KINDS = {torch.float16: "FLOAT16", torch.bfloat16: "BFLOAT16"}
INTEGER_FORMS = ("QLinearConv", "QGemm", "ConvInteger", "MatMulInteger")


@dataclass
class Call:
    """One call of a layer in the graph: the values that `verify` looks at, and the form."""

    layer: str
    form: str
    reason: str
    output: Any
    input: Any = None


def may_saturate(layer: SparseQuantLayer) -> bool:
    """Whether two products of one output can leave int16 together, in any order of summation."""
    spec, values = layer.input_spec, layer.weight_values.flatten(1)
    if spec is None or values.dtype == torch.uint8 or values.shape[1] < 2:
        return False
    greatest = spec.quant_max + (128 if spec.signed else 0)
    top = values.int().topk(2, dim=1).values.clamp(min=0).sum(1)
    bottom = values.int().topk(2, dim=1, largest=False).values.clamp(max=0).sum(1)
    return int(top.max()) * greatest > 32767 or int(bottom.min()) * greatest < -32768


def bias_fits(layer: SparseQuantLayer) -> bool:
    """Whether the bias is a sensible int32 multiple of the product's scale.

    In a channel that batch norm has all but switched off it is not.
    """
    if layer.bias is None or layer.input_scale is None:
        return True
    scale = layer.weight_scale.reshape(len(layer.bias), -1).amin(1) * layer.input_scale
    return bool((layer.bias.abs() < 2.0**30 * scale).all())


class Lowering:
    """Rewrites the opaque layers of one graph.

    Args:
        graph: of onnx_ir, as `sparseq.export.trace` makes it; changed in place.
        layers: of the model, by name.
        target: as for `sparseq.export.onnx`.
        opset: version of ONNX's operators; INT4 tensors exist from 21 on.
    """

    def __init__(
        self, graph: Any, layers: dict[str, SparseQuantLayer], target: str, opset: int
    ) -> None:
        self.nodes = Nodes(graph)
        self.layers, self.integers = layers, target == "onnxruntime"
        int4 = self.integers and opset >= 21
        self.weights = {
            n: StoredWeight(self.nodes, n, m, int4, self.integers) for n, m in layers.items()
        }
        self.activations: dict[tuple[int, Grid], Activation] = {}
        self.cuts: dict[Any, Range] = {}  # opaque node -> what its input is to be cut to as well
        self.calls: dict[str, Call] = {}

    def run(self, opaque: list[Any]) -> dict[str, Call]:
        """Lower these nodes; returns the calls (`name`, then `name@1`) in order of execution."""
        for node in opaque:
            name = node.attributes["name"].value
            earlier = sum(call.layer == name for call in self.calls.values())
            call = f"{name}@{earlier}" if earlier else name
            self.nodes.at(node)
            self.calls[call] = self._lower(node, name, call or "layer")
            self.nodes.graph.remove(node, safe=True)
        return self.calls

    def _lower(self, node: Any, name: str, call: str) -> Call:
        layer, nodes, old = self.layers[name], self.nodes, node.outputs[0]
        x = node.inputs[0]
        kind, rank = node.attributes["dtype"].value, node.attributes["rank"].value
        if kind in HALVES:
            x = nodes.cast(x, "FLOAT", f"{call}.float")
        if isinstance(layer, SparseQuantEmbedding):
            return self._embedding(node, layer, call)
        q = self._activation(x, node, name, call)
        form, reason = self._form(layer, old, rank, joins=kind not in HALVES)
        weight = self.weights[name]
        rows = q is not None and q.by_rows
        if form in ("ConvInteger", "MatMulInteger"):
            assert q is not None
            y = self._integer(q, layer, weight, call)
        else:
            if q is not None:
                x = q.computed() if form == "float" and self.integers else q.dequantised()
            y = self._float(x, layer, weight, call, form, rank)
        if rows and rank != 2:
            y = self._unrowed(node.inputs[0], y, layer, call)
        if kind in HALVES:
            y = nodes.add("Cast", [y], f"{call}.narrow", to=int(kind))
        self._becomes(old, y, call)
        return Call(name, form, reason, y, None if q is None else q.integers)

    def _becomes(self, old: Any, y: Any, call: str) -> None:
        """Let y stand for what the opaque node made."""
        self.nodes.replace(old, y)
        if not y.is_graph_output():
            self.nodes.taken.discard(y.name)
            y.name = self.nodes.unique(f"{call}.output")

    def _embedding(self, node: Any, layer: SparseQuantEmbedding, call: str) -> Call:
        """Rows of integers, then their values; TensorRT takes no scales that a graph looks up."""
        name = node.attributes["name"].value
        nodes, weight = self.nodes, self.weights[name]
        if self.integers:
            y = weight.gathered(node.inputs[0], node.attributes["rank"].value, call)
        else:
            y = nodes.add("Gather", [weight["dequantised"], node.inputs[0]], f"{call}.product")
        if layer.dtype in _HALF_KINDS:
            y = nodes.cast(y, _HALF_KINDS[layer.dtype], f"{call}.narrow")
        self._becomes(node.outputs[0], y, call)
        return Call(name, "Gather", "a look-up has no product", y)

    def _activation(self, x: Any, node: Any, name: str, call: str) -> Activation | None:
        """The quantised input; layers that read one tensor on one grid share it."""
        layer = self.layers[name]
        if layer.input_spec is None:
            return None
        if layer.input_scale is None:
            rows = quantised_by_rows(layer)
            make = Activation.of_rows if rows else Activation.of_batch
            return make(self.nodes, x, layer, node.inputs[1:], call, self.integers)
        key = (id(x), grid_of(layer))
        if key not in self.activations:
            self.activations[key] = Activation.static(
                self.nodes, x, layer, name, call, self.integers, self.cuts.get(node, UNCUT)
            )
        return self.activations[key]

    def _form(
        self, layer: SparseQuantLayer, output: Any, rank: int, joins: bool
    ) -> tuple[str, str]:
        """The form of one call, and why it is float if it is."""
        if layer.input_spec is None:
            return "float", "its input is not quantised"
        if layer.weight_scale.dim() == 2:
            return "float", "group scales have no integer kernel"
        if not self.integers:
            return "Q/DQ", ""
        if isinstance(layer, SparseQuantConvTranspose2d):
            return "float", "ONNX has no integer transposed convolution"
        weight, convolution = layer.weight_values, _convolves(layer)
        if convolution and not self._one_zero(layer):
            return "float", "ONNX Runtime's convolutions take one zero point for all channels"
        joins = joins and layer.input_scale is not None and (convolution or rank == 2)
        if joins and bias_fits(layer):
            joined = join(self.nodes, output, self.layers)
            if joined is not None:
                self.cuts |= dict.fromkeys(*joined)
                return ("QLinearConv" if convolution else "QGemm"), ""
        if convolution and layer.arguments["groups"] > 1 and weight.shape[1] == 1:
            return "float", (
                "a depthwise convolution whose result is not quantised again: ONNX Runtime's "
                "ConvInteger is slower than float there"
            )
        return ("ConvInteger" if convolution else "MatMulInteger"), ""

    @staticmethod
    def _one_zero(layer: SparseQuantLayer) -> bool:
        zero = layer.weight_zero_point
        return zero is None or bool((zero == zero.flatten()[:1]).all())

    def _bias(self, layer: SparseQuantLayer, name: str, shape: list[int]) -> Any:
        assert layer.bias is not None
        suffix = "bias" if len(shape) == 1 else "bias.column"
        return self.nodes.constant(f"{name}{suffix}", layer.bias.reshape(shape))

    def _column(self, layer: SparseQuantLayer) -> list[int]:
        """The shape that spreads a value a channel over the result."""
        return [1, -1] + [1] * (layer.weight_values.dim() - 2) if _convolves(layer) else [-1]

    def _integer(
        self, q: Activation, layer: SparseQuantLayer, weight: StoredWeight, call: str
    ) -> Any:
        """`float32(sum of products) * (weight scale * input scale) + bias`, the sum exact."""
        nodes = self.nodes
        if _convolves(layer):
            zero = nodes.constant(
                f"{weight.prefix}weight_zero", weight.lifted_zero()[:1].reshape(())
            )
            inputs = [q.integers, weight["uint8"], q.zero, zero]
            y = nodes.add("ConvInteger", inputs, f"{call}.product", **_conv_attributes(layer))
        else:
            inputs = [q.integers, weight["columns"], q.zero, weight["zero"]]
            y = nodes.add("MatMulInteger", inputs, f"{call}.product")
            y = q.less_offset(y, weight, call)
        y = nodes.cast(y, "FLOAT", f"{call}.sum")
        y = nodes.add(
            "Mul", [y, q.multiplier(layer, weight, self._column(layer))], f"{call}.scaled"
        )
        if q.by_rows:
            y = nodes.add("Mul", [y, q.row_scale], f"{call}.rows")
        if layer.bias is None:
            return y
        bias = self._bias(layer, weight.prefix, self._column(layer))
        return nodes.add("Add", [y, bias], f"{call}.biased")

    def _float(
        self,
        x: Any,
        layer: SparseQuantLayer,
        weight: StoredWeight,
        call: str,
        form: str,
        rank: int,
    ) -> Any:
        """The float product, on what the form wants to see as its weight."""
        nodes = self.nodes
        bias = [] if layer.bias is None else [self._bias(layer, weight.prefix, [-1])]
        if isinstance(layer, SparseQuantConvTranspose2d):
            w = weight["transposed_float" if self.integers else "transposed_dequantised"]
            attributes = _conv_attributes(layer)
            attributes["output_padding"] = layer.arguments["output_padding"]
            return nodes.add("ConvTranspose", [x, w, *bias], f"{call}.product", **attributes)
        if form == "float" and self.integers:
            w = weight["float"]
        elif form in ("QLinearConv", "QGemm") and may_saturate(layer):
            w = weight["lifted_dequantised"]
        else:
            w = weight["dequantised"]
        if _convolves(layer):
            return nodes.add("Conv", [x, w, *bias], f"{call}.product", **_conv_attributes(layer))
        if rank == 2 or quantised_by_rows(layer):
            return nodes.add("Gemm", [x, w, *bias], f"{call}.product", transB=1)
        if weight.transposed is None:
            weight.transposed = nodes.add(
                "Transpose", [w], f"{weight.prefix}weight.columns", perm=[1, 0]
            )
        y = nodes.add("MatMul", [x, weight.transposed], f"{call}.product")
        return nodes.add("Add", [y, *bias], f"{call}.biased") if bias else y

    def _unrowed(self, x: Any, y: Any, layer: SparseQuantLayer, call: str) -> Any:
        """From `[rows, N]` to x's shape with N at the end."""
        nodes = self.nodes
        leading = nodes.add("Shape", [x], f"{call}.leading", start=0, end=-1)
        width = nodes.ints([layer.weight_values.shape[0]])
        shape = nodes.add("Concat", [leading, width], f"{call}.shape", axis=0)
        return nodes.add("Reshape", [y, shape], f"{call}.unrowed")


def _convolves(layer: SparseQuantLayer) -> bool:
    return layer.weight_values.dim() > 2


def _conv_attributes(layer: SparseQuantLayer) -> dict[str, Any]:
    arguments = layer.arguments
    return {
        "kernel_shape": list(layer.weight_values.shape[2:]),
        "strides": arguments["stride"],
        "pads": [*arguments["padding"], *arguments["padding"]],
        "dilations": arguments["dilation"],
        "group": arguments["groups"],
    }
