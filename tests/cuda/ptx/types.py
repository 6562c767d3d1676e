"""PTX types as NumPy arrays.

A register is an array of unsigned integers, one element for each thread, or a NumPy scalar where
all threads have the same value. Reading it as a PTX type gives an array that NumPy can compute
with: bf16 widened to float32, f16x2 and bf16x2 with a last dimension of two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .errors import PtxError
from .syntax import WIDTHS

Array = np.ndarray[Any, np.dtype[Any]]
UNSIGNED = {1: np.bool_, 8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
SIGNED = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
FLOAT = {16: np.float16, 32: np.float32, 64: np.float64}
NAN_BITS = {16: 0x7FFF, 32: 0x7FFFFFFF, 64: 0x7FF8_0000_0000_0000}  # what arithmetic returns


def bits_of(type_name: str) -> int:
    return WIDTHS[type_name]


def is_float(type_name: str) -> bool:
    return type_name[0] == "f" or type_name.startswith("bf")


def limits(type_name: str) -> tuple[int, int]:
    """The least and the greatest integer of a type."""
    bits = bits_of(type_name)
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if type_name[0] == "s" else (0, (1 << bits) - 1)


def bfloat16_to_float(bits: Array) -> Array:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def float_to_bfloat16(values: Array) -> Array:
    """Rounded to nearest, ties to even; NaN becomes 0x7fff."""
    values = np.asarray(values, np.float32)
    bits = values.view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = (bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint32(0x7FFF), rounded).astype(np.uint16)


def canonical(values: Array) -> Array:
    """Float values whose NaNs have the bits that the hardware's arithmetic gives."""
    nan = values != values
    if nan.any():
        bits = values.dtype.itemsize * 8
        pattern = UNSIGNED[bits](NAN_BITS[bits]).view(values.dtype)
        return np.where(nan, pattern, values)
    return values


def _halves(bits: Array) -> Array:
    return np.ascontiguousarray(bits).reshape(*np.shape(bits), 1).view(np.uint16)


def _joined(halves: Array) -> Array:
    return np.ascontiguousarray(halves).view(np.uint32)[..., 0]


def decoder(type_name: str, width: int) -> Callable[[Array], Array]:
    """From the bits of a register `width` wide to values of a type that is no wider."""
    bits = bits_of(type_name)
    if (width == 1) != (type_name == "pred") or width < bits:
        raise PtxError(f"a {width}-bit register read as .{type_name}")
    raw = UNSIGNED[bits]
    cut: Callable[[Array], Array] = (lambda v: v.astype(raw)) if width > bits else lambda v: v
    if type_name == "f16x2":
        return lambda v: _halves(v).view(np.float16)
    if type_name == "bf16x2":
        return lambda v: bfloat16_to_float(_halves(v))
    if type_name == "bf16":
        return lambda v: bfloat16_to_float(cut(v))
    if type_name[0] in "sf":
        wanted = (SIGNED if type_name[0] == "s" else FLOAT)[bits]
        if width == bits:
            return lambda v: v.view(wanted)
        return lambda v: cut(v).view(wanted)
    return cut


def encoder(type_name: str, width: int) -> Callable[[Array], Array]:
    """From values of a type to the bits of a register; a wider one is sign- or zero-extended."""
    bits = bits_of(type_name)
    if (width == 1) != (type_name == "pred") or width < bits:
        raise PtxError(f".{type_name} written to a {width}-bit register")
    register = UNSIGNED[width]
    if type_name == "pred":
        return lambda v: v
    if type_name == "f16x2":
        return lambda v: _joined(canonical(v.astype(np.float16)).view(np.uint16))
    if type_name == "bf16x2":
        return lambda v: _joined(float_to_bfloat16(v))
    if type_name == "bf16":
        return lambda v: float_to_bfloat16(v).astype(register)
    if type_name[0] == "f":
        wanted, raw = FLOAT[bits], UNSIGNED[bits]

        def encode_float(v: Array) -> Array:
            return canonical(v if v.dtype == wanted else v.astype(wanted)).view(raw)

        return encode_float if width == bits else lambda v: encode_float(v).astype(register)
    family = SIGNED if type_name[0] == "s" else UNSIGNED
    exact, wide = family[bits], family[width]

    def encode(v: Array) -> Array:
        if v.dtype != exact:
            v = v.astype(exact)
        if width != bits:
            v = v.astype(wide)
        return v.view(register)

    return encode
