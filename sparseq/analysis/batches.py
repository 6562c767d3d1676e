"""Batches as `calibrate` takes them, with labels where they have some, and the loss on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional

Criterion = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Batch:
    """What goes into a model, and the labels that came with it."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    labels: Tensor | None

    @property
    def inputs(self) -> Any:
        """The batch without labels, as `calibrate` takes it."""
        return dict(self.kwargs) if self.kwargs else self.args[0]


def read_batches(caller: str, batches: Iterable[Any]) -> list[Batch]:
    """Look at each batch: a tensor, (tensor, labels, ...) or a dict of arguments.

    Raises:
        ValueError: no batch, or labels in some batches only.
        TypeError: a batch of another type.
    """
    found = []
    for batch in batches:
        if isinstance(batch, Tensor):
            found.append(Batch((batch,), {}, None))
        elif isinstance(batch, dict) and batch:
            labels = batch.get("labels")
            found.append(Batch((), batch, labels if isinstance(labels, Tensor) else None))
        elif isinstance(batch, (tuple, list)) and batch and isinstance(batch[0], Tensor):
            second = batch[1] if len(batch) > 1 else None
            found.append(Batch((batch[0],), {}, second if isinstance(second, Tensor) else None))
        else:
            raise TypeError(
                f"{caller}: a batch must be a tensor, a (tensor, ...) tuple or a dict of "
                f"arguments, got {type(batch).__name__}"
            )
    if not found:
        raise ValueError(f"{caller}: batches must hold at least one batch, got none")
    if len({batch.labels is None for batch in found}) > 1:
        raise ValueError(f"{caller}: batches must all have labels or none, got both")
    return found


def output_of(caller: str, result: Any) -> Tensor:
    """The tensor in a model's result: itself, its logits, or its first tensor."""
    if isinstance(result, Tensor):
        return result
    logits = getattr(result, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    values = result.values() if isinstance(result, Mapping) else result
    if isinstance(result, (Mapping, tuple, list)):
        for value in values:
            if isinstance(value, Tensor) and value.dim() > 0:
                return value
    raise TypeError(f"{caller}: the model must return a tensor, got {type(result).__name__}")


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
