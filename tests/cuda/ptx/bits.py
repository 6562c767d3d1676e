"""Logic, shifts and bit fields."""

from __future__ import annotations

import numpy as np

from .elementwise import elementwise
from .forms import BITS, Action, instruction
from .operation import Operation
from .types import SIGNED, UNSIGNED, Array, bits_of

LOGIC = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}


@instruction(*(f"{name}.<type:pred|{BITS}>" for name in LOGIC))
def logic(op: Operation) -> Action:
    kind = op.get("type")
    return elementwise(op, kind, (kind, kind), LOGIC[op.instruction.opcode.partition(".")[0]])


@instruction(f"not.<type:pred|{BITS}>")
def invert(op: Operation) -> Action:
    return elementwise(op, op.get("type"), (op.get("type"),), np.invert)


@instruction(f"cnot.<type:{BITS}>")
def cnot(op: Operation) -> Action:
    return elementwise(op, op.get("type"), (op.get("type"),), lambda a: a == 0)


@instruction("lop3.b32")
def lop3(op: Operation) -> Action:
    """Any function of three bits, by its truth table."""
    op.expect(5)
    table = op.constant(4)
    write, readers = op.write(0, "b32"), [op.read(k, "b32") for k in (1, 2, 3)]

    def combine(threads):  # type: ignore[no-untyped-def]
        a, b, c = (read(threads) for read in readers)
        value = np.uint32(0)
        for k in range(8):
            if table >> k & 1:
                value = value | ((a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c))
        write(threads, value)

    return combine


@instruction(f"shl.<type:{BITS}>", f"shr.<type:{BITS}>", "shr.<type:u16|u32|u64|s16|s32|s64>")
def shift(op: Operation) -> Action:
    """By more than the width: all bits leave; those that enter are zeros, or copies of the sign."""
    kind = op.get("type")
    bits = bits_of(kind)
    left = op.instruction.opcode.startswith("shl")

    def shifted(a: Array, n: Array) -> Array:
        by = np.minimum(n, np.uint32(bits - 1)).astype(a.dtype)
        value = a << by if left else a >> by
        if kind[0] == "s":
            return value
        return np.where(n >= bits, a.dtype.type(0), value)

    return elementwise(op, kind, (kind, "u32"), shifted)


@instruction("shf.<side:l|r>.<mode:clamp|wrap>.b32")
def funnel_shift(op: Operation) -> Action:
    left, clamp = op.get("side") == "l", op.get("mode") == "clamp"

    def shifted(a: Array, b: Array, n: Array) -> Array:
        by = np.minimum(n, np.uint32(32)) if clamp else n & np.uint32(31)
        by = by.astype(np.uint64)
        both = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
        return (both << by) >> np.uint64(32) if left else both >> by

    return elementwise(op, "b32", ("b32", "b32", "u32"), shifted)


def _selectors(mode: str) -> Array:
    """For each value of the two low bits of c, which byte goes to each place."""
    table = {
        "f4e": [[k + i for i in range(4)] for k in range(4)],
        "b4e": [[(k - i) % 8 for i in range(4)] for k in range(4)],
        "rc8": [[k] * 4 for k in range(4)],
        "ecl": [[max(i, k) for i in range(4)] for k in range(4)],
        "ecr": [[min(i, k) for i in range(4)] for k in range(4)],
        "rc16": [[2 * (k & 1) + (i & 1) for i in range(4)] for k in range(4)],
    }
    return np.array(table[mode])


@instruction("prmt.b32[.<mode:f4e|b4e|rc8|ecl|ecr|rc16>]")
def permute(op: Operation) -> Action:
    """Four of eight bytes; bit 3 of a selector replicates the byte's sign instead."""
    mode = op.get("mode")

    def permuted(a: Array, b: Array, c: Array) -> Array:
        both = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
        value = np.uint64(0)
        for k in range(4):
            if mode:
                pick = _selectors(mode)[(c & np.uint32(3)).astype(np.int64), k].astype(np.uint64)
                sign = np.False_
            else:
                nibble = (c >> np.uint32(4 * k)).astype(np.uint64)
                pick, sign = nibble & np.uint64(7), nibble & np.uint64(8) != 0
            byte = both >> pick * np.uint64(8) & np.uint64(255)
            filled = np.where(byte & np.uint64(128) != 0, np.uint64(255), np.uint64(0))
            value = value | np.where(sign, filled, byte) << np.uint64(8 * k)
        return value

    return elementwise(op, "b32", ("b32", "b32", "b32"), permuted)


def mask_of(n: Array, bits: int) -> Array:
    """n ones, n at most 64, as uint64."""
    ones = (np.uint64(1) << np.minimum(n, np.uint64(63))) - np.uint64(1)
    return np.where(n >= bits, np.uint64((1 << bits) - 1), ones)


@instruction("bfe.<type:u32|u64|s32|s64>")
def extract(op: Operation) -> Action:
    """A field of b bits from position a on; signed, its top bit (or the value's) is extended."""
    kind = op.get("type")
    bits = bits_of(kind)
    top = np.uint64(bits - 1)

    def field(a: Array, position: Array, length: Array) -> Array:
        p = (position & np.uint32(255)).astype(np.uint64)
        n = (length & np.uint32(255)).astype(np.uint64)
        value = a.view(UNSIGNED[bits]).astype(np.uint64)
        mask = mask_of(n, bits)
        found = np.where(p > top, np.uint64(0), value >> np.minimum(p, top)) & mask
        if kind[0] == "s":
            last = np.minimum(p + n - np.uint64(1), top)
            sign = np.where(n > 0, value >> np.where(n > 0, last, 0) & np.uint64(1), 0)
            # bits of the field beyond the value's end are copies of the sign too
            inside = np.minimum(n, np.where(p > top, np.uint64(0), np.uint64(bits) - p))
            found = np.where(sign != 0, found | ~mask_of(inside, bits), found)
        return found.astype(UNSIGNED[bits]).view((SIGNED if kind[0] == "s" else UNSIGNED)[bits])

    return elementwise(op, kind, (kind, "u32", "u32"), field)


@instruction("bfi.<type:b32|b64>")
def insert(op: Operation) -> Action:
    kind = op.get("type")
    bits = bits_of(kind)

    def inserted(a: Array, b: Array, position: Array, length: Array) -> Array:
        p = (position & np.uint32(255)).astype(np.uint64)
        n = (length & np.uint32(255)).astype(np.uint64)
        by = np.minimum(p, np.uint64(63))
        mask = np.where(p >= bits, np.uint64(0), mask_of(n, bits) << by)
        return b.astype(np.uint64) & ~mask | (a.astype(np.uint64) << by) & mask

    return elementwise(op, kind, (kind, kind, "u32", "u32"), inserted)


@instruction("bfind[.shiftamt].<type:u32|u64|s32|s64>")
def find(op: Operation) -> Action:
    """The highest one; of a negative number the highest zero; none: 0xffffffff."""
    kind = op.get("type")
    bits, from_top = bits_of(kind), op.has("shiftamt")

    def found(a: Array) -> Array:
        value = np.where(a < 0, ~a, a).astype(UNSIGNED[bits]) if kind[0] == "s" else a
        at = np.full(np.shape(value), -1, np.int64)
        for k in range(bits):
            at = np.where(value >> UNSIGNED[bits](k) & UNSIGNED[bits](1), k, at)
        return np.where(at < 0, at, bits - 1 - at) if from_top else at

    return elementwise(op, "u32", (kind,), found)


@instruction("popc.<type:b32|b64>", "clz.<type:b32|b64>")
def count(op: Operation) -> Action:
    kind = op.get("type")
    bits = bits_of(kind)
    if op.instruction.opcode.startswith("popc"):
        return elementwise(op, "u32", (kind,), np.bitwise_count)

    def leading(a: Array) -> Array:
        value = a.copy()
        for k in (1, 2, 4, 8, 16, 32):
            if k < bits:
                value = value | value >> UNSIGNED[bits](k)
        return UNSIGNED[8](bits) - np.bitwise_count(value)

    return elementwise(op, "u32", (kind,), leading)


@instruction("brev.<type:b32|b64>")
def reverse(op: Operation) -> Action:
    kind = op.get("type")
    bits = bits_of(kind)
    word = UNSIGNED[bits]

    def reversed_bits(a: Array) -> Array:
        value = word(0)
        for k in range(bits):
            value = value | (a >> word(k) & word(1)) << word(bits - 1 - k)
        return value

    return elementwise(op, kind, (kind,), reversed_bits)


@instruction("bmsk.clamp.b32")
def bit_mask(op: Operation) -> Action:
    def mask(a: Array, b: Array) -> Array:
        p, n = a.astype(np.uint64), b.astype(np.uint64)
        ones = mask_of(np.minimum(n, np.uint64(32)), 32)
        return np.where(p > 31, np.uint64(0), ones << np.minimum(p, np.uint64(31)))

    return elementwise(op, "b32", ("u32", "u32"), mask)
