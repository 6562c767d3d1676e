"""Observers: from values that pass by to the range that quantisation should cover."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparseq import ops
from sparseq.quant.reduce import reduced_range
from sparseq.spec import Quant

MOMENTUM = 0.1


class Observer(nn.Module):
    """Running range of what it sees: `minmax` keeps the extremes, `moving_average` follows them.

    Moving average: `range += 0.1 * (batch's range - range)`, from the first batch's range on
    (Jacob et al. 2018, section 3.1).

    Args:
        spec: the scheme; its observer, axis and group_size are used.
        shape: of the ranges: `()`, `(C,)` or one per group.

    Attributes:
        low: float32, the least value that the grid should cover; infinity before anything was seen.
        high: the greatest, -infinity before.
    """

    low: Tensor
    high: Tensor

    def __init__(self, spec: Quant, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("low", torch.full(shape, float("inf")))
        self.register_buffer("high", torch.full(shape, float("-inf")))

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
        self.take(*checked_range(x, self.spec))

    @torch.no_grad()
    def take(self, low: Tensor, high: Tensor) -> None:
        """Take in one batch by its range; a range that is NaN changes nothing.

        Args:
            low: float32, shaped as the ranges: the batch's least values.
            high: its greatest.
        """
        known = ~low.isnan()
        if self.spec.observer == "moving_average":
            started = self.low.isfinite()
            new_low = torch.where(started, torch.lerp(self.low, low, MOMENTUM), low)
            new_high = torch.where(started, torch.lerp(self.high, high, MOMENTUM), high)
        else:
            new_low, new_high = torch.minimum(self.low, low), torch.maximum(self.high, high)
        self.low.copy_(torch.where(known, new_low, self.low))
        self.high.copy_(torch.where(known, new_high, self.high))

    @torch.no_grad()
    def settle(self) -> None:
        """End an observation: afterwards low and high hold on every rank what all ranks saw."""
        low, high = reduced_range(self.low, self.high)
        self.low.copy_(low)
        self.high.copy_(high)


def checked_range(x: Tensor, spec: Quant) -> tuple[Tensor, Tensor]:
    """The least and greatest values of x, per tensor, channel or group.

    Raises:
        ValueError: x is empty or holds NaN.
    """
    low, high = ops.minmax(x, spec.axis, spec.group_size)
    if not torch.compiler.is_compiling() and bool(low.isnan().any()):
        raise ValueError("observer: x must not hold NaN")
    return low, high
