"""The distillation loss: what the teachers answer, and terms on features."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparseq.distill.cache import CachedLogits
from sparseq.distill.logits import (
    Decoupled,
    check_blend,
    check_shapes,
    check_weights,
    decoupled_loss,
    hard_loss,
    mixed_logits,
    soft_loss,
)
from sparseq.distill.taps import Taps, answers_of, run, unknown_names, unwrapped
from sparseq.distill.term import Pairs, Term
from sparseq.modes import evaluating

Teacher = nn.Module | CachedLogits


class Loss(nn.Module):
    """Distillation loss that asks the teachers itself.

    ``alpha * CE(student, labels) + (1 - alpha) * soft + sum of weight * term``, where soft is
    ``T^2 * KL(softmax(teacher / T) || softmax(student / T))``, see :func:`kd_loss`, or
    :func:`decoupled_loss`. Several teachers answer with the mean of their softened answers.

    Teachers are frozen and stay in evaluation mode whatever mode the loss is put in. They are not
    submodules: their tensors appear neither in ``parameters()`` nor in ``state_dict()``, so no
    optimizer trains them and no checkpoint repeats them. Move them to the data's device yourself.
    What terms learn (projections) is in ``parameters()``: give it to the optimizer, too; in a
    distributed run wrap such a loss in DistributedDataParallel, as the student.

    Terms read layers through forward hooks, which last until `close`, the end of a ``with`` block
    or of the loss itself. The student may be wrapped in DistributedDataParallel or torch.compile
    (before its first call). Call the loss after each of the student's forward passes that it is
    for. Copies of the student have no hooks.

    Args:
        teacher: module from inputs to logits ``(N, classes)`` (or to an object that has them as
            ``logits``), :class:`CachedLogits`, or a sequence of those. Parameters'
            ``requires_grad`` becomes False.
        temperature: ``T`` > 0.
        alpha: weight of the labels, in [0, 1].
        soft: :class:`Decoupled` in place of the usual soft term.
        weights: one a teacher, divided by their sum; None: equal.
        terms: :class:`Hint`, :class:`AttentionTransfer`, :class:`Relational` or your own.
        student: whose layers the terms name.
        example: inputs of any batch size, for terms with projections: both networks run on them
            once, in evaluation mode.

    Attributes:
        parts: the last call's parts by name, detached and without their weights: ``"hard"``,
            ``"soft"``, and each term's class name with its place, like ``"Hint 0"``.

    Raises:
        TypeError: a teacher of another type.
        ValueError: an argument outside of the above, layers that do not exist (with the nearest
            names), terms without a student, or shapes that a term cannot compare.

    Reference:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2.
    """

    def __init__(
        self,
        teacher: Teacher | Sequence[Teacher],
        temperature: float = 4.0,
        alpha: float = 0.7,
        *,
        soft: Decoupled | None = None,
        weights: Sequence[float] | None = None,
        terms: Iterable[Term] = (),
        student: nn.Module | None = None,
        example: Any = None,
    ) -> None:
        super().__init__()
        check_blend(temperature, alpha)
        several = isinstance(teacher, Sequence)
        teachers: tuple[Teacher, ...] = tuple(teacher) if several else (teacher,)  # type: ignore[arg-type, assignment]
        for one in teachers:
            if not isinstance(one, (nn.Module, CachedLogits)):
                raise TypeError(
                    "Loss: teacher must be an nn.Module, CachedLogits or a sequence of these, "
                    f"got {type(one).__name__}"
                )
        self.weights = check_weights(weights, len(teachers))
        self.temperature, self.alpha, self.soft = temperature, alpha, soft
        self.terms = nn.ModuleList(terms)
        self.parts: dict[str, Tensor] = {}
        # A tuple hides the teachers from nn.Module's registration of submodules.
        self._unregistered = teachers
        for one in self.teachers:
            if isinstance(one, nn.Module):
                one.eval().requires_grad_(False)
        self._taps: dict[int, Taps] = {}  # -1: the student's; else the teacher's index
        if len(self.terms):
            self._tap(student, example)

    @property
    def teacher(self) -> Any:
        """The frozen teacher, the first of several."""
        return self._unregistered[0]

    @property
    def teachers(self) -> tuple[Teacher, ...]:
        """All of them."""
        return self._unregistered

    def forward(
        self, logits: Tensor, labels: Tensor, inputs: Any = None, ids: Tensor | None = None
    ) -> Tensor:
        """Return the loss of the student's ``logits`` for ``inputs``.

        Args:
            logits: the student's scores, ``(N, classes)``.
            labels: the true classes, ``(N,)``, int64, or their probabilities ``(N, classes)``.
            inputs: what the student was given, a tensor, a tuple of arguments or a mapping of
                them by name; the teachers are run on the same.
            ids: the samples' ids, ``(N,)``, integers, for teachers that are cached.

        Returns:
            The loss, a scalar.

        Raises:
            ValueError: as :func:`kd_loss`; inputs or ids are missing, or an id is not cached.
            RuntimeError: a layer of a term did not run once in the student's last forward pass.
        """
        student = self._taps[-1].take() if self._taps else {}
        answers = mixed_logits(
            [self._ask(one, inputs, ids, logits) for one in self.teachers],
            self.temperature,
            self.weights,
        )
        check_shapes("kd_loss", logits, answers, labels)
        hard = hard_loss(logits, labels)
        if self.soft is None:
            soft = soft_loss(logits, answers, self.temperature)
        else:
            weights = self.soft.target, self.soft.non_target
            soft = decoupled_loss(logits, answers, labels, self.temperature, *weights)
        self.parts = {"hard": hard.detach(), "soft": soft.detach()}
        total = self.alpha * hard + (1.0 - self.alpha) * soft
        features = {k: taps.take() for k, taps in self._taps.items() if k >= 0}
        for index, term in enumerate(self.terms):
            assert isinstance(term, Term)
            if torch.is_grad_enabled() and logits.requires_grad:
                self._check_trained(term, student)
            value = term(_pairs(term, student, features[term.teacher]))
            self.parts[f"{type(term).__name__} {index}"] = value.detach()
            total = total + term.weight * value
        return total

    def close(self) -> None:
        """Remove the hooks from student and teachers: the end of a loss with terms."""
        for taps in self._taps.values():
            taps.close()

    def __enter__(self) -> Loss:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def extra_repr(self) -> str:
        """Show the two numbers of the formula, and what differs from the usual."""
        text = f"temperature={self.temperature}, alpha={self.alpha}"
        if self.soft is not None:
            text += f", soft={self.soft}"
        return text if len(self.teachers) == 1 else f"{text}, weights={self.weights}"

    def _ask(self, teacher: Teacher, inputs: Any, ids: Tensor | None, logits: Tensor) -> Tensor:
        if isinstance(teacher, CachedLogits):
            if ids is None:
                raise ValueError("Loss: ids must be given to a cached teacher, got None")
            return teacher(ids).to(logits.device)
        if inputs is None:
            raise ValueError("Loss: inputs must be given to a teacher, got None")
        teacher.eval()  # somebody may have called train() on the teacher itself
        with torch.no_grad():
            return answers_of(run(teacher, inputs))

    def _check_trained(self, term: Term, student: dict[str, Tensor]) -> None:
        for name in term.layers:
            if not student[name].requires_grad:
                raise RuntimeError(
                    f"Loss: {type(term).__name__}: the student's {name!r} gave no gradient, so "
                    "that the term would teach it nothing: it is frozen, or inside of reentrant "
                    "checkpointing"
                )

    def _tap(self, student: nn.Module | None, example: Any) -> None:
        """Check the names, hang the hooks, make the terms' parameters; or leave nothing behind."""
        if student is None:
            raise ValueError("Loss: student must be given with terms, got None")
        inner = unwrapped(student)
        networks = {index: self._tapped(term) for index, term in enumerate(self.terms)}
        wrong: list[str] = []
        for index, network in networks.items():
            term = self.terms[index]
            assert isinstance(term, Term)
            wrong += unknown_names(inner, term.layers, "student")
            wrong += unknown_names(network, term.layers.values(), "teacher")
            if network is inner:
                raise ValueError("Loss: student must be another network than the teacher")
            if example is None and term.needs_example:
                raise ValueError(
                    f"Loss: example must be given: {type(term).__name__} makes its projections "
                    "for the features' shapes"
                )
        if wrong:
            raise ValueError(
                f"Loss: terms must name layers that exist, got {'; '.join(dict.fromkeys(wrong))}"
            )
        terms: list[Term] = list(self.terms)  # type: ignore[arg-type]
        self._taps[-1] = Taps(inner, [n for t in terms for n in t.layers], "student")
        for index, term in enumerate(terms):
            names = [n for t in terms if t.teacher == term.teacher for n in t.layers.values()]
            if term.teacher not in self._taps:
                self._taps[term.teacher] = Taps(networks[index], names, "teacher")
        weakref.finalize(self, _close, list(self._taps.values()))
        if example is None:
            return
        try:
            self._build(inner, {t.teacher: networks[i] for i, t in enumerate(terms)}, example)
        except BaseException:
            self.close()
            raise

    def _tapped(self, term: nn.Module) -> nn.Module:
        """The network whose layers a term names."""
        if not isinstance(term, Term):
            raise TypeError(f"Loss: terms must be distill.Term, got {type(term).__name__}")
        count = len(self.teachers)
        if isinstance(term.teacher, bool) or term.teacher not in range(count):
            raise ValueError(
                f"{type(term).__name__}: teacher must be from 0 to {count - 1}, got {term.teacher}"
            )
        teacher = self.teachers[term.teacher]
        if isinstance(teacher, CachedLogits):
            raise ValueError(
                f"Loss: {type(term).__name__} needs the teacher itself for its features, got "
                "cached logits"
            )
        return unwrapped(teacher)

    @torch.no_grad()
    def _build(self, student: nn.Module, teachers: dict[int, nn.Module], example: Any) -> None:
        with evaluating(student):
            for network in (student, *teachers.values()):
                run(network, example)
        features = {index: taps.take() for index, taps in self._taps.items()}
        for term in self.terms:
            assert isinstance(term, Term)
            pairs = _pairs(term, features[-1], features[term.teacher])
            term.build(pairs)
            term(pairs)  # shapes that do not fit are an error here, not in the first step


def _pairs(term: Term, student: dict[str, Tensor], teacher: dict[str, Tensor]) -> Pairs:
    return [(student[one], teacher[other]) for one, other in term.layers.items()]


def _close(taps: list[Taps]) -> None:
    for one in taps:
        one.close()
