"""Activations, sums and products as steps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sparseq.lower.forms import PORTS
from sparseq.lower.step import Call, Operand, Refused, Step

_MODULES = {
    **{"ReLU": "relu", "ReLU6": "relu6", "Hardswish": "hardswish", "Hardsigmoid": "hardsigmoid"},
    **{"Sigmoid": "sigmoid", "SiLU": "silu", "Tanh": "tanh", "GELU": "gelu"},
}


def _activation(call: Call) -> Step:
    name = _MODULES.get(call.name, call.name)
    x = call.operand(call.args[0])
    if name == "gelu":
        how = getattr(call.module, "approximate", call.kwargs.get("approximate", "none"))
        name = "gelu_tanh" if how == "tanh" else "gelu"
    return Step("map", (_exportable(x),), x.form, x.shape, {"activation": name})


def _clip(call: Call) -> Step:
    """`clamp(x, 0, 6)`, nn.Hardtanh's too: what a ReLU6 is."""
    names = ("min_val", "max_val") if call.name == "Hardtanh" else ("min", "max")
    limits = call.bind("input", **dict.fromkeys(names))
    low, high = (limits[name] for name in names)
    name = {(0, 6): "relu6", (0, None): "relu"}.get((low, high))
    if name is None:
        raise Refused(f"no activation cuts to [{low}, {high}]")
    x = call.operand(limits["input"])
    return Step("map", (_exportable(x),), x.form, x.shape, {"activation": name})


def _exportable(x: Operand) -> Operand:
    if x.form not in PORTS:
        raise Refused("it reads channels that are not the innermost dimension")
    return x


def _per_channel(value: Tensor, x: Operand) -> Tensor:
    """A constant as one value a channel."""
    channels = x.shape[3]
    if value.numel() == 1 and value.dim() <= len(x.form):
        return value.reshape(1).float().expand(channels)
    wanted = [channels if letter == "C" else 1 for letter in x.form][-value.dim() :]
    if value.numel() != channels or list(value.shape) != wanted or "C" not in x.form:
        raise Refused("a constant that is not one value a channel")
    return value.reshape(channels).float()


def _affine(call: Call, x: Operand, scale: Tensor | None, shift: Tensor | None) -> Step:
    _exportable(x)
    ones, zeros = torch.ones(x.shape[3]), torch.zeros(x.shape[3])
    constants = (
        (ones if scale is None else _per_channel(scale, x)).contiguous(),
        (zeros if shift is None else _per_channel(shift, x)).contiguous(),
    )
    return Step("map", (x,), x.form, x.shape, constants=constants)


def _binary(call: Call) -> Step:
    args = call.args
    if len(args) != 2 or call.kwargs:
        raise Refused("its arguments are not known")
    name = call.name.removeprefix("i") if call.name in ("iadd", "imul") else call.name
    name = {"isub": "sub", "itruediv": "truediv", "div": "truediv"}.get(name, name)
    name = {"multiply": "mul", "subtract": "sub"}.get(name, name)
    first, second = (call.constant(a) for a in args)
    if first is not None and second is None and name in ("add", "mul", "sub"):
        x = call.operand(args[1])
        if name == "sub":
            return _affine(call, x, torch.tensor(-1.0), first)
        return _affine(call, x, first, None) if name == "mul" else _affine(call, x, None, first)
    if second is not None and first is None:
        x = call.operand(args[0])
        if name in ("mul", "truediv"):
            return _affine(call, x, second if name == "mul" else 1.0 / second, None)
        return _affine(call, x, None, second if name == "add" else -second)
    if name not in ("add", "mul"):
        raise Refused("a program has no such instruction")
    a, b = (call.operand(arg) for arg in args)
    if a.inside != b.inside or a.form != b.form:  # who comes from outside adapts
        form = a.form if a.inside else b.form
        a, b = call.operand(args[0], form), call.operand(args[1], form)
    if _size(b) > _size(a):
        a, b = b, a
    return Step(name, (_exportable(a), _repeated(a, b)), a.form, a.shape)


def _size(x: Operand) -> int:
    n, h, w, c = x.shape
    return int(n * h * w * c)


def _repeated(a: Operand, b: Operand) -> Operand:
    """B, if it has a's shape, or one pixel for all of an image's."""
    if a.shape != b.shape and b.shape != (a.shape[0], 1, 1, a.shape[3]):
        raise Refused("its operands differ in shape")
    return b


_NAMES = ("relu", "relu6", "hardswish", "hardsigmoid", "sigmoid", "silu", "tanh", "gelu")
_BINARY = ("add", "sub", "mul", "truediv", "div", "iadd", "isub", "imul", "itruediv", "multiply",
           "subtract")  # fmt: skip
RULES: dict[str, Callable[[Call], Step]] = {
    **dict.fromkeys((*_MODULES, *_NAMES), _activation),
    **dict.fromkeys(("clamp", "clip", "hardtanh", "Hardtanh"), _clip),
    **dict.fromkeys(_BINARY, _binary),
}
