"""The 2:4 mask and the canonical 2:4 form: defined."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseq.reference.affine import pack_int4, unpack_int4


def _groups_24(x: Tensor) -> Tensor:
    """[N, C, ...] -> [N, ..., ceil(C / 4), 4]; a tail is filled up with zeros."""
    return torch.nn.functional.pad(x.movedim(1, -1), (0, -x.shape[1] % 4)).unflatten(-1, (-1, 4))


def mask_24(weight: Tensor) -> Tensor:
    """True for the 2 of greatest |w| of every 4 along dimension 1; NaN last, ties to the first."""
    size = weight.abs().double()
    # padded with zeros: so + 2 for what is there, 1 for NaN, and infinity stays above all
    groups = _groups_24(torch.where(size.isnan(), 1.0, size + 2.0))
    order = groups.sort(dim=-1, descending=True, stable=True).indices
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, order[..., :2], True)
    return mask.flatten(-2)[..., : weight.shape[1]].movedim(-1, 1).contiguous()


def pack_24(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Values and indices of a weight that is 2:4; the form is that of `sparseq.ops.sparse24`."""
    groups = _groups_24(weight)
    nonzero = groups != 0
    position = torch.arange(4)
    first = torch.where(nonzero, position, 2).amin(-1, keepdim=True).clamp(max=2)
    last = torch.where(nonzero, position, -1).amax(-1, keepdim=True)
    second = torch.where(last > first, last, torch.where(first < 2, 2, 3))
    kept = groups.where(nonzero, 0).gather(-1, torch.cat((first, second), -1))
    return kept.flatten(-2), pack_int4((first | second << 2).squeeze(-1).to(torch.uint8))


def unpack_24(values: Tensor, indices: Tensor, columns: int) -> Tensor:
    """The inverse of `pack_24`."""
    pairs = values.unflatten(-1, (-1, 2))
    nibbles = unpack_int4(indices, pairs.shape[-2], False).long()
    positions = torch.stack((nibbles & 3, nibbles >> 2), -1)
    groups = values.new_zeros((*pairs.shape[:-1], 4)).scatter_(-1, positions, pairs)
    return groups.flatten(-2)[..., :columns].movedim(-1, 1).contiguous()
