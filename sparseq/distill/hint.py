"""Hints: a student's features become the teacher's, through a projection that is learned too."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from sparseq.distill.term import Pairs, Term

PROJECTIONS = ("auto", "always", "never")


class Hint(Term):
    """Mean squared error between a teacher's features and a projection of the student's.

    ``mean((project(student) - teacher)^2)``; the projection is a linear map of the channels (a 1x1
    convolution), a parameter of the loss for the optimizer, and not part of the student. Of two
    maps of different sizes the larger is averaged down to the smaller.

    Args:
        layers: ``{"student's layer": "teacher's layer"}``.
        weight: of this term.
        teacher: which of several teachers the layers are of.
        projection: "auto" projects where the channels differ, "always", or "never".
        channel_dim: the channels' dimension; None: 1 of images ``(N, C, H, W)``, the last of
            ``(N, C)`` and ``(N, L, C)``. Give 1 for Conv1d.

    Raises:
        ValueError: an argument outside of the above.

    Reference:
        Romero, Ballas, Kahou, Chassang, Gatta, Bengio, "FitNets: Hints for Thin Deep Nets",
        ICLR 2015, equation 3.
    """

    def __init__(
        self,
        layers: Mapping[str, str],
        weight: float = 1.0,
        teacher: int = 0,
        *,
        projection: str = "auto",
        channel_dim: int | None = None,
    ) -> None:
        super().__init__(layers, weight, teacher)
        if projection not in PROJECTIONS:
            raise ValueError(f"Hint: projection must be one of {PROJECTIONS}, got {projection!r}")
        self.projection, self.channel_dim = projection, channel_dim
        self.projections = nn.ModuleList()

    @property
    def needs_example(self) -> bool:
        """Unless nothing is projected."""
        return self.projection != "never"

    def build(self, pairs: Pairs) -> None:
        """Make one projection a pair, on the student's device, in float32."""
        self.projections = nn.ModuleList()
        for student, teacher in pairs:
            dim = channel_dimension(student, self.channel_dim)
            inputs, outputs = student.shape[dim], teacher.shape[dim]
            wanted = self.projection == "always" or inputs != outputs
            self.projections.append(
                nn.Linear(inputs, outputs, device=student.device) if wanted else nn.Identity()
            )

    def pair_loss(self, index: int, student: Tensor, teacher: Tensor) -> Tensor:
        """``mean((project(student) - teacher)^2)``."""
        dim = channel_dimension(student, self.channel_dim)
        student, teacher = self._sized(index, student, teacher, dim)
        if self.projection != "never":
            projection = self.projections[index]
            if isinstance(projection, nn.Linear):
                student = projection(student.to(projection.weight.dtype).movedim(dim, -1))
                student = student.movedim(-1, dim)
        if student.shape != teacher.shape:
            raise ValueError(
                f"{self.where(index)} must give the same channels, got shapes "
                f"{tuple(student.shape)} and {tuple(teacher.shape)}"
            )
        return F.mse_loss(student, teacher.to(student.dtype))

    def _sized(
        self, index: int, student: Tensor, teacher: Tensor, dim: int
    ) -> tuple[Tensor, Tensor]:
        if student.dim() != teacher.dim():
            raise ValueError(
                f"{self.where(index)} must give as many dimensions, got shapes "
                f"{tuple(student.shape)} and {tuple(teacher.shape)}"
            )
        if dim % student.dim() != 1 or student.shape[2:] == teacher.shape[2:]:
            return student, teacher
        return averaged_alike(student, teacher)


def channel_dimension(features: Tensor, given: int | None) -> int:
    """The channels' dimension of features: as given, or 1 of images and the last of tokens."""
    if given is not None:
        return given
    return 1 if features.dim() > 3 else -1


def averaged_alike(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps ``(N, C, ...)``, each averaged down to the smaller size, dimension by dimension."""
    pools: dict[int, Callable[..., Tensor]] = {
        1: F.adaptive_avg_pool1d,
        2: F.adaptive_avg_pool2d,
        3: F.adaptive_avg_pool3d,
    }
    size = [min(a, b) for a, b in zip(student.shape[2:], teacher.shape[2:], strict=True)]
    pool = pools[len(size)]
    pooled = [x if list(x.shape[2:]) == size else pool(x, size) for x in (student, teacher)]
    return pooled[0], pooled[1]
