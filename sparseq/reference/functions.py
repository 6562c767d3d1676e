"""The activations of programs, each a fixed sequence of float32 operations: the same bits anywhere.

csrc/core/functions.h has the same steps on vectors. Against exact values: relative error of exp
below 2e-7, absolute error of sigmoid and tanh below 4e-7, of gelu below 5e-7.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_LOG2_E = 1.44269504088896341
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_MAGIC = 1.5 * 2.0**23  # has a unit of 1: a sum with it is rounded to the nearest whole
# exp(r) = 1 + r + r^2 p(r) on |r| <= ln(2) / 2 (Cephes, expf)
_EXP = (
    *(1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3),
    *(4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1),
)
# P(Z < -a) of a normal Z on 0 <= a <= 5.4, in 2 a / 5.4 - 1: minimax, 4e-8
_TAIL_END = 5.4
_TAIL = (
    *(-0.00550591154, 0.00648681214, 0.0263845641, -0.0440581106),
    *(-0.0363292247, 0.122383147, -0.0481413007, -0.136489853),
    *(0.211697042, -0.0715904981, -0.154967293, 0.267242342),
    *(-0.215000778, 0.102559231, -0.0281371064, 0.00346696307),
)
_GELU_A, _GELU_B = 1.5957691216057308, 0.044715  # 2 sqrt(2 / pi)


def fma(a: Tensor, b: Tensor | float, c: Tensor | float) -> Tensor:
    """`a b + c` of float32 values, rounded once.

    In float64 the product is exact. Where the sum is not, its last bit is made odd, so that
    rounding it to float32 goes as rounding the exact sum would.

    Reference:
        Boldo and Melquiond 2008, Emulation of a FMA and correctly rounded sums.
    """
    a, b, c = (torch.as_tensor(x, dtype=torch.float32).double() for x in (a, b, c))
    product = a * b
    total = product + c
    back = total - product
    lost = (product - (total - back)) + (c - back)
    bits = total.view(torch.int64)
    even = (lost != 0) & lost.isfinite() & (bits & 1 == 0)
    odd = bits + torch.where((lost > 0) == (total > 0), 1, -1)
    return torch.where(even, odd, bits).view(torch.float64).float()


def _polynomial(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    p = torch.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        p = fma(p, x, c)
    return p


def exp(x: Tensor) -> Tensor:
    """e^x of x clamped to [-87, 88]; NaN stays.

    `n = rne(x log2(e))`, `r = (x - n ln2_high) - n ln2_low`, `y = ((p(r) r) r + r) + 1`, times 2^n,
    with one rounding for each product and what is added to it.
    """
    x = x.clamp(-87.0, 88.0)
    n = fma(x, _LOG2_E, _MAGIC) - _MAGIC
    r = fma(n, -_LN2_LOW, fma(n, -_LN2_HIGH, x))
    y = fma(_polynomial(r, _EXP) * r, r, r) + 1.0
    return y * torch.ldexp(torch.ones_like(n), torch.nan_to_num(n).int())


def sigmoid(x: Tensor) -> Tensor:
    """`1 / (1 + exp(-x))`."""
    return 1.0 / (1.0 + exp(-x))


def silu(x: Tensor) -> Tensor:
    """`x / (1 + exp(-x))`."""
    return x / (1.0 + exp(-x))


def tanh(x: Tensor) -> Tensor:
    """`1 - 2 / (exp(2 x) + 1)`."""
    return 1.0 - 2.0 / (exp(2.0 * x) + 1.0)


def gelu(x: Tensor) -> Tensor:
    """`max(x, 0) - a P(Z < -a)`, a = min(|x|, 5.4): the form with erf, `x P(Z < x)`.

    P(Z < -a) is a polynomial of degree 15; the last product and sum are rounded once.
    """
    a = x.abs().clamp(max=_TAIL_END)
    tail = _polynomial(fma(a, 2 / _TAIL_END, -1.0), _TAIL)
    return fma(-a, tail, x.clamp(min=0.0))


def gelu_tanh(x: Tensor) -> Tensor:
    """`x / (1 + exp(-(2 sqrt(2 / pi) (x + 0.044715 x^3))))`, the tanh form."""
    u = _GELU_A * (x + ((x * x) * x) * _GELU_B)
    return x / (1.0 + exp(-u))


def hardsigmoid(x: Tensor) -> Tensor:
    """`min(max(x + 3, 0), 6) / 6`."""
    return (x + 3.0).clamp(0.0, 6.0) / 6.0


def activate(x: Tensor, name: str) -> Tensor:
    """The activation of this name (`sparseq.program.ACTIVATIONS`) of a float32 tensor."""
    own = {
        **{"sigmoid": sigmoid, "silu": silu, "tanh": tanh, "hardsigmoid": hardsigmoid},
        **{"gelu": gelu, "gelu_tanh": gelu_tanh},
    }
    if name == "none":
        return x
    return own[name](x) if name in own else getattr(functional, name)(x)
