"""Whether a smaller model computes what the masked one does."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from sparseq.flow.outputs import float_leaves, run_batch
from sparseq.structured.cut import Cuts, cut, mask

TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-3}  # of the greatest output


class Trial:
    """Runs copies of a model, in float64 where it takes that.

    Args:
        model: not changed.
        example: what to run it on.
    """

    def __init__(self, model: nn.Module, example: Any) -> None:
        self._take(model, example, torch.float64)
        try:
            self.outputs(self._model)
        except Exception:  # a model with float32 tensors of its own
            self._take(model, example, torch.float32)

    def _take(self, model: nn.Module, example: Any, dtype: torch.dtype) -> None:
        own = copy.deepcopy(model).eval()
        self._model = own.double() if dtype == torch.float64 else own.float()
        self._example, self._dtype = _cast(example, dtype), dtype

    @torch.no_grad()
    def outputs(self, model: nn.Module) -> list[Tensor]:
        """The floating-point tensors that a model gives for the example."""
        return float_leaves(run_batch("prune_channels", model, self._example))

    def original(self) -> nn.Module:
        """A copy to change."""
        return copy.deepcopy(self._model)

    def error(self, cuts: Cuts, heads: Mapping[str, Mapping[str, int]]) -> str | None:
        """Why a model cannot be cut so, or None."""
        smaller, masked = self.original(), self.original()
        mask(masked, cuts)
        wanted = self.outputs(masked)
        cut(smaller, cuts, heads)
        try:
            found = self.outputs(smaller)
        except Exception as error:  # whatever the model's own code raises
            return " ".join(str(error).split())[:200]
        return self.difference(found, wanted)

    def difference(self, found: list[Tensor], wanted: list[Tensor]) -> str | None:
        """How two results differ, or None if they do not by more than rounding."""
        if [t.shape for t in found] != [t.shape for t in wanted]:
            return "its result has another shape"
        for one, other in zip(found, wanted, strict=True):
            if not one.numel():
                continue
            off = float((one - other).abs().max())
            scale = float(other.abs().max())
            if not off <= TOLERANCE[self._dtype] * max(scale, 1e-6):
                return f"its result is off by {off:.2g} of {scale:.2g}"
        return None


def _cast(example: Any, dtype: torch.dtype) -> Any:
    def one(value: Any) -> Any:
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(dtype) if floating else value

    return tree_map(one, example)
