"""Grids of torch.ao's fake-quantisers and observers as sparseq's schemes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparseq.quant import FakeQuantize, range_to_grid
from sparseq.spec import Quant


@dataclass(frozen=True)
class Grid:
    """One quantiser of torch.ao, read.

    Attributes:
        scale: float32, one or one a channel.
        zero_point: int32, likewise.
        low: least integer.
        high: greatest integer.
        per_channel: whether there is one scale a channel.
        settled: whether its observer was switched off.
        enabled: whether it rounds.
        reduced: whether `reduce_range` spared the eighth bit.
    """

    scale: Tensor
    zero_point: Tensor
    low: int
    high: int
    per_channel: bool
    settled: bool
    enabled: bool
    reduced: bool

    def bits(self) -> int | None:
        """How many bits its integers take; None if its range is not one that `Quant` has."""
        for bits in range(2, 9):
            half = 2 ** (bits - 1)
            if (self.low, self.high) in ((-half, half - 1), (1 - half, half - 1), (0, 2**bits - 1)):
                return bits
        return None


def _flag(module: nn.Module, name: str) -> bool:
    value = getattr(module, name, None)
    return True if value is None else bool(value[0])


def read_grid(module: Any) -> Grid:
    """The grid of a fake-quantiser or observer.

    Raises:
        ValueError: it has seen no values, or has another form; the text goes on after a name.
    """
    observer = getattr(module, "activation_post_process", module)
    if getattr(module, "is_dynamic", False):
        raise ValueError("is dynamic: prepare the float model with sparseq instead")
    seen = getattr(observer, "min_val", None)
    if seen is not None and not (seen.numel() and bool(seen.isfinite().all())):
        raise ValueError("has seen no values: train or calibrate first")
    axis = getattr(module, "ch_axis", -1)
    per_channel = module.qscheme in (torch.per_channel_symmetric, torch.per_channel_affine)
    if per_channel and axis != 0:
        raise ValueError(f"has scales along axis {axis}: only axis 0 can be taken over")
    if hasattr(module, "fake_quant_enabled"):
        scale, zero_point = module.scale, module.zero_point
    else:
        scale, zero_point = module.calculate_qparams()
    if zero_point.is_floating_point():
        raise ValueError("has a floating zero point, which sparseq has no grid for")
    low, high = int(observer.quant_min), int(observer.quant_max)
    grid = Grid(
        scale.detach().float().clone(),
        zero_point.detach().int().clone(),
        low,
        high,
        per_channel,
        not _flag(module, "observer_enabled"),
        _flag(module, "fake_quant_enabled"),
        bool(getattr(observer, "reduce_range", False)),
    )
    if grid.bits() is None:
        raise ValueError(f"rounds to [{low}, {high}], which are not the integers of 2 to 8 bits")
    return grid


def input_spec(grid: Grid, reduce_range: bool) -> Quant:
    """The scheme of an input: the grid's, or the whole of its 8 bits where one was spared."""
    bits = grid.bits()
    assert bits is not None
    if grid.reduced and not reduce_range:
        bits = 8
    return Quant(bits, signed=grid.low < 0, symmetric=False, observer="moving_average")


def weight_spec(grid: Grid, per_channel: bool) -> Quant:
    """The scheme of a weight."""
    bits = grid.bits()
    assert bits is not None
    symmetric = not bool(grid.zero_point.any())
    axis = 0 if per_channel else None
    return Quant(bits, signed=grid.low < 0, symmetric=symmetric, axis=axis)


@torch.no_grad()
def set_input(quantizer: FakeQuantize, grid: Grid) -> None:
    """Give an input's fake-quantiser and its observer this grid."""
    scale, zero_point = grid.scale.reshape(()), grid.zero_point.reshape(())
    low, high = (grid.low - zero_point) * scale, (grid.high - zero_point) * scale
    spec = quantizer.spec
    if (spec.quant_min, spec.quant_max) != (grid.low, grid.high):  # the same range, finer
        scale, zero_point = range_to_grid(low, high, spec)
    observer = quantizer.observer
    assert observer is not None and quantizer.zero_point is not None
    observer.low.copy_(low)
    observer.high.copy_(high)
    _settle(quantizer, scale, zero_point, grid.settled, grid.enabled)


@torch.no_grad()
def set_weight(quantizer: FakeQuantize, grid: Grid, factor: Tensor | None, follow: bool) -> None:
    """Give a weight's fake-quantiser this grid.

    Args:
        quantizer: with one scale, or one a channel.
        grid: of the weight times factor, as torch.ao rounds it.
        factor: what the batch norm multiplies each channel by, or None.
        follow: leave the grid to the weight's own range.
    """
    scale, zero_point = grid.scale, grid.zero_point
    if factor is not None:
        magnitude = factor.abs()
        scale = scale / torch.where(magnitude > 0, magnitude, torch.ones_like(magnitude))
        zero_point = zero_point.expand(scale.shape)
    shape = quantizer.scale.shape
    _settle(quantizer, scale.reshape(shape), zero_point.reshape(shape), not follow, grid.enabled)


def _settle(
    quantizer: FakeQuantize, scale: Tensor, zero_point: Tensor, frozen: bool, enabled: bool
) -> None:
    quantizer.scale.copy_(scale.reshape(quantizer.scale.shape))
    if quantizer.zero_point is not None:
        quantizer.zero_point.copy_(zero_point.reshape(quantizer.zero_point.shape))
    quantizer.calibrated, quantizer.frozen, quantizer.enabled = True, frozen, enabled
