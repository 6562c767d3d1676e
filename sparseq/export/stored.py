"""A stored weight in the graph: the integers as the model has them, and what they become.

The file keeps int8 (or INT4); what a kernel wants instead is computed by Cast, Add, Mul and
Transpose behind them, which ONNX Runtime does once, when the session starts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparseq.export.nodes import Nodes
from sparseq.nn import SparseQuantLayer
from sparseq.sparse import swap_channels


class StoredWeight:
    """One layer's weight; each form is made once, however often the layer is called.

    Args:
        nodes: where nodes go.
        name: of the layer.
        layer: the layer.
        int4: whether at most 4 bits are stored as INT4.
        zeros: whether zero points that are all 0 are said, too: ONNX Runtime fuses Gemm only so.
    """

    def __init__(
        self, nodes: Nodes, name: str, layer: SparseQuantLayer, int4: bool, zeros: bool
    ) -> None:
        self.nodes, self.layer = nodes, layer
        self.prefix = f"{name}." if name else ""
        self.shape = tuple(layer.weight_values.shape)
        self.signed = layer.weight_values.dtype == torch.int8
        self.int4 = int4 and layer.weight_spec.bits <= 4
        self.zeros = zeros
        self.grouped = layer.weight_scale.dim() == 2
        self.transposed: Any = None  # of a float form
        self.made: dict[str, Any] = {}

    def __getitem__(self, form: str) -> Any:
        """The value of a form: "float", "dequantised", "uint8", ...: the methods' names."""
        if form not in self.made:
            self.made[form] = getattr(self, f"_{form}")()
        return self.made[form]

    def scale(self) -> Tensor:
        """Float32 [N] or, for groups, one a row of `[N * groups, group_size]`."""
        return self.layer.weight_scale.reshape(-1)

    def _zero_points(self, lift: bool) -> Tensor | None:
        """The zero points as the scale is shaped; None if all are 0 in int8."""
        zero = self.layer.weight_zero_point
        if zero is None and not lift and not self.zeros:
            return None
        flat = torch.zeros(self.scale().numel()) if zero is None else zero.reshape(-1)
        if lift and self.signed:
            return (flat + 128).to(torch.uint8)
        return flat.to(torch.int8 if self.signed else torch.uint8)

    def lifted_zero(self) -> Tensor:
        """The zero points of the integers as uint8."""
        zero = self._zero_points(lift=True)
        assert zero is not None
        return zero

    def sums(self) -> Tensor:
        """Int32, a value a channel: the sum of its integers relative to their zero point."""
        values, zero = self.layer.weight_values.int(), self.layer.weight_zero_point
        if zero is not None:
            values = values - zero.reshape(-1, *[1] * (values.dim() - 1))
        return values.flatten(1).sum(1).int()

    def _name(self, suffix: str) -> str:
        return f"{self.prefix}{suffix}"

    def _values(self) -> Any:
        """The initialiser."""
        values = self.layer.weight_values
        if self.grouped:  # one row a group: the file's scales are then one a row
            values = values.reshape(self.scale().numel(), -1)
        kind = None
        if self.int4:
            kind = self.nodes.ir.DataType.INT4 if self.signed else self.nodes.ir.DataType.UINT4
        return self.nodes.constant(self._name("weight_values"), values, kind)

    def _bytes(self) -> Any:
        values = self._values()
        if not self.int4:
            return values
        kind = "INT8" if self.signed else "UINT8"
        return self.nodes.cast(values, kind, self._name("weight_values.bytes"))

    def _scales(self) -> Any:
        return self.nodes.constant(self._name("weight_scale"), self.scale())

    def _ungrouped(self, value: Any) -> Any:
        if not self.grouped:
            return value
        shape = self.nodes.ints(list(self.shape))
        return self.nodes.add("Reshape", [value, shape], self._name("weight.shaped"))

    def gathered(self, indices: Any, rank: int, call: str) -> Any:
        """The float rows of a table at these indices, of so many dimensions.

        `(values - zero) * scale` by plain operators: the scales of rows are looked up as well.
        """
        nodes, width = self.nodes, self.shape[1]
        rows = nodes.add("Gather", [self._table(), indices], f"{call}.product")
        y = nodes.cast(rows, "FLOAT", f"{call}.float")
        if self.grouped:
            groups = self.layer.weight_scale.shape[1]
            split = nodes.ints([0] * rank + [groups, width // groups])
            y = nodes.add("Reshape", [y, split], f"{call}.groups")
        for kind, suffix, held in (
            ("Sub", "weight_offset", self.layer.weight_zero_point),
            ("Mul", "weight_scale", self.layer.weight_scale),
        ):
            if held is not None:
                column = nodes.constant(self._name(f"{suffix}.column"), held.float().unsqueeze(-1))
                found = nodes.add("Gather", [column, indices], f"{call}.{suffix}")
                y = nodes.add(kind, [y, found], f"{call}.{kind.lower()}")
        if not self.grouped:
            return y
        return nodes.add("Reshape", [y, nodes.ints([0] * rank + [width])], f"{call}.rows")

    def _table(self) -> Any:
        """The integers `[rows, width]`, in whole bytes."""
        return self._ungrouped(self._bytes())

    def _transposed_dequantised(self) -> Any:
        """A transposed convolution's weight in torch's order, behind its DequantizeLinear.

        The runtime sees the pair right before the product. Scales of output channels have an axis
        there with one group only, or with one output a group.
        """
        layer = self.layer
        groups = layer.arguments["groups"]
        apart = self.shape[0] > groups > 1
        if self.grouped or self.int4 or apart:
            return self.convolution_transposed(self["dequantised"])
        values = swap_channels(layer.weight_values, groups).contiguous()
        held = [self.nodes.constant(self._name("weight_values"), values), self._scales()]
        zero = self._zero_points(lift=False)
        if zero is not None:
            held.append(self.nodes.constant(self._name("weight_zero_point"), zero))
        axis = 1 if groups == 1 else 0
        return self.nodes.add("DequantizeLinear", held, self._name("weight.dequantised"), axis=axis)

    def convolution_transposed(self, weight: Any) -> Any:
        """From `[out, in / groups, kH, kW]` to `[in, out / groups, kH, kW]`."""
        nodes, groups = self.nodes, self.layer.arguments["groups"]
        (outputs, inputs, *kernel), name = self.shape, self._name("weight.swapped")
        if groups == 1:
            return nodes.add("Transpose", [weight], name, perm=[1, 0, 2, 3])
        split = nodes.ints([groups, outputs // groups, inputs, *kernel])
        y = nodes.add("Reshape", [weight, split], self._name("weight.groups"))
        y = nodes.add("Transpose", [y], self._name("weight.groups_swapped"), perm=[0, 2, 1, 3, 4])
        whole = nodes.ints([groups * inputs, outputs // groups, *kernel])
        return nodes.add("Reshape", [y, whole], name)

    def _transposed_float(self) -> Any:
        """The same by plain operators."""
        return self.convolution_transposed(self["float"])

    def _float(self) -> Any:
        """`(values - zero) * scale` by plain operators: a constant once the session has started."""
        nodes = self.nodes
        y = nodes.cast(self._values(), "FLOAT", self._name("weight.float"))
        column = [-1] + [1] * (1 if self.grouped else len(self.shape) - 1)
        zero = self.layer.weight_zero_point
        if zero is not None:
            offset = nodes.constant(self._name("weight_offset"), zero.reshape(column).float())
            y = nodes.add("Sub", [y, offset], self._name("weight.centred"))
        factor = nodes.constant(self._name("weight_scale.column"), self.scale().reshape(column))
        return self._ungrouped(nodes.add("Mul", [y, factor], self._name("weight.scaled")))

    def _dequantised(self) -> Any:
        """DequantizeLinear along axis 0, on the integers as they are stored."""
        inputs = [self._bytes(), self._scales()]
        zero = self._zero_points(lift=False)
        if zero is not None:
            inputs.append(self.nodes.constant(self._name("weight_zero_point"), zero))
        y = self.nodes.add("DequantizeLinear", inputs, self._name("weight.dequantised"), axis=0)
        return self._ungrouped(y)

    def _lifted_dequantised(self) -> Any:
        """DequantizeLinear along axis 0, on uint8."""
        inputs = [self["uint8"], self._scales(), self["zero"]]
        return self.nodes.add("DequantizeLinear", inputs, self._name("weight.dequantised"), axis=0)

    def _zero(self) -> Any:
        """The uint8 zero points, one a channel."""
        return self.nodes.constant(self._name("weight_zero_point.uint8"), self.lifted_zero())

    def _uint8(self) -> Any:
        """The integers as uint8: int8 lifted by 128."""
        if not self.signed:
            return self._bytes()
        nodes = self.nodes
        y = nodes.cast(self._bytes(), "INT16", self._name("weight.wide"))
        shift = nodes.constant("sparseq.shift", np.asarray(128, np.int16))
        y = nodes.add("Add", [y, shift], self._name("weight.lifted"))
        return nodes.cast(y, "UINT8", self._name("weight.uint8"))

    def _columns(self) -> Any:
        """The uint8 integers as `[K, N]`."""
        name = self._name("weight.columns")
        return self.nodes.add("Transpose", [self["uint8"]], name, perm=[1, 0])
