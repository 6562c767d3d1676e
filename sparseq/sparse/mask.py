"""Masks: which weights stay. A mask is a transform that multiplies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparseq import ops
from sparseq.ops.check import FLOATS
from sparseq.sparse.layout import SwapChannels, swap_channels
from sparseq.sparse.rank import keep_greatest, keep_nm
from sparseq.spec import FROM_DATA, NM, Block, Sparsity, Unstructured

_DEVICES = tuple(name.lower() for name in ops.kernels()["mask_24"])  # that this build serves


class _Refine(torch.autograd.Function):
    """`where(mask, w, 0)` whose gradient is that of the identity, plus `decay * w` where masked."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor, decay: float) -> Tensor:
        ctx.save_for_backward(weight, mask)
        ctx.decay = decay
        return torch.where(mask, weight, torch.zeros_like(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        weight, mask = ctx.saved_tensors
        decayed = torch.where(mask, torch.zeros_like(weight), ctx.decay * weight)
        return gradients[0] + decayed, None, None


class Mask(nn.Module):
    """Tensor to Tensor: `weight * mask`. What is masked is exactly zero and gets no gradient.

    With `NM(refined=...)` it follows the weight until it is settled: each pass in training mode
    ranks anew, and the gradient is SR-STE's, `g + refined * (1 - mask) * weight`. In eval mode and
    in `convert` the mask is that of the last such pass.

    Args:
        spec: what the mask should reach.
        weight: the weight it is for; the mask starts with every element kept.
        swap: what brought that weight into this order, if it is trained in another.

    Attributes:
        mask: bool, the weight's shape; True is kept.
        enabled: False passes the weight through unchanged.
        settled: False while a refined mask follows its weight, and before a mask whose criterion
            needs data was ranked; part of the state of these.

    Reference:
        Zhou et al. 2021, Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch.
    """

    mask: Tensor

    def __init__(self, spec: Sparsity, weight: Tensor, swap: SwapChannels | None = None) -> None:
        super().__init__()
        self.spec, self.swap = spec, swap
        self.enabled = True
        self.register_buffer("mask", torch.ones_like(weight, dtype=torch.bool))
        self.settled = not (self.refines or self.needs_data)
        if not self.settled:
            done = torch.zeros((), dtype=torch.bool, device=weight.device)
            self.register_buffer("settled_state", done)

    @property
    def refines(self) -> bool:
        """Whether this is SR-STE's mask."""
        return isinstance(self.spec, NM) and self.spec.refined > 0

    @property
    def needs_data(self) -> bool:
        """Whether only data can rank this mask's weights."""
        return self.spec.criterion in FROM_DATA

    def forward(self, weight: Tensor) -> Tensor:
        """Zero what is masked; masked infinities and NaN too."""
        if not self.enabled:
            return weight
        spec = self.spec
        if self.training and not self.settled and isinstance(spec, NM) and spec.refined:
            self.mask.copy_(nm_mask(weight.detach(), spec.n, spec.m))
            # a copy: the backward pass needs this mask, and the buffer takes the next one
            return _Refine.apply(weight, self.mask.clone(), spec.refined)
        return torch.where(self.mask, weight, torch.zeros_like(weight))

    def settle(self) -> None:
        """The mask was ranked, or shall follow its weight no more."""
        if not self.settled:
            self.settled = True
            self.get_buffer("settled_state").fill_(True)

    def ordered(self, weight: Tensor) -> Tensor:
        """The weight as trained in the order of the mask."""
        return weight if self.swap is None else swap_channels(weight, self.swap.groups)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if "settled_state" in self._buffers:
            self.settled = bool(self.get_buffer("settled_state"))

    def extra_repr(self) -> str:
        """The target, for print(model)."""
        return str(self.spec)


def serves(spec: Sparsity, weight: Tensor) -> bool:
    """Whether a weight can take a sparsity: NM needs whole groups along the input, Block blocks."""
    if isinstance(spec, Block):
        return weight.shape[0] % spec.rows == 0 and weight.shape[1] % spec.columns == 0
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
    return keep_nm(weight.abs(), n, m)


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
    return keep_greatest([w.detach().abs().float() for w in weights], sparsity, masks)
