"""The dynamic mode: an input on a grid of its own range, anew in every pass."""

from __future__ import annotations

from torch import Tensor, nn

from sparseq import ops
from sparseq.quant.fake_quantize import FakeQuantize
from sparseq.quant.grid import range_to_grid
from sparseq.reference import row_grid
from sparseq.spec import Quant


class DynamicQuantize(FakeQuantize):
    """Tensor to Tensor: `fake_quantize(x)` over x's own range and 0; it needs no data before.

    Nothing is kept from one pass to the next. The numbers are those of the converted layer.

    Args:
        spec: the scheme, dynamic.
        by_rows: whether each row along the last dimension has a grid of its own ("per token"; one
            that is not symmetric is then unsigned), else one grid covers all of x.

    Reference:
        Yao et al. 2022, ZeroQuant, section 3.2 (token-wise); Krishnamoorthi 2018, section 2.
    """

    def __init__(self, spec: Quant, *, by_rows: bool) -> None:
        nn.Module.__init__(self)  # without the grid and the observer of what has a state
        self.spec, self.shape, self.by_rows = spec, (), by_rows
        self.follow, self.observer, self.fits = True, None, False
        self.enabled, self.frozen, self.observing, self.calibrated = True, False, False, True
        self.register_buffer("scale", None)
        self.register_buffer("zero_point", None)

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantise x; the gradient is straight-through."""
        if not self.enabled or x.numel() == 0:
            return x
        spec = self.spec
        if not self.by_rows:
            scale, zero_point = range_to_grid(*ops.minmax(x), spec)
            return ops.fake_quantize(x, scale, zero_point, spec.quant_min, spec.quant_max)
        if spec.symmetric and not spec.signed:
            x = x.clamp(min=0)
        shift = 0 if spec.symmetric else spec.quant_min
        low, high = spec.quant_min - shift, spec.quant_max - shift
        rows = x.reshape(-1, x.shape[-1])
        scale, zero_point = row_grid(rows.detach(), low, high)
        y = ops.fake_quantize(rows, scale.reshape(-1), zero_point.reshape(-1), low, high, 0)
        return y.reshape(x.shape)

    def freeze(self) -> None:
        """Nothing to keep."""

    def start_observing(self) -> None:
        """Nothing to learn from data."""
