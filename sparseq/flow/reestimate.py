"""`reestimate_batch_norms`: running statistics of the network as it is quantised and pruned now."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sparseq.flow.outputs import run_batch
from sparseq.flow.progress import Progress, tracked
from sparseq.quant import freeze_batch_norms, is_frozen, unfreeze_batch_norms
from sparseq.quant.reduce import counter, reduced_
from sparseq.quant.schedule import batch_norms

Model = TypeVar("Model", bound=nn.Module)


@torch.no_grad()
def reestimate_batch_norms(
    model: Model, batches: Iterable[Any], progress: Progress = False
) -> Model:
    """Measure every batch norm's running mean and variance anew, as the mean over batches.

    Quantising or pruning shifts what batch norms see, and training's moving average lags behind the
    last weights; both cost accuracy that this gives back without any training. Masks and
    fake-quantisation are as they were, the rest of the model is in eval mode. In a distributed run
    the mean is over the batches of all ranks.

    Args:
        model: float or prepared.
        batches: as for `calibrate`; a hundred images or more in each.
        progress: as for `calibrate`.

    Returns:
        The model, in the mode it was in; with the statistics it had, if anything is raised.

    Raises:
        ValueError: no batch.
        TypeError: a batch of another type.

    Reference:
        Nagel et al. 2022, Overcoming Oscillations in Quantization-Aware Training, section 4.1.
    """
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    norms = batch_norms(inner)
    modes = {module: module.training for module in inner.modules()}
    before = {norm: (norm.momentum, is_frozen(norm)) for norm in norms}
    kept = [buffer.clone() for norm in norms for buffer in norm.buffers()]
    count = counter(inner)
    try:
        inner.eval()
        for norm in norms:
            unfreeze_batch_norms(norm)
            norm.reset_running_stats()  # type: ignore[operator]
            norm.momentum = None  # type: ignore[assignment]  # torch's cumulative average
            norm.train()
        for batch in tracked(batches, progress, "reestimate_batch_norms"):
            run_batch("reestimate_batch_norms", inner, batch)
            count += 1
        total = reduced_(count.clone())
        if total == 0:
            raise ValueError(
                "reestimate_batch_norms: batches must hold at least one batch, got none"
            )
        for norm in norms:
            for statistic in (norm.running_mean, norm.running_var):
                assert isinstance(statistic, torch.Tensor)
                statistic.copy_(reduced_(statistic * float(count)) / float(total))
    except BaseException:
        for buffer, value in zip((b for n in norms for b in n.buffers()), kept, strict=True):
            buffer.copy_(value)
        raise
    finally:
        for module, training in modes.items():
            module.training = training
        for norm, (momentum, frozen) in before.items():
            norm.momentum = momentum
            if frozen:
                freeze_batch_norms(norm)
    return model
