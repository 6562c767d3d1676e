"""How a tensor's dimensions lie in a value `[N, H, W, C]`, and what only names them anew.

A form is a string, a letter for each dimension: L is H and W as one, F is C, H and W as one. Those
of `PORTS` may enter or leave a program; the others exist between two of its nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from sparseq.program import Shape

PORTS = {"NCHW": "image", "NHWC": "pixels", "NLC": "rows", "NC": "vector"}
IMAGE, PIXELS, ROWS, COLUMNS, VECTOR, FLAT = "NCHW", "NHWC", "NLC", "NCL", "NC", "NF"
FORMS = (*PORTS, COLUMNS, FLAT)
BY_RANK = {4: IMAGE, 3: ROWS, 2: VECTOR}  # of a tensor that comes from elsewhere
CHANNELS_LAST = {4: PIXELS, 3: ROWS, 2: VECTOR}


def sizes(form: str, shape: Shape) -> tuple[int, ...]:
    """The tensor's shape of a value in a form."""
    n, h, w, c = shape
    by_letter = {"N": n, "H": h, "W": w, "C": c, "L": h * w, "F": c * h * w}
    return tuple(by_letter[letter] for letter in form)


def axis(form: str, dim: int) -> str:
    """The letter of a dimension, counted from either end; "" where there is none."""
    return form[dim] if -len(form) <= dim < len(form) else ""


def permuted(form: str, order: Sequence[int]) -> str | None:
    """The form with its dimensions in another order, if it is one."""
    if len(order) != len(form):
        return None
    found = "".join(form[d] for d in order)
    return found if found in FORMS else None


def reshaped(form: str, shape: Shape, wanted: Sequence[Any]) -> str | None:
    """The form of a value after `reshape`, where that moves no element.

    Args:
        form: as it is.
        shape: of the value, in the example.
        wanted: `reshape`'s sizes: numbers, nodes that know theirs, or -1. The first must be -1 or a
            node, so that any batch fits.
    """
    numbers: list[Any] = [w.meta.get("known") if isinstance(w, fx.Node) else w for w in wanted]
    if not all(isinstance(n, int) for n in numbers) or not numbers or numbers.count(-1) > 1:
        return None
    first = wanted[0]
    if not (first == -1 or (isinstance(first, fx.Node) and is_batch(first))):
        return None
    whole, product = 1, 1
    for size in sizes(form, shape):
        whole *= size
    for number in numbers:
        product *= number if number != -1 else 1
    if product == 0 or whole % product:
        return None
    found = tuple(whole // product if n == -1 else n for n in numbers)
    _, h, w, _ = shape
    point = h * w == 1
    # in memory order of the tensor: which forms are the same elements in the same order
    alike = {
        IMAGE: [VECTOR, COLUMNS, IMAGE] if point else [IMAGE, COLUMNS, FLAT],
        COLUMNS: [VECTOR, COLUMNS, IMAGE] if point else [COLUMNS, IMAGE, FLAT],
        PIXELS: [VECTOR, PIXELS, ROWS] if point else [PIXELS, ROWS],
        ROWS: [VECTOR, ROWS, PIXELS] if point else [ROWS, PIXELS],
        VECTOR: [VECTOR, IMAGE, COLUMNS] if point else [VECTOR],
        FLAT: [FLAT, IMAGE],
    }[form]
    return next((f for f in alike if sizes(f, shape) == found), None)


# `x.shape[:-1]`
_HEADS_OF_SHAPES = [slice(None, end) for end in (-1, -2, -3, 1, 2, 3)]


def is_batch(node: fx.Node) -> bool:
    """Whether a node is the first size of a tensor that is no parameter."""
    at, dim = node.args[0] if node.args else None, node.args[1:2]
    if node.op == "call_method" and node.target == "size" and isinstance(at, fx.Node):
        return at.op != "get_attr" and dim == (0,)
    if getattr(node.target, "__name__", "") != "getitem" or dim != (0,):
        return False
    if not isinstance(at, fx.Node) or not isinstance(at.args[0], fx.Node):
        return False
    if getattr(at.target, "__name__", "") == "getitem" and at.args[1] in _HEADS_OF_SHAPES:
        at = at.args[0]
    is_shape = at.args[1:] == ("shape",) or (at.target == "size" and len(at.args) == 1)
    x = at.args[0]
    return is_shape and isinstance(x, fx.Node) and x.op != "get_attr"
