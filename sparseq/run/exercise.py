"""The exercise: every combination of quantisation (Q), pruning (P) and distillation (D).

A technique is a function from a trained model to a trained model; a variant applies some of them
in the order D, P, Q: the student is trained first, loses its small weights next, and the weights
that are left are rounded last, under a mask that stays. Variants with the same beginning share
it: Q+P starts from what P ended with, so the eight variants take seven trainings beside the
baseline's, and each result is what its chain alone would have given.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import nn

import sparseq
from sparseq import Layer, Plan, Quant, Unstructured, bench, distill
from sparseq.run import models
from sparseq.run.data import Dataset
from sparseq.run.progress import Bars
from sparseq.run.train import Criterion, Recipe, cross_entropy, train

__all__ = ["LIMIT", "VARIANTS", "Exercise", "Row", "Settings", "Variant", "choose_best", "measure"]

VARIANTS = {
    "baseline": "",
    "Q": "Q",
    "P": "P",
    "D": "D",
    "Q+P": "PQ",
    "Q+D": "DQ",
    "P+D": "DP",
    "Q+P+D": "DPQ",
}
"""The chain of techniques of each variant, first to last."""

LIMIT = 2.0
"""Points of accuracy that a variant worth deploying may lose."""


@dataclass(frozen=True)
class Settings:
    """What decides an exercise's result, beside the data.

    Attributes:
        model: one of :data:`sparseq.run.models.MODELS`.
        epochs: of the baseline and the student; pruning takes two thirds of it, quantisation a
            quarter.
        seed: of everything random.
        sparsity: share of the weights that pruning removes.
        temperature: of the distillation.
        alpha: weight of the labels in the distillation loss.
    """

    model: str = "small"
    epochs: int = 10
    seed: int = 0
    sparsity: float = 0.8
    temperature: float = 4.0
    alpha: float = 0.7

    def __post_init__(self) -> None:
        """Check what no later step checks."""
        if self.epochs < 1:
            raise ValueError(f"epochs: must be at least 1, got {self.epochs}")


@dataclass(frozen=True)
class Variant:
    """A trained combination: ``trained`` still learns, ``deployed`` is what one would ship."""

    name: str
    trained: nn.Module
    deployed: nn.Module
    parameters: int


@dataclass(frozen=True)
class Row:
    """What was measured of a variant; ``drop`` is in points below the baseline's accuracy."""

    name: str
    accuracy: float
    drop: float
    ms_per_image: float
    p95_ms: float
    p99_ms: float
    speedup: float
    size_mb: float
    sparsity: float
    parameters: int
    threads: int


class Exercise:
    """Trains the variants.

    Args:
        data: what to learn.
        settings: how.
        bars: shows how far it is.
    """

    def __init__(self, data: Dataset, settings: Settings, bars: Bars) -> None:
        self.data = data
        self.settings = settings
        self.bars = bars
        self.losses: dict[str, list[float]] = {}
        self._teacher: nn.Module | None = None
        self._stage = ""
        self._criterion: Criterion = cross_entropy

    def run(self) -> list[Variant]:
        """Train and convert every variant, in the order of :data:`VARIANTS`."""
        steps: dict[str, Callable[[nn.Module], nn.Module]]
        steps = {"D": self.distil, "P": self.prune, "Q": self.quantise}
        trained = {"": self.baseline()}
        self._teacher = copy.deepcopy(trained[""])
        variants = []
        for name, chain in VARIANTS.items():
            for end in range(1, len(chain) + 1):
                part = chain[:end]
                if part not in trained:
                    self._stage = name
                    self._criterion = self._loss() if "D" in part else cross_entropy
                    trained[part] = steps[part[-1]](trained[part[:-1]])
            model = trained[chain]
            # The baseline too has its batch norms folded: what others gain is their technique's.
            deployed = sparseq.convert(model).eval()
            count = models.parameters(trained["D" if "D" in chain else ""])
            variants.append(Variant(name, model, deployed, count))
        return variants

    def baseline(self) -> nn.Module:
        """Train the network as its author would."""
        self._stage = "baseline"
        return self._train("train", self._build(student=False), Recipe(self.settings.epochs))

    def distil(self, teacher: nn.Module) -> nn.Module:
        """Train a student in place of ``teacher``, on the labels and the baseline's answers."""
        return self._train("distil", self._build(student=True), Recipe(self.settings.epochs))

    def prune(self, model: nn.Module) -> nn.Module:
        """Return ``model`` without its smallest weights, removed in steps, retrained between."""
        model = copy.deepcopy(model)
        plan = Plan({"*": Layer(sparsity=Unstructured(self.settings.sparsity))})
        sparseq.prepare(model, plan)
        epochs = max(2 * self.settings.epochs // 3, 1)
        # The first half removes, the second half recovers at full sparsity.
        schedule = sparseq.sparse.PruningSchedule(
            model, steps=max(min(4, epochs // 2), 1), curve="cubic"
        )

        def remove_some(epoch: int) -> None:
            if not schedule.done:
                schedule.step()

        recipe = Recipe(epochs, rate=0.05, schedule="cosine")
        return self._train("prune", model, recipe, remove_some)

    def quantise(self, model: nn.Module) -> nn.Module:
        """Return ``model`` with INT8 weights and activations, trained to bear the rounding."""
        model = copy.deepcopy(model)
        activations = Quant(symmetric=False, observer="moving_average")
        plan = Plan({"*": Layer(weight=Quant(axis=0), input=activations)})
        sparseq.prepare(model, plan)
        generator = torch.Generator().manual_seed(self.settings.seed)
        sparseq.calibrate(model, islice(self.data.train_batches(64, generator), 8))
        epochs = max(self.settings.epochs // 4, 1)

        def hold_ranges(epoch: int) -> None:
            if epoch and epoch == epochs - 1:  # the last epoch trains for the final ranges
                sparseq.quant.freeze_observers(model)

        recipe = Recipe(epochs, rate=0.01, schedule="cosine")
        return self._train("quantise", model, recipe, hold_ranges)

    def _build(self, *, student: bool) -> nn.Module:
        torch.manual_seed(self.settings.seed)
        model = models.build(
            self.settings.model, self.data.channels, self.data.classes, student=student
        )
        return model.to(memory_format=torch.channels_last)

    def _loss(self) -> Criterion:
        assert self._teacher is not None
        return distill.Loss(self._teacher, self.settings.temperature, self.settings.alpha)

    def _train(
        self,
        what: str,
        model: nn.Module,
        recipe: Recipe,
        before_epoch: Callable[[int], None] | None = None,
    ) -> nn.Module:
        title = f"{self._stage}: {what}"
        with self.bars.stage(title, recipe.epochs * self.data.steps(recipe.batch)) as advance:
            self.losses[title] = train(
                model,
                self.data,
                recipe,
                criterion=self._criterion,
                seed=self.settings.seed,
                before_epoch=before_epoch,
                on_step=advance,
            )
        accuracy = bench.accuracy(model, self.data.test_batches())
        self.bars.say(f"{title:<22} {recipe.epochs:>3} epochs   accuracy {accuracy:6.2f} %")
        return model


def measure(
    variants: list[Variant],
    data: Dataset,
    folder: Path,
    *,
    threads: int | None = None,
    repeats: int | None = None,
) -> list[Row]:
    """Measure the deployed variants; the first one is what the others are compared to.

    Args:
        variants: what :meth:`Exercise.run` gave.
        data: its test images decide the accuracy, one of them is timed.
        folder: where the models are saved, ``<name>.safetensors``.
        threads: torch's threads while timing; None times one thread and all of them, and takes
            what is faster for each variant: small layers lose more to waking threads than they win.
        repeats: timed calls per variant, all variants taking turns; None takes 20 to 200, as many
            as fit into 10 seconds.

    Returns:
        A row for each variant, in order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    example = data.example

    def call(model: nn.Module) -> Callable[[], object]:
        return lambda: model(example)

    calls = {variant.name: call(variant.deployed) for variant in variants}
    if repeats is None:
        trial = bench.compare(calls, repeats=3, warmup=1, threads=threads)
        one_round = 2 * sum(taken.median_ms for taken in trial.values()) / 1000
        repeats = min(max(int(10 / one_round), 20), 200)
    counts = {1, torch.get_num_threads()} if threads is None else {threads}
    settings = [bench.compare(calls, repeats=repeats, threads=n) for n in sorted(counts)]
    times = {n: min((s[n] for s in settings), key=lambda taken: taken.median_ms) for n in calls}
    rows: list[Row] = []
    for variant in variants:
        path = folder / f"{variant.name}.safetensors"
        sparseq.save(variant.deployed, path)
        accuracy = bench.accuracy(variant.deployed, data.test_batches())
        taken = times[variant.name]
        row = Row(
            name=variant.name,
            accuracy=accuracy,
            drop=(rows[0].accuracy if rows else accuracy) - accuracy,
            ms_per_image=taken.per_image_ms,
            p95_ms=taken.p95_ms,
            p99_ms=taken.p99_ms,
            speedup=(rows[0].ms_per_image if rows else taken.per_image_ms) / taken.per_image_ms,
            size_mb=bench.size_mb(path),
            sparsity=100.0 * bench.sparsity(variant.deployed),
            parameters=variant.parameters,
            threads=taken.threads,
        )
        rows.append(row)
    return rows


def choose_best(rows: list[Row], limit: float = LIMIT) -> Row:
    """Return the fastest row that loses less than ``limit`` points (the baseline loses none)."""
    return min((row for row in rows if row.drop < limit), key=lambda row: row.ms_per_image)
