"""Pools, padding and concatenation as steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sparseq.lower.forms import IMAGE, PORTS, VECTOR, axis
from sparseq.lower.step import Call, Operand, Refused, Step, pair
from sparseq.program import Instruction, Shape, result_shape


def _pooled(op: str, x: Operand, attributes: dict[str, Any]) -> Step:
    shape: Shape = result_shape(Instruction(op, (0,), attributes=attributes), [x.shape], None)
    return Step(op, (x,), IMAGE, shape, attributes)


def _window(given: dict[str, Any]) -> dict[str, Any]:
    kernel, padding = (pair(given[name], name) for name in ("kernel_size", "padding"))
    if any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        raise Refused("its padding is more than half of its kernel")
    stride = given["stride"]
    return {
        "kernel": kernel,
        "stride": kernel if stride is None or stride == [] else pair(stride, "stride"),
        "padding": padding,
        "ceil": bool(given["ceil_mode"]),
    }


def _max_pool(call: Call) -> Step:
    given = call.bind(
        "input", "kernel_size",
        stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False,
    )  # fmt: skip
    if given["return_indices"]:
        raise Refused("it returns indices")
    x = call.operand(given["input"], IMAGE)
    attributes = _window(given) | {"dilation": pair(given["dilation"], "dilation")}
    return _pooled("max_pool", x, attributes)


def _avg_pool(call: Call) -> Step:
    given = call.bind(
        "input", "kernel_size",
        stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None,
    )  # fmt: skip
    x = call.operand(given["input"], IMAGE)
    more = {
        "include_pad": bool(given["count_include_pad"]),
        "divisor": given["divisor_override"] or 0,
    }
    return _pooled("avg_pool", x, _window(given) | more)


def _adaptive(call: Call) -> Step:
    given = call.bind("input", "output_size")
    x = call.operand(given["input"], IMAGE)
    return _pooled("adaptive", x, {"size": pair(given["output_size"], "output_size")})


def _mean(call: Call) -> Step:
    """Over all pixels: an adaptive pool to one."""
    given = call.bind("input", "dim", keepdim=False, dtype=None)
    x = call.operand(given["input"])
    dims = [given["dim"]] if isinstance(given["dim"], int) else list(given["dim"])
    letters = {axis(x.form, d) for d in dims}
    if letters not in ({"H", "W"}, {"L"}) or given["dtype"] is not None or x.form not in PORTS:
        raise Refused("it is a mean over other dimensions than the pixels")
    n, _, _, c = x.shape
    form = x.form if given["keepdim"] else VECTOR
    return Step("adaptive", (x,), form, (n, 1, 1, c), {"size": [1, 1]})


def _cat(call: Call) -> Step:
    given = call.bind("tensors", dim=0)
    parts = list(given["tensors"])
    operands = [call.operand(p) for p in parts]
    form = next((o.form for o in operands if o.inside), operands[0].form)
    operands = [call.operand(p, form) for p in parts]
    if axis(form, given["dim"]) != "C" or form not in PORTS:
        raise Refused("it joins along another dimension than the channels")
    if len({o.shape[:3] for o in operands}) > 1:
        raise Refused("its operands differ in shape")
    n, h, w, _ = operands[0].shape
    return Step("concat", tuple(operands), form, (n, h, w, sum(o.shape[3] for o in operands)))


def _pad(call: Call) -> Step:
    if call.module is not None:
        around = list(call.module.padding)  # type: ignore[arg-type]
        source = call.args[0]
    else:
        given = call.bind("input", "pad", mode="constant", value=None)
        if given["mode"] != "constant" or given["value"] not in (None, 0):
            raise Refused("it pads with other values than zeros")
        source, around = given["input"], list(given["pad"])
    x = call.operand(source)
    if not all(isinstance(p, int) and p >= 0 for p in around) or len(around) % 2:
        raise Refused("it crops, or its padding is not constant")
    before_after = {
        axis(x.form, -1 - d): around[2 * d : 2 * d + 2] for d in range(len(around) // 2)
    }
    if any(any(v) for letter, v in before_after.items() if letter not in ("H", "W")):
        raise Refused("it pads other dimensions than an image's")
    if x.form not in PORTS or "H" not in x.form:
        raise Refused("it pads other dimensions than an image's")
    (top, bottom), (left, right) = (before_after.get(d, [0, 0]) for d in "HW")
    n, h, w, c = x.shape
    shape = (n, h + top + bottom, w + left + right, c)
    return Step("pad", (x,), x.form, shape, {"around": [top, bottom, left, right]})


RULES: dict[str, Callable[[Call], Step]] = {
    **dict.fromkeys(("MaxPool2d", "max_pool2d"), _max_pool),
    **dict.fromkeys(("AvgPool2d", "avg_pool2d"), _avg_pool),
    **dict.fromkeys(("AdaptiveAvgPool2d", "adaptive_avg_pool2d"), _adaptive),
    **dict.fromkeys(("cat", "concat", "concatenate"), _cat),
    **dict.fromkeys(("ZeroPad2d", "pad"), _pad),
    "mean": _mean,
}
