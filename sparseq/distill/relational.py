"""Relational distillation: distances and angles between the samples of a batch."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from sparseq.distill.term import Term

_TINY = 1e-12


def distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss between distances of samples, each network's divided by their mean.

    ``mean_{i != j} huber(d_ij / mean(d), teacher's likewise)`` with ``d_ij = ||x_i - x_j||`` and
    Huber's loss of threshold 1.

    Args:
        student: ``(N, ...)``, floating point; flattened to vectors.
        teacher: ``(N, ...)``; vectors may be of another length.

    Returns:
        The loss, a scalar; 0 of a batch of one.

    Raises:
        ValueError: batches that differ.

    Reference:
        Park, Kim, Lu, Cho, "Relational Knowledge Distillation", CVPR 2019, equations 5 to 8.
    """
    count = _batch("distance_loss", student, teacher)
    if count < 2:
        return student.sum() * 0.0
    apart = ~torch.eye(count, dtype=torch.bool, device=student.device)
    one, other = (_distances(x) for x in (student, teacher))
    pairs = count * (count - 1)
    one, other = (d / (d.sum() / pairs).clamp_min(_TINY) for d in (one, other))
    return (F.smooth_l1_loss(one, other, reduction="none") * apart).sum() / pairs


def angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss between the angles that triples of samples form.

    ``mean huber(cos(x_i x_j x_k), teacher's likewise)`` over triples of distinct samples; the
    cosine is that at ``x_j``. Takes memory for ``N^3`` cosines and ``N^2`` vectors.

    Args:
        student: ``(N, ...)``, floating point; flattened to vectors.
        teacher: ``(N, ...)``; vectors may be of another length.

    Returns:
        The loss, a scalar; 0 of a batch of fewer than three.

    Raises:
        ValueError: batches that differ.

    Reference:
        Park, Kim, Lu, Cho, "Relational Knowledge Distillation", CVPR 2019, equations 9 and 10.
    """
    count = _batch("angle_loss", student, teacher)
    if count < 3:
        return student.sum() * 0.0
    apart = ~torch.eye(count, dtype=torch.bool, device=student.device)
    distinct = apart[:, :, None] & apart[:, None, :] & apart[None, :, :]
    one, other = (_cosines(x) for x in (student, teacher))
    triples = count * (count - 1) * (count - 2)
    return (F.smooth_l1_loss(one, other, reduction="none") * distinct).sum() / triples


class Relational(Term):
    """`distance * distance_loss + angle * angle_loss` on pairs of layers; nothing to learn.

    Best on small outputs, an embedding or pooled features: `angle_loss` takes memory for the
    vectors between all pairs of samples. In a distributed run each rank relates its own samples.

    Args:
        layers: ``{"student's layer": "teacher's layer"}``.
        weight: of this term.
        teacher: which of several teachers the layers are of.
        distance: weight of the distances.
        angle: weight of the angles.

    Raises:
        ValueError: a weight that is negative or not finite, or both 0.

    Reference:
        Park, Kim, Lu, Cho, "Relational Knowledge Distillation", CVPR 2019.
    """

    def __init__(
        self,
        layers: Mapping[str, str],
        weight: float = 1.0,
        teacher: int = 0,
        *,
        distance: float = 1.0,
        angle: float = 2.0,
    ) -> None:
        super().__init__(layers, weight, teacher)
        sound = all(math.isfinite(value) and value >= 0 for value in (distance, angle))
        if not sound or distance + angle == 0:
            raise ValueError(
                "Relational: distance and angle must be finite and >= 0, not both 0, "
                f"got {distance} and {angle}"
            )
        self.distance, self.angle = distance, angle

    def pair_loss(self, index: int, student: Tensor, teacher: Tensor) -> Tensor:
        """The two losses, weighted."""
        total = student.new_zeros(())
        if self.distance:
            total = total + self.distance * distance_loss(student, teacher)
        if self.angle:
            total = total + self.angle * angle_loss(student, teacher)
        return total


def _batch(op: str, student: Tensor, teacher: Tensor) -> int:
    if student.dim() < 2 or teacher.dim() < 2 or len(student) != len(teacher):
        raise ValueError(
            f"{op}: features must have shape (N, ...) of the same batch, "
            f"got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    return len(student)


def _between(x: Tensor) -> Tensor:
    """``x_i - x_j`` as ``[j, i]``."""
    flat = x.flatten(1)
    return flat[None, :, :] - flat[:, None, :]


def _distances(x: Tensor) -> Tensor:
    """``[N, N]``; equal samples get no gradient, where a norm's is NaN."""
    square = _between(x).square().sum(-1)
    apart = square > _TINY
    return torch.where(apart, torch.where(apart, square, 1.0).sqrt(), 0.0)


def _cosines(x: Tensor) -> Tensor:
    """``[j, i, k]``: the cosine at j between i and k; 0, without gradient, of equal samples."""
    between = _between(x)
    square = between.square().sum(-1, keepdim=True)
    apart = square > _TINY
    directions = between * torch.where(apart, torch.where(apart, square, 1.0).rsqrt(), 0.0)
    return directions @ directions.transpose(1, 2)
