"""Gradient checkpointing of the exercise's networks: blocks run again in the backward pass."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from sparseq.quant.schedule import batch_norms

__all__ = ["recompute_blocks"]


@contextmanager
def _keeping_statistics(block: nn.Module) -> Iterator[None]:
    """Batch norms take nothing in: the first pass did."""
    norms: list[Any] = batch_norms(block)
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)


def recompute_blocks(model: nn.Module) -> int:
    """Make each residual block keep its input only, in training mode; the results are the same.

    Args:
        model: a network of `sparseq.run.models`; its blocks' `forward` is replaced.

    Returns:
        How many blocks it has.

    Reference:
        Chen, Xu, Zhang, Guestrin, "Training Deep Nets with Sublinear Memory Cost", 2016.
    """
    blocks = [module for module in model.modules() if hasattr(module, "conv2")]
    for block in blocks:

        def contexts(
            block: nn.Module = block,
        ) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), _keeping_statistics(block)

        block.forward = functools.partial(
            checkpoint, block.forward, use_reentrant=False, context_fn=contexts
        )
    return len(blocks)
