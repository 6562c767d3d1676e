"""What a teacher's answers teach: their softened distribution, whole or taken apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


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
        labels: the true classes, ``(N,)``, int64; or their probabilities, ``(N, classes)``, as
            mixup and smoothing give them.
        temperature: ``T`` > 0; larger values show more of how the teacher ranks wrong classes.
        alpha: weight of the labels, in [0, 1].

    Returns:
        The loss, a scalar of the student's dtype; of float32 if that has 16 bits.

    Raises:
        ValueError: the temperature is not finite and positive, alpha is outside [0, 1], or the
            shapes of logits and labels do not fit each other.

    Reference:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2.
    """
    check_blend(temperature, alpha)
    check_shapes("kd_loss", student_logits, teacher_logits, labels)
    student, teacher = _comparable(student_logits, teacher_logits)
    soft = soft_loss(student, teacher, temperature)
    return alpha * hard_loss(student, labels) + (1.0 - alpha) * soft


def hard_loss(student_logits: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy with classes ``(N,)`` or their probabilities ``(N, classes)``."""
    student = wide(student_logits)
    return F.cross_entropy(student, labels.to(student.dtype) if labels.dim() > 1 else labels)


def soft_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """``T^2 * KL(softmax(teacher / T) || softmax(student / T))``, a mean over the batch."""
    student, teacher = _comparable(student_logits, teacher_logits)
    return temperature**2 * F.kl_div(
        F.log_softmax(student / temperature, dim=1),
        F.softmax(teacher / temperature, dim=1),
        reduction="batchmean",
    )


def decoupled_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float = 4.0,
    target: float = 1.0,
    non_target: float = 8.0,
) -> Tensor:
    """The teacher's softened answers taken apart: how sure of the label, and how it ranks the rest.

    ``T^2 * (target * KL(b_teacher || b_student) + non_target * KL(q_teacher || q_student))``, where
    ``b = (p, 1 - p)``, p the label's share of ``softmax(logits / T)``, and q the softmax over the
    other classes only. With ``target = 1`` and ``non_target = 1 - p_teacher`` it were the usual
    soft term, which so fades where the teacher is sure. There is no cross-entropy in it.

    Args:
        student_logits: ``(N, classes)``, floating point, at least two classes.
        teacher_logits: same shape and device; gets no gradient.
        labels: the true classes, ``(N,)``, int64.
        temperature: ``T`` > 0.
        target: weight of the label's part, the paper's alpha.
        non_target: weight of the other classes' part, the paper's beta.

    Returns:
        The loss, a scalar of the student's dtype; of float32 if that has 16 bits.

    Raises:
        ValueError: a temperature, a weight or a shape outside of the above.

    Reference:
        Zhao, Cui, Song, Qiu, Liang, "Decoupled Knowledge Distillation", CVPR 2022, equation 7.
    """
    check_blend(temperature, 0.0)
    Decoupled(target, non_target)
    check_shapes("decoupled_loss", student_logits, teacher_logits, labels)
    if labels.dim() != 1:
        raise ValueError(
            f"decoupled_loss: labels must be one class a sample, got shape {tuple(labels.shape)}"
        )
    classes = student_logits.shape[1]
    if classes < 2:
        raise ValueError(f"decoupled_loss: student_logits must have 2 classes, got {classes}")
    pair = [x / temperature for x in _comparable(student_logits, teacher_logits)]
    label = labels[:, None]
    others = torch.arange(classes - 1, device=labels.device)
    others = others + (others >= label)  # the classes but the label, row by row
    binary, rest = [], []
    for logits in pair:
        without = logits.gather(1, others)
        two = torch.cat([logits.gather(1, label), without.logsumexp(1, keepdim=True)], 1)
        binary.append(F.log_softmax(two, dim=1))
        rest.append(F.log_softmax(without, dim=1))
    first = F.kl_div(binary[0], binary[1], reduction="batchmean", log_target=True)
    second = F.kl_div(rest[0], rest[1], reduction="batchmean", log_target=True)
    return temperature**2 * (target * first + non_target * second)


@dataclass(frozen=True)
class Decoupled:
    """The soft term of :func:`decoupled_loss` in place of the usual one.

    Args:
        target: weight of the label's part.
        non_target: weight of the other classes' part.

    Raises:
        ValueError: a weight that is negative or not finite.
    """

    target: float = 1.0
    non_target: float = 8.0

    def __post_init__(self) -> None:
        """Check the weights."""
        for name, value in (("target", self.target), ("non_target", self.non_target)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"distill: {name} must be finite and >= 0, got {value}")


def mixed_logits(
    logits: Sequence[Tensor], temperature: float, weights: Sequence[float] | None = None
) -> Tensor:
    """Scores whose softened distribution is the mean of several teachers' softened distributions.

    ``T * log(sum_k w_k softmax(logits_k / T))``, so that ``softmax(result / T)`` is that mean.

    Args:
        logits: one or more, each ``(N, classes)``.
        temperature: ``T`` > 0.
        weights: one a teacher, at least 0, not all 0; they are divided by their sum. None: equal.

    Returns:
        ``(N, classes)``; the logits themselves where there is one teacher.

    Raises:
        ValueError: no logits, a temperature or weights outside of the above, or shapes that differ.

    Reference:
        Hinton, Vinyals, Dean, 2015, section 5; You, Xu, Xu, Tao, "Learning from Multiple Teacher
        Networks", KDD 2017, equation 4.
    """
    check_blend(temperature, 0.0)
    shares = check_weights(weights, len(logits))
    shapes = [tuple(x.shape) for x in logits]
    if len(set(shapes)) > 1:
        raise ValueError(f"distill: the teachers' logits must have one shape, got {shapes}")
    if len(logits) == 1:
        return logits[0]
    logs = [
        F.log_softmax(wide(x) / temperature, dim=1) + math.log(share)
        for x, share in zip(logits, shares, strict=True)
        if share > 0
    ]
    return temperature * torch.stack(logs).logsumexp(0)


def check_weights(weights: Sequence[float] | None, teachers: int) -> list[float]:
    """The teachers' shares, summing to 1."""
    if teachers < 1:
        raise ValueError("distill: there must be at least one teacher, got none")
    values = [1.0] * teachers if weights is None else [float(w) for w in weights]
    sound = all(math.isfinite(w) and w >= 0 for w in values) and sum(values) > 0
    if len(values) != teachers or not sound:
        raise ValueError(
            f"distill: weights must be {teachers} finite numbers >= 0, not all 0, got {weights}"
        )
    return [w / sum(values) for w in values]


def check_blend(temperature: float, alpha: float) -> None:
    """ValueError unless the temperature is positive and alpha a share."""
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"distill: temperature must be finite and > 0, got {temperature}")
    if not 0.0 <= alpha <= 1.0:  # also False for NaN
        raise ValueError(f"distill: alpha must be in [0, 1], got {alpha}")


def check_shapes(op: str, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> None:
    """ValueError unless logits are ``(N, classes)`` both and labels ``(N,)`` or probabilities."""
    if student_logits.dim() != 2:
        raise ValueError(
            f"{op}: student_logits must have shape (N, classes), got {tuple(student_logits.shape)}"
        )
    if teacher_logits.shape != student_logits.shape:
        raise ValueError(
            f"{op}: teacher_logits must have the shape of student_logits "
            f"{tuple(student_logits.shape)}, got {tuple(teacher_logits.shape)}"
        )
    shares = labels.is_floating_point() and labels.shape == student_logits.shape
    if labels.shape != student_logits.shape[:1] and not shares:
        raise ValueError(
            f"{op}: labels must have shape ({student_logits.shape[0]},), got {tuple(labels.shape)}"
        )


def wide(x: Tensor) -> Tensor:
    """Float32 of what has 16 bits: exponentials and sums are not for those."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _comparable(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    student = wide(student)
    return student, teacher.detach().to(student.dtype)
