"""Sparsity that rises step by step in the user's loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparseq.sparse.update import check_scores, named_masks, rank
from sparseq.spec import NM

CURVES = ("cubic", "linear", "one_shot", "geometric")
Scores = Mapping[str, Tensor]


class PruningSchedule:
    """Raises a prepared model's sparsity to its plan's target in equal calls; N:M masks stay.

    At step t of T the sparsity is `start + (target - start) * f(t / T)`: cubic
    `f(u) = 1 - (1 - u)^3` (AGP: Zhu and Gupta 2017, eq. 1), linear `f(u) = u`, or one_shot `f = 1`;
    geometric drops the same share of what is left in every step, `1 - s_t = (1 - start) *
    ((1 - target) / (1 - start))^(t / T)`, as is usual where rounds of retraining lie between
    (Han et al. 2015; Frankle and Carbin 2019). A finished schedule's step changes nothing.

    Args:
        model: prepared with Unstructured or Block sparsity; its masks are reset to `start`.
        steps: calls of `step()` until the target is reached.
        curve: "cubic", "linear", "one_shot" or "geometric".
        start: sparsity before the first step.
        scores: by layer, as `sparse.score` gives them, or a function that gives them anew for each
            step (a `sparse.Movement` is one); None ranks by the specs' criteria, of which those
            that need data need scores.

    Raises:
        ValueError: no such mask in the model, missing scores, or an argument outside of the above.
    """

    def __init__(
        self,
        model: nn.Module,
        steps: int,
        curve: str = "cubic",
        start: float = 0.0,
        scores: Scores | Callable[[], Scores] | None = None,
    ) -> None:
        if steps < 1:
            raise ValueError(f"PruningSchedule: steps must be at least 1, got {steps}")
        if curve not in CURVES:
            raise ValueError(f"PruningSchedule: curve must be one of {CURVES}, got {curve!r}")
        if not 0 <= start < 1:
            raise ValueError(f"PruningSchedule: start must be in [0, 1), got {start}")
        found = named_masks(model)
        self._all = found
        self._pairs = {n: pair for n, pair in found.items() if not isinstance(pair[0].spec, NM)}
        if not self._pairs:
            raise ValueError(
                "PruningSchedule: model must be prepared with Unstructured sparsity or Block's, "
                "got no such mask"
            )
        for name, (mask, _) in self._pairs.items():
            if mask.needs_data and scores is None:
                raise ValueError(
                    f"PruningSchedule: scores must be given, got None: {name}'s criterion "
                    f"{mask.spec.criterion!r} needs data"
                )
        self.steps, self.curve, self.start, self.taken = steps, curve, start, 0
        self._scores = scores
        before = {name: mask.mask.clone() for name, (mask, _) in self._pairs.items()}
        for mask, _ in self._pairs.values():
            mask.mask.fill_(True)
        try:
            self._rank()
        except BaseException:
            self._restore(before)
            raise

    def target(self, sparsity: float) -> float:
        """What a mask's share of zeros is after the steps taken so far.

        Args:
            sparsity: of its spec.
        """
        if self.done:
            return sparsity
        start, u = min(self.start, sparsity), self.taken / self.steps
        if self.curve == "geometric":
            left: float = (1 - start) * ((1 - sparsity) / (1 - start)) ** u
            return 1 - left
        risen = {"cubic": 1 - (1 - u) ** 3, "linear": u, "one_shot": float(u > 0)}[self.curve]
        return start + (sparsity - start) * risen

    def _rank(self) -> None:
        given = self._scores
        if callable(given):
            shares = [self.target(mask.spec.sparsity) for mask, _ in self._pairs.values()]
            given = given() if max(shares) > 0 else None
        check_scores(self._all, given or {}, "PruningSchedule")
        held = {name: s for name, s in (given or {}).items() if name in self._pairs}
        with torch.no_grad():
            rank(self._pairs, self.target, held, "PruningSchedule")

    @property
    def done(self) -> bool:
        """Whether the target is reached."""
        return self.taken >= self.steps

    @property
    def sparsity(self) -> float:
        """Share of masked elements, over all masks of this schedule."""
        masks = [mask.mask for mask, _ in self._pairs.values()]
        return sum(int((~mask).sum()) for mask in masks) / sum(mask.numel() for mask in masks)

    def step(self) -> None:
        """Go one step on; nothing once done. Where scores fail, the step was not taken."""
        if self.done:
            return
        self.taken += 1
        try:
            self._rank()
        except BaseException:
            self.taken -= 1
            raise

    def state_dict(self) -> dict[str, Any]:
        """The steps taken and the masks, for `load_state_dict`; save it beside the model's."""
        return {
            "taken": self.taken,
            "steps": self.steps,
            "curve": self.curve,
            "start": self.start,
            "masks": {name: mask.mask.clone() for name, (mask, _) in self._pairs.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another schedule of the same arguments was.

        Args:
            state: of `state_dict`; without "masks" the model's own are taken to be those of then.

        Raises:
            ValueError: of a schedule of other arguments, or of another model.
        """
        for name in ("steps", "curve", "start"):
            if state.get(name, getattr(self, name)) != getattr(self, name):
                raise ValueError(
                    f"PruningSchedule: state must be of a schedule with {name} = "
                    f"{getattr(self, name)!r}, got {state[name]!r}"
                )
        taken, masks = state.get("taken"), state.get("masks", {})
        if not isinstance(taken, int) or not 0 <= taken <= self.steps:
            raise ValueError(
                f"PruningSchedule: state must have taken from 0 to {self.steps}, got {taken!r}"
            )
        wanted = {name: mask.mask.shape for name, (mask, _) in self._pairs.items()}
        if masks and {name: mask.shape for name, mask in masks.items()} != wanted:
            raise ValueError(
                "PruningSchedule: state must hold a mask of each layer's shape for "
                f"{', '.join(wanted)}; got {', '.join(masks)}"
            )
        self.taken = taken
        self._restore(masks)
        for mask, _ in self._pairs.values():
            if self.target(mask.spec.sparsity) > 0:
                mask.settle()

    def _restore(self, masks: Mapping[str, Tensor]) -> None:
        for name, mask in masks.items():
            self._pairs[name][0].mask.copy_(mask)
