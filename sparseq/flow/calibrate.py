"""`calibrate` shows a prepared model data, so that its inputs' grids are known."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sparseq.flow.prepare import input_quantizers
from sparseq.quant import FakeQuantize

Model = TypeVar("Model", bound=nn.Module)


def _call(model: nn.Module, batch: Any) -> None:
    if isinstance(batch, Tensor):
        model(batch)
    elif isinstance(batch, dict):
        model(**batch)
    elif isinstance(batch, (tuple, list)) and batch and isinstance(batch[0], Tensor):
        model(batch[0])
    else:
        raise TypeError(
            "calibrate: a batch must be a tensor, a (tensor, ...) tuple or a dict of arguments, "
            f"got {type(batch).__name__}"
        )


@torch.no_grad()
def calibrate(model: Model, batches: Iterable[Any]) -> Model:
    """Show a prepared model data so that its inputs' ranges are known: post-training quantisation.

    The model runs in eval mode with masks on and fake-quantisation off. Earlier ranges are
    forgotten.

    Args:
        model: prepared.
        batches: input tensors, (input, ...) tuples of which the first goes in, or dicts of
            arguments.

    Returns:
        The model, in the mode it was in.

    Raises:
        ValueError: no batch, or a value that is not finite.
        TypeError: a batch of another type.
    """
    every = [m for m in model.modules() if isinstance(m, FakeQuantize)]
    inputs = [m for m in every if not m.follow]
    modes = {module: module.training for module in model.modules()}
    enabled = {m: m.enabled for m in every}
    count = 0
    try:
        model.eval()
        for m in inputs:
            m.observer.reset()  # type: ignore[union-attr]
            m.observing = True
        for m in every:
            m.enabled = False
        for batch in batches:
            _call(model, batch)
            count += 1
    finally:
        for m in every:
            m.enabled, m.observing = enabled[m], False
        for module, training in modes.items():
            module.training = training
    if count == 0:
        raise ValueError("calibrate: batches must hold at least one batch, got none")
    for name, m in input_quantizers(model).items():
        if m.calibrated and not torch.isfinite(m.scale).all():
            raise ValueError(f"calibrate: the input of {name} must be finite, got an infinity")
    return model
