"""How strong the inputs are that each weight of a layer meets."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _product(layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor | None:
    """What a layer computes on x with another weight and no bias; None for an unknown layer."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight)
    if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        return layer._conv_forward(x, weight, None)
    if isinstance(layer, nn.ConvTranspose2d):
        padding, stride, extra = layer.padding, layer.stride, layer.output_padding
        assert isinstance(padding, tuple)
        return F.conv_transpose2d(
            x, weight, None, stride, padding, extra, layer.groups, layer.dilation
        )  # fmt: skip
    return F.embedding(x, weight) if isinstance(layer, nn.Embedding) else None


def input_energy(layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor | None:
    """For each weight the sum of squares of the inputs that it is multiplied with.

    That is the gradient of `sum(f(x^2, W))` with respect to W, f being the layer: so it holds for
    strides, paddings, groups and taps alike. An embedding's rows meet as many ones as they are
    looked up.

    Args:
        layer: linear, a convolution or an embedding.
        x: its input.
        weight: its weight, for the shape, in the layer's own order.

    Returns:
        float32, the weight's shape; None for another layer.
    """
    x = x.detach() if isinstance(layer, nn.Embedding) else x.detach().float().square()
    with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        stand_in = torch.zeros_like(weight, dtype=torch.float32).requires_grad_()
        result = _product(layer, x, stand_in)
        if result is None:
            return None
        return torch.autograd.grad(result.sum(), stand_in)[0]
