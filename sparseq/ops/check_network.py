"""Whether constants and inputs are those that a program takes.

Sizes that are not known yet, those of `torch.compile` and `torch.export`, are taken on trust.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparseq.ops.check import check_tensor
from sparseq.ops.check_int8 import MAX_DEPTH
from sparseq.ops.check_program import name_of
from sparseq.program import Instruction, Program, Shape, result_shape, value_shape

_RANKS = {"image": 4, "pixels": 4, "rows": 3, "vector": 2}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _known(*sizes: Any) -> bool:
    return all(isinstance(s, int) for s in sizes)


def _differ(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Whether sizes are known to differ."""
    return any(_known(x, y) and x != y for x, y in zip(a, b, strict=True))


def _check_tensor(where: str, x: Tensor, dtype: torch.dtype, device: torch.device) -> None:
    if x.dtype != dtype:
        raise TypeError(f"network: {where} must be {_name(dtype)}, got {_name(x.dtype)}")
    if x.device != device:
        raise ValueError(f"network: {where} must be on {device}, got {x.device}")


def _input_shape(where: str, form: str, x: Tensor, device: torch.device) -> Shape:
    _check_tensor(where, x, torch.float32, device)
    if x.dim() != _RANKS[form]:
        raise ValueError(
            f"network: {where} must have {_RANKS[form]} dimensions, {form}, "
            f"got shape {tuple(x.shape)}"
        )
    shape = value_shape(form, x.shape)
    if any(_known(s) and s < 1 for s in shape[1:]):
        raise ValueError(
            f"network: {where} must not be empty except in its first dimension, "
            f"got shape {tuple(x.shape)}"
        )
    return shape


def _check_vector(where: str, name: str, x: Tensor, channels: Any) -> None:
    if x.dtype != torch.float32:
        raise TypeError(f"{where}: {name} must be float32, got {_name(x.dtype)}")
    if x.dim() != 1 or _differ(x.shape, (channels,)):
        raise ValueError(
            f"{where}: {name} must have one value a channel, {channels}, got shape {tuple(x.shape)}"
        )


def _check_weight(where: str, i: Instruction, channels: Any, weight: Tensor, tiles: Tensor) -> None:
    for name, x, dtype in (("weight", weight, torch.int8), ("tiles", tiles, torch.uint8)):
        if x.dtype != dtype:
            raise TypeError(f"{where}: {name} must be {_name(dtype)}, got {_name(x.dtype)}")
    groups, columns = i.get("groups"), i.get("columns")
    shape = tuple(weight.shape)
    if len(shape) != 4 or 0 in shape or shape[0] % groups or (columns > 1 and shape[3] != 1):
        raise ValueError(
            f"{where}: weight must be [O, I / groups, kh, kw], not empty, O a multiple of groups = "
            f"{groups}, kw = 1 with columns > 1, got {shape}"
        )
    if _differ((shape[1] * groups,), (channels * columns,)):
        raise ValueError(
            f"{where}: weight must have inputs of {channels} channels of {columns} columns in "
            f"{groups} groups, got {shape}"
        )
    if weight[0].numel() > MAX_DEPTH:
        raise ValueError(
            f"{where}: weight must have at most {MAX_DEPTH} inputs an output for an exact int32 "
            f"sum, got {weight[0].numel()}"
        )
    if tiles.dim() != 1:
        raise ValueError(f"{where}: tiles must have one dimension, got shape {tuple(tiles.shape)}")


def _check_constants(where: str, i: Instruction, channels: Any, constants: list[Tensor]) -> None:
    if i.op == "conv":
        weight, tiles, *vectors = constants
        _check_weight(where, i, channels, weight, tiles)
        for name, x in zip(("multiplier", "bias"), vectors, strict=False):
            _check_vector(where, name, x, weight.shape[0])
        return
    names = ("scale", "shift") if i.op == "map" else ("weight", "bias")
    for name, x in zip(names, constants, strict=False):
        _check_vector(where, name, x, channels)


def _check_inputs(where: str, i: Instruction, inputs: list[Shape], result: Shape) -> None:
    """Sizes of the inputs beside each other, and windows of at least one pixel."""
    if i.op == "concat" and any(_differ(inputs[0][:3], s[:3]) for s in inputs[1:]):
        raise ValueError(f"{where}: inputs must agree but for their channels, got {inputs}")
    if i.op == "conv" and len(inputs) > 1 and _differ(inputs[1], result):
        raise ValueError(f"{where}: the residual must be [N, H, W, C] {result}, got {inputs[1]}")
    if i.op in ("add", "mul"):
        (n, h, w, c), (n2, h2, w2, c2) = inputs
        repeated = _known(h2, w2) and h2 == w2 == 1
        if (
            _differ((c,), (c2,))
            or (_differ((n,), (n2,)) and n2 != 1)
            or (_differ((h, w), (h2, w2)) and not repeated)
        ):
            raise ValueError(
                f"{where}: the second input must be [N, H, W, C] {inputs[0]}, or 1 in N, or in H "
                f"and W, got {inputs[1]}"
            )
    if i.op == "attention":
        _check_attention(where, i, inputs)
    narrow = i.op == "conv" and _known(inputs[0][2]) and inputs[0][2] < i.get("columns")
    if narrow or any(_known(s) and s < 1 for s in result[1:]):
        raise ValueError(f"{where}: its window must fit the padded input, got {inputs[0]}")


def _check_attention(where: str, i: Instruction, inputs: list[Shape]) -> None:
    (n, *_), (n2, *keys, _), (n3, *values, _) = inputs
    if _differ((n, n), (n2, n3)) or _differ(keys, values):
        raise ValueError(
            f"{where}: q, k and v must agree in N, and k and v in H and W, got {inputs}"
        )
    width = i.get("width")
    for name, first, shape in zip("qkv", i.get("first"), inputs, strict=True):
        if shape[3] < first + width:
            raise ValueError(
                f"{where}: {name} must have {width} channels from channel {first} on, got {shape}"
            )


def check_network(
    program: Program, constants: Sequence[Tensor], inputs: Sequence[Tensor]
) -> list[Shape]:
    """Check the tensors of a call of a well-formed program; returns the shape of every value."""
    if len(inputs) != len(program.inputs):
        raise ValueError(f"network: inputs must be {len(program.inputs)}, got {len(inputs)}")
    for name, tensors in (("inputs", inputs), ("constants", constants)):
        for n, x in enumerate(tensors):
            check_tensor("network", f"{name}[{n}]", x)
    device = inputs[0].device if inputs else torch.device("cpu")
    for n, x in enumerate(constants):
        _check_tensor(f"constants[{n}]", x, x.dtype, device)
        if not x.is_contiguous():
            raise ValueError(f"network: constants[{n}] must be contiguous, got {x.stride()}")
    found = [
        _input_shape(f"inputs[{n}]", form, x, device)
        for n, (form, x) in enumerate(zip(program.inputs, inputs, strict=True))
    ]
    for n, i in enumerate(program.instructions):
        where = name_of(n, i)
        if max(i.constants, default=-1) >= len(constants):
            raise ValueError(
                f"{where}: constants must be below {len(constants)}, the number given, "
                f"got {max(i.constants)}"
            )
        own, values = [constants[c] for c in i.constants], [found[v] for v in i.inputs]
        _check_constants(where, i, values[0][3], own)
        result = result_shape(i, values, own[0].shape if i.op == "conv" else None)
        _check_inputs(where, i, values, result)
        found.append(result)
    for n, (value, form) in enumerate(program.outputs):
        if form == "vector" and _differ(found[value][1:3], (1, 1)):
            raise ValueError(
                f"network: output {n} must have H = W = 1 to be a vector, got {found[value]}"
            )
    return found
