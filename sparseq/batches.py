"""Batches as `calibrate` takes them, with labels where they have some."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


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


def read_batch(caller: str, batch: Any) -> Batch:
    """Look at a batch: a tensor, (tensor, labels, ...) or a dict of arguments.

    Raises:
        TypeError: a batch of another type.
    """
    if isinstance(batch, Tensor):
        return Batch((batch,), {}, None)
    if isinstance(batch, dict) and batch:
        labels = batch.get("labels")
        return Batch((), batch, labels if isinstance(labels, Tensor) else None)
    if isinstance(batch, (tuple, list)) and batch and isinstance(batch[0], Tensor):
        second = batch[1] if len(batch) > 1 else None
        return Batch((batch[0],), {}, second if isinstance(second, Tensor) else None)
    raise TypeError(
        f"{caller}: a batch must be a tensor, a (tensor, ...) tuple or a dict of arguments, "
        f"got {type(batch).__name__}"
    )


def read_batches(caller: str, batches: Iterable[Any]) -> list[Batch]:
    """Look at each batch, as `read_batch` does.

    Raises:
        ValueError: no batch, or labels in some batches only.
        TypeError: a batch of another type.
    """
    found = [read_batch(caller, batch) for batch in batches]
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
