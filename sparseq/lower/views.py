"""What moves or drops no element: other forms of the same value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from sparseq.lower.forms import FORMS, axis, permuted, reshaped, sizes
from sparseq.lower.step import ALIAS, Call, Operand, Refused, Step


def _alias(x: Operand, form: str | None) -> Step:
    if form is None:
        raise Refused("it moves elements")
    return Step(ALIAS, (x,), form, x.shape)


def _identity(call: Call) -> Step:
    x = call.operand(call.args[0])
    return _alias(x, x.form)


def _dropout(call: Call) -> Step:
    """In evaluation mode the identity."""
    if call.module is None:
        if call.bind("input", p=0.5, training=True, inplace=False)["training"]:
            raise Refused("it drops elements")
    return _identity(call)


def _stochastic_depth(call: Call) -> Step:
    if call.bind("input", "p", "mode", training=True)["training"]:
        raise Refused("it drops elements")
    return _identity(call)


def _numbers(values: Any) -> list[Any]:
    found = list(values[0]) if len(values) == 1 and isinstance(values[0], (tuple, list)) else values
    return list(found)


def _permute(call: Call) -> Step:
    given = dict(call.kwargs)
    dims = given.get("dims", _numbers(call.args[1:]))
    x = call.operand(call.args[0])
    if not all(isinstance(d, int) for d in dims):
        raise Refused("its dimensions are not constant")
    return _alias(x, permuted(x.form, [d % len(x.form) for d in dims]))


def _transpose(call: Call) -> Step:
    given = call.bind("input", "dim0", "dim1")
    x = call.operand(given["input"])
    order = list(range(len(x.form)))
    a, b = given["dim0"], given["dim1"]
    order[a], order[b] = order[b], order[a]
    return _alias(x, permuted(x.form, order))


def _flatten(call: Call) -> Step:
    first = 1 if call.module is not None else 0
    given = call.bind("input", start_dim=first, end_dim=-1)
    x = call.operand(given["input"])
    rank = len(x.form)
    start, end = given["start_dim"] % rank, given["end_dim"] % rank
    if start == 0 or end < start:
        raise Refused("it joins images")
    shape = sizes(x.form, x.shape)
    joined = [-1, *shape[1:start], -2, *shape[end + 1 :]]
    product = 1
    for size in shape[start : end + 1]:
        product *= size
    return _alias(x, reshaped(x.form, x.shape, [product if s == -2 else s for s in joined]))


def _reshape(call: Call) -> Step:
    wanted = call.kwargs.get("shape") or _numbers(call.args[1:])
    x = call.operand(call.args[0])
    return _alias(x, reshaped(x.form, x.shape, list(wanted)))


def _squeeze(call: Call) -> Step:
    given = call.bind("input", "dim")
    x, dims = call.operand(given["input"]), given["dim"]
    dims = [dims] if isinstance(dims, int) else list(dims)
    drop = {axis(x.form, d) for d in dims}
    if not drop <= set("HWL") or any(sizes(x.form, x.shape)[d] != 1 for d in dims):
        raise Refused("it drops other dimensions than single pixels")
    form = "".join(letter for letter in x.form if letter not in drop)
    form = form.replace("H", "L").replace("W", "L")
    return _alias(x, form if form in FORMS else None)


def _getitem(call: Call) -> Step:
    """`x[:, :, 0, 0]` of an image of one pixel; all else picks."""
    x, index = call.args
    at = call.operand(x)
    everything = slice(None)
    picked = tuple(everything if letter in "NC" else 0 for letter in at.form)
    if isinstance(index, fx.Node) or index != picked or at.shape[1] * at.shape[2] != 1:
        raise Refused("it picks elements")
    return _alias(at, "NC" if len(at.form) > 2 else at.form)


RULES: dict[str, Callable[[Call], Step]] = {
    **dict.fromkeys(("Identity", "contiguous", "clone", "detach", "float"), _identity),
    **dict.fromkeys(("Dropout", "Dropout1d", "Dropout2d", "dropout", "dropout2d"), _dropout),
    **dict.fromkeys(("transpose", "swapaxes"), _transpose),
    **dict.fromkeys(("flatten", "Flatten"), _flatten),
    **dict.fromkeys(("reshape", "view"), _reshape),
    **{"stochastic_depth": _stochastic_depth, "permute": _permute},
    **{"squeeze": _squeeze, "getitem": _getitem},
}
