"""Programs: what `sparseq::network` runs, a network's layers as one list of instructions.

A value is `[N, H, W, C]`, channels innermost, float32 or uint8 on a grid; rows of a transformer
have H = 1, vectors H = W = 1. Values are numbered: the program's inputs first, then one for each
instruction. A program knows no sizes: they follow from its inputs' at each call.

With `real(x)` the float32 of a value (`float(q - zero_point) * scale` on a grid) and `stored(y)`
float32, or on a grid `clamp(rne(y / scale) + zero_point, low, high)` with NaN -> zero_point, every
step in float32 and rounded once:

map         `stored(act(real(x) * scale[c] + shift[c]))`, constants scale and shift or neither
conv        `stored(act((float(sum (q - z) w) * multiplier[o] + bias[o]) + real(residual)))`;
            constants weight int8 [O, I / groups, kh, kw], its tiles, multiplier, and bias or
            nothing; padding is real 0. With columns = k a pixel's channels are those of itself and
            the k - 1 to its right, pixel by pixel: I = k C, kw = 1, and the width shrinks by k - 1
max_pool    `stored(max real(x))` of each window, padding left out, NaN kept
avg_pool    `stored(sum / count)`: the sum is `float(sum (q - z)) * scale` on a grid, else float32
            sums in the window's row-major order; count the window's pixels, with include_pad those
            of the padding too, or divisor
adaptive    avg_pool of windows from `floor(i H / h)` to `ceil((i + 1) H / h)`
add, mul    `stored(act(real(x) + real(y)))`; of size 1 in N or in H and W, y is repeated
concat      `stored(real(x))` of all inputs, along C
pad         `stored(real(x))` with real 0 around it: top, bottom, left, right
layer_norm  over C, see `sparseq.reference`: `stored(act(d * rsqrt * weight[c] + bias[c]))`,
            constants weight and bias or neither
attention   of heads, each `width / heads` channels of q, k and v, from their channel first[n] on:
            softmax(scale q k^T) v, heads side by side, see `sparseq.reference`; causal: keys up to
            the query's own number. Its inputs are float32

Reference:
    Jacob et al. 2018, section 2.4 (one rescaling from the sum to the next layer's integers).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

ACTIVATIONS = (
    *("none", "relu", "relu6", "hardswish"),  # in the order of csrc/core/epilogue.h
    *("hardsigmoid", "sigmoid", "silu", "tanh", "gelu", "gelu_tanh"),
)
# how a tensor of a call is a value: image [N, C, H, W], pixels [N, H, W, C], rows [N, H W, C],
# vector [N, C]
FORMS = ("image", "pixels", "rows", "vector")
VERSION = 1
# by op: how many inputs and constants it may have, and its attributes with their defaults
_WINDOW: dict[str, Any] = {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1]}
_ACT = {"activation": "none"}
OPS: dict[str, tuple[tuple[int, int], tuple[int, ...], dict[str, Any]]] = {
    "map": ((1, 1), (0, 2), _ACT),
    "conv": ((1, 2), (3, 4), {**_WINDOW, "groups": 1, "columns": 1, **_ACT}),
    "max_pool": ((1, 1), (0,), {"kernel": None, **_WINDOW, "ceil": False}),
    "avg_pool": (
        (1, 1),
        (0,),
        {
            **{"kernel": None, "stride": [1, 1], "padding": [0, 0], "ceil": False},
            **{"include_pad": True, "divisor": 0},
        },
    ),
    "adaptive": ((1, 1), (0,), {"size": None}),
    "add": ((2, 2), (0,), _ACT),
    "mul": ((2, 2), (0,), _ACT),
    "concat": ((1, 1 << 16), (0,), {}),
    "pad": ((1, 1), (0,), {"around": None}),
    "layer_norm": ((1, 1), (0, 2), {"eps": 1e-5, **_ACT}),
    "attention": (
        (3, 3),
        (0,),
        {"heads": None, "width": None, "scale": None, "causal": False, "first": [0, 0, 0]},
    ),
}
Shape = tuple[Any, Any, Any, Any]  # N, H, W, C: ints, or torch's symbolic ones


@dataclass(frozen=True)
class Grid:
    """Of uint8 values: `real = (q - zero_point) * scale`, q in [low, high]; scale a float32."""

    scale: float
    zero_point: int = 0
    low: int = 0
    high: int = 255


@dataclass(frozen=True)
class Instruction:
    """One op: the values it reads, its constants' numbers, its result's grid (None: float32)."""

    op: str
    inputs: tuple[int, ...]
    grid: Grid | None = None
    constants: tuple[int, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)

    def get(self, name: str) -> Any:
        """An attribute, or its default."""
        return self.attributes.get(name, OPS[self.op][2][name])


@dataclass(frozen=True)
class Program:
    """Instructions, the forms of the float32 inputs, and (value, form) of each output.

    Outputs are float32: a value on a grid leaves the program as its real.
    """

    inputs: tuple[str, ...]
    instructions: tuple[Instruction, ...]
    outputs: tuple[tuple[int, str], ...]

    def grids(self) -> list[Grid | None]:
        """Of every value."""
        return [None] * len(self.inputs) + [i.grid for i in self.instructions]

    def to_json(self) -> str:
        """The text that the op takes; attributes of default value are left out."""
        rows = []
        for i in self.instructions:
            row: dict[str, Any] = {"op": i.op, "inputs": list(i.inputs)}
            if i.grid is not None:
                row["grid"] = [i.grid.scale, i.grid.zero_point, i.grid.low, i.grid.high]
            if i.constants:
                row["constants"] = list(i.constants)
            defaults = OPS[i.op][2]
            rows.append(row | {k: v for k, v in i.attributes.items() if v != defaults[k]})
        whole = {
            "version": VERSION,
            "inputs": list(self.inputs),
            "instructions": rows,
            "outputs": [list(o) for o in self.outputs],
        }
        return json.dumps(whole, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Program:
        """Back from `to_json`; not checked, see `sparseq.ops.network`."""
        whole = json.loads(text)
        instructions = []
        for row in whole["instructions"]:
            grid = row.get("grid")
            known = {"op", "inputs", "grid", "constants"}
            instructions.append(
                Instruction(
                    row["op"],
                    tuple(row["inputs"]),
                    None if grid is None else Grid(*grid),
                    tuple(row.get("constants", ())),
                    {k: v for k, v in row.items() if k not in known},
                )
            )
        outputs = tuple((value, form) for value, form in whole["outputs"])
        return cls(tuple(whole["inputs"]), tuple(instructions), outputs)


def value_shape(form: str, shape: Sequence[Any]) -> Shape:
    """`[N, H, W, C]` of a tensor in this form."""
    s = tuple(shape)
    if form == "image":
        return s[0], s[2], s[3], s[1]
    if form == "pixels":
        return s[0], s[1], s[2], s[3]
    return (s[0], 1, s[1], s[2]) if form == "rows" else (s[0], 1, 1, s[1])


def tensor_shape(form: str, shape: Shape) -> tuple[Any, ...]:
    """The tensor's shape of a value in this form."""
    n, h, w, c = shape
    if form == "image":
        return n, c, h, w
    if form == "pixels":
        return n, h, w, c
    return (n, h * w, c) if form == "rows" else (n, c)


def windows(size: Any, kernel: int, stride: int, padding: int, dilation: int, ceil: bool) -> Any:
    """How many windows fit, as `torch.nn.functional.max_pool2d` counts them."""
    span = size + 2 * padding - dilation * (kernel - 1) - 1
    if not ceil:
        return span // stride + 1
    count = (span + stride - 1) // stride + 1
    # no window begins in the padding behind the image
    return count - 1 if (count - 1) * stride >= size + padding else count


def result_shape(i: Instruction, inputs: Sequence[Shape], weight: Sequence[int] | None) -> Shape:
    """What an instruction makes of values of these shapes; weight: of a conv's first constant."""
    n, h, w, c = inputs[0]
    if i.op == "concat":
        return n, h, w, sum(s[3] for s in inputs)
    if i.op == "pad":
        top, bottom, left, right = i.get("around")
        return n, h + top + bottom, w + left + right, c
    if i.op == "adaptive":
        return n, *i.get("size"), c
    if i.op == "attention":
        return n, h, w, i.get("width")
    if i.op not in ("conv", "max_pool", "avg_pool"):
        return n, h, w, c
    kernel, ceil = (weight[2:], False) if weight is not None else (i.get("kernel"), i.get("ceil"))
    if i.op == "conv":
        w = w - (i.get("columns") - 1)
        c = weight[0] if weight is not None else c
    dilation = [1, 1] if i.op == "avg_pool" else i.get("dilation")
    rows, columns = (
        windows(size, kernel[d], i.get("stride")[d], i.get("padding")[d], dilation[d], ceil)
        for d, size in enumerate((h, w))
    )
    return n, rows, columns, c


def shapes(
    program: Program, inputs: Sequence[Sequence[Any]], constants: Sequence[Sequence[int]]
) -> list[Shape]:
    """The shape of every value, from the shapes of the call's tensors."""
    found = [value_shape(f, s) for f, s in zip(program.inputs, inputs, strict=True)]
    for i in program.instructions:
        weight = constants[i.constants[0]] if i.op == "conv" else None
        found.append(result_shape(i, [found[v] for v in i.inputs], weight))
    return found
