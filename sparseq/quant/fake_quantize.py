"""The fake-quantising transform: what a weight or an input passes through in a prepared model."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from sparseq import ops
from sparseq.quant.checkpointing import Passes, repeated
from sparseq.quant.fit import range_of_values
from sparseq.quant.grid import range_to_grid
from sparseq.quant.histogram import HistogramObserver
from sparseq.quant.observer import Observer
from sparseq.quant.reduce import reduced_range, sharded
from sparseq.reference import expand_channels
from sparseq.spec import RANGE_OBSERVERS, Quant

Grid = tuple[Tensor, Tensor | None]


class FakeQuantize(nn.Module):
    """Tensor to Tensor: `fake_quantize(x)` on a grid that is observed, followed or learned.

    A weight's grid follows the weight: its range is taken anew in each forward pass; observers of
    distributions ("percentile", "histogram", "entropy") fit a share of that range once, and anew in
    each `calibrate`. An input's grid comes from its observer, which looks while `calibrate` runs
    and, if it is of ranges ("minmax", "moving_average"), while training too: in the pass that
    fake-quantises, so that a batch is quantised on the grid of the batches before it (the very
    first on its own). `freeze()` stops both. With `spec.learned` the grid is a parameter, set once
    from what is seen first or by `calibrate`; its gradient has the factor
    `1 / sqrt(numel / scales * quant_max)` of LSQ and LSQ+.

    Ranks of a distributed run share their ranges. A pass that gradient checkpointing repeats uses
    the grid of the first and looks at nothing.

    Args:
        spec: the scheme.
        shape: of scale and zero point.
        follow: True for a weight.

    Attributes:
        scale: float32, positive; a buffer, or a parameter if learned.
        zero_point: int32 buffer, float32 parameter if learned, None if symmetric.
        enabled: False passes x through unchanged.
        frozen: True keeps the grid as it is.
        observing: True while `calibrate` runs.
        calibrated: whether the grid was ever set.

    Reference:
        Jacob et al. 2018; LSQ, Esser et al. 2020; LSQ+, Bhalgat et al. 2020; PACT, Choi et al.
        2018.
    """

    scale: Tensor
    zero_point: Tensor | None
    share: Tensor  # of low and of high that a fitted weight's grid keeps

    def __init__(self, spec: Quant, shape: tuple[int, ...], *, follow: bool) -> None:
        super().__init__()
        self.spec, self.shape, self.follow = spec, shape, follow
        self.enabled, self.frozen, self.observing, self.calibrated = True, False, False, False
        self.fits = spec.observer not in RANGE_OBSERVERS
        self.observer: Observer | None = None
        if not follow:
            self.observer = (HistogramObserver if self.fits else Observer)(spec, shape)
        elif self.fits:
            self.register_buffer("share", torch.ones(2, *shape))
        self._passes = Passes()  # of training, for gradient checkpointing
        zero = None if spec.symmetric else torch.zeros(shape, dtype=torch.int32)
        if spec.learned:  # FSDP takes no parameter without a dimension
            self.scale = nn.Parameter(torch.ones(shape or 1))
            self.zero_point = (
                None if zero is None else nn.Parameter(zero.float().reshape(shape or 1))
            )
        else:
            self.register_buffer("scale", torch.ones(shape))
            self.register_buffer("zero_point", zero)

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantise x, looking at it where the grid is not settled.

        Raises:
            RuntimeError: the grid was never set: neither calibrated nor trained.
            ValueError: x holds NaN, while `calibrate` runs.
        """
        if self.observer is not None and self._looks():
            return self._observed(self.observer, x)
        if not self.enabled:
            return x
        if self.follow and self._looks():
            followed = self._followed(x)
            return self._quantize(x, *(self.grid() if self.spec.learned else followed))
        if not self.known():
            raise RuntimeError(
                "this layer's input has no range yet: run calibrate(model, batches)"
                + ("" if self.fits else " or train first")
            )
        return self._quantize(x, *self.grid())

    def grid(self) -> Grid:
        """Scale and zero point as used, of the shape given: a learned scale is kept positive."""
        if not self.spec.learned:
            return self.scale, self.zero_point
        scale = self.scale.abs().clamp_min(torch.finfo(torch.float32).tiny).reshape(self.shape)
        zero = self.zero_point
        return scale, None if zero is None else zero.reshape(self.shape)

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

    def known(self) -> bool:
        """Whether the grid was set, be it in buffers copied from another model."""
        if not self.calibrated and self.observer is not None:
            self.calibrated = bool((self.observer.low <= self.observer.high).all())
        return self.calibrated

    def freeze(self) -> None:
        """Keep the grid as it is from now on."""
        self.frozen = True

    def start_observing(self) -> None:
        """Forget what was seen; until `stop_observing` the observer looks at what passes."""
        if self.frozen:
            return
        self.observing = True
        if self.observer is not None:
            self.observer.reset()
        else:
            self.calibrated = False  # a fitted or learned grid starts anew from the weight

    def stop_observing(self) -> None:
        """Set the grid from what was seen, on all ranks; without anything seen it stays."""
        if not self.observing:
            return
        self.observing = False
        if self.observer is not None:
            self.observer.settle()
            if bool((self.observer.low <= self.observer.high).all()):
                self._set(*range_to_grid(self.observer.low, self.observer.high, self.spec))

    def _looks(self) -> bool:
        if self.frozen or (self.spec.learned and self.calibrated and not self.observing):
            return False
        if self.follow or self.observing:
            return True
        return self.training and not self.fits

    def _observed(self, observer: Observer, x: Tensor) -> Tensor:
        """An input's pass while its observer looks."""
        spec = self.spec
        if self.observing:
            observer.update(x)
            return x
        if repeated() and (first := self._passes.find(x)) is not None:
            return self._quantize(x, *first) if self.enabled else x
        if not self.enabled or not self.calibrated:
            self._take(observer, *ops.minmax(x, spec.axis, spec.group_size))
        if not self.enabled:
            return x
        if spec.learned:
            return self._quantize(x, *self.grid())
        # a copy: the backward pass needs the grid, and the buffer takes the next one
        used = self.scale.clone(), None if self.zero_point is None else self.zero_point.clone()
        if not torch.compiler.is_compiling():
            self._passes.note(x, used)
        y, low, high = ops.fake_quantize_observed(
            x, *used, spec.quant_min, spec.quant_max, spec.axis, spec.group_size
        )
        self._take(observer, low, high)
        return y

    @torch.no_grad()
    def _take(self, observer: Observer, low: Tensor, high: Tensor) -> None:
        # an infinity is an overflow of float16, whose step GradScaler leaves out: so does this
        finite = low.isfinite() & high.isfinite()
        low, high = torch.where(finite, low, torch.nan), torch.where(finite, high, torch.nan)
        observer.take(*reduced_range(low, high))
        self._set(*range_to_grid(observer.low, observer.high, self.spec))

    @torch.no_grad()
    def _followed(self, weight: Tensor) -> Grid:
        """The grid of a weight as it is now."""
        spec = self.spec
        low, high = ops.minmax(weight, spec.axis, spec.group_size)
        if self.fits:
            if not self.calibrated:
                fitted = torch.stack(range_of_values(weight, spec, self.shape))
                self.share.copy_(_share(fitted, torch.stack([low, high]), spec))
            low, high = low * self.share[0], high * self.share[1]
        scale, zero_point = range_to_grid(low, high, spec)
        if not torch.onnx.is_in_onnx_export():  # a graph of ONNX has no place to note it in
            self._set(scale, zero_point)
        return scale, None if spec.symmetric else zero_point

    @torch.no_grad()
    def _set(self, scale: Tensor, zero_point: Tensor) -> None:
        if self.spec.learned and not torch.compiler.is_compiling() and sharded(self):
            raise RuntimeError(
                "a learned grid must be set before fully_shard, whose shards keep nothing that a "
                "forward pass writes: run calibrate(model, batches) first"
            )
        self.scale.copy_(scale.reshape(self.scale.shape))
        if self.zero_point is not None:
            self.zero_point.copy_(zero_point.reshape(self.zero_point.shape))
        if not self.calibrated:
            self.calibrated = True

    def _quantize(self, x: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
        spec = self.spec
        factor = 1.0
        if spec.learned == "pact":
            x, scale = self._clipped(x, scale), scale.detach()
        elif spec.learned:
            per_scale = x.numel() / max(scale.numel(), 1)
            factor = 1.0 / math.sqrt(max(per_scale, 1.0) * spec.quant_max)
        return ops.fake_quantize(
            x,
            scale,
            zero_point,
            spec.quant_min,
            spec.quant_max,
            spec.axis,
            spec.group_size,
            grad_factor=factor,
        )

    def _clipped(self, x: Tensor, scale: Tensor) -> Tensor:
        """PACT: `clamp(x, -alpha or 0, alpha)`, with the gradient of alpha from what is clipped.

        The parameter is `scale = alpha / quant_max`. Its gradient is divided by quant_max^2, so
        that a step of gradient descent moves alpha as far as if alpha were the parameter.
        """
        spec, most = self.spec, float(self.spec.quant_max)
        slow = scale / most**2
        alpha = (slow + (scale - slow).detach()) * most
        alpha = expand_channels(alpha, x, spec.axis, spec.group_size).to(x.dtype)
        return x.clamp(-alpha if spec.signed else torch.zeros_like(alpha), alpha)

    def get_extra_state(self) -> Any:
        """What else belongs to the state: whether the grid was set and frozen."""
        if torch.onnx.is_in_onnx_export():  # torch's TorchScript exporter wants tensors only
            return torch.tensor([self.calibrated, self.frozen])
        return {"calibrated": self.calibrated, "frozen": self.frozen}

    def set_extra_state(self, state: Any) -> None:
        """Restore what `get_extra_state` gave.

        Raises:
            ValueError: it is something else.
        """
        names = ("calibrated", "frozen")
        if not isinstance(state, dict) or any(type(state.get(n)) is not bool for n in names):
            raise ValueError(f"FakeQuantize: state must hold the booleans {names}, got {state!r}")
        self.calibrated, self.frozen = bool(state["calibrated"]), bool(state["frozen"])

    def extra_repr(self) -> str:
        """The scheme, for print(model)."""
        return str(self.spec)


def _share(fitted: Tensor, whole: Tensor, spec: Quant) -> Tensor:
    """`fitted / whole`, such that `whole` times it gives the fitted grid; 1 where whole is 0."""
    if spec.symmetric:  # the greater of the two ends decides
        reach = torch.maximum(-whole[0], whole[1]) if spec.signed else whole[1]
        share = torch.where(reach > 0, fitted[1] / reach, 1.0)
        return share.expand_as(whole)
    return torch.where(whole != 0, fitted / whole, 1.0).clamp(0, 1)
