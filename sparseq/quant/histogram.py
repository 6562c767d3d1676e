"""The observer of distributions: it counts what it sees, and fits a range to the counts."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseq import ops
from sparseq.quant.fit import fitted_range
from sparseq.quant.observer import Observer, checked_range
from sparseq.quant.reduce import reduced_, reduced_range

BINS = 4096  # at least 1024 of them hold what lies on one side of 0
LEAST, GREATEST = -126, 127  # exponents of the limits that `ops.histogram` takes


class HistogramObserver(Observer):
    """Counts values in 4096 bins over [-R, R), R a power of two, and fits a range to the counts.

    When a batch goes beyond R, R doubles until it fits, and neighbouring bins join: integers stay
    exact, and neither the order of the batches nor their cut nor the ranks that saw them changes
    the result. `settle` fits low and high by the scheme's observer ("percentile", "histogram",
    "entropy"; see `sparseq.quant.fit`) and gives the memory back.
    """

    counts: Tensor | None = None  # int64 [*shape, BINS]
    exponent: Tensor | None = None  # float32, shaped as low: R = 2^exponent

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.counts = self.exponent = None

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Take in one batch.

        Raises:
            ValueError: x is empty or holds NaN.
        """
        low, high = checked_range(x, self.spec)
        wanted = _exponent(torch.maximum(-low, high))
        if self.counts is None or self.exponent is None:
            self.counts = torch.zeros((*low.shape, BINS), dtype=torch.int64, device=x.device)
            self.exponent = wanted
        self._widen(torch.maximum(wanted, self.exponent))
        limit = torch.exp2(self.exponent)
        self.counts += ops.histogram(x, limit, BINS, self.spec.axis, self.spec.group_size)
        self.low.copy_(torch.minimum(self.low, low))
        self.high.copy_(torch.maximum(self.high, high))

    @torch.no_grad()
    def settle(self) -> None:
        """Put together what all ranks saw, and fit low and high to it."""
        low, high = reduced_range(self.low, self.high)
        if bool((low <= high).all()):  # somebody saw something
            reach = _exponent(torch.maximum(-low, high))
            if self.counts is None or self.exponent is None:
                self.counts = torch.zeros((*low.shape, BINS), dtype=torch.int64, device=low.device)
                self.exponent = reach
            self._widen(reduced_(torch.maximum(reach, self.exponent), greatest=True))
            counts = reduced_(self.counts)
            if bool((low.isfinite() & high.isfinite()).all()):
                low, high = fitted_range(counts, torch.exp2(self.exponent), low, high, self.spec)
        self.low.copy_(low)
        self.high.copy_(high)
        self.counts = self.exponent = None

    def _widen(self, exponent: Tensor) -> None:
        """Join bins so that they reach to the limits 2^exponent."""
        assert self.counts is not None and self.exponent is not None
        grown = exponent - self.exponent
        if bool((grown == 0).all()):
            return
        half = BINS // 2
        bins = torch.arange(BINS, device=grown.device, dtype=torch.float32) - half
        # floor((i - half) / 2^grown): exact, powers of two; beyond 2^12 only the sign is left
        target = torch.floor(bins * torch.exp2(-grown.clamp(max=24)).unsqueeze(-1)).long() + half
        self.counts = torch.zeros_like(self.counts).scatter_add_(-1, target, self.counts)
        self.exponent = exponent


def _exponent(reach: Tensor) -> Tensor:
    """The least e with reach <= 2^e, as float32, within what `ops.histogram` takes."""
    mantissa, exponent = torch.frexp(reach)
    exponent = torch.where(mantissa == 0.5, exponent - 1, exponent).float()
    exponent = torch.where(reach.isfinite(), exponent, float(GREATEST))
    return torch.where(reach > 0, exponent, float(LEAST)).clamp(LEAST, GREATEST)
