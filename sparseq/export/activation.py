"""A layer's quantised input in the graph, and what lies between two quantised tensors."""

from __future__ import annotations

import math
from typing import Any

import torch

from sparseq.export.nodes import Nodes
from sparseq.export.stored import StoredWeight
from sparseq.export.trace import DOMAIN
from sparseq.export.translate import UINT8, non_negative, storage
from sparseq.nn import SparseQuantLayer

Grid = tuple[float, int, int, int]  # scale, zero point, least and greatest integer
Range = tuple[float, float]
Joined = tuple[list[Any], Range]  # the opaque layers that read a result, and what it is cut to
UNCUT: Range = (-math.inf, math.inf)

# what ONNX Runtime moves Q/DQ through, so that a product and the quantiser behind it still meet
_TRANSPARENT = ("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze")


def grid_of(layer: SparseQuantLayer) -> Grid:
    """A layer's fixed input grid."""
    assert layer.input_scale is not None and layer.input_limits is not None
    zero = 0 if layer.input_zero_point is None else int(layer.input_zero_point)
    return float(layer.input_scale), zero, *layer.input_limits


def _bounds(node: Any) -> Range | None:
    """The range that a node cuts its input to, if that is all it does."""
    if node.op_type == "Relu":
        return 0.0, math.inf
    if node.op_type != "Clip":
        return None
    found = [-math.inf, math.inf]
    for place, value in enumerate(node.inputs[1:]):
        if value is not None:
            if value.const_value is None:
                return None
            found[place] = float(value.const_value.numpy())
    return found[0], found[1]


def _quantised(number: float, grid: Grid) -> int:
    """`clamp(rne(number / scale) + zero, low, high)`, in float32 as QuantizeLinear computes it."""
    scale, zero, low, high = grid
    step = (torch.tensor(number) / torch.tensor(scale)).round() + zero
    return int(step.clamp(low, high))


def join(nodes: Nodes, output: Any, layers: dict[str, SparseQuantLayer]) -> Joined | None:
    """Whether a product's result goes into one quantiser and nowhere else.

    If so, cuts on the way (ReLU, ReLU6) are taken out of the graph: rounding to a grid and cutting
    commute, so the quantiser's reader cuts the integers instead, where it does not do so anyway.
    """
    value, cuts, (low, high) = output, [], (-math.inf, math.inf)
    while True:
        uses = list(value.uses())
        if value.is_graph_output() or not uses:
            return None
        grids = {_grid_read(node, layers) for node, _ in uses}
        if None not in grids:
            break
        node, index = uses[0]
        if len(uses) > 1 or index > 0 or len(node.outputs) > 1:
            return None
        cut = _bounds(node)
        if cut is not None:
            low, high = (min(max(end, cut[0]), cut[1]) for end in (low, high))
            cuts.append(node)
        elif node.op_type not in _TRANSPARENT:
            return None
        value = node.outputs[0]
    if len(grids) > 1:
        return None
    readers = [node for node, _ in uses]
    for node in cuts:
        nodes.replace(node.outputs[0], node.inputs[0])
        nodes.graph.remove(node, safe=True)
    return readers, (low, high)


def _grid_read(node: Any, layers: dict[str, SparseQuantLayer]) -> Grid | None:
    """The fixed grid that a layer quantises its input on, if node is one."""
    if node.domain != DOMAIN:
        return None
    layer = layers[node.attributes["name"].value]
    return None if layer.input_scale is None else grid_of(layer)


class Activation:
    """A tensor as integers.

    Attributes:
        integers: the value; uint8 for ONNX Runtime (int8 ones are lifted by 128), else as the grid.
        scale: float32, one or one a row.
        zero: of the integers' type, one.
        by_rows: whether each row has a scale (and row_zero) of its own; the integers are a matrix.
    """

    def __init__(self, nodes: Nodes, integers: Any, scale: Any, zero: Any, call: str) -> None:
        self.nodes, self.call = nodes, call
        self.integers, self.scale, self.zero = integers, scale, zero
        self.by_rows = False
        self.row_zero: Any = None  # int32, where it is not the same for all rows
        self.all_zeros = zero  # as DequantizeLinear wants it: one a row
        self._dequantised: Any = None
        self._computed: Any = None
        self._static = False

    @classmethod
    def static(
        cls,
        nodes: Nodes,
        x: Any,
        layer: SparseQuantLayer,
        name: str,
        call: str,
        unsigned: bool,
        cut: Range = UNCUT,
    ) -> Activation:
        """On the layer's fixed grid; `cut` is the range that x is to be cut to as well."""
        grid = scale, zero, low, high = grid_of(layer)
        prefix = f"{name}." if name else ""
        kind, least, greatest, gain = storage(low, unsigned)
        low, high = _quantised(cut[0], grid), _quantised(cut[1], grid)
        above = non_negative(nodes, x) and low <= zero  # then nothing rounds to below zero
        ends = [None if above or low <= least else low, None if high >= greatest else high]
        held = nodes.constant(f"{prefix}input_scale", torch.tensor(scale, dtype=torch.float32))
        byte = torch.uint8 if kind == UINT8 else torch.int8
        offset = nodes.constant(f"{prefix}input_zero_point", torch.tensor(zero + gain).to(byte))
        if unsigned:  # on bytes, which costs a quarter
            limits = [None if e is None else torch.tensor(e + gain).to(byte) for e in ends]
            whole = f"{call}.input_whole" if any(e is not None for e in ends) else f"{call}.input"
            q = nodes.add("QuantizeLinear", [x, held, offset], whole)
            q = cls._between(nodes, q, limits, prefix, f"{call}.input")
        else:
            steps = torch.tensor(scale, dtype=torch.float32)
            limits = [None if e is None else (e - zero) * steps for e in ends]
            x = cls._between(nodes, x, limits, prefix, f"{call}.clipped")
            q = nodes.add("QuantizeLinear", [x, held, offset], f"{call}.input")
        made = cls(nodes, q, held, offset, call)
        made._static = True
        return made

    @staticmethod
    def _between(nodes: Nodes, x: Any, limits: list[Any], prefix: str, name: str) -> Any:
        """X cut to what lies between the limits, of which one or both may be None."""
        names = (f"{prefix}input_least", f"{prefix}input_greatest")
        bounds = [
            None if e is None else nodes.constant(n, e) for n, e in zip(names, limits, strict=True)
        ]
        while bounds and bounds[-1] is None:
            del bounds[-1]
        return nodes.add("Clip", [x, *bounds], name) if bounds else x

    @classmethod
    def dynamic(
        cls,
        nodes: Nodes,
        x: Any,
        layer: SparseQuantLayer,
        grid: list[Any],
        call: str,
        unsigned: bool,
    ) -> Activation:
        """On a grid that the graph computes: of each batch, or of each row."""
        assert layer.input_limits is not None and layer.input_spec is not None
        (scale, zero), (low, high) = grid, layer.input_limits
        kind, least, greatest, gain = storage(low, unsigned)
        by_rows = layer.weight_values.dim() == 2
        if by_rows:
            x = nodes.add("Reshape", [x, nodes.ints([-1, layer.weight_values.shape[1]])],
                          f"{call}.matrix")  # fmt: skip
            column = nodes.ints([-1, 1])
            scale = nodes.add("Reshape", [scale, column], f"{call}.input_scales")
            zero = nodes.add("Reshape", [zero, column], f"{call}.input_zeros")
        if low > least or high < greatest:
            x = cls._cut(nodes, x, scale, zero, (low, high), call)
        if by_rows:
            flat = nodes.ints([-1])
            column_scale, column_zero = scale, zero
            scale = nodes.add("Reshape", [scale, flat], f"{call}.input_scale")
            zero = nodes.add("Reshape", [zero, flat], f"{call}.input_zero")
        lifted = zero
        if gain:
            by = nodes.constant("sparseq.lift", torch.tensor(gain, dtype=torch.int32))
            lifted = nodes.add("Add", [zero, by], f"{call}.input_lifted")
        stored = nodes.add("Cast", [lifted], f"{call}.input_zero_point", to=kind)
        along = {"axis": 0} if by_rows else {}
        q = nodes.add("QuantizeLinear", [x, scale, stored], f"{call}.input", **along)
        made = cls(nodes, q, scale, stored, call)
        if by_rows:
            made.by_rows, made._column = True, column_scale
            symmetric = low < 0
            made.zero = nodes.constant(f"sparseq.zero{gain}", torch.tensor(gain, dtype=torch.uint8))
            made.row_zero = None if symmetric else column_zero
        return made

    _column: Any = None

    @staticmethod
    def _cut(
        nodes: Nodes, x: Any, scale: Any, zero: Any, limits: tuple[int, int], call: str
    ) -> Any:
        """X without what a grid narrower than its byte would cut off."""
        wide = nodes.cast(zero, "FLOAT", f"{call}.input_offset")
        for kind, limit, end in (("Max", limits[0], "least"), ("Min", limits[1], "greatest")):
            number = nodes.constant(f"sparseq.limit{limit}", torch.tensor(float(limit)))
            bound = nodes.add("Sub", [number, wide], f"{call}.input_{end}_step")
            bound = nodes.add("Mul", [bound, scale], f"{call}.input_{end}")
            x = nodes.add(kind, [x, bound], f"{call}.from_{end}")
        return x

    def dequantised(self) -> Any:
        """The float32 values of the integers."""
        if self._dequantised is None:
            along = {"axis": 0} if self.by_rows else {}
            inputs = [self.integers, self.scale, self.all_zeros]
            name = f"{self.call}.rounded"
            self._dequantised = self.nodes.add("DequantizeLinear", inputs, name, **along)
        return self._dequantised

    def computed(self) -> Any:
        """The float32 values of the integers, by plain operators.

        Behind a DequantizeLinear, ONNX Runtime would quantise a float product's weight anew, with
        one scale for all channels.
        """
        if self.by_rows:
            return self.dequantised()
        if self._computed is None:
            nodes, call = self.nodes, self.call
            y = nodes.cast(self.integers, "FLOAT", f"{call}.wide")
            zero = nodes.cast(self.zero, "FLOAT", f"{call}.input_zero_float")
            y = nodes.add("Sub", [y, zero], f"{call}.centred")
            self._computed = nodes.add("Mul", [y, self.scale], f"{call}.rounded")
        return self._computed

    def scale_column(self) -> Any:
        """The scale of each row, `[rows, 1]`."""
        return self._column

    def multiplier(self, layer: SparseQuantLayer, weight: StoredWeight, shape: list[int]) -> Any:
        """Weight scale times input scale, a value a channel; rows' scales come after."""
        channels = weight.scale().reshape(shape)
        if self.by_rows:
            return self.nodes.constant(f"{weight.prefix}weight_scale.last", channels)
        if self._static:
            assert layer.input_scale is not None
            product = channels * layer.input_scale.reshape(())
            return self.nodes.constant(f"{weight.prefix}multiplier", product)
        held = self.nodes.constant(f"{weight.prefix}weight_scale.channels", channels)
        return self.nodes.add("Mul", [held, self.scale], f"{self.call}.multiplier")

    def less_offset(self, product: Any, weight: StoredWeight, call: str) -> Any:
        """The product of rows that have zero points: MatMulInteger takes one for all."""
        if self.row_zero is None:
            return product
        sums = self.nodes.constant(f"{weight.prefix}weight_sums", weight.sums())
        offset = self.nodes.add("Mul", [self.row_zero, sums], f"{call}.offset")
        return self.nodes.add("Sub", [product, offset], f"{call}.centred")
