"""softmax(scale q k^T) v over heads as one step, whichever views cut the heads and join them again.

The views are run on memory without contents: where they move nothing, strides tell which channels
each head reads and writes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from sparseq.lower.forms import ROWS, is_batch
from sparseq.lower.step import Call, Operand, Refused, Step

_CUTS = {"chunk", "split", "unbind", "tensor_split"}
_VIEWS = {
    *("transpose", "swapaxes", "permute", "movedim", "view", "reshape", "flatten", "unflatten"),
    *("getitem", "select", "squeeze", "unsqueeze", *_CUTS),
}
_SAME = {"contiguous", "clone", "detach", "float", "dropout", "Dropout", "Identity"}
_TIMES, _BY = {"mul", "multiply"}, {"truediv", "div"}
_SDPA = "scaled_dot_product_attention"


class _Heads(NamedTuple):
    """A factor of the products: the rows that hold it, and which of their channels.

    `[N, heads, length, depth]` are channels `first + head * depth + d` of rows.
    """

    rows: Operand
    first: int
    heads: int
    depth: int


class _Found(NamedTuple):
    q: _Heads
    k: _Heads
    v: _Heads
    scale: float
    causal: bool


def _name(node: fx.Node, call: Call) -> str:
    """A node's name; "" of a function that drops elements."""
    name = call.name_of(node)
    drops = name == "dropout" and (*node.args[2:3], node.kwargs.get("training", True))[0]
    return "" if drops else name


def _is_view(node: Any, call: Call) -> bool:
    return isinstance(node, fx.Node) and bool(node.args) and _name(node, call) in _VIEWS | _SAME


def _source(node: Any, call: Call) -> fx.Node:
    """What a chain of views begins with."""
    while _is_view(node, call):
        node = node.args[0]
    if not isinstance(node, fx.Node):
        raise Refused("it reads no tensor")
    return node


def _number(value: Any, batch: int) -> Any:
    """An argument in a call with so many images."""
    if isinstance(value, (tuple, list)):
        return type(value)(_number(v, batch) for v in value)
    if not isinstance(value, fx.Node):
        return value
    if is_batch(value):
        return batch
    if "known" not in value.meta:
        raise Refused("its sizes are not constant")
    return value.meta["known"]


def _viewed(node: fx.Node, source: fx.Node, memory: Tensor, call: Call) -> Any:
    """What the chain from source to node makes of memory; Refused unless all are views of it."""
    if node is source:
        return memory
    assert isinstance(node.args[0], fx.Node)
    x, name = _viewed(node.args[0], source, memory, call), _name(node, call)
    if name in _SAME:
        return x
    batch = memory.shape[0]
    args = tuple(_number(a, batch) for a in node.args[1:])
    kwargs = {key: _number(a, batch) for key, a in node.kwargs.items()}
    try:
        y = x[args[0]] if name == "getitem" else getattr(x, name)(*args, **kwargs)
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        raise Refused("its heads are cut for one batch size") from error
    storage = memory.untyped_storage().data_ptr()
    if isinstance(y, Tensor) and y.untyped_storage().data_ptr() != storage:
        raise Refused("its heads are copied")
    return y


def _another(batch: int) -> int:
    """A batch of several, so that views made for this one only are seen."""
    return 3 if batch == 2 else 2


def _laid(x: Tensor, *strides: int) -> bool:
    """Whether dimensions of more than one have these strides."""
    return all(n == 1 or s == w for n, s, w in zip(x.shape, x.stride(), strides, strict=True))


def _heads(node: Any, call: Call, turned: bool = False) -> _Heads:
    """A factor's layout; turned: its last two dimensions the other way round."""
    source = _source(node, call)
    rows = call.operand(source, ROWS)
    n, _, length, channels = rows.shape
    batch = _another(n)
    memory = torch.empty(batch, length, channels)
    x = _viewed(node, source, memory, call)
    if not isinstance(x, Tensor) or x.dim() not in (3, 4):
        raise Refused("its factors have other dimensions than heads of rows")
    x = x.transpose(-1, -2) if turned else x
    x = x.unsqueeze(1) if x.dim() == 3 else x
    _, heads, _, depth = x.shape
    first = int(x.storage_offset())
    fits = x.shape == (batch, heads, length, depth) and first + heads * depth <= channels
    if not fits or not _laid(x, length * channels, depth, channels, 1):
        raise Refused("its heads are no channels side by side")
    return _Heads(rows, first, heads, depth)


def _factor(node: Any, call: Call) -> tuple[Any, float]:
    """What a node is a constant times of, and the constant."""
    factor = 1.0
    while isinstance(node, fx.Node):
        name = _name(node, call)
        if name in _SAME:
            node = node.args[0]
            continue
        if name not in _TIMES | _BY or len(node.args) != 2:
            break
        values = [call.constant(a) for a in node.args]
        at = 1 if values[1] is not None else 0
        value = values[at]
        if value is None or value.numel() != 1 or (at == 0 and name in _BY):
            break
        one = float(value)
        if name in _BY and one == 0.0:
            break
        factor = factor / one if name in _BY else factor * one
        node = node.args[1 - at]
    return node, factor


def _fused(call: Call, node: fx.Node) -> _Found:
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    if given.get("attn_mask") is not None:
        raise Refused("it has a mask")
    if given.get("dropout_p", 0.0) != 0.0 or given.get("enable_gqa", False):
        raise Refused("it drops weights, or its heads share keys")
    scale, causal = given.get("scale"), given.get("is_causal", False)
    if not isinstance(scale, (int, float, type(None))) or not isinstance(causal, bool):
        raise Refused("its arguments are not constant")
    (q, a), (k, b) = (_factor(given[name], call) for name in ("query", "key"))
    q, k, v = (_heads(x, call) for x in (q, k, given["value"]))
    return _Found(q, k, v, a * b * (q.depth**-0.5 if scale is None else float(scale)), causal)


def _spelled_out(call: Call, node: fx.Node) -> _Found | None:
    """`softmax(scale * (q @ k^T)) @ v`, or None where it is another product."""
    weights, one = _factor(node.args[0], call)
    if one != 1.0 or not isinstance(weights, fx.Node):
        return None
    if call.name_of(weights) not in ("softmax", "Softmax"):
        return None
    module = call.module_of(weights)
    dims = [*weights.args[1:2], weights.kwargs.get("dim", getattr(module, "dim", None))]
    scores, scale = _factor(weights.args[0], call)
    if dims[0] not in (-1, len(node.meta["shape"]) - 1) or "dtype" in weights.kwargs:
        raise Refused("its softmax is over other than the keys")
    if not isinstance(scores, fx.Node) or call.name_of(scores) not in ("matmul", "bmm"):
        raise Refused("its scores are no product of queries and keys alone")
    (q, a), (k, b) = (_factor(x, call) for x in scores.args)
    v = _heads(node.args[1], call)
    return _Found(_heads(q, call), _heads(k, call, turned=True), v, scale * a * b, False)


def _found(call: Call, node: fx.Node) -> _Found | None:
    """The attention that a node ends with, before its heads are joined."""
    name = call.name_of(node)
    found = None
    if name == _SDPA:
        found = _fused(call, node)
    elif name in ("matmul", "bmm") and len(node.args) == 2:
        found = _spelled_out(call, node)
    if found is None:
        return None
    q, k, v = found[:3]
    if not (q.heads, q.depth) == (k.heads, k.depth) == (v.heads, v.depth):
        raise Refused("its factors differ in heads or channels")
    if k.rows.shape[:3] != v.rows.shape[:3] or q.rows.shape[0] != k.rows.shape[0]:
        raise Refused("its factors differ in length")
    if not math.isfinite(found.scale):
        raise Refused("its scale is not finite")
    return found


def joined(call: Call, steps: Mapping[fx.Node, Step]) -> Step | None:
    """The step of a node that joins the heads of an attention as rows; None of any other node."""
    end = call.node
    while _is_view(end, call):
        end = end.args[0]  # type: ignore[assignment]
        if end in steps and steps[end].op == "attention":
            return None  # joined already
    try:
        found = _found(call, end)
    except Refused:
        return None  # whose reason the attention's own node has
    if found is None:
        return None
    q, k, v, scale, causal = found
    n, _, length, _ = q.rows.shape
    width = q.heads * q.depth
    memory = torch.empty(_another(n), length, width)
    heads = memory.unflatten(-1, (q.heads, q.depth)).transpose(1, 2)
    if len(end.meta["shape"]) == 3:
        heads = heads.squeeze(1)
    try:
        y = _viewed(call.node, end, heads, call)
    except Refused:
        return None
    rows = isinstance(y, Tensor) and y.shape == memory.shape and y.storage_offset() == 0
    if not rows or not _laid(y, *memory.stride()):
        return None
    attributes: dict[str, Any] = {"heads": q.heads, "width": width, "scale": scale}
    attributes |= {"causal": causal, "first": [q.first, k.first, v.first]}
    inputs = (q.rows, k.rows, v.rows)
    return Step("attention", inputs, ROWS, (n, 1, length, width), attributes)


def _unjoined(call: Call) -> Step:
    """Attention itself: a step is where its heads are rows again."""
    if _found(call, call.node) is None:
        raise Refused("a program has no such instruction")
    raise Refused("its heads are not joined as rows")


RULES: dict[str, Callable[[Call], Step]] = {
    _SDPA: _unjoined,
    "matmul": _unjoined,
    "bmm": _unjoined,
}
