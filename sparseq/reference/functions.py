"""The activations of programs, each a fixed sequence of float32 operations: the same bits anywhere.

csrc/core/functions.h has the same steps on vectors. Against exact values: relative error of exp
below 2e-7, absolute error of sigmoid, tanh and erf below 4e-7.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_LOG2_E = 1.44269504088896341
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
# exp(r) = 1 + r + r^2 p(r) on |r| <= ln(2) / 2 (Cephes, expf)
_EXP = (
    *(1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3),
    *(4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1),
)
# Abramowitz and Stegun 1964, 7.1.26
_ERF_P = 0.3275911
_ERF = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
_SQRT_HALF = 0.70710678118654752
_GELU_A, _GELU_B = 1.5957691216057308, 0.044715  # 2 sqrt(2 / pi)


def _polynomial(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    p = torch.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        p = p * x + c
    return p


def exp(x: Tensor) -> Tensor:
    """e^x of x clamped to [-87, 88]; NaN stays.

    `n = rne(x log2(e))`, `r = (x - n ln2_high) - n ln2_low`, `y = ((p(r) r) r + r) + 1`, times 2^n.
    """
    x = x.clamp(-87.0, 88.0)
    n = (x * _LOG2_E).round()
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    y = ((_polynomial(r, _EXP) * r) * r + r) + 1.0
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


def erf(x: Tensor) -> Tensor:
    """`1 - (p(t) t) exp(-(x x))` of |x|, `t = 1 / (1 + 0.3275911 |x|)`, with x's sign."""
    a = x.abs()
    t = 1.0 / (_ERF_P * a + 1.0)
    return torch.copysign(1.0 - (_polynomial(t, _ERF) * t) * exp(-(a * a)), x)


def gelu(x: Tensor) -> Tensor:
    """`(0.5 x) (1 + erf(x / sqrt(2)))`."""
    return (0.5 * x) * (1.0 + erf(x * _SQRT_HALF))


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
