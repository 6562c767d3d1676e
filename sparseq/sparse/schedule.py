"""Masks in a model: computing them at once, or step by step in the user's loop."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from sparseq.sparse.mask import Mask, magnitude_masks, nm_mask
from sparseq.spec import NM, Unstructured

CURVES = ("cubic", "linear", "one_shot")


def masks_of(model: nn.Module) -> list[tuple[Mask, Tensor]]:
    """Every mask of a prepared model with the weight it masks, as trained (before masking).

    Of a transposed convolution the weight is as torch has it, the mask has output channels first:
    `mask.ordered(weight)` has them first, too.
    """
    found = []
    for module in model.modules():
        parametrizations = getattr(module, "parametrizations", None)
        if parametrizations is None or "weight" not in parametrizations:
            continue
        chain = parametrizations["weight"]
        found += [(t, chain.original) for t in chain if isinstance(t, Mask)]
    return found


@torch.no_grad()
def update_masks(
    pairs: Iterable[tuple[Mask, Tensor]], fraction: float = 1.0, floor: float = 0.0
) -> None:
    """Rank weights anew; what is masked stays masked.

    Args:
        pairs: masks with their weights, as of `masks_of`; those of one Unstructured global spec are
            ranked together.
        fraction: how far each Unstructured mask is on its way from floor to its sparsity, in
            [0, 1].
        floor: the sparsity at fraction 0.
    """
    ranked: dict[object, list[tuple[Mask, Tensor]]] = {}
    for mask, weight in pairs:
        if isinstance(mask.spec, NM):
            mask.mask.copy_(nm_mask(mask.ordered(weight), mask.spec.n, mask.spec.m))
        else:
            together = mask.spec if mask.spec.scope == "global" else mask
            ranked.setdefault(together, []).append((mask, weight))
    for members in ranked.values():
        spec = members[0][0].spec
        assert isinstance(spec, Unstructured)
        start = min(floor, spec.sparsity)
        target = start + (spec.sparsity - start) * fraction
        weights, so_far = [m.ordered(w) for m, w in members], [m.mask for m, _ in members]
        for (mask, _), new in zip(members, magnitude_masks(weights, target, so_far), strict=True):
            mask.mask.copy_(new & mask.mask)


class PruningSchedule:
    """Raises a prepared model's unstructured sparsity to its plan's target in equal calls.

    At step t of T the sparsity is `start + (target - start) * f(t / T)`: cubic
    `f(u) = 1 - (1 - u)^3` (Zhu and Gupta 2017, eq. 1), linear `f(u) = u`, or one_shot `f = 1`.
    Train between the steps. A finished schedule's step changes nothing.

    Args:
        model: prepared with Unstructured sparsity; its masks are reset to `start`.
        steps: calls of `step()` until the target is reached.
        curve: "cubic", "linear" or "one_shot".
        start: sparsity before the first step.

    Raises:
        ValueError: no unstructured mask in the model, or an argument outside of the above.
    """

    def __init__(
        self, model: nn.Module, steps: int, curve: str = "cubic", start: float = 0.0
    ) -> None:
        if steps < 1:
            raise ValueError(f"PruningSchedule: steps must be at least 1, got {steps}")
        if curve not in CURVES:
            raise ValueError(f"PruningSchedule: curve must be one of {CURVES}, got {curve!r}")
        if not 0 <= start < 1:
            raise ValueError(f"PruningSchedule: start must be in [0, 1), got {start}")
        self._pairs = [p for p in masks_of(model) if isinstance(p[0].spec, Unstructured)]
        if not self._pairs:
            raise ValueError(
                "PruningSchedule: model must be prepared with Unstructured sparsity, "
                "got no such mask"
            )
        self.steps, self.curve, self.start, self.taken = steps, curve, start, 0
        for mask, _ in self._pairs:
            mask.mask.fill_(True)
        update_masks(self._pairs, 0.0, start)

    @property
    def done(self) -> bool:
        """Whether the target is reached."""
        return self.taken >= self.steps

    @property
    def sparsity(self) -> float:
        """Share of masked elements, over all masks of this schedule."""
        masked = sum(int((~mask.mask).sum()) for mask, _ in self._pairs)
        return masked / sum(mask.mask.numel() for mask, _ in self._pairs)

    def step(self) -> None:
        """Go one step on; nothing once done."""
        if self.done:
            return
        self.taken += 1
        u = self.taken / self.steps
        fraction = {"cubic": 1 - (1 - u) ** 3, "linear": u, "one_shot": 1.0}[self.curve]
        update_masks(self._pairs, fraction, self.start)
