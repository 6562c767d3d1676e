"""cvt: between the number types."""

from __future__ import annotations

import numpy as np

from .elementwise import Function, elementwise
from .forms import Action, instruction
from .operation import Operation
from .rounding import ROUND_TO_INTEGER, flushed, odd_float32, rectified, rounded, saturated
from .syntax import Operand
from .types import FLOAT, SIGNED, UNSIGNED, Array, bits_of, limits
from .warps import Threads

INTEGERS = "u8|u16|u32|u64|s8|s16|s32|s64"


def clamped(value: Array, source: str, to: str) -> Array:
    """Integers held within the limits of a type."""
    low, high = limits(to)
    low, high = max(low, limits(source)[0]), min(high, limits(source)[1])
    return np.clip(value, value.dtype.type(low), value.dtype.type(high))


@instruction(f"cvt[.sat].<to:{INTEGERS}>.<from:{INTEGERS}>")
def between_integers(op: Operation) -> Action:
    to, source = op.get("to"), op.get("from")
    family = (SIGNED if to[0] == "s" else UNSIGNED)[bits_of(to)]
    if op.has("sat"):
        return elementwise(
            op, to, (source,), lambda a: clamped(a, source, to).astype(family), wide=True
        )
    return elementwise(op, to, (source,), lambda a: a.astype(family), wide=True)


@instruction(
    f"cvt.<round:rni|rzi|rmi|rpi>[.ftz][.sat].<to:{INTEGERS}>.<from:f32>",
    f"cvt.<round:rni|rzi|rmi|rpi>[.sat].<to:{INTEGERS}>.<from:f16|bf16|f64>",
)
def float_to_integer(op: Operation) -> Action:
    """Clamped to the type. NaN becomes 0, or the middle of the range where 64 bits take part."""
    to, source = op.get("to"), op.get("from")
    bits, (low, high) = bits_of(to), limits(to)
    integral = ROUND_TO_INTEGER[op.get("round")]
    family = np.int64 if to[0] == "s" else np.uint64
    of_nan = 0
    if bits == 64 or source == "f64":
        of_nan = low if to[0] == "s" else 1 << bits - 1

    def convert(a: Array) -> Array:
        a = integral((flushed(a) if op.has("ftz") else a).astype(np.float64))
        inside = (a > low) & (a < float(high))  # 2^63 - 1 as a float is 2^63
        result = np.where(inside, a, 0).astype(family)
        result = np.where(a >= float(high), family(high), result)
        result = np.where(a <= low, family(low), result)
        return np.where(np.isnan(a), family(of_nan), result)

    return elementwise(op, to, (source,), convert, wide=True)


def integer_to_float(value: Array, to: str, mode: str) -> Array:
    """Rounded once: of 64-bit integers what float64 cannot hold becomes one sticky bit."""
    if to == "f64" and mode == "rn":
        return value.astype(np.float64)
    if to == "f32" and mode == "rn":
        return value.astype(np.float32)
    wide = value.astype(np.float64)
    if value.dtype.itemsize == 8:
        # odd low bits stand for all that lie below float64's precision
        small = np.abs(wide) < 2.0**52
        sticky = value >> value.dtype.type(11) << value.dtype.type(11)
        inexact = sticky != value
        cut = np.where(inexact, sticky | value.dtype.type(1 << 11), sticky)
        wide = np.where(small, wide, cut.astype(np.float64))
    return odd_float32(wide) if to == "bf16" else rounded(wide, bits_of(to), mode)


@instruction(
    f"cvt.<round:rn|rz|rm|rp>.<to:f16|f32>.<from:{INTEGERS}>",
    f"cvt.<round:rn>.<to:f64|bf16>.<from:{INTEGERS}>",
)
def from_integer(op: Operation) -> Action:
    to, mode = op.get("to"), op.get("round")
    return elementwise(
        op, to, (op.get("from"),), lambda a: integer_to_float(a, to, mode), wide=True
    )


def finish(op: Operation, function: Function) -> Function:
    ftz, sat, relu = op.has("ftz"), op.has("sat"), op.has("relu")

    def finished(a: Array) -> Array:
        value = function(flushed(a) if ftz and a.dtype == np.float32 else a)
        if ftz and value.dtype == np.float32:
            value = flushed(value)
        value = saturated(value) if sat else value
        return rectified(value) if relu else value

    return finished if ftz or sat or relu else function


@instruction(
    "cvt.<round:rni|rzi|rmi|rpi>[.ftz][.sat].<to:f32>.f32",
    "cvt.<round:rni|rzi|rmi|rpi>[.sat].<to:f16>.f16",
    "cvt.<round:rni|rzi|rmi|rpi>[.sat].<to:f64>.f64",
)
def to_integral(op: Operation) -> Action:
    kind = op.get("to")
    return elementwise(op, kind, (kind,), finish(op, ROUND_TO_INTEGER[op.get("round")]))


@instruction(
    "cvt[.ftz][.sat].<to:f32>.<from:f16|f32>",
    "cvt.<to:f32>.<from:bf16>",
    "cvt[.sat].<to:f64>.<from:f16|f32|f64>",
    "cvt[.sat].<to:f16>.<from:f16>",
    "cvt.<round:rn|rz|rm|rp>[.ftz][.sat].<to:f32>.<from:f64>",
    "cvt.<round:rn|rz|rm|rp>[.ftz][.sat].<to:f16>.<from:f32>",
    "cvt.<round:rn|rz|rm|rp>[.sat].<to:f16>.<from:f64>",
    "cvt.<round:rn|rz>[.relu].<to:f16>.<from:f32>",
    "cvt.<round:rn|rz>[.relu].<to:bf16>.<from:f32>",
)
def between_floats(op: Operation) -> Action:
    to, source, mode = op.get("to"), op.get("from"), op.get("round", "rn")
    return elementwise(op, to, (source,), finish(op, float_conversion(to, mode)))


def float_conversion(to: str, mode: str) -> Function:
    if to == "bf16":
        return to_bfloat16(mode)
    target = FLOAT[bits_of(to)]
    if mode == "rn":
        return lambda a: a.astype(target)
    return lambda a: rounded(a.astype(np.float64), bits_of(to), mode)


def to_bfloat16(mode: str) -> Function:
    """Float32 values for the encoder, which rounds to nearest; for rz low bits are cut before."""
    if mode == "rn":
        return lambda a: a

    def cut(a: Array) -> Array:
        bits = np.asarray(a, np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
        return np.where(np.isnan(a), a, bits.view(np.float32))

    return cut


@instruction("cvt.<round:rn|rz>[.relu].<to:f16x2|bf16x2>.f32")
def pack_floats(op: Operation) -> Action:
    """d = {a, b}: a in the upper half."""
    op.expect(3)
    to, mode = op.get("to"), op.get("round")
    narrow = finish(op, float_conversion(to.removesuffix("x2"), mode))
    write, upper, lower = op.write(0, to), op.read(1, "f32"), op.read(2, "f32")

    def pack(threads: Threads) -> None:
        a, b = np.broadcast_arrays(upper(threads), lower(threads))
        write(threads, narrow(np.stack((b, a), -1)))

    return pack


@instruction("cvt.pack.sat.<to:u16|s16>.s32", "cvt.pack.sat.<to:u8|s8>.s32.b32")
def pack_integers(op: Operation) -> Action:
    """a and b clamped, b in the lowest part; bytes push the lower half of c up."""
    to = op.get("to")
    bits = bits_of(to)
    op.expect(4 if bits == 8 else 3)
    sources: list[int | Operand] = [1, 2]
    write, readers = op.write(0, "b32"), [op.read(k, "s32") for k in sources]
    rest = op.read(3, "b32") if bits == 8 else None
    mask = np.uint32((1 << bits) - 1)

    def pack(threads: Threads) -> None:
        a, b = (clamped(r(threads), "s32", to).view(np.uint32) & mask for r in readers)
        value = a << np.uint32(bits) | b
        if rest is not None:
            value = value | rest(threads) << np.uint32(16)
        write(threads, value)

    return pack
