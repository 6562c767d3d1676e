"""A plain training loop, as a user would write it; it knows nothing of quantisation or masks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparseq.run.data import Dataset

__all__ = ["Criterion", "Recipe", "cross_entropy", "train"]

Criterion = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Maps ``(logits, labels, inputs)`` to the loss."""


@dataclass(frozen=True)
class Recipe:
    """How to train: stochastic gradient descent with momentum and one schedule of the rate.

    Attributes:
        epochs: passes over the training images.
        rate: the largest learning rate.
        batch: images in a batch.
        schedule: ``"one_cycle"`` (up for a quarter of the steps, then down) or ``"cosine"``
            (down from the first step: for a model that is already good).
        momentum: of the gradient descent.
        weight_decay: L2 penalty on every parameter.
        amp: run the forward pass under bfloat16 autocast.

    Raises:
        ValueError: a number is not positive, or the schedule is unknown.
    """

    epochs: int
    rate: float = 0.1
    batch: int = 64
    schedule: str = "one_cycle"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    amp: bool = False

    def __post_init__(self) -> None:
        """Check the fields."""
        for name in ("epochs", "rate", "batch"):
            if not getattr(self, name) > 0:
                raise ValueError(f"Recipe: {name} must be > 0, got {getattr(self, name)}")
        if self.schedule not in ("one_cycle", "cosine"):
            raise ValueError(
                f"Recipe: schedule must be 'one_cycle' or 'cosine', got {self.schedule!r}"
            )


def cross_entropy(logits: Tensor, labels: Tensor, inputs: Tensor) -> Tensor:
    """Return the mean cross-entropy of ``logits`` ``(N, classes)``; ``inputs`` are not needed."""
    return F.cross_entropy(logits, labels)


def train(
    model: nn.Module,
    data: Dataset,
    recipe: Recipe,
    *,
    criterion: Criterion = cross_entropy,
    seed: int = 0,
    before_epoch: Callable[[int], None] | None = None,
    on_step: Callable[[float], None] | None = None,
) -> list[float]:
    """Train ``model`` in place and leave it in evaluation mode.

    Args:
        model: maps images ``(N, C, H, W)`` to logits ``(N, classes)``.
        data: images and labels.
        recipe: how to train.
        criterion: the loss.
        seed: decides the order and the augmentation of the images.
        before_epoch: called with 0, 1, ... when an epoch begins, with the model in training mode.
        on_step: called after every batch with its loss.

    Returns:
        The mean loss of each epoch.

    Raises:
        ArithmeticError: the loss is no longer finite.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=recipe.rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.momentum > 0,
    )
    steps = recipe.epochs * data.steps(recipe.batch)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, _rate(recipe.schedule, steps))
    history = []
    for epoch in range(recipe.epochs):
        model.train()
        if before_epoch is not None:
            before_epoch(epoch)
        losses = []
        for images, labels in data.train_batches(recipe.batch, generator):
            images, labels = images.to(device), labels.to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.amp):
                loss = criterion(model(images), labels, images)
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
        history.append(sum(losses) / len(losses))
    model.eval()
    return history


def _rate(schedule: str, steps: int) -> Callable[[int], float]:
    """Return the factor of the learning rate as a function of the step."""
    rise = steps // 4 if schedule == "one_cycle" else 0

    def factor(step: int) -> float:
        if step < rise:
            return 0.04 + 0.96 * step / rise
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(steps - rise, 1)))

    return factor
