"""A layer's weight seen by its input channels, whatever its groups."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparseq.flow.prepare import original_weight


def _by_input(layer: nn.Module, weight: Tensor) -> Tensor:
    """The weight as `[groups, outputs of a group, inputs of a group, taps]`."""
    groups = int(getattr(layer, "groups", 1))
    return weight.reshape(groups, -1, weight.shape[1], weight[0, 0].numel())


def column_ranges(layer: nn.Module, weight: Tensor, repeat: int = 1) -> Tensor:
    """Greatest magnitude of what multiplies each input channel, of `repeat` inputs each."""
    columns = _by_input(layer, weight).abs().amax((1, 3)).flatten()
    return columns.reshape(-1, repeat).amax(1)


def scaled_columns(layer: nn.Module, weight: Tensor, factor: Tensor, repeat: int = 1) -> Tensor:
    """The weight with each input channel's elements times its factor."""
    parts = _by_input(layer, weight)
    spread = factor.repeat_interleave(repeat).reshape(parts.shape[0], 1, -1, 1)
    return (parts * spread).reshape(weight.shape)


def scaled_rows(weight: Tensor, factor: Tensor) -> Tensor:
    """The weight with each output channel's elements times its factor."""
    return weight * factor.reshape([-1] + [1] * (weight.dim() - 1))


@torch.no_grad()
def set_weight(layer: nn.Module, weight: Tensor) -> None:
    """Store a weight in the layer's parameter, in its dtype."""
    held = original_weight(layer)
    held.copy_(weight.to(held.dtype))


@torch.no_grad()
def divide(tensor: Tensor | None, factor: Tensor) -> None:
    """Divide a parameter or buffer by a factor, in place, rounding once."""
    if tensor is not None:
        tensor.copy_((tensor.double() / factor).to(tensor.dtype))
