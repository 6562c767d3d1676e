"""What a batch norm does in eval mode."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def affine_of(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """A batch norm in eval mode as `y = factor * x + shift`, per channel, float32.

    `factor = weight / sqrt(running_var + eps)`, `shift = bias - running_mean * factor`
    (Ioffe and Szegedy 2015, algorithm 2).
    """
    assert isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d))
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None and variance is not None
    factor = torch.rsqrt(variance.double() + norm.eps)
    if norm.weight is not None:
        factor = factor * norm.weight.double()
    shift = -mean.double() * factor
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    return factor.float(), shift.float()
