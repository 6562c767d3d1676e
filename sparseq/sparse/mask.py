"""Masks: which weights stay. A mask is a transform that multiplies; the ranking is by magnitude."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparseq import ops
from sparseq.ops.check import FLOATS
from sparseq.sparse.layout import SwapChannels, swap_channels
from sparseq.spec import Sparsity, Unstructured

_DEVICES = tuple(name.lower() for name in ops.kernels()["mask_24"])  # that this build serves


class Mask(nn.Module):
    """Tensor to Tensor: `weight * mask`. What is masked is exactly zero and gets no gradient.

    Args:
        spec: what the mask should reach.
        weight: the weight it is for; the mask starts with every element kept.
        swap: what brought that weight into this order, if it is trained in another.

    Attributes:
        mask: bool, the weight's shape; True is kept.
        enabled: False passes the weight through unchanged.
    """

    mask: Tensor

    def __init__(self, spec: Sparsity, weight: Tensor, swap: SwapChannels | None = None) -> None:
        super().__init__()
        self.spec, self.swap = spec, swap
        self.enabled = True
        self.register_buffer("mask", torch.ones_like(weight, dtype=torch.bool))

    def forward(self, weight: Tensor) -> Tensor:
        """Zero what is masked; masked infinities and NaN too."""
        if not self.enabled:
            return weight
        return torch.where(self.mask, weight, torch.zeros_like(weight))

    def ordered(self, weight: Tensor) -> Tensor:
        """The weight as trained in the order of the mask."""
        return weight if self.swap is None else swap_channels(weight, self.swap.groups)

    def extra_repr(self) -> str:
        """The target, for print(model)."""
        return str(self.spec)


def serves(spec: Sparsity, weight: Tensor) -> bool:
    """Whether a weight can take a sparsity: NM needs whole groups along the input."""
    return isinstance(spec, Unstructured) or weight.shape[1] % spec.m == 0


@torch.no_grad()
def nm_mask(weight: Tensor, n: int = 2, m: int = 4) -> Tensor:
    """Keep the n of greatest magnitude of every m neighbours along dimension 1, ties to the first.

    NaN counts as the smallest. 2:4 is one pass, `ops.mask_24`, on the devices that have it.

    Args:
        weight: `[out, in]` or `[out, in / groups, ...taps]`, any float dtype.
        n: how many are kept.
        m: neighbours of a group; must divide the length of dimension 1.

    Returns:
        bool, the weight's shape.

    Raises:
        ValueError: m does not divide.

    Reference:
        Mishra et al. 2021, Accelerating Sparse Deep Neural Networks, section 3.
    """
    if weight.dim() < 2 or weight.shape[1] % m:
        raise ValueError(
            f"nm_mask: m must divide weight's dimension 1, got m = {m} "
            f"and shape {tuple(weight.shape)}"
        )
    if (n, m) == (2, 4) and weight.dtype in FLOATS and weight.device.type in _DEVICES:
        return ops.mask_24(weight)
    groups = weight.movedim(1, -1).unflatten(-1, (-1, m)).abs()
    groups = torch.where(groups.isnan(), -1.0, groups)
    order = groups.sort(dim=-1, descending=True, stable=True).indices
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, order[..., :n], True)
    return mask.flatten(-2).movedim(-1, 1).contiguous()


@torch.no_grad()
def magnitude_masks(
    weights: Sequence[Tensor], sparsity: float, masks: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """Mask the `sparsity` share of least magnitude, ranked over all weights together.

    Exactly `round(sparsity * elements)` are masked; among equals the earlier go first.

    Args:
        weights: one or more, of any shapes.
        sparsity: share of zeros, in [0, 1).
        masks: masks so far; what they drop ranks below everything, so it is dropped again.

    Returns:
        One bool mask per weight.

    Reference:
        Han et al. 2015, Learning both Weights and Connections.
    """
    magnitudes = [w.detach().abs().float() for w in weights]
    if masks is not None:
        magnitudes = [m.masked_fill(~k, -1.0) for m, k in zip(magnitudes, masks, strict=True)]
    scores = torch.cat([m.flatten() for m in magnitudes])
    keep = torch.ones_like(scores, dtype=torch.bool)
    keep[scores.sort(stable=True).indices[: round(sparsity * scores.numel())]] = False
    parts = keep.split([w.numel() for w in weights])
    return [part.reshape(w.shape) for part, w in zip(parts, weights, strict=True)]
