"""The steps of one program, fused: convolution, residual, activation and rounding are one."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx

from sparseq.lower.split import Split
from sparseq.lower.step import ALIAS, Operand, Step
from sparseq.nn import SparseQuantLayer
from sparseq.program import OPS, Grid, Shape

_GRID_TO_GRID = ("max_pool", "pad", "concat")  # commute with rounding
Key = fx.Node | tuple[fx.Node, str]  # a step's result, or what enters in a form


@dataclass
class Unit:
    """One instruction to be.

    Args:
        key: the last node that is part of it.
        op: of `sparseq.program.OPS`.
        inputs: what it reads; of conv the residual second.
        shape: of the result, in the example.
        attributes: the instruction's, but for the activation.
        constants: of map and layer_norm.
        layer: of conv.
        name: the layer's.
        scale: what a conv's sum is multiplied by beside, one value a channel, or None.
        shift: what is added then, or None.
        read: of a conv's image, the shape in the example.
        fused: for `explain`.
    """

    key: Key
    op: str
    inputs: list[Key]
    shape: Shape
    attributes: dict[str, Any]
    constants: tuple[Tensor, ...] = ()
    layer: SparseQuantLayer | None = None
    name: str = ""
    activation: str = "none"
    scale: Tensor | None = None
    shift: Tensor | None = None
    read: Shape = (0, 0, 0, 0)
    fused: list[str] = field(default_factory=list)


def grid_of(layer: SparseQuantLayer) -> Grid:
    """A layer's input grid, as unsigned integers."""
    assert layer.input_scale is not None and layer.input_zero_point is not None
    assert layer.input_limits is not None
    low, high = layer.input_limits
    up = 128 if low < 0 else 0
    zero = int(layer.input_zero_point)
    return Grid(float(layer.input_scale), zero + up, low + up, high + up)


def _taps(unit: Unit) -> int:
    """Pixels that an output of a convolution reads of each channel; 1 of one with groups."""
    assert unit.layer is not None
    work = unit.layer.work(1)
    return work.taps if work.groups == 1 else 1


class Fusion:
    """Units of one stage, in an order in which each comes after what it reads.

    Args:
        split: the graph.
        stage: which program.
    """

    def __init__(self, split: Split, stage: int) -> None:
        self.split = split
        self.inputs: list[tuple[fx.Node, str]] = []
        self.units: dict[Key, Unit] = {}
        self.nodes = [n for n in split.steps if split.stage[n] == stage]
        self.outputs = [(n, split.steps[n].form) for n in split.exports.get(stage, [])]
        self.leaving = {self.base(n) for n, _ in self.outputs}
        computed = [n for n in self.nodes if split.steps[n].op != ALIAS]
        self._reads = Counter(
            self.key(n, operand) for n in computed for operand in split.steps[n].inputs
        )
        for node in computed:
            self._add(node, split.steps[node])
        self.stored = self._grids()

    def base(self, node: fx.Node) -> Key:
        """The value that a step's result is."""
        step = self.split.steps[node]
        return self.key(node, step.inputs[0]) if step.op == ALIAS else node

    def key(self, node: fx.Node, operand: Operand) -> Key:
        """The value that a step reads."""
        if self.split.joined(node, operand):
            return self.base(operand.node)
        entered = (operand.node, operand.form)
        if entered not in self.inputs:
            self.inputs.append(entered)
        return entered

    def _sole(self, key: Key) -> Unit | None:
        """The unit that makes a value which nobody else reads."""
        once = self._reads[key] == 1 and key not in self.leaving
        return self.units.get(key) if once else None

    def _joins(self, unit: Unit, node: fx.Node, words: str) -> None:
        """A unit takes a step in, and its place."""
        del self.units[unit.key]
        unit.key = node
        unit.fused.append(words)
        self.units[node] = unit

    def _add(self, node: fx.Node, step: Step) -> None:
        keys = [self.key(node, operand) for operand in step.inputs]
        maker = self._sole(keys[0])
        if step.op == "map" and maker is not None and maker.activation == "none":
            activation = step.attributes.get("activation", "none")
            if not step.constants and "activation" in OPS[maker.op][2]:
                maker.activation = activation
                return self._joins(maker, node, activation)
            if step.constants and maker.op == "conv" and len(maker.inputs) == 1:
                scale, shift = step.constants
                maker.scale = scale if maker.scale is None else maker.scale * scale
                maker.shift = shift if maker.shift is None else maker.shift * scale + shift
                return self._joins(maker, node, "scale and shift")
        if step.op == "add" and keys[0] != keys[1]:
            residual = self._with_residual(keys, step)
            if residual is not None:
                unit, other = residual
                unit.inputs.append(other)
                return self._joins(unit, node, "residual")
        attributes = dict(step.attributes)
        activation = attributes.pop("activation", "none")
        unit = Unit(node, step.op, keys, step.shape, attributes, step.constants, step.layer)
        unit.name, unit.activation, unit.read = step.name, activation, step.inputs[0].shape
        self.units[node] = unit

    def _with_residual(self, keys: list[Key], step: Step) -> tuple[Unit, Key] | None:
        """The convolution that adds the other operand to its sum.

        Of two that may, that of larger kernels, since the other one's pixels can be made when they
        are wanted (csrc/network/plan.cpp); else the later.
        """
        order = list(self.units)
        found = []
        for own, other, operand in ((keys[0], keys[1], 1), (keys[1], keys[0], 0)):
            unit = self._sole(own)
            plain = unit is not None and unit.op == "conv" and len(unit.inputs) == 1
            if unit is None or not plain or unit.activation != "none":
                continue
            if step.inputs[operand].shape == unit.shape:
                found.append((_taps(unit), order.index(own), unit, other))
        return max(found, key=lambda f: f[:2])[2:] if found else None

    def _grids(self) -> dict[Key, Grid | None]:
        """Where each value lives: on the grid of those who read it, if that is one.

        With several grids, where attention reads it, or where it leaves the program, it is
        float32, and each grid a map of it. So is a norm's result that a sum reads, too: it was
        float32 anyway, and a transformer's sums go through all layers. Maxima, padding and
        concatenation commute with rounding: their inputs live on the grid of their result.
        """
        wanted: dict[Key, list[Grid]] = {}
        stored: dict[Key, Grid | None] = {}
        real = set(self.leaving)
        for unit in self.units.values():
            for n, key in enumerate(unit.inputs):
                maker = self.units.get(key)
                rounds = unit.op in _GRID_TO_GRID or (unit.layer is not None and n == 0)
                norm = maker is not None and maker.op == "layer_norm"
                if unit.op == "attention" or (norm and not rounds):
                    real.add(key)
        for key, unit in reversed(self.units.items()):
            grids = set(wanted.get(key, ()))
            stored[key] = grids.pop() if len(grids) == 1 and key not in real else None
            if unit.layer is not None:
                wanted.setdefault(unit.inputs[0], []).append(grid_of(unit.layer))
            own = stored[key]
            if unit.op in _GRID_TO_GRID and own is not None:
                for read in unit.inputs:
                    wanted.setdefault(read, []).append(own)
        return stored
