"""A layer's quantised input in the graph."""

from __future__ import annotations

import math
from typing import Any

import torch

from sparseq.export.nodes import Nodes
from sparseq.export.stored import StoredWeight
from sparseq.export.translate import UINT8, non_negative, storage
from sparseq.nn import SparseQuantLayer

Grid = tuple[float, int, int, int]  # scale, zero point, least and greatest integer
Range = tuple[float, float]
UNCUT: Range = (-math.inf, math.inf)


def grid_of(layer: SparseQuantLayer) -> Grid:
    """A layer's fixed input grid."""
    assert layer.input_scale is not None and layer.input_limits is not None
    zero = 0 if layer.input_zero_point is None else int(layer.input_zero_point)
    return float(layer.input_scale), zero, *layer.input_limits


def quantised(number: float, grid: Grid) -> int:
    """`clamp(rne(number / scale) + zero, low, high)`, in float32 as QuantizeLinear computes it."""
    scale, zero, low, high = grid
    step = (torch.tensor(number) / torch.tensor(scale)).round() + zero
    return int(step.clamp(low, high))


class Activation:
    """A tensor as integers.

    Attributes:
        integers: the value; uint8 for ONNX Runtime (int8 ones are lifted by 128), else as the grid.
        scale: float32, one or one a row.
        zero: of the integers' type, one.
        by_rows: whether each row has a grid of its own; the integers are a matrix.
        row_scale: then float32 `[rows, 1]`, and `scale` is 1.
        row_zero: then int32 `[rows, 1]`, or None if it is the same for all.
    """

    def __init__(self, nodes: Nodes, integers: Any, scale: Any, zero: Any, call: str) -> None:
        self.nodes, self.call = nodes, call
        self.integers, self.scale, self.zero = integers, scale, zero
        self.by_rows = False
        self.row_zero: Any = None
        self.row_scale: Any = None
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
        low, high = quantised(cut[0], grid), quantised(cut[1], grid)
        above = non_negative(nodes, x) and low <= zero  # then nothing rounds to below zero
        ends = [None if above or low <= least else low, None if high >= greatest else high]
        held = nodes.constant(f"{prefix}input_scale", torch.tensor(scale, dtype=torch.float32))
        byte = torch.uint8 if kind == UINT8 else torch.int8
        offset = nodes.constant(f"{prefix}input_zero_point", torch.tensor(zero + gain).to(byte))
        if unsigned:  # on bytes, which costs a quarter
            limits = [None if e is None else torch.tensor(e + gain).to(byte) for e in ends]
            whole = f"{call}.input_whole" if any(e is not None for e in ends) else f"{call}.input"
            q = nodes.add("QuantizeLinear", [x, held, offset], whole)
            q = cls._between(nodes, q, limits, call, "input")
        else:
            steps = torch.tensor(scale, dtype=torch.float32)
            limits = [None if e is None else (e - zero) * steps for e in ends]
            x = cls._between(nodes, x, limits, call, "clipped")
            q = nodes.add("QuantizeLinear", [x, held, offset], f"{call}.input")
        made = cls(nodes, q, held, offset, call)
        made._static = True
        return made

    @staticmethod
    def _between(nodes: Nodes, x: Any, limits: list[Any], call: str, name: str) -> Any:
        """X cut to what lies between the limits, of which one or both may be None."""
        names = (f"{call}.input_least", f"{call}.input_greatest")
        bounds = [
            None if e is None else nodes.constant(n, e) for n, e in zip(names, limits, strict=True)
        ]
        while bounds and bounds[-1] is None:
            del bounds[-1]
        return nodes.add("Clip", [x, *bounds], f"{call}.{name}") if bounds else x

    @classmethod
    def of_batch(
        cls,
        nodes: Nodes,
        x: Any,
        layer: SparseQuantLayer,
        grid: list[Any],
        call: str,
        unsigned: bool,
    ) -> Activation:
        """On one grid that the graph computes: scale, and zero point in int32."""
        scale, zero = grid
        x, stored = cls._prepared(nodes, x, layer, scale, zero, call, unsigned)
        q = nodes.add("QuantizeLinear", [x, scale, stored], f"{call}.input")
        return cls(nodes, q, scale, stored, call)

    @classmethod
    def of_rows(
        cls,
        nodes: Nodes,
        x: Any,
        layer: SparseQuantLayer,
        grid: list[Any],
        call: str,
        unsigned: bool,
    ) -> Activation:
        """On a grid a row: x becomes a matrix.

        Rows are divided by their scales first, so that QuantizeLinear has one constant grid for
        all: OpenVINO takes no scales along an axis that the graph computes. The integers are the
        same, and so is ONNX Runtime's time (measured: within 3 %).
        """
        width = layer.weight_values.shape[1]
        x = nodes.add("Reshape", [x, nodes.ints([-1, width])], f"{call}.matrix")
        column = nodes.ints([-1, 1])
        scale = nodes.add("Reshape", [grid[0], column], f"{call}.input_scales")
        zero = nodes.add("Reshape", [grid[1], column], f"{call}.input_zeros")
        assert layer.input_limits is not None and unsigned
        low, high = layer.input_limits
        _, least, greatest, gain = storage(low, unsigned)
        steps = nodes.add("Div", [x, scale], f"{call}.steps")
        if low >= 0:  # else every zero point is 0
            offset = nodes.cast(zero, "FLOAT", f"{call}.input_offsets")
            steps = nodes.add("Round", [steps], f"{call}.whole_steps")
            steps = nodes.add("Add", [steps, offset], f"{call}.shifted")
        ends = [low if low > least else None, high if high < greatest else None]
        limits = [None if e is None else torch.tensor(float(e)) for e in ends]
        steps = cls._between(nodes, steps, limits, call, "cut")
        one = nodes.constant("sparseq.one", torch.tensor(1.0))
        lift = nodes.constant(f"sparseq.zero{gain}", torch.tensor(gain, dtype=torch.uint8))
        q = nodes.add("QuantizeLinear", [steps, one, lift], f"{call}.input")
        made = cls(nodes, q, one, lift, call)
        made.by_rows, made.row_scale = True, scale
        made.row_zero = zero if low >= 0 else None
        return made

    @classmethod
    def _prepared(
        cls,
        nodes: Nodes,
        x: Any,
        layer: SparseQuantLayer,
        scale: Any,
        zero: Any,
        call: str,
        unsigned: bool,
    ) -> tuple[Any, Any]:
        """X cut to a computed grid, and its zero point as stored."""
        assert layer.input_limits is not None
        low, high = layer.input_limits
        kind, least, greatest, gain = storage(low, unsigned)
        if low > least or high < greatest:
            x = cls._cut(nodes, x, scale, zero, (low, high), call)
        if gain:
            lift = nodes.constant("sparseq.lift", torch.tensor(gain, dtype=torch.int32))
            zero = nodes.add("Add", [zero, lift], f"{call}.input_lifted")
        return x, nodes.add("Cast", [zero], f"{call}.input_zero_point", to=kind)

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
        if self.by_rows:
            return self.computed()
        if self._dequantised is None:
            inputs = [self.integers, self.scale, self.zero]
            self._dequantised = self.nodes.add("DequantizeLinear", inputs, f"{self.call}.rounded")
        return self._dequantised

    def computed(self) -> Any:
        """The float32 values of the integers, by plain operators.

        Behind a DequantizeLinear, ONNX Runtime would quantise a float product's weight anew, with
        one scale for all channels.
        """
        if self._computed is None:
            nodes, call = self.nodes, self.call
            y = nodes.cast(self.integers, "FLOAT", f"{call}.wide")
            zero = self.zero if self.row_zero is None else self.row_zero
            zero = nodes.cast(zero, "FLOAT", f"{call}.input_zero_float")
            y = nodes.add("Sub", [y, zero], f"{call}.centred")
            scale = self.row_scale if self.by_rows else self.scale
            self._computed = nodes.add("Mul", [y, scale], f"{call}.rounded")
        return self._computed

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
