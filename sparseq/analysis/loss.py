"""The loss by which networks are compared, and means of it."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from sparseq.batches import Batch

Criterion = Callable[[Tensor, Tensor], Tensor]


class Loss:
    """The loss by which networks are compared.

    Args:
        caller: what error messages begin with.
        criterion: from output and labels to a scalar; None takes the cross-entropy where labels are
            integers, and the mean squared error to the float output without labels.
        batches: all of them.

    Attributes:
        name: what it is, for tables.

    Raises:
        ValueError: a criterion without labels, or labels of another kind without a criterion.
    """

    def __init__(self, caller: str, criterion: Criterion | None, batches: list[Batch]) -> None:
        labels = batches[0].labels
        if criterion is not None and labels is None:
            raise ValueError(
                f"{caller}: batches must be (inputs, labels) for a criterion, got no labels"
            )
        if criterion is None and labels is not None and labels.is_floating_point():
            raise ValueError(
                f"{caller}: criterion must be given where labels are not integers, got "
                f"labels of {str(labels.dtype).removeprefix('torch.')}"
            )
        self.criterion = criterion
        if criterion is not None:
            self.name = getattr(criterion, "__name__", type(criterion).__name__)
        elif labels is not None:
            self.name = "cross-entropy"
        else:
            self.name = "mean squared error to the float output"

    def __call__(self, output: Tensor, batch: Batch, reference: Tensor) -> float:
        """The loss of one batch; reference is the float network's output."""
        if self.criterion is not None:
            assert batch.labels is not None
            return float(self.criterion(output, batch.labels))
        if batch.labels is not None:
            return float(functional.cross_entropy(output.float(), batch.labels))
        return float((output.double() - reference.double()).square().mean())


class Mean:
    """A mean over batches, each weighted by its rows."""

    def __init__(self) -> None:
        self.sum, self.rows = 0.0, 0

    def add(self, value: float, rows: int) -> None:
        """Take in a batch's mean."""
        self.sum, self.rows = self.sum + value * rows, self.rows + rows

    @property
    def value(self) -> float:
        """The mean so far."""
        return self.sum / max(self.rows, 1)


class Ratio:
    """Signal to quantisation noise: `10 log10(sum y^2 / sum (y - z)^2)` over all that was added."""

    def __init__(self) -> None:
        self.signal = self.noise = 0.0

    def add(self, wanted: Tensor, got: Tensor) -> None:
        """Take in a signal and what became of it."""
        wanted = wanted.double()
        self.signal += float(wanted.square().sum())
        self.noise += float((wanted - got.double()).square().sum())

    @property
    def decibel(self) -> float:
        """The ratio; infinite without noise."""
        if math.isnan(self.noise) or math.isnan(self.signal):
            return math.nan
        if self.noise == 0:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal > 0 else -math.inf
