"""What a weight counts for: criteria from weights, gradients and inputs to scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Rule = Callable[[Tensor, Tensor], Tensor]


def _nothing(weight: Tensor, seen: Tensor) -> Tensor:
    raise AssertionError("a criterion of the weight alone sees no batches")


@dataclass(frozen=True)
class Criterion:
    """How a weight's score comes about; a weight of less score is dropped earlier.

    Args:
        score: from the weight, in the order of its mask, and the sum of what the batches gave (an
            empty tensor where sees is "") to the scores; all float32.
        sees: what of each batch counts: "gradient", the loss's with respect to the masked weight;
            "input", for each weight the sum of squares of the inputs that it meets; or "".
        gather: from the weight and a batch's gradient or input to what is summed.

    Raises:
        ValueError: sees is unknown.
    """

    score: Rule
    sees: str = ""
    gather: Rule = _nothing

    def __post_init__(self) -> None:
        """Check sees."""
        if self.sees not in ("", "gradient", "input"):
            raise ValueError(
                f'Criterion: sees must be "", "gradient" or "input", got {self.sees!r}'
            )


CRITERIA: dict[str, Criterion] = {
    "magnitude": Criterion(lambda w, _: w.abs()),
    "l2": Criterion(lambda w, _: w.square()),
    "random": Criterion(lambda w, _: torch.rand_like(w)),
    "snip": Criterion(lambda _, total: total.abs(), "gradient", lambda w, g: w * g),
    "taylor": Criterion(lambda _, total: total, "gradient", lambda w, g: (w * g).square()),
    "movement": Criterion(lambda _, total: total, "gradient", lambda w, g: -w * g),
    "wanda": Criterion(lambda w, total: w.abs() * total.sqrt(), "input", lambda _, x: x),
}
"""By the names that specs use."""


def weight_scores(weight: Tensor, criterion: str) -> Tensor:
    """The scores of a criterion that looks at the weight only, float32, of its shape."""
    return CRITERIA[criterion].score(weight.detach().float(), weight.new_empty(0))
