"""Float arithmetic, rounded once; f16 and bf16 compute in wider floats and round at the end."""

from __future__ import annotations

import numpy as np

from .elementwise import Function, elementwise
from .errors import PtxError
from .forms import Action, instruction
from .operation import Operation
from .rounding import (
    exact_sum,
    flushed,
    fma_float64,
    fma_to_odd,
    odd_float32,
    rectified,
    rounded,
    saturated,
    to_odd,
    zero_down,
)
from .types import UNSIGNED, Array, bits_of

ROUNDINGS = "rn|rz|rm|rp"
HALVES = "f16|f16x2|bf16|bf16x2"
PLAIN = {"add": np.add, "sub": np.subtract, "mul": np.multiply}


def finish(op: Operation, function: Function) -> Function:
    """The function with what .ftz, .sat and .relu add to it."""
    ftz, sat, relu = op.has("ftz"), op.has("sat"), op.has("relu")
    if not (ftz or sat or relu):
        return function

    def finished(*values: Array) -> Array:
        result = function(*map(flushed, values)) if ftz else function(*values)
        if ftz:
            result = flushed(result)
        if sat:
            result = saturated(result)
        return rectified(result) if relu else result

    return finished


def narrow(kind: str, mode: str = "rn") -> Function:
    """From float64 rounded to odd to what the encoder of the type rounds no further."""
    if kind.startswith("bf16"):
        return odd_float32
    bits = 16 if kind == "f16x2" else bits_of(kind)
    return lambda value: rounded(value, bits, mode)


@instruction(
    *(f"{name}[.<round:{ROUNDINGS}>][.ftz][.sat].f32" for name in PLAIN),
    *(f"{name}[.rn].f64" for name in PLAIN),
    *(f"{name}[.rn][.sat].<half:f16|f16x2>" for name in PLAIN),
    *(f"{name}[.rn].<half:bf16|bf16x2>" for name in PLAIN),
)
def plain(op: Operation) -> Action:
    name, *_, kind = op.instruction.opcode.split(".")
    mode = op.get("round", "rn")
    if kind in ("f32", "f64") and mode == "rn":
        return elementwise(op, kind, (kind, kind), finish(op, PLAIN[name]))
    to_type = narrow(kind, mode)

    def once(a: Array, b: Array) -> Array:
        a, b = a.astype(np.float64), b.astype(np.float64)
        if name == "mul":
            return to_type(a * b)
        b = b if name == "add" else -b
        total = to_odd(*exact_sum(a, b))
        return to_type(zero_down(total, a, b) if mode == "rm" else total)

    return elementwise(op, kind, (kind, kind), finish(op, once))


@instruction(
    f"fma.<round:{ROUNDINGS}>[.ftz][.sat].f32",
    f"mad.<round:{ROUNDINGS}>[.ftz][.sat].f32",
    "fma.rn.<type:f64>",
    "fma.rn[.sat].<type:f16|f16x2>",
    f"fma.rn.relu.<type:{HALVES}>",
    "fma.rn.<type:bf16|bf16x2>",
)
def fma(op: Operation) -> Action:
    kind = op.get("type", "f32")
    if kind == "f64":
        return elementwise(op, kind, (kind,) * 3, fma_float64)
    mode = op.get("round", "rn")
    to_type = narrow(kind, mode)

    def once(a: Array, b: Array, c: Array) -> Array:
        total = fma_to_odd(a, b, c)
        return to_type(zero_down(total, a * b, c) if mode == "rm" else total)

    return elementwise(op, kind, (kind,) * 3, finish(op, once))


@instruction("div.<round:rn|full|approx>[.ftz].f32", "div.rn.<type:f64>")
def div(op: Operation) -> Action:
    kind = op.get("type", "f32")
    op.approximate = op.get("round") in ("full", "approx")
    return elementwise(op, kind, (kind, kind), finish(op, np.divide))


@instruction(
    *(f"{name}[.ftz][.NaN].f32" for name in ("min", "max")),
    *(f"{name}.f64" for name in ("min", "max")),
    *(f"{name}[.NaN].<half:{HALVES}>" for name in ("min", "max")),
)
def min_or_max(op: Operation) -> Action:
    """The number where one is NaN; -0 is less than +0."""
    kind, nan = op.instruction.opcode.rpartition(".")[2], op.has("NaN")
    greatest = op.instruction.opcode.startswith("max")
    pick, join = (np.fmax, np.logical_and) if greatest else (np.fmin, np.logical_or)

    def extreme(a: Array, b: Array) -> Array:
        value = pick(a, b)
        both_zero = (a == 0) & (b == 0)
        if both_zero.any():
            zero = value.dtype.type(0)
            signed = np.where(join(np.signbit(a), np.signbit(b)), -zero, zero)
            value = np.where(both_zero, signed, value)
        if nan:
            value = np.where(np.isnan(a) | np.isnan(b), value.dtype.type(np.nan), value)
        return value

    return elementwise(op, kind, (kind, kind), finish(op, extreme))


@instruction(
    *(f"{name}[.ftz].f32" for name in ("neg", "abs")),
    *(f"{name}.<type:f64|{HALVES}>" for name in ("neg", "abs")),
)
def sign(op: Operation) -> Action:
    """Of the sign bit alone."""
    kind = op.get("type", "f32")
    bits = bits_of(kind)
    mask = 1 << bits - 1 | (1 << 15 if kind.endswith("x2") else 0)
    top = UNSIGNED[bits](mask)
    if op.has("ftz"):
        function = np.negative if op.instruction.opcode.startswith("neg") else np.abs
        return elementwise(op, kind, (kind,), finish(op, function))
    if op.instruction.opcode.startswith("neg"):
        return elementwise(op, f"b{bits}", (f"b{bits}",), lambda a: a ^ top)
    return elementwise(op, f"b{bits}", (f"b{bits}",), lambda a: a & ~top)


@instruction("copysign.<type:f32|f64>")
def copysign(op: Operation) -> Action:
    """b with a's sign."""
    kind = op.get("type")
    bits = bits_of(kind)
    top = UNSIGNED[bits](1 << bits - 1)
    return elementwise(op, f"b{bits}", (f"b{bits}",) * 2, lambda a, b: a & top | b & ~top)


# of these PTX bounds the error; here they are rounded correctly
APPROXIMATE = {
    "rcp": lambda a: a.dtype.type(1) / a,
    "sqrt": np.sqrt,
    "rsqrt": lambda a: (1 / np.sqrt(a.astype(np.float64))).astype(a.dtype),
    "ex2": lambda a: np.exp2(a.astype(np.float64)).astype(a.dtype),
    "lg2": lambda a: np.log2(a.astype(np.float64)).astype(a.dtype),
    "sin": lambda a: np.sin(a.astype(np.float64)).astype(a.dtype),
    "cos": lambda a: np.cos(a.astype(np.float64)).astype(a.dtype),
    "tanh": lambda a: np.tanh(a.astype(np.float64)).astype(a.dtype),
}


@instruction(
    *(f"{name}.approx[.ftz].f32" for name in APPROXIMATE if name != "tanh"),
    "tanh.approx.f32",
)
def approximate(op: Operation) -> Action:
    op.approximate = True
    function = APPROXIMATE[op.instruction.opcode.partition(".")[0]]
    return elementwise(op, "f32", ("f32",), finish(op, function))


@instruction("rcp.rn[.ftz].f32", "sqrt.rn[.ftz].f32", "rcp.rn.<type:f64>", "sqrt.rn.<type:f64>")
def exact_root(op: Operation) -> Action:
    kind = op.get("type", "f32")
    function = APPROXIMATE[op.instruction.opcode.partition(".")[0]]
    return elementwise(op, kind, (kind,), finish(op, function))


def _normal(a: Array) -> Array:
    return np.isfinite(a) & (np.abs(a) >= np.finfo(a.dtype).tiny)


TESTS = {
    "finite": np.isfinite,
    "infinite": np.isinf,
    "number": lambda a: ~np.isnan(a),
    "notanumber": np.isnan,
    "normal": _normal,
    "subnormal": lambda a: np.isfinite(a) & (a != 0) & ~_normal(a),
}


@instruction(f"testp.<test:{'|'.join(TESTS)}>.<type:f32|f64>")
def testp(op: Operation) -> Action:
    if op.get("test") not in TESTS:
        raise PtxError("test")
    return elementwise(op, "pred", (op.get("type"),), TESTS[op.get("test")])
