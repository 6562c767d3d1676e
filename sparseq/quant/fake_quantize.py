"""The fake-quantising transform: what a weight or an input passes through in a prepared model."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from sparseq import ops
from sparseq.quant.observer import Observer, range_to_grid
from sparseq.spec import Quant


class FakeQuantize(nn.Module):
    """Tensor to Tensor: `fake_quantize(x)` on a grid that is observed, followed or learned.

    A weight's grid follows the weight: its range is taken anew in each forward pass. An input's
    grid comes from its observer, which looks while `calibrate` runs and while training. `freeze()`
    stops both. With `spec.learned` the grid is a parameter (LSQ; LSQ+ where not symmetric), set
    once from what is seen first, and `grad_factor = 1 / sqrt(numel / scales * quant_max)` as in the
    papers.

    Args:
        spec: the scheme.
        shape: of scale and zero point.
        follow: True for a weight.

    Attributes:
        scale: float32, positive; a buffer, or a parameter if learned.
        zero_point: int32 buffer, float32 parameter if learned, None if symmetric.
        enabled: False passes x through unchanged.
        frozen: True keeps the grid as it is.
        observing: True makes the observer look even in eval mode.
        calibrated: whether the grid was ever set.

    Reference:
        Jacob et al. 2018; LSQ, Esser et al. 2020; LSQ+, Bhalgat et al. 2020.
    """

    scale: Tensor
    zero_point: Tensor | None

    def __init__(self, spec: Quant, shape: tuple[int, ...], *, follow: bool) -> None:
        super().__init__()
        self.spec = spec
        self.follow = follow
        self.enabled, self.frozen, self.observing, self.calibrated = True, False, False, False
        self.observer = None if follow else Observer(spec, shape)
        zero = None if spec.symmetric else torch.zeros(shape, dtype=torch.int32)
        if spec.learned:
            self.scale = nn.Parameter(torch.ones(shape))
            self.zero_point = None if zero is None else nn.Parameter(zero.float())
        else:
            self.register_buffer("scale", torch.ones(shape))
            self.register_buffer("zero_point", zero)

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantise x, looking at it first where the grid is not settled.

        Raises:
            RuntimeError: the grid was never set: neither calibrated nor trained.
        """
        looks, exporting = self._looks(), torch.onnx.is_in_onnx_export()
        if looks and not exporting:
            self._look(x)
        if not self.enabled:
            return x
        if not self.calibrated and not (exporting and self.follow):
            raise RuntimeError(
                "this layer's input has no range yet: run calibrate(model, batches) or train first"
            )
        spec = self.spec
        if looks and exporting and self.follow:  # a graph of ONNX has no place to note it in
            scale, seen = range_to_grid(*ops.minmax(x, spec.axis, spec.group_size), spec)
            zero_point = None if spec.symmetric else seen
        else:
            scale, zero_point = self.grid()
        return ops.fake_quantize(
            x,
            scale,
            zero_point,
            spec.quant_min,
            spec.quant_max,
            spec.axis,
            spec.group_size,
            grad_factor=self._grad_factor(x) if spec.learned else 1.0,
        )

    def grid(self) -> tuple[Tensor, Tensor | None]:
        """Scale and zero point as used: a learned scale is kept positive."""
        if self.spec.learned:
            return self.scale.abs().clamp_min(torch.finfo(torch.float32).tiny), self.zero_point
        return self.scale, self.zero_point

    @torch.no_grad()
    def quantized(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """X as integers with scale (float32) and zero point (int32, zeros if symmetric)."""
        scale, zero_point = self.grid()
        spec = self.spec
        if zero_point is None:
            zero_point = torch.zeros_like(scale, dtype=torch.int32)
        zero_point = zero_point.round().clamp(spec.quant_min, spec.quant_max).to(torch.int32)
        q = ops.quantize(
            x.float(), scale, zero_point, spec.quant_min, spec.quant_max, spec.axis, spec.group_size
        )
        return q, scale.detach().clone(), zero_point

    def freeze(self) -> None:
        """Keep the grid as it is from now on."""
        self.frozen = True

    def _looks(self) -> bool:
        if self.frozen or (self.spec.learned and self.calibrated and not self.observing):
            return False
        return self.follow or self.training or self.observing

    @torch.no_grad()
    def _look(self, x: Tensor) -> None:
        if self.observer is None:
            low, high = ops.minmax(x, self.spec.axis, self.spec.group_size)
        else:
            self.observer.update(x)
            low, high = self.observer.low, self.observer.high
        scale, zero_point = range_to_grid(low, high, self.spec)
        self.scale.copy_(scale)
        if self.zero_point is not None:
            self.zero_point.copy_(zero_point)
        if not self.calibrated:
            self.calibrated = True

    def _grad_factor(self, x: Tensor) -> float:
        per_scale = x.numel() / max(self.scale.numel(), 1)
        return 1.0 / math.sqrt(max(per_scale, 1.0) * self.spec.quant_max)

    def get_extra_state(self) -> Any:
        """What else belongs to the state: whether the grid was set and frozen."""
        if torch.onnx.is_in_onnx_export():  # torch's TorchScript exporter wants tensors only
            return torch.tensor([self.calibrated, self.frozen])
        return {"calibrated": self.calibrated, "frozen": self.frozen}

    def set_extra_state(self, state: Any) -> None:
        """Restore what `get_extra_state` gave."""
        self.calibrated, self.frozen = bool(state["calibrated"]), bool(state["frozen"])

    def extra_repr(self) -> str:
        """The scheme, for print(model)."""
        return str(self.spec)
