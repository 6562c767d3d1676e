"""Rounding to a float type from float64, so that each operation rounds once."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from .types import FLOAT, SIGNED, Array

ROUND_TO_INTEGER = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def to_odd(total: Array, error: Array) -> Array:
    """A float64 sum rounded to odd: rounding it once more, to 24 bits or fewer, is then right."""
    bits = np.asarray(total).view(np.int64)
    fix = np.isfinite(total) & (error != 0) & (bits & 1 == 0)
    if not fix.any():
        return total
    outwards = (error > 0) == (total > 0)
    return np.where(fix, bits + np.where(outwards, 1, -1), bits).view(np.float64)


def exact_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """A float64 sum and what it lost (Knuth 1969, two-sum)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def fma_to_odd(a: Array, b: Array, c: Array) -> Array:
    """a * b + c of float32 or narrower, in float64 rounded to odd: the product is exact."""
    wide = [np.asarray(x).astype(np.float64) for x in (a, b, c)]
    return to_odd(*exact_sum(wide[0] * wide[1], wide[2]))


def zero_down(total: Array, a: Array, b: Array) -> Array:
    """The sum of a and b where it rounds down: a zero is -0, but for 0 + 0."""
    plus = (a == 0) & (b == 0) & ~np.signbit(a) & ~np.signbit(b)
    return np.where((total == 0) & ~plus, -0.0, total)


def fma_float64(a: Array, b: Array, c: Array) -> Array:
    """a * b + c rounded once, by exact fractions."""

    def one(x: float, y: float, z: float) -> float:
        plain = x * y + z
        if not all(map(np.isfinite, (x, y, z))):
            return plain
        exact = Fraction(x) * Fraction(y) + Fraction(z)
        try:
            return float(exact) if exact else plain
        except OverflowError:
            return float("inf") if exact > 0 else float("-inf")

    a, b, c = np.broadcast_arrays(a, b, c)
    flat = [one(*map(float, xyz)) for xyz in zip(a.flat, b.flat, c.flat, strict=True)]
    return np.array(flat).reshape(a.shape)


def rounded(value: Array, bits: int, mode: str) -> Array:
    """A float64 as float16 or float32, rounded as rn, rz, rm or rp say."""
    target = FLOAT[bits]
    near = value.astype(target)
    if mode == "rn":
        return near
    back = near.astype(np.float64)
    if mode == "rz":
        wrong, towards = np.abs(back) > np.abs(value), target(0)
    elif mode == "rm":
        wrong, towards = back > value, target(-np.inf)
    else:
        wrong, towards = back < value, target(np.inf)
    stepped = np.where(wrong, np.nextafter(near, towards), near)
    return np.where(stepped == 0, np.copysign(target(0), value.astype(target)), stepped)


def odd_float32(value: Array) -> Array:
    """A float64 as float32 rounded to odd, on the way to bfloat16."""
    cut = rounded(np.asarray(value), 32, "rz")
    inexact = (cut.astype(np.float64) != value) & ~np.isnan(value)
    bits = np.asarray(cut).view(SIGNED[32])
    return np.where(inexact, bits | 1, bits).astype(np.int32).view(np.float32)


def flushed(value: Array) -> Array:
    """Subnormal float32 as zeros of their sign."""
    small = np.abs(value) < np.float32(2.0**-126)
    return np.where(small, np.copysign(np.float32(0), value), value)


def saturated(value: Array) -> Array:
    """Clamped to [0, 1]; NaN becomes 0."""
    return np.where(
        np.isnan(value), value.dtype.type(0), np.clip(value, 0, 1) + value.dtype.type(0)
    )


def rectified(value: Array) -> Array:
    """Zero where not above; NaN stays."""
    return np.where(value <= 0, value.dtype.type(0), value)
