"""From scores to masks: who stays, counted exactly."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def keep_nm(scores: Tensor, n: int, m: int) -> Tensor:
    """Keep the n greatest of every m neighbours along dimension 1, ties to the first.

    Args:
        scores: any dtype, at least two dimensions; NaN counts as the least.
        n: how many are kept.
        m: neighbours of a group; must divide the length of dimension 1.

    Returns:
        bool, the shape of scores.
    """
    groups = scores.movedim(1, -1).unflatten(-1, (-1, m))
    groups = torch.where(groups.isnan(), float("-inf"), groups)
    order = groups.sort(dim=-1, descending=True, stable=True).indices
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, order[..., :n], True)
    return mask.flatten(-2).movedim(-1, 1).contiguous()


@torch.no_grad()
def keep_greatest(
    scores: Sequence[Tensor], sparsity: float, masks: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """Drop the `sparsity` share of least score, ranked over all tensors together.

    Exactly `round(sparsity * elements)` are dropped; among equals the first.

    Args:
        scores: one or more, of any shapes.
        sparsity: share of what is dropped, in [0, 1).
        masks: masks so far; what they drop ranks below everything, so it is dropped again.

    Returns:
        One bool mask per tensor.
    """
    flat = torch.cat([s.flatten() for s in scores])[None]
    before = None if masks is None else torch.cat([m.flatten() for m in masks])[None]
    parts = _keep(flat, sparsity, before)[0].split([s.numel() for s in scores])
    return [part.reshape(s.shape) for part, s in zip(parts, scores, strict=True)]


@torch.no_grad()
def keep_by_output(scores: Tensor, sparsity: float, mask: Tensor | None = None) -> Tensor:
    """As `keep_greatest`, each index of dimension 0 on its own."""
    before = None if mask is None else mask.flatten(1)
    return _keep(scores.flatten(1), sparsity, before).reshape(scores.shape)


def _keep(scores: Tensor, sparsity: float, masks: Tensor | None) -> Tensor:
    """Row by row; what was dropped before goes first, whatever its score."""
    order = scores.sort(dim=1, stable=True).indices
    if masks is not None:
        again = masks.gather(1, order).to(torch.uint8).sort(dim=1, stable=True).indices
        order = order.gather(1, again)
    dropped = order[:, : round(sparsity * scores.shape[1])]
    return torch.ones_like(scores, dtype=torch.bool).scatter_(1, dropped, False)


def block_scores(scores: Tensor, rows: int, columns: int) -> Tensor:
    """The mean of each block of `rows` by `columns` along dimensions 0 and 1.

    Args:
        scores: `[R * rows, C * columns, ...taps]`.
        rows: of a block.
        columns: of a block.

    Returns:
        `[R, C, ...taps]`, float32.
    """
    blocks = scores.float().unflatten(1, (-1, columns)).unflatten(0, (-1, rows))
    return blocks.mean(dim=(1, 3))


def spread_blocks(keep: Tensor, rows: int, columns: int) -> Tensor:
    """Each block's bool for all of its elements: `[R, C, ...]` to `[R rows, C columns, ...]`."""
    return keep.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
