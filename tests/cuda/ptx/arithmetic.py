"""Integer arithmetic; it wraps around as two's complement does."""

from __future__ import annotations

import numpy as np

from .elementwise import elementwise
from .errors import PtxError
from .forms import INTEGERS, Action, instruction
from .operation import Operation
from .types import SIGNED, UNSIGNED, Array, bits_of, limits


@instruction(f"add.<type:{INTEGERS}>", f"sub.<type:{INTEGERS}>")
def add_or_sub(op: Operation) -> Action:
    kind = op.get("type")
    wanted = np.subtract if op.instruction.opcode.startswith("sub") else np.add
    return elementwise(op, kind, (kind, kind), wanted)


@instruction("add.sat.s32", "sub.sat.s32")
def add_or_sub_saturating(op: Operation) -> Action:
    sign = -1 if op.instruction.opcode.startswith("sub") else 1

    def saturating(a: Array, b: Array) -> Array:
        return np.clip(a.astype(np.int64) + sign * b.astype(np.int64), *limits("s32"))

    return elementwise(op, "s32", ("s32", "s32"), saturating)


def high_product(a: Array, b: Array) -> Array:
    """The upper 64 bits of a product of unsigned 64-bit integers, from 32-bit halves."""
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    a0, a1, b0, b1 = a & low, a >> half, b & low, b >> half
    middle = a1 * b0 + (a0 * b0 >> half)
    other = a0 * b1 + (middle & low)
    return a1 * b1 + (middle >> half) + (other >> half)


def product(kind: str, mode: str) -> tuple[str, object]:
    """The type and the function of a product: lo, hi or wide."""
    bits = bits_of(kind)
    family = SIGNED if kind[0] == "s" else UNSIGNED
    if mode == "lo":
        return kind, np.multiply
    if bits < 64:
        wide = family[2 * bits]

        def whole(a: Array, b: Array) -> Array:
            return a.astype(wide) * b.astype(wide)

        if mode == "wide":
            return kind[0] + str(2 * bits), whole
        return kind, lambda a, b: (whole(a, b) >> wide(bits)).astype(family[bits])
    if mode == "wide":
        raise PtxError(f"no wide product of .{kind}")

    def high(a: Array, b: Array) -> Array:
        result = high_product(a.view(np.uint64), b.view(np.uint64))
        if kind == "s64":
            zero = np.uint64(0)
            result = result - np.where(a < 0, b.view(np.uint64), zero)
            result = result - np.where(b < 0, a.view(np.uint64), zero)
        return result.view(family[64])

    return kind, high


@instruction(f"mul.<mode:lo|hi>.<type:{INTEGERS}>", "mul.<mode:wide>.<type:u16|u32|s16|s32>")
def mul(op: Operation) -> Action:
    kind = op.get("type")
    result, function = product(kind, op.get("mode"))
    return elementwise(op, result, (kind, kind), function)  # type: ignore[arg-type]


@instruction(f"mad.<mode:lo|hi>.<type:{INTEGERS}>", "mad.<mode:wide>.<type:u16|u32|s16|s32>")
def mad(op: Operation) -> Action:
    kind = op.get("type")
    result, function = product(kind, op.get("mode"))

    def multiply_add(a: Array, b: Array, c: Array) -> Array:
        return function(a, b) + c  # type: ignore[operator]

    return elementwise(op, result, (kind, kind, result), multiply_add)


@instruction("mad24.lo.<type:u32|s32>", "mul24.lo.<type:u32|s32>")
def mad24(op: Operation) -> Action:
    kind = op.get("type")

    def low24(a: Array) -> Array:
        return (a << a.dtype.type(8)) >> a.dtype.type(8)

    if op.instruction.opcode.startswith("mul"):
        return elementwise(op, kind, (kind, kind), lambda a, b: low24(a) * low24(b))
    return elementwise(op, kind, (kind,) * 3, lambda a, b, c: low24(a) * low24(b) + c)


@instruction(f"div.<type:{INTEGERS}>", f"rem.<type:{INTEGERS}>")
def div_or_rem(op: Operation) -> Action:
    """Towards zero. Division by zero is unspecified in PTX: an error here."""
    kind, quotient = op.get("type"), op.instruction.opcode.startswith("div")
    write, left, right = op.write(0, kind), op.read(1, kind), op.read(2, kind)

    def divide(threads):  # type: ignore[no-untyped-def]
        a, b = left(threads), right(threads)
        if not np.all(b):
            threads.fail("integer division by zero", threads.spread(b == 0))
        floor = a // b
        rest = a - floor * b
        if kind[0] == "s":
            up = (rest != 0) & ((a < 0) != (b < 0))
            floor, rest = floor + up.astype(b.dtype), np.where(up, rest - b, rest)
        write(threads, floor if quotient else rest)

    return divide


@instruction(f"min.<type:{INTEGERS}>", f"max.<type:{INTEGERS}>", "min[.relu].s32", "max[.relu].s32")
def min_or_max(op: Operation) -> Action:
    kind = op.get("type", "s32")
    function = np.minimum if op.instruction.opcode.startswith("min") else np.maximum
    if op.has("relu"):
        return elementwise(op, kind, (kind, kind), lambda a, b: np.maximum(function(a, b), 0))
    return elementwise(op, kind, (kind, kind), function)


@instruction("neg.<type:s16|s32|s64>", "abs.<type:s16|s32|s64>")
def neg_or_abs(op: Operation) -> Action:
    kind = op.get("type")
    negative = op.instruction.opcode.startswith("neg")
    return elementwise(op, kind, (kind,), np.negative if negative else np.abs)


@instruction(f"sad.<type:{INTEGERS}>")
def sad(op: Operation) -> Action:
    kind = op.get("type")
    return elementwise(op, kind, (kind,) * 3, lambda a, b, c: c + np.where(a < b, b - a, a - b))


@instruction("dp4a.<a:u32|s32>.<b:u32|s32>", "dp2a.<half:lo|hi>.<a:u32|s32>.<b:u32|s32>")
def dot_product(op: Operation) -> Action:
    """Four bytes times four bytes, or two halfwords times two of four bytes, added to c."""
    four = op.instruction.opcode.startswith("dp4a")
    left, right = op.get("a"), op.get("b")
    bits = 8 if four else 16
    begin, steps = (0, 4) if four else ((2, 2) if op.get("half") == "hi" else (0, 2))

    def part(word: Array, kind: str, k: int, width: int) -> Array:
        family = SIGNED if kind[0] == "s" else UNSIGNED
        return (word >> np.uint32(k * width)).astype(UNSIGNED[width]).view(family[width])

    def dot(a: Array, b: Array, c: Array) -> Array:
        total = c.astype(np.int64)
        for k in range(steps):
            x = part(a, left, k, bits).astype(np.int64)
            total = total + x * part(b, right, begin + k, 8).astype(np.int64)
        return total

    result = "u32" if left == right == "u32" else "s32"
    return elementwise(op, result, ("b32", "b32", result), dot)
