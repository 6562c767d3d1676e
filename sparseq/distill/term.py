"""What the terms on features share: pairs of layers, a weight, a loss in at least float32."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sparseq.distill.logits import wide

Pairs = Sequence[tuple[Tensor, Tensor]]
"""What the paired layers gave: the student's with gradient, the teacher's without."""


class Term(nn.Module, ABC):
    """A loss on what pairs of layers give, each pair on its own, all pairs summed.

    To write one: subclass and define `pair_loss`; `build` where it has parameters.

    Args:
        layers: ``{"student's layer": "teacher's layer"}``, names as in `named_modules()`.
        weight: of this term in the whole loss, finite and at least 0.
        teacher: which of several teachers the layers are of.

    Raises:
        ValueError: no layers, or a weight outside of the above.
        TypeError: layers is not a mapping of names.
    """

    def __init__(self, layers: Mapping[str, str], weight: float = 1.0, teacher: int = 0) -> None:
        super().__init__()
        kind = type(self).__name__
        texts = isinstance(layers, Mapping) and all(
            isinstance(name, str) for pair in layers.items() for name in pair
        )
        if not texts:
            raise TypeError(
                f"{kind}: layers must map the student's layers to the teacher's, by name, "
                f"got {layers!r}"
            )
        if not layers:
            raise ValueError(f"{kind}: layers must name at least one pair, got none")
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"{kind}: weight must be finite and >= 0, got {weight}")
        self.layers, self.weight, self.teacher = dict(layers), float(weight), teacher

    @property
    def needs_example(self) -> bool:
        """Whether `build` must see features before this term can be used."""
        return False

    def build(self, pairs: Pairs) -> None:
        """Make the parameters that the features' shapes ask for."""

    @abstractmethod
    def pair_loss(self, index: int, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of one pair, a scalar.

        Args:
            index: of the pair in `layers`.
            student: what its layer gave, float32 or float64, with gradient.
            teacher: what its layer gave, of the same dtype.
        """

    def forward(self, pairs: Pairs) -> Tensor:
        """The sum over the pairs, not yet weighted, computed without autocast.

        Args:
            pairs: the features, one pair an entry of `layers`, the batch first.

        Raises:
            ValueError: batches that differ, or shapes that this term cannot compare.
        """
        total: Tensor | None = None
        for index, (student, teacher) in enumerate(pairs):
            if student.shape[:1] != teacher.shape[:1] or not student.dim():
                raise ValueError(
                    f"{self.where(index)} must give the same batch, got shapes "
                    f"{tuple(student.shape)} and {tuple(teacher.shape)}"
                )
            with torch.autocast(student.device.type, enabled=False):
                student = wide(student)
                loss = self.pair_loss(index, student, teacher.to(student.dtype))
            total = loss if total is None else total + loss
        assert total is not None
        return total

    def where(self, index: int) -> str:
        """How messages name a pair."""
        student, teacher = list(self.layers.items())[index]
        return f"{type(self).__name__}: {student!r} and {teacher!r}"

    def extra_repr(self) -> str:
        """The pairs and the weight."""
        return f"{self.layers}, weight={self.weight}"
