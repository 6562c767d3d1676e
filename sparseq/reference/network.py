"""Programs (`sparseq.program`), one instruction after the other: defined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from sparseq.program import (
    OPS,
    Grid,
    Instruction,
    Program,
    result_shape,
    tensor_shape,
    value_shape,
)
from sparseq.reference.affine import dequantize, quantize
from sparseq.reference.functions import activate, exp, fma
from sparseq.reference.gemm import int8_conv2d

_LANES = 16


class Value(NamedTuple):
    """`[N, H, W, C]`: uint8 on a grid, or float32."""

    data: Tensor
    grid: Grid | None

    def real(self) -> Tensor:
        """`float(q - zero_point) * scale`, or the float32 that it is."""
        if self.grid is None:
            return self.data
        return dequantize(self.data, *_parameters(self.grid))

    def steps(self) -> Tensor:
        """`q - zero_point`, int64."""
        assert self.grid is not None
        return self.data.long() - self.grid.zero_point


def _parameters(grid: Grid) -> tuple[Tensor, Tensor]:
    return torch.tensor(grid.scale), torch.tensor(grid.zero_point, dtype=torch.int32)


def stored(y: Tensor, grid: Grid | None) -> Value:
    """A float32 result as a value: `clamp(rne(y / scale) + zero_point, low, high)` on a grid."""
    if grid is None:
        return Value(y, None)
    return Value(quantize(y, *_parameters(grid), grid.low, grid.high), grid)


def _lane_sum(x: Tensor) -> Tensor:
    """Over the last dimension, kept as 1: sixteen lanes in order, then halves of them."""
    rows = functional.pad(x, (0, -x.shape[-1] % _LANES)).unflatten(-1, (-1, _LANES))
    total = torch.zeros_like(rows[..., 0, :])
    for row in rows.unbind(-2):
        total = total + row
    while total.shape[-1] > 1:
        low, high = total.chunk(2, -1)
        total = low + high
    return total


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Over the last dimension, of C values: `(d * (1 / sqrt(variance + eps))) * weight + bias`.

    `mean = sum(x) / C`, `d = x - mean`, `variance = sum(d d) / C`, all float32. A sum runs in
    sixteen lanes: lane l adds the elements l, l + 16, ... in order, from 0; then lanes l and l + 8
    are added, l and l + 4, l + 2, l + 1.

    Reference:
        Ba et al. 2016, Layer Normalization, equation 4.
    """
    d = x - _lane_sum(x) / x.shape[-1]
    variance = _lane_sum(d * d) / x.shape[-1]
    # torch's float32 sqrt is not always the nearest; float64's, rounded, is
    y = d * (1.0 / (variance + torch.tensor(eps)).double().sqrt().float())
    return y if weight is None or bias is None else y * weight + bias


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool = False) -> Tensor:
    """`[..., L, d]`, `[..., S, d]` and `[..., S, e]` to `[..., L, e]`: softmax(scale q k^T) v.

    `s = scale * sum_d q k`, `p = exp(s - max s)`, `y = (sum_j p v) * (1 / sum_j p)`, all float32
    and summed in order from 0; a product and what it is added to are rounded once. Causal: query i
    looks at keys j <= i.

    Reference:
        Vaswani et al. 2017, equation 1.
    """
    scores = q.new_zeros(*q.shape[:-1], k.shape[-2])
    for d in range(q.shape[-1]):
        scores = fma(q[..., d, None], k[..., None, :, d], scores)
    scores = scores * torch.tensor(scale)
    seen = torch.ones(scores.shape[-2:], dtype=torch.bool)
    if causal:
        seen = seen.tril()
    most = scores.masked_fill(~seen, -torch.inf).amax(-1, keepdim=True)
    weights = exp(scores - most).masked_fill(~seen, 0.0)
    total = torch.zeros_like(most)
    y = q.new_zeros(*q.shape[:-1], v.shape[-1])
    for j in range(k.shape[-2]):
        total = total + weights[..., j, None]
        y = torch.where(seen[:, j, None], fma(weights[..., j, None], v[..., None, j, :], y), y)
    return y * (1.0 / total)


def _attention(i: Instruction, inputs: list[Value]) -> Tensor:
    heads, width = i.get("heads"), i.get("width")
    q, k, v = (
        x.data[..., first : first + width].flatten(1, 2).unflatten(-1, (heads, -1)).transpose(1, 2)
        for x, first in zip(inputs, i.get("first"), strict=True)
    )
    y = attention(q, k, v, i.get("scale"), i.get("causal"))
    return y.transpose(1, 2).reshape(*inputs[0].data.shape[:3], width)


class _Axis(NamedTuple):
    """Windows along height or width: window i's tap k reads pixels[i, k] where present."""

    pixels: Tensor
    present: Tensor
    padded: Tensor  # [windows]: the window's pixels, those of the padding included

    @classmethod
    def regular(
        cls, size: int, count: int, kernel: int, stride: int, padding: int, dilation: int
    ) -> _Axis:
        start = torch.arange(count) * stride - padding
        pixels = start[:, None] + torch.arange(kernel) * dilation
        inside = (start + kernel).clamp(max=size + padding) - start
        return cls(pixels.clamp(0, size - 1), (pixels >= 0) & (pixels < size), inside)

    @classmethod
    def adaptive(cls, size: int, count: int) -> _Axis:
        i = torch.arange(count)
        start, stop = i * size // count, -((i + 1) * -size // count)
        pixels = start[:, None] + torch.arange(int((stop - start).max()))
        return cls(pixels.clamp(0, size - 1), pixels < stop[:, None], stop - start)


def _axes(i: Instruction, shape: Sequence[int], result: Sequence[int]) -> list[_Axis]:
    sizes = [(shape[d], result[d]) for d in (1, 2)]
    if i.op == "adaptive":
        return [_Axis.adaptive(*s) for s in sizes]
    kernel, stride, padding = (i.get(name) for name in ("kernel", "stride", "padding"))
    dilation = i.get("dilation") if i.op == "max_pool" else (1, 1)
    return [
        _Axis.regular(*s, *of_axis)
        for s, *of_axis in zip(sizes, kernel, stride, padding, dilation, strict=True)
    ]


def _pool(i: Instruction, x: Value) -> Tensor:
    """Window after window's tap in row-major order."""
    n, h, w, c = x.data.shape
    rows, columns = _axes(i, (n, h, w, c), result_shape(i, [(n, h, w, c)], None))
    largest = i.op == "max_pool"
    source = x.real() if largest or x.grid is None else x.steps()
    shape = (n, len(rows.pixels), len(columns.pixels), c)
    y = source.new_full(shape, -torch.inf) if largest else source.new_zeros(shape)
    for a in range(rows.pixels.shape[1]):
        for b in range(columns.pixels.shape[1]):
            tap = source[:, rows.pixels[:, a]][:, :, columns.pixels[:, b]]
            present = (rows.present[:, a, None] & columns.present[:, b])[:, :, None]
            taken = (tap > y) | tap.isnan() if largest else True
            y = torch.where(present & taken, tap if largest else y + tap, y)
    if largest:
        return y
    if x.grid is not None:
        y = y.float() * torch.tensor(x.grid.scale)
    if i.op == "avg_pool" and i.get("divisor"):
        return y / i.get("divisor")
    if i.op == "avg_pool" and i.get("include_pad"):
        count = rows.padded[:, None] * columns.padded
    else:
        count = rows.present.sum(1)[:, None] * columns.present.sum(1)
    return y / count[:, :, None].float()


def _convolution(
    i: Instruction, x: Value, residual: Value | None, constants: list[Tensor]
) -> Tensor:
    """`float(sum (q - z) w) * multiplier + bias + real(residual)`."""
    assert x.grid is not None
    weight, _, multiplier, *bias = constants
    width = x.data.shape[2] - i.get("columns") + 1
    pixels = torch.cat([x.data[:, :, k : k + width] for k in range(i.get("columns"))], -1)
    y = int8_conv2d(
        *(pixels.movedim(-1, 1), weight, multiplier, _parameters(x.grid)[1], None),
        *(bias[0] if bias else None, i.get("stride"), i.get("padding"), i.get("dilation")),
        i.get("groups"),
        residual=None if residual is None else residual.real().movedim(-1, 1),
    )
    return y.movedim(1, -1)


def _result(i: Instruction, inputs: list[Value], constants: list[Tensor]) -> Tensor:
    """What the instruction computes, float32, before its activation."""
    x = inputs[0]
    if i.op == "conv":
        return _convolution(i, x, inputs[1] if len(inputs) > 1 else None, constants)
    if i.op in ("max_pool", "avg_pool", "adaptive"):
        return _pool(i, x)
    if i.op == "layer_norm":
        weight, bias = constants or (None, None)
        return layer_norm(x.real(), weight, bias, i.get("eps"))
    if i.op == "attention":
        return _attention(i, inputs)
    if i.op == "map":
        return x.real() * constants[0] + constants[1] if constants else x.real()
    if i.op == "concat":
        return torch.cat([v.real() for v in inputs], -1)
    if i.op == "pad":
        top, bottom, left, right = i.get("around")
        return functional.pad(x.real(), (0, 0, left, right, top, bottom))
    y = inputs[1].real()
    return x.real() + y if i.op == "add" else x.real() * y


def _value(form: str, x: Tensor) -> Tensor:
    return (x.movedim(1, -1) if form == "image" else x).reshape(value_shape(form, x.shape))


def _tensor(form: str, y: Tensor) -> Tensor:
    if form == "image":
        return y.movedim(-1, 1).contiguous(memory_format=torch.channels_last)
    n, h, w, c = y.shape
    return y.reshape(tensor_shape(form, (n, h, w, c))).contiguous()


def network(program: str, constants: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """Every instruction as `sparseq.program` defines it; each step rounds to float32 once."""
    parsed = Program.from_json(program)
    forms = zip(parsed.inputs, inputs, strict=True)
    values = [Value(_value(form, x.float()), None) for form, x in forms]
    for i in parsed.instructions:
        y = _result(i, [values[v] for v in i.inputs], [constants[c] for c in i.constants])
        act = i.get("activation") if "activation" in OPS[i.op][2] else "none"
        values.append(stored(activate(y, act), i.grid))
    return [_tensor(form, values[v].real()) for v, form in parsed.outputs]
