"""Observers: from values that pass by to the range that quantisation should cover."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparseq import ops
from sparseq.spec import Quant

MOMENTUM = 0.1


class Observer(nn.Module):
    """Running range of what it sees: `minmax` keeps the extremes, `moving_average` follows them.

    Moving average: `range += 0.1 * (batch's range - range)`, from the first batch's range on
    (Jacob et al. 2018, section 3.1).

    Args:
        spec: the scheme; its observer, axis and group_size are used.
        shape: of the ranges: `()`, `(C,)` or one per group.
    """

    def __init__(self, spec: Quant, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("low", torch.full(shape, float("inf")))
        self.register_buffer("high", torch.full(shape, float("-inf")))
        self.low: Tensor
        self.high: Tensor

    def reset(self) -> None:
        """Forget everything."""
        self.low.fill_(float("inf"))
        self.high.fill_(float("-inf"))

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Take in one batch.

        Raises:
            ValueError: x is empty or holds NaN.
        """
        low, high = ops.minmax(x, self.spec.axis, self.spec.group_size)
        if not torch.compiler.is_compiling() and bool(low.isnan().any()):
            raise ValueError("observer: x must not hold NaN")
        if self.spec.observer == "moving_average":
            started = self.low.isfinite()
            low = torch.where(started, torch.lerp(self.low, low, MOMENTUM), low)
            high = torch.where(started, torch.lerp(self.high, high, MOMENTUM), high)
        else:
            low, high = torch.minimum(self.low, low), torch.maximum(self.high, high)
        self.low.copy_(low)
        self.high.copy_(high)


def range_to_grid(low: Tensor, high: Tensor, spec: Quant) -> tuple[Tensor, Tensor]:
    """Scale and zero point that cover [low, high] and represent 0 exactly.

    Symmetric: `scale = max(|low|, |high|) / quant_max`, zero point 0. Asymmetric:
    `scale = (high - low) / (quant_max - quant_min)` with 0 taken into the range, and
    `zero_point = rne(quant_min - low / scale)`. A range without extent gets scale 1.

    Args:
        low: float32 of any shape.
        high: as low.
        spec: the scheme.

    Returns:
        (scale float32, zero_point int32), shaped as low.

    Reference:
        Jacob et al. 2018, section 3; Krishnamoorthi 2018, section 2.1.
    """
    low, high = low.clamp(max=0), high.clamp(min=0)
    if spec.symmetric:
        extent = torch.maximum(-low, high) if spec.signed else high
        scale = extent / spec.quant_max
    else:
        scale = (high - low) / (spec.quant_max - spec.quant_min)
    scale = torch.where(scale >= torch.finfo(torch.float32).tiny, scale, torch.ones_like(scale))
    if spec.symmetric:
        return scale, torch.zeros_like(scale, dtype=torch.int32)
    zero = (spec.quant_min - low / scale).round().clamp(spec.quant_min, spec.quant_max)
    return scale, zero.to(torch.int32)
