"""What products of torch do to labels: the sum of a product unites what it runs along."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from sparseq.flow.macs import convolution_macs, product_macs
from sparseq.structured.classes import varying
from sparseq.structured.record import Product, Recorder


def _convolution(to: Recorder, _f: Any, args: Any, _k: Any, result: Tensor) -> None:
    source, weight, bias = args[:3]
    transposed, groups = args[6], args[8]
    dims = source.dim()
    own = to.labels(weight)
    first = [a for a in own if varying(a) == {0}]
    second = [a for a in own if varying(a) == {1}]
    for label in own:
        if varying(label) - {0, 1} and len(varying(label)) > 1:
            to.lock_label(label, f"a weight laid out along several dimensions in {to.place}")
    outs, ins = (second, first) if transposed else (first, second)
    x_labels = []
    read = []
    for label in to.labels(source):
        if varying(label) & set(range(2, dims)):
            to.lock_label(label, f"a convolution runs along them in {to.place}")
        elif 1 in varying(label):
            read.append(label)
        else:
            x_labels.append(label)
    shape = [1, -1] + [1] * (dims - 2)
    inputs, channels = source.shape[1], result.shape[1]
    made: list[Tensor] = []
    if groups == 1:
        made = [a.reshape(shape) for a in outs]
        _meet(to, read, [a.reshape(shape) for a in ins])
        for label in ins:
            to.notes.mark(to.notes.inputs, label)
    else:
        made = _grouped(to, read, first, second, (inputs, channels, groups), transposed)
    for label in outs if groups == 1 else (first or second):
        to.notes.mark(to.notes.outputs, label)
    if bias is not None:
        for label in to.labels(bias):
            made.append(label.reshape(shape))
    to.set(result, [*x_labels, *made])
    kept = [*made[:1], *(ins[:1] if groups == 1 else [])]
    macs = convolution_macs(source, weight, transposed, result)
    to.notes.products.append(Product(macs, tuple(a.reshape(-1) for a in kept)))


def _grouped(
    to: Recorder,
    read: list[Tensor],
    first: list[Tensor],
    second: list[Tensor],
    sizes: tuple[int, int, int],
    transposed: bool,
) -> list[Tensor]:
    """A grouped convolution: its groups go as a whole. Returns the labels of what it makes."""
    classes = to.notes.classes
    inputs, outputs, groups = sizes
    for label in second:  # shared by all groups
        to.lock_label(label, f"the places inside a group of {to.place}")
    if not first:
        for label in read:
            to.lock_label(label, f"read by {to.place}, whose weight has no channels to remove")
        return []
    rows = first[0].reshape(groups, -1)  # outputs, or inputs where transposed
    classes.unite(rows, rows[:, :1])
    if not read:
        to.lock_label(rows, f"{to.place} reads a tensor of fixed size")
    for label in read:
        own = label.reshape(label.shape[0], groups, -1)
        classes.unite(own, rows[:, :1].reshape(1, groups, 1))
    per = (outputs if transposed else inputs) // groups
    if per > 1 or inputs != outputs:
        to.notes.groups.append((rows, to.place))
    made = rows[:, :1].expand(groups, outputs // groups) if transposed else rows
    return [made.reshape([1, -1, *[1] * (len(read[0].shape) - 2 if read else 2)])]


def _meet(to: Recorder, read: list[Tensor], ins: list[Tensor]) -> None:
    """Unite what a product runs along; what is met by nothing stays."""
    for label in ins:
        for other in read:
            to.notes.classes.unite(label, other)
        if not read:
            to.lock_label(label, f"{to.place} reads a tensor of fixed size")
    if not ins:
        for other in read:
            to.lock_label(other, f"summed over in {to.place}")


def _matmul(to: Recorder, first: Tensor, second: Tensor, bias: Any, result: Tensor) -> None:
    """`[..., M, K]` times `[..., K, N]`, with as many dimensions."""
    classes, dims = to.notes.classes, first.dim()
    rows, columns = dims - 2, dims - 1
    left = [a for a in to.labels(first) if columns in varying(a)]
    right = [b for b in to.labels(second) if rows in varying(b)]
    made = [a for a in to.labels(first) if columns not in varying(a)]
    made += [b for b in to.labels(second) if rows not in varying(b)]
    macs = product_macs(first, result)
    scaled: list[Tensor] = []
    if left and right:
        a, b = left[0].unsqueeze(-1), right[0].unsqueeze(-3)  # [..., M, K, N]
        classes.unite(a, b)
        if any(d < rows for d in varying(left[0]) | varying(right[0])):
            # of each batch (an attention head) all places go together
            wide = left[0] if any(d < rows for d in varying(left[0])) else right[0].mT
            classes.unite(wide, wide.narrow(-1, 0, 1))
            to.notes.heads.append(wide.reshape(-1))
            made.append(wide.narrow(-1, 0, 1))
        else:
            scaled.append(right[0].reshape(-1))
    else:
        for label in left or right:
            fixed = f"{to.place} reads a tensor of fixed size" if right else "summed over in "
            to.lock_label(label, fixed if right else fixed + to.place)
    for label in to.labels(second):
        if varying(label) == {columns}:
            to.notes.mark(to.notes.outputs, label)
        elif varying(label) == {rows}:
            to.notes.mark(to.notes.inputs, label)
    if bias is not None:
        made += [a.reshape([1] * (dims - a.dim()) + list(a.shape)) for a in to.labels(bias)]
    to.set(result, made)
    kept = [*scaled, *to.labels(result)]
    to.notes.products.append(Product(macs, tuple(a.reshape(-1) for a in kept)))


def _mm(to: Recorder, _f: Any, args: Any, _k: Any, result: Tensor) -> None:
    _matmul(to, args[0], args[1], None, result)


def _addmm(to: Recorder, _f: Any, args: Any, _k: Any, result: Tensor) -> None:
    _matmul(to, args[1], args[2], args[0], result)


def _dot(to: Recorder, _f: Any, args: Any, _k: Any, result: Tensor) -> None:
    to.lock(args, f"summed over in {to.place}")


PRODUCTS: dict[str, Callable[[Recorder, Any, Any, Any, Any], None]] = {
    "convolution": _convolution,
    "mm": _mm,
    "bmm": _mm,
    "addmm": _addmm,
    "baddbmm": _addmm,
    "mv": _dot,
    "dot": _dot,
}
