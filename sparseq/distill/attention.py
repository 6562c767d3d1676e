"""Attention transfer: where a teacher looks, not what it sees there."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from sparseq.distill.hint import averaged_alike, channel_dimension
from sparseq.distill.term import Term


def attention_loss(
    student: Tensor, teacher: Tensor, power: float = 2.0, channel_dim: int | None = None
) -> Tensor:
    """Mean squared difference of two attention maps, each normalised.

    ``mean((q_student / ||q_student|| - q_teacher / ||q_teacher||)^2)`` with
    ``q = sum_c |feature_c|^power``, a value a place, the mean over places and batch. So it is in
    the authors' code; their equation 2 has the norm of the difference itself, which has no gradient
    where the maps agree.

    Args:
        student: ``(N, C, ...)``, or ``(N, L, C)`` of a transformer, floating point.
        teacher: of the same kind and batch; channels may differ, and so may the size of images,
            of which the larger map is averaged down.
        power: at least 1; larger values weigh strong channels more.
        channel_dim: the channels' dimension; None: 1 of images, the last of ``(N, L, C)``.

    Returns:
        The loss, a scalar.

    Raises:
        ValueError: features without places, or kinds that differ.

    Reference:
        Zagoruyko, Komodakis, "Paying More Attention to Attention", ICLR 2017, equations 1 and 2.
    """
    if student.dim() != teacher.dim() or student.dim() < 3:
        raise ValueError(
            "attention_loss: features must both have shape (N, C, ...), "
            f"got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    dim = channel_dimension(student, channel_dim)
    maps = [x.abs().pow(power).sum(dim, keepdim=True) for x in (student, teacher)]
    if maps[0].shape != maps[1].shape:
        if dim % student.dim() != 1:
            raise ValueError(
                "attention_loss: features must have as many places, "
                f"got {tuple(student.shape)} and {tuple(teacher.shape)}"
            )
        maps = list(averaged_alike(maps[0], maps[1]))
    one, other = (F.normalize(m.flatten(1), dim=1) for m in maps)
    return F.mse_loss(one, other)


class AttentionTransfer(Term):
    """:func:`attention_loss` on pairs of layers; nothing to learn, channels may differ.

    Args:
        layers: ``{"student's layer": "teacher's layer"}``.
        weight: of this term; 1000 is the paper's.
        teacher: which of several teachers the layers are of.
        power: of the features.
        channel_dim: the channels' dimension; None: 1 of images, the last of ``(N, L, C)``.

    Raises:
        ValueError: a power below 1.

    Reference:
        Zagoruyko, Komodakis, "Paying More Attention to Attention", ICLR 2017.
    """

    def __init__(
        self,
        layers: Mapping[str, str],
        weight: float = 1000.0,
        teacher: int = 0,
        *,
        power: float = 2.0,
        channel_dim: int | None = None,
    ) -> None:
        super().__init__(layers, weight, teacher)
        if not power >= 1:
            raise ValueError(f"AttentionTransfer: power must be >= 1, got {power}")
        self.power, self.channel_dim = power, channel_dim

    def pair_loss(self, index: int, student: Tensor, teacher: Tensor) -> Tensor:
        """:func:`attention_loss`."""
        return attention_loss(student, teacher, self.power, self.channel_dim)
