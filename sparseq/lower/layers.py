"""Integer layers and norms as steps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from sparseq.choice import SPARSE
from sparseq.lower.forms import CHANNELS_LAST, FLAT, IMAGE, PIXELS, ROWS, VECTOR
from sparseq.lower.step import Call, Operand, Refused, Step
from sparseq.nn import (
    SparseQuantConv2d,
    SparseQuantLayer,
    SparseQuantLinear,
)
from sparseq.nn.batch_norm import affine_of
from sparseq.program import windows


def refusal(layer: SparseQuantLayer) -> str | None:
    """Why a layer is no instruction, or None."""
    why = layer.why_float()
    if why is not None:
        return why
    if not isinstance(layer, (SparseQuantConv2d, SparseQuantLinear)):
        return f"a program has no {layer.float_type.__name__}"
    if layer.input_scale is None:
        return f"its input has no fixed grid, but {layer.own_range}"
    if layer.weight_zero_point is not None:
        return "its weight has zero points"
    if layer.weight_values.dtype != torch.int8:
        return "its weight is unsigned"
    return None if layer.weight_values.numel() else "its weight is empty"


def read_layer(call: Call) -> Step:
    """A convolution, or a linear layer: one of a single pixel, or of a whole flattened image."""
    layer = call.module
    assert isinstance(layer, SparseQuantLayer)
    why = refusal(layer)
    if why is not None:
        raise Refused(why)
    x, outputs = call.args[0], layer.weight_values.shape[0]
    if isinstance(layer, SparseQuantLinear):
        return _linear(call, layer, call.operand(x), outputs)
    at = call.operand(x, IMAGE)
    n, h, w, _ = at.shape
    given = layer.arguments
    rows, columns = (
        windows(size, kernel, s, p, d, False)
        for size, kernel, s, p, d in zip(
            (h, w),
            layer.weight_values.shape[2:],
            *(given["stride"], given["padding"], given["dilation"]),
            strict=True,
        )
    )
    shape = (n, rows, columns, outputs)
    return Step("conv", (at,), IMAGE, shape, dict(given), layer=layer, name=call.name)


def _linear(call: Call, layer: SparseQuantLinear, x: Operand, outputs: int) -> Step:
    if x.form == FLAT:
        if layer.choice.kernel == SPARSE:  # 2:4 runs along the flattened pixels
            x = call.operand(x.node, VECTOR)
        else:
            shape = (x.shape[0], 1, 1, outputs)
            return Step("conv", (x,), VECTOR, shape, {}, layer=layer, name=call.name)
    if x.form not in (VECTOR, ROWS, PIXELS):
        x = call.operand(x.node, CHANNELS_LAST[len(x.form)])
    shape = (*x.shape[:3], outputs)
    return Step("conv", (x,), x.form, shape, {}, layer=layer, name=call.name)


def _batch_norm(call: Call) -> Step:
    norm = call.module
    assert isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d))
    if norm.running_mean is None:
        raise Refused("it has no running statistics")
    form = IMAGE if isinstance(norm, nn.BatchNorm2d) else VECTOR
    x = call.operand(call.args[0], form)
    return Step("map", (x,), form, x.shape, constants=affine_of(norm))


def _layer_norm(call: Call) -> Step:
    given = call.bind("input", "normalized_shape", weight=None, bias=None, eps=1e-5)
    x = call.operand(given["input"])
    if x.form not in (VECTOR, ROWS, PIXELS):
        x = call.operand(x.node, CHANNELS_LAST[len(x.form)])
    channels = x.shape[3]
    if tuple(given["normalized_shape"]) != (channels,):
        raise Refused("it normalises more than the channels")
    parts = []
    for name, usual in (("weight", 1.0), ("bias", 0.0)):
        value = given[name]
        if value is not None and not isinstance(value, torch.Tensor):
            value = call.constant(value)
            if value is None:
                raise Refused(f"its {name} is not constant")
        parts.append(torch.full((channels,), usual) if value is None else value.detach().float())
    plain = given["weight"] is None and given["bias"] is None
    constants = () if plain else tuple(p.contiguous() for p in parts)
    attributes = {"eps": float(given["eps"])}
    return Step("layer_norm", (x,), x.form, x.shape, attributes, constants)


RULES: dict[str, Callable[[Call], Step]] = {
    "BatchNorm1d": _batch_norm,
    "BatchNorm2d": _batch_norm,
    "LayerNorm": _layer_norm,
    "layer_norm": _layer_norm,
}
