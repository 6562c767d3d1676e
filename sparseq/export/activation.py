"""A layer's quantised input in the graph, and what lies between two quantised tensors."""

from __future__ import annotations

from typing import Any

import torch

from sparseq.export.nodes import Nodes
from sparseq.export.stored import StoredWeight
from sparseq.export.trace import DOMAIN
from sparseq.export.translate import non_negative, storage
from sparseq.nn import SparseQuantLayer

Grid = tuple[float, int, int, int]  # scale, zero point, least and greatest integer

# what ONNX Runtime moves Q/DQ through, so that a product and the quantiser behind it still meet
_TRANSPARENT = ("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze")


def grid_of(layer: SparseQuantLayer) -> Grid:
    """A layer's fixed input grid."""
    assert layer.input_scale is not None and layer.input_limits is not None
    zero = 0 if layer.input_zero_point is None else int(layer.input_zero_point)
    return float(layer.input_scale), zero, *layer.input_limits


def _takes_all(grid: Grid) -> bool:
    """Whether the grid is all of its byte: there is nothing to cut off before QuantizeLinear."""
    return grid[2:] in ((-128, 127), (0, 255))


def _bounds(node: Any) -> tuple[float, float] | None:
    """The range that a node cuts its input to, if that is all it does."""
    if node.op_type == "Relu":
        return 0.0, float("inf")
    if node.op_type != "Clip":
        return None
    found = [float("-inf"), float("inf")]
    for place, value in enumerate(node.inputs[1:]):
        if value is not None:
            constant = value.const_value
            if constant is None:
                return None
            found[place] = float(constant.numpy())
    return found[0], found[1]


def _repeats(grid: Grid, bounds: tuple[float, float]) -> bool:
    """Whether quantising cuts off at least as much: the cut before it then changes nothing."""
    scale, zero, low, high = grid
    bottom, top = (torch.tensor(b) / torch.tensor(scale) for b in bounds)
    return float(bottom.round()) + zero <= low and float(top.round()) + zero >= high


def joined_consumers(nodes: Nodes, output: Any, layers: dict[str, SparseQuantLayer]) -> bool:
    """Whether a product's result goes into one quantiser and nowhere else.

    If so, cuts (ReLU, ReLU6) that the quantiser repeats are taken out of the graph.
    """
    grids: set[Grid] = set()
    cuts: list[Any] = []
    todo = [output]
    while todo:
        value = todo.pop()
        if value.is_graph_output() or not value.uses():
            return False
        for node, index in value.uses():
            grid = _grid_read(node, layers)
            if grid is not None:
                grids.add(grid)
            elif index == 0 and node.op_type in _TRANSPARENT and len(node.outputs) == 1:
                todo.append(node.outputs[0])
            elif index == 0 and _bounds(node) is not None and not cuts:
                cuts.append(node)
                todo.append(node.outputs[0])
            else:
                return False
    if len(grids) != 1:
        return False
    (grid,) = grids
    if not _takes_all(grid) or not all(_repeats(grid, _bounds(cut) or (0, 0)) for cut in cuts):
        return False
    for cut in cuts:
        nodes.replace(cut.outputs[0], cut.inputs[0])
        nodes.graph.remove(cut, safe=True)
    return True


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
        self._static: float | None = None
        self._owner = call

    @classmethod
    def static(
        cls, nodes: Nodes, x: Any, layer: SparseQuantLayer, name: str, call: str, unsigned: bool
    ) -> Activation:
        """On the layer's fixed grid."""
        scale, zero, low, high = grid_of(layer)
        prefix = f"{name}." if name else ""
        kind, least, greatest, gain = storage(low, unsigned)
        cut_low = low > least and not non_negative(nodes, x)
        if cut_low or high < greatest:
            steps = torch.tensor(scale, dtype=torch.float32)
            bounds: list[Any] = [None, None]
            if cut_low:
                bounds[0] = nodes.constant(f"{prefix}input_least", (low - zero) * steps)
            if high < greatest:
                bounds[1] = nodes.constant(f"{prefix}input_greatest", (high - zero) * steps)
            bounds = bounds if bounds[1] is not None else bounds[:1]
            x = nodes.add("Clip", [x, *bounds], f"{call}.clipped")
        held = nodes.constant(f"{prefix}input_scale", torch.tensor(scale, dtype=torch.float32))
        stored = torch.tensor(zero + gain).to(torch.uint8 if kind == 2 else torch.int8)
        offset = nodes.constant(f"{prefix}input_zero_point", stored)
        q = nodes.add("QuantizeLinear", [x, held, offset], f"{call}.input")
        made = cls(nodes, q, held, offset, call)
        made._static, made._owner = scale, name
        return made

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
            made.zero = nodes.constant(
                f"sparseq.zero{gain}", torch.tensor(gain, dtype=torch.uint8)
            )
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
        if self._static is not None:
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
