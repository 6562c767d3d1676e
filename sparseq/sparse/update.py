"""The masks of a model, and ranking its weights anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from sparseq.sparse.criteria import weight_scores
from sparseq.sparse.mask import Mask, nm_mask
from sparseq.sparse.rank import (
    block_scores,
    keep_by_output,
    keep_greatest,
    keep_nm,
    spread_blocks,
)
from sparseq.spec import NM, Block, Unstructured

Pairs = Mapping[str, tuple[Mask, Tensor]]


def named_masks(model: nn.Module) -> dict[str, tuple[Mask, Tensor]]:
    """As `masks_of`, by the layer's name."""
    found: dict[str, tuple[Mask, Tensor]] = {}
    for name, module in model.named_modules():
        parametrizations = getattr(module, "parametrizations", None)
        if parametrizations is None or "weight" not in parametrizations:
            continue
        chain = parametrizations["weight"]
        mask = next((t for t in chain if isinstance(t, Mask)), None)
        if mask is not None:
            found[name] = (mask, chain.original)
    return found


def masks_of(model: nn.Module) -> list[tuple[Mask, Tensor]]:
    """Every mask of a prepared model with the weight it masks, as trained (before masking).

    Of a transposed convolution the weight is as torch has it, the mask has output channels first:
    `mask.ordered(weight)` has them first, too.
    """
    return list(named_masks(model).values())


@torch.no_grad()
def update_masks(
    masks: nn.Module | Iterable[tuple[Mask, Tensor]],
    fraction: float = 1.0,
    floor: float = 0.0,
    *,
    scores: Mapping[str, Tensor] | None = None,
) -> None:
    """Rank weights anew; what is masked stays masked, but of N:M masks.

    Args:
        masks: of a prepared model, or some of `masks_of`'s pairs; those of one spec with global
            scope are ranked together.
        fraction: how far each mask (N:M masks apart) is on its way from floor to its sparsity, in
            [0, 1].
        floor: the sparsity at fraction 0.
        scores: by layer, of the mask's shape, as `score` gives them: weights of least score go.
            Layers without an entry are ranked by their spec's criterion.

    Raises:
        TypeError: scores with pairs, which have no names.
        ValueError: scores of another shape, of no such layer, or missing for a criterion that
            needs data; a fraction or floor outside of [0, 1].
    """
    for argument, value in (("fraction", fraction), ("floor", floor)):
        if not 0 <= value <= 1:
            raise ValueError(f"update_masks: {argument} must be in [0, 1], got {value}")
    if isinstance(masks, nn.Module):
        pairs = named_masks(masks)
    elif scores is not None:
        raise TypeError("update_masks: masks must be a model where scores are given, got pairs")
    else:
        pairs = {f"mask {i}": pair for i, pair in enumerate(masks)}

    def target(sparsity: float) -> float:
        start = min(floor, sparsity)
        return start + (sparsity - start) * fraction

    rank(pairs, target, scores or {}, "update_masks")


def rank(
    pairs: Pairs, target: Callable[[float], float], scores: Mapping[str, Tensor], caller: str
) -> None:
    """Set masks, N:M ones to n of m and the others to `target(sparsity)`."""
    check_scores(pairs, scores, caller)
    together: dict[object, list[tuple[str, Mask, Tensor]]] = {}
    for name, (mask, weight) in pairs.items():
        spec, ordered = mask.spec, mask.ordered(weight.detach())
        given = scores.get(name)
        if isinstance(spec, NM):
            if given is None and spec.criterion in ("magnitude", "l2"):
                mask.mask.copy_(nm_mask(ordered, spec.n, spec.m))
            else:
                found = _scores(name, mask, ordered, given, caller)
                mask.mask.copy_(keep_nm(found, spec.n, spec.m))
                _ranked(mask)
        elif target(spec.sparsity) > 0:
            found = _scores(name, mask, ordered, given, caller)
            key = spec if spec.scope == "global" else mask
            together.setdefault(key, []).append((name, mask, found))
    for members in together.values():
        _rank_together([mask for _, mask, _ in members], [s for _, _, s in members], target)


def _rank_together(
    masks: list[Mask], scores: list[Tensor], target: Callable[[float], float]
) -> None:
    spec = masks[0].spec
    assert isinstance(spec, (Unstructured, Block))
    share, so_far = target(spec.sparsity), [mask.mask for mask in masks]
    if isinstance(spec, Block):
        size = spec.rows, spec.columns
        before = [block_scores(mask, *size) > 0 for mask in so_far]
        kept = keep_greatest([block_scores(s, *size) for s in scores], share, before)
        new = [spread_blocks(keep, *size) for keep in kept]
    elif spec.scope == "output":
        new = [keep_by_output(s, share, m) for s, m in zip(scores, so_far, strict=True)]
    else:
        new = keep_greatest(scores, share, so_far)
    for mask, keep in zip(masks, new, strict=True):
        mask.mask.copy_(keep & mask.mask)
        _ranked(mask)


def _ranked(mask: Mask) -> None:
    if mask.needs_data:
        mask.settle()


def _scores(name: str, mask: Mask, ordered: Tensor, given: Tensor | None, caller: str) -> Tensor:
    if given is not None:
        return given.detach().to(ordered.device, torch.float32)
    if mask.needs_data:
        raise ValueError(
            f"{caller}: scores must hold {name}, whose criterion {mask.spec.criterion!r} needs "
            "data: scores=sparse.score(model, batches)"
        )
    return weight_scores(ordered, mask.spec.criterion)


def check_scores(pairs: Pairs, scores: Mapping[str, Tensor], caller: str) -> None:
    """ValueError unless scores are of masks among these, and of their shapes."""
    for name, given in scores.items():
        if name not in pairs:
            known = ", ".join(pairs) or "none"
            raise ValueError(f"{caller}: scores must be of masked layers ({known}), got {name!r}")
        shape = tuple(pairs[name][0].mask.shape)
        if not isinstance(given, Tensor) or tuple(given.shape) != shape:
            got = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise ValueError(f"{caller}: scores of {name} must have shape {shape}, got {got}")
        if bool(given.isnan().any()):
            raise ValueError(f"{caller}: scores of {name} must be numbers, got NaN")


@torch.no_grad()
def freeze_masks(model: nn.Module) -> None:
    """Rank refined N:M masks a last time, on the weights as they are, and let them follow no more.

    Args:
        model: prepared; other masks are fixed anyway and stay as they are.
    """
    for mask, weight in masks_of(model):
        if mask.refines and not mask.settled:
            assert isinstance(mask.spec, NM)
            mask.mask.copy_(nm_mask(mask.ordered(weight), mask.spec.n, mask.spec.m))
            mask.settle()
