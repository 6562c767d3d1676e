"""Comparisons and selections."""

from __future__ import annotations

import numpy as np

from .elementwise import Function, elementwise
from .forms import BITS, INTEGERS, Action, instruction
from .operation import Operation
from .rounding import flushed
from .syntax import Pair
from .types import Array, bits_of, is_float
from .warps import Threads

COMPARE: dict[str, Function] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
UNSIGNED_COMPARE = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
ORDERED = "|".join(COMPARE)
FLOAT_COMPARE = f"{ORDERED}|equ|neu|ltu|leu|gtu|geu|num|nan"
JOIN = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def comparison(name: str, kind: str, ftz: bool = False) -> Function:
    """Whether a and b compare so; one that ends with u also holds where either is NaN."""
    if not is_float(kind):
        return COMPARE[UNSIGNED_COMPARE.get(name, name)]
    if name in ("num", "nan"):
        unordered: Function = lambda a, b: np.isnan(a) | np.isnan(b)  # noqa: E731
        return unordered if name == "nan" else lambda a, b: ~(np.isnan(a) | np.isnan(b))
    # IEEE: comparisons with NaN are false, but for != ; PTX: for ne too
    function = COMPARE[name[:2]]
    if name == "ne":
        function = lambda a, b: (a < b) | (a > b)  # noqa: E731
    elif name.endswith("u") and name != "neu":
        plain = function
        function = lambda a, b: plain(a, b) | np.isnan(a) | np.isnan(b)  # noqa: E731
    if ftz:
        return lambda a, b: function(flushed(a), flushed(b))
    return function


TYPED = [
    f"<cmp:eq|ne>[.<join:and|or|xor>].<type:{BITS}>",
    f"<cmp:{ORDERED}>[.<join:and|or|xor>].<type:{INTEGERS}>",
    "<cmp:lo|ls|hi|hs>[.<join:and|or|xor>].<type:u16|u32|u64>",
    f"<cmp:{FLOAT_COMPARE}>[.<join:and|or|xor>][.ftz].<type:f32>",
    f"<cmp:{FLOAT_COMPARE}>[.<join:and|or|xor>].<type:f64|f16|bf16>",
]


@instruction(*(f"setp.{form}" for form in TYPED))
def setp(op: Operation) -> Action:
    """p|q = (a cmp b) and its opposite, each joined with c."""
    op.expect(4 if op.get("join") else 3)
    kind = op.get("type")
    test = comparison(op.get("cmp"), kind, op.has("ftz"))
    if not op.get("join") and not isinstance(op.operands[0], Pair):
        return elementwise(op, "pred", (kind, kind), test)
    first, second = op.write_pair(0, "pred", "pred")
    left, right = op.read(1, kind), op.read(2, kind)
    third = op.read(3, "pred") if op.get("join") else None
    join = JOIN.get(op.get("join"))

    def compare(threads: Threads) -> None:
        p = test(left(threads), right(threads))
        q = np.logical_not(p)
        if third is not None and join is not None:
            c = third(threads)
            p, q = join(p, c), join(q, c)
        first(threads, p)
        if second is not None:
            second(threads, q)

    return compare


@instruction(*(f"set.<cmp:{ORDERED}>.<to:u32|s32|f32>.<type:{t}>" for t in ("s32|u32", "f32")))
def set_(op: Operation) -> Action:
    """All ones (1.0 for f32) where the comparison holds."""
    to, kind = op.get("to"), op.get("type")
    test = comparison(op.get("cmp"), kind)
    if to == "f32":
        return elementwise(op, to, (kind, kind), lambda a, b: test(a, b).astype(np.float32))
    return elementwise(op, "b32", (kind, kind), lambda a, b: -test(a, b).astype(np.int64))


@instruction(f"selp.<type:{BITS}|{INTEGERS}|f32|f64>")
def selp(op: Operation) -> Action:
    op.expect(4)
    bits = f"b{bits_of(op.get('type'))}"
    write, yes, no = op.write(0, bits), op.read(1, bits), op.read(2, bits)
    predicate = op.read(3, "pred")

    def select(threads: Threads) -> None:
        write(threads, np.where(predicate(threads), yes(threads), no(threads)))

    return select


@instruction(
    f"slct.<type:{BITS}|{INTEGERS}|f32|f64>.s32",
    f"slct[.ftz].<type:{BITS}|{INTEGERS}|f32|f64>.<c:f32>",
)
def slct(op: Operation) -> Action:
    """a where c >= 0, else b: b too where c is NaN, a where c is -0."""
    bits = f"b{bits_of(op.get('type'))}"
    by = op.get("c", "s32")

    def select(a: Array, b: Array, c: Array) -> Array:
        return np.where((flushed(c) if op.has("ftz") else c) >= 0, a, b)

    return elementwise(op, bits, (bits, bits, by), select)
