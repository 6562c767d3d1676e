"""From fused units to a program and its constants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparseq import ops
from sparseq.choice import DENSE
from sparseq.lower.forms import PORTS
from sparseq.lower.units import Fusion, Key, Unit, grid_of
from sparseq.nn import SparseQuantLayer
from sparseq.program import Grid, Instruction, Program

# a convolution of so few channels reads its window's lines as if they were channels
STEM_CHANNELS, STEM_INPUTS = 8, 64


class Builder:
    """Numbers values and constants.

    Args:
        fusion: the units.

    Attributes:
        constants: what the program's instructions number.
        placed: by layer what each of its calls is fused with.
    """

    def __init__(self, fusion: Fusion) -> None:
        self.fusion = fusion
        self.constants: list[Tensor] = []
        self.placed: list[tuple[str, str]] = []
        self._instructions: list[Instruction] = []
        self._values: dict[Key | tuple[Key, Grid], int] = {
            key: n for n, key in enumerate(fusion.inputs)
        }

    def build(self) -> Program:
        """The program."""
        for unit in self.fusion.units.values():
            self._unit(unit)
        base = self.fusion.base
        return Program(
            tuple(PORTS[form] for _, form in self.fusion.inputs),
            tuple(self._instructions),
            tuple((self._values[base(n)], PORTS[form]) for n, form in self.fusion.outputs),
        )

    def _emit(self, instruction: Instruction) -> int:
        self._instructions.append(instruction)
        return len(self.fusion.inputs) + len(self._instructions) - 1

    def _keep(self, tensors: Sequence[Tensor]) -> tuple[int, ...]:
        first = len(self.constants)
        self.constants += [t.detach().contiguous() for t in tensors]
        return tuple(range(first, len(self.constants)))

    def _on(self, key: Key, grid: Grid) -> int:
        """A value on a grid."""
        if self.fusion.stored.get(key) == grid:
            return self._values[key]
        if (key, grid) not in self._values:
            self._values[key, grid] = self._emit(Instruction("map", (self._values[key],), grid))
        return self._values[key, grid]

    def _unit(self, unit: Unit) -> None:
        grid = self.fusion.stored[unit.key]
        if unit.layer is not None:
            instruction = self._conv(unit, unit.layer, grid)
        else:
            inputs = tuple(self._values[key] for key in unit.inputs)
            constants = self._keep(unit.constants)
            attributes = dict(unit.attributes)
            if unit.activation != "none":
                attributes["activation"] = unit.activation
            instruction = Instruction(unit.op, inputs, grid, constants, attributes)
        self._values[unit.key] = self._emit(instruction)

    def _conv(self, unit: Unit, layer: SparseQuantLayer, grid: Grid | None) -> Instruction:
        own = grid_of(layer)
        image = self._on(unit.inputs[0], own)
        weight, attributes = _weight(unit, layer)
        tiles = (
            layer.tiles if layer.tiles is not None and layer.choice.kernel != "float32" else None
        )
        if _is_stem(weight, attributes):
            image = self._framed(image, own, attributes)
            columns = weight.shape[3]
            weight = weight.permute(0, 3, 1, 2).flatten(1, 2).unsqueeze(3).contiguous()
            attributes |= {"padding": [0, 0], "columns": columns}
            tiles = None
        elif layer.weight_values.dim() == 2 and weight[0, 0].numel() > 1:
            tiles = None  # of a flattened image: its inputs are in another order
        if tiles is None:
            dense = layer.choice.kernel == DENSE
            tiles = ops.int8_tiles(
                weight, attributes.get("groups", 1), "dense" if dense else "auto"
            )
        assert layer.input_scale is not None
        multiplier, bias = layer.weight_scale * layer.input_scale, layer.bias
        if unit.scale is not None:
            assert unit.shift is not None
            multiplier = multiplier * unit.scale
            bias = unit.shift if bias is None else bias * unit.scale + unit.shift
        vectors = [multiplier.reshape(-1)] + ([] if bias is None else [bias])
        if unit.activation != "none":
            attributes["activation"] = unit.activation
        inputs = (image, *(self._values[key] for key in unit.inputs[1:]))
        self.placed.append((unit.name, _fused(unit, grid)))
        return Instruction("conv", inputs, grid, self._keep([weight, tiles, *vectors]), attributes)

    def _framed(self, image: int, grid: Grid, attributes: dict[str, Any]) -> int:
        """The image with its zeros around it."""
        rows, columns = attributes.get("padding", [0, 0])
        if not rows and not columns:
            return image
        around = [rows, rows, columns, columns]
        return self._emit(Instruction("pad", (image,), grid, attributes={"around": around}))


def _weight(unit: Unit, layer: SparseQuantLayer) -> tuple[Tensor, dict[str, Any]]:
    """`[O, I / groups, kh, kw]`: a linear layer's taps are the pixels of what it reads."""
    weight = layer.weight_values
    if weight.dim() == 4:
        return weight, dict(unit.attributes)
    _, height, width, channels = unit.read
    if weight.shape[1] == channels:
        height = width = 1
    return weight.reshape(len(weight), -1, height, width), {}


def _is_stem(weight: Tensor, attributes: dict[str, Any]) -> bool:
    """Whether lines of the window are few enough values to be channels."""
    _, channels, _, columns = weight.shape
    plain = attributes.get("groups", 1) == 1 and attributes.get("dilation", [1, 1]) == [1, 1]
    few = channels < STEM_CHANNELS and channels * columns <= STEM_INPUTS
    return plain and few and columns > 1


def _fused(unit: Unit, grid: Grid | None) -> str:
    parts = [*unit.fused]
    if unit.activation != "none" and unit.activation not in parts:
        parts.append(unit.activation)
    return " ".join([*(f"+ {p}" for p in parts), "->", "float32" if grid is None else "u8"])


@torch.no_grad()
def build(fusion: Fusion) -> tuple[Program, list[Tensor], list[tuple[str, str]]]:
    """A program, its constants, and what each layer's call is fused with."""
    builder = Builder(fusion)
    program = builder.build()
    return program, builder.constants, builder.placed
