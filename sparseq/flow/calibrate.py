"""`calibrate` shows a prepared model data, so that its inputs' grids are known."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sparseq.flow.outputs import run_batch
from sparseq.flow.prepare import input_quantizers, layers_of, original_weight, transform_of
from sparseq.flow.progress import Progress, tracked
from sparseq.modes import evaluating
from sparseq.quant import FakeQuantize
from sparseq.quant.reduce import counter, reduced_

Model = TypeVar("Model", bound=nn.Module)


@torch.no_grad()
def calibrate(model: Model, batches: Iterable[Any], progress: Progress = False) -> Model:
    """Show a prepared model data so that its inputs' ranges are known: post-training quantisation.

    The model runs in eval mode with masks on and fake-quantisation off. Earlier ranges are
    forgotten, frozen grids apart. In a distributed run each rank may bring its own batches, as many
    as it has: what all ranks saw is put together at the end (and a DistributedDataParallel model is
    unwrapped, so that its ranks need not keep step).

    Args:
        model: prepared.
        batches: input tensors, (input, ...) tuples of which the first goes in, or dicts of
            arguments.
        progress: True shows a bar (with rich); or a function of (step, done, total) that is told,
            total being None where batches have no length.

    Returns:
        The model, in the mode it was in.

    Raises:
        ValueError: no batch, or a value that is not finite.
        TypeError: a batch of another type, or a progress that is neither.
        ModuleNotFoundError: progress is True and rich is not installed.
    """
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    quantizers = [m for m in inner.modules() if isinstance(m, FakeQuantize)]
    enabled = {m: m.enabled for m in quantizers}
    count = counter(inner)
    try:
        with evaluating(inner):
            for m in quantizers:
                m.start_observing()
                m.enabled = False
            for batch in tracked(batches, progress, "calibrate"):
                run_batch("calibrate", inner, batch)
                count += 1
            for m in quantizers:
                m.stop_observing()
    finally:
        for m in quantizers:
            m.enabled, m.observing = enabled[m], False
    _settle_weights(inner)
    if reduced_(count) == 0:
        raise ValueError("calibrate: batches must hold at least one batch, got none")
    for name, m in input_quantizers(inner).items():
        if m.calibrated and not m.follow and not torch.isfinite(m.scale).all():
            raise ValueError(f"calibrate: the input of {name} must be finite, got an infinity")
    return model


def _settle_weights(model: nn.Module) -> None:
    """Set the weights' grids too, those that are fitted or learned among them."""
    for layer in layers_of(model).values():
        if transform_of(layer, FakeQuantize) is not None:
            original = original_weight(layer)
            if original.numel():
                _ = layer.weight
