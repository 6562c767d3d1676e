"""Logit distillation: a small student learns from a large teacher's softened answers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Loss", "kd_loss"]


def kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float = 4.0,
    alpha: float = 0.7,
) -> Tensor:
    """Blend the labels' cross-entropy with the divergence from the teacher's softened answers.

    ``alpha * CE(student, labels)
    + (1 - alpha) * T^2 * KL(softmax(teacher / T) || softmax(student / T))``

    Both terms are means over the batch. The factor ``T^2`` keeps the size of the soft term's
    gradient independent of the temperature.

    Args:
        student_logits: the student's scores before softmax, ``(N, classes)``, floating point;
            gradients flow into these only.
        teacher_logits: the teacher's scores, same shape and device.
        labels: the true classes, ``(N,)``, int64.
        temperature: ``T`` > 0; larger values show more of how the teacher ranks wrong classes.
        alpha: weight of the labels, in [0, 1].

    Returns:
        The loss, a scalar of the student's dtype.

    Raises:
        ValueError: the temperature is not finite and positive, alpha is outside [0, 1], or the
            shapes of logits and labels do not fit each other.

    Reference:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2.
    """
    _check_blend(temperature, alpha)
    if student_logits.dim() != 2:
        raise ValueError(
            "kd_loss: student_logits must have shape (N, classes), "
            f"got {tuple(student_logits.shape)}"
        )
    if teacher_logits.shape != student_logits.shape:
        raise ValueError(
            "kd_loss: teacher_logits must have the shape of student_logits "
            f"{tuple(student_logits.shape)}, got {tuple(teacher_logits.shape)}"
        )
    if labels.shape != student_logits.shape[:1]:
        raise ValueError(
            f"kd_loss: labels must have shape ({student_logits.shape[0]},), "
            f"got {tuple(labels.shape)}"
        )
    hard = F.cross_entropy(student_logits, labels)
    soft = F.kl_div(
        F.log_softmax(student_logits / temperature, dim=1),
        F.softmax(teacher_logits.detach() / temperature, dim=1),
        reduction="batchmean",
    )
    return alpha * hard + (1.0 - alpha) * temperature**2 * soft


class Loss(nn.Module):
    """Distillation loss that asks the teacher itself; see :func:`kd_loss` for the formula.

    The teacher is frozen and stays in evaluation mode whatever mode the loss is put in. It is
    not a submodule: its tensors appear neither in ``parameters()`` nor in ``state_dict()``, so
    no optimizer trains it and no checkpoint repeats it. Move it to the data's device yourself.

    Args:
        teacher: module from inputs to logits ``(N, classes)``. Its parameters' ``requires_grad``
            becomes False.
        temperature: ``T`` > 0.
        alpha: weight of the labels, in [0, 1].

    Raises:
        ValueError: the temperature is not finite and positive, or alpha is outside [0, 1].

    Reference:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2.
    """

    def __init__(self, teacher: nn.Module, temperature: float = 4.0, alpha: float = 0.7) -> None:
        super().__init__()
        _check_blend(temperature, alpha)
        self.temperature = temperature
        self.alpha = alpha
        # A tuple hides the teacher from nn.Module's registration of submodules.
        self._unregistered = (teacher.eval().requires_grad_(False),)

    @property
    def teacher(self) -> nn.Module:
        """The frozen teacher."""
        return self._unregistered[0]

    def forward(self, logits: Tensor, labels: Tensor, inputs: Tensor) -> Tensor:
        """Return the loss of the student's ``logits`` for ``inputs``.

        Args:
            logits: the student's scores, ``(N, classes)``.
            labels: the true classes, ``(N,)``, int64.
            inputs: what the student was given; the teacher is run on the same.

        Returns:
            The loss, a scalar.

        Raises:
            ValueError: as :func:`kd_loss`.
        """
        self.teacher.eval()  # somebody may have called train() on the teacher itself
        with torch.no_grad():
            teacher_logits = self.teacher(inputs)
        return kd_loss(logits, teacher_logits, labels, self.temperature, self.alpha)

    def extra_repr(self) -> str:
        """Show the two numbers of the formula."""
        return f"temperature={self.temperature}, alpha={self.alpha}"


def _check_blend(temperature: float, alpha: float) -> None:
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"distill: temperature must be finite and > 0, got {temperature}")
    if not 0.0 <= alpha <= 1.0:  # also False for NaN
        raise ValueError(f"distill: alpha must be in [0, 1], got {alpha}")
