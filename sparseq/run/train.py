"""A plain training loop, as a user would write it; it knows nothing of quantisation or masks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparseq import bench
from sparseq.run.data import Dataset
from sparseq.run.ranks import Ranks
from sparseq.run.recipe import Training

__all__ = ["Criterion", "accuracy", "cross_entropy", "train"]

Criterion = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Maps ``(logits, labels, inputs)`` to the loss."""

State = dict[str, Any]


def cross_entropy(logits: Tensor, labels: Tensor, inputs: Tensor) -> Tensor:
    """Return the mean cross-entropy of ``logits`` ``(N, classes)``; ``inputs`` are not needed."""
    return F.cross_entropy(logits, labels)


def train(
    model: nn.Module,
    data: Dataset,
    training: Training,
    *,
    criterion: Criterion = cross_entropy,
    seed: int = 0,
    amp: bool = False,
    ranks: Ranks | None = None,
    before_epoch: Callable[[int], None] | None = None,
    on_step: Callable[[float], None] | None = None,
    after_epoch: Callable[[State], None] | None = None,
    state: Mapping[str, Any] | None = None,
) -> list[float]:
    """Train ``model`` in place and leave it in evaluation mode.

    Args:
        model: maps images ``(N, C, H, W)`` to logits ``(N, classes)``.
        data: images and labels.
        training: how.
        criterion: the loss.
        seed: decides the order and the augmentation of the images.
        amp: run the forward pass under bfloat16 autocast.
        ranks: the processes that share each batch; None for this one alone.
        before_epoch: called with 0, 1, ... when an epoch begins, with the model in training mode.
        on_step: called after every batch with its loss.
        after_epoch: called in evaluation mode with what `state` takes: of the loop, the model's
            own tensors apart.
        state: where to go on; the model must be as it was then.

    Returns:
        The mean loss of each epoch.

    Raises:
        ArithmeticError: the loss is no longer finite.
        ValueError: the batch cannot be split evenly.
    """
    ranks = ranks or Ranks()
    if training.batch % ranks.count:
        raise ValueError(
            f"train: batch must be a multiple of the {ranks.count} processes, got {training.batch}"
        )
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=training.rate,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        nesterov=training.momentum > 0,
    )
    steps = training.epochs * data.steps(training.batch)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, _rate(training.schedule, steps))
    history: list[float] = []
    if state is not None:
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        generator.set_state(state["generator"])
        history = list(state["history"])
    parallel = ranks.parallel(model)
    for epoch in range(len(history), training.epochs):
        parallel.train()
        if before_epoch is not None:
            before_epoch(epoch)
        losses = []
        batches = data.train_batches(training.batch, generator, ranks.rank, ranks.count)
        for images, labels in batches:
            images, labels = images.to(device), labels.to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=amp):
                loss = criterion(parallel(images), labels, images)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise ArithmeticError(
                    f"train: the loss became {losses[-1]} in epoch {epoch + 1}; lower the rate"
                )
            if on_step is not None:
                on_step(losses[-1])
        whole = ranks.summed(torch.tensor([sum(losses), len(losses)], dtype=torch.float64))
        history.append(float(whole[0] / whole[1]))
        ranks.agree(model)
        parallel.eval()
        if after_epoch is not None:
            after_epoch(
                {
                    "optimizer": optimizer.state_dict(),
                    "scheduler": scheduler.state_dict(),
                    "generator": generator.get_state(),
                    "history": list(history),
                }
            )
    model.eval()
    return history


def accuracy(model: nn.Module, data: Dataset, ranks: Ranks | None = None) -> float:
    """The share of test images that a model in evaluation mode gets right, percent.

    Args:
        model: maps images to logits.
        data: its test images.
        ranks: the processes that share them; None for this one alone.
    """
    ranks = ranks or Ranks()
    device = next(model.parameters()).device
    sizes = []

    def mine() -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in data.test_batches(rank=ranks.rank, ranks=ranks.count):
            sizes.append(len(labels))
            yield images.to(device), labels.to(device)

    if next(data.test_batches(rank=ranks.rank, ranks=ranks.count), None) is None:
        percent = 0.0  # more processes than batches
    else:
        percent = bench.accuracy(model, mine())
    counts = torch.tensor([round(percent / 100.0 * sum(sizes)), sum(sizes)])
    right, total = ranks.summed(counts).tolist()
    return 100.0 * right / total


def _rate(schedule: str, steps: int) -> Callable[[int], float]:
    """Return the factor of the learning rate as a function of the step."""
    rise = steps // 4 if schedule == "one_cycle" else 0

    def factor(step: int) -> float:
        if step < rise:
            return 0.04 + 0.96 * step / rise
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(steps - rise, 1)))

    return factor
