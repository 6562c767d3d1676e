"""One stage of a chain: its network, what it does to it, its training, its checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import islice
from typing import Any, Protocol

import torch
from torch import nn

import sparseq
from sparseq import NM, Layer, Plan, Quant, Unstructured, distill
from sparseq.quant import FakeQuantize
from sparseq.run import models
from sparseq.run.data import Dataset
from sparseq.run.folder import Folder, Stage
from sparseq.run.ranks import Ranks
from sparseq.run.recipe import Recipe
from sparseq.run.recompute import recompute_blocks
from sparseq.run.train import Criterion, accuracy, cross_entropy, train
from sparseq.sparse import PruningSchedule

__all__ = ["Watcher", "Workshop"]


class Watcher(Protocol):
    """Is told how far a stage is."""

    def start(self, name: str, steps: int, done: int) -> None:
        """A stage of so many steps goes on after the first `done`."""

    def step(self, name: str, loss: float) -> None:
        """One more step."""

    def finish(self, name: str, line: str) -> None:
        """The stage is done; the line says with what."""


class Workshop:
    """Trains stages; what it leaves behind is in the folder only.

    Args:
        recipe: how.
        data: on what.
        folder: where the stages' states are.
        ranks: the processes that train together; None for this one alone.
    """

    def __init__(
        self, recipe: Recipe, data: Dataset, folder: Folder, ranks: Ranks | None = None
    ) -> None:
        self.recipe, self.data, self.folder = recipe, data, folder
        self.ranks = ranks or Ranks()
        self.amp = has_bfloat16(recipe.device) if recipe.amp == "auto" else recipe.amp

    def network(self, stage: Stage) -> nn.Module:
        """The network of a stage's chain, its transforms on its layers, its weights fresh."""
        student = stage.chain.startswith("D")
        recipe, data = self.recipe, self.data
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stage.seed)
            model = models.build(recipe.model, data.channels, data.classes, student=student)
        model = model.to(memory_format=torch.channels_last)
        for letter in stage.chain:
            _hang(model, letter, recipe)
        return model

    def trained(self, stage: Stage) -> nn.Module:
        """The network that a finished stage left, in evaluation mode.

        Raises:
            ValueError: the stage is not finished.
        """
        state = self.read(stage)
        if state is None or not state["done"]:
            raise ValueError(f"{self.folder.path}: the stage {stage.name} is not finished")
        model = self.network(stage)
        model.load_state_dict(state["model"])
        return model.eval()

    def read(self, stage: Stage) -> dict[str, Any] | None:
        """A stage's state, as the process that writes sees it."""
        held = self.folder.read(stage) if self.ranks.writes else None
        state: dict[str, Any] | None = self.ranks.shared(held)
        return state

    def steps(self, stage: Stage) -> int:
        """Batches that a stage's training takes."""
        training = self.recipe.training(stage.chain)
        return training.epochs * self.data.steps(training.batch)

    def run(self, stage: Stage, watcher: Watcher) -> None:
        """Train a stage from where it is to its end; a finished one is left alone.

        After every epoch its state is written: a process that is killed loses less than one.

        Args:
            stage: its parent must be finished.
            watcher: is told how far it is.

        Raises:
            ArithmeticError: the loss is no longer finite.
        """
        held = self.read(stage)
        if held is not None and held["done"]:
            return
        begun = time.monotonic() - (held["seconds"] if held else 0.0)
        model, schedule = self.start(stage, held)
        training = self.recipe.training(stage.chain)
        accuracies: list[float] = held["accuracies"] if held else []
        each = self.data.steps(training.batch)
        watcher.start(stage.name, training.epochs * each, each * len(accuracies))

        def save(state: dict[str, Any]) -> None:
            accuracies.append(accuracy(model, self.data, self.ranks))
            done = len(accuracies) == training.epochs
            content = {
                "done": done,
                "model": model.state_dict(),
                "loop": None if done else state,
                "schedule": None if schedule is None else _counts(schedule),
                "random": torch.get_rng_state(),
                "losses": state["history"],
                "accuracies": accuracies,
                "seconds": time.monotonic() - begun,
            }
            if self.ranks.writes:
                self.folder.write(stage, content)

        try:
            self.loop(
                stage,
                model,
                schedule,
                on_step=lambda loss: watcher.step(stage.name, loss),
                after_epoch=save,
                state=held["loop"] if held else None,
            )
        except ArithmeticError as error:
            raise ArithmeticError(f"{stage.name}: {error}") from error
        line = f"{stage.name:<16} {training.epochs:>3} epochs   accuracy {accuracies[-1]:6.2f} %"
        watcher.finish(stage.name, line)

    def start(
        self, stage: Stage, held: dict[str, Any] | None
    ) -> tuple[nn.Module, PruningSchedule | None]:
        """A stage's network where it begins, or where `held` was written; its pruning schedule."""
        recipe, letter = self.recipe, stage.chain[-1:]
        base = stage.parent or stage
        if letter == "D":
            base = stage  # D hangs nothing on layers
        if held is not None or stage.chain in ("", "D"):
            model = self.network(base)
        else:
            assert stage.parent is not None
            model = self.trained(stage.parent)
        if base != stage:
            _hang(model, letter, recipe)
        schedule = None
        if letter == "P":
            prune = recipe.prune
            schedule = PruningSchedule(model, steps=prune.removals, curve=prune.curve)
        if held is None:
            _thaw(model)
            if letter == "Q":
                generator = torch.Generator().manual_seed(stage.seed)
                batches = self.data.train_batches(recipe.quantise.batch, generator)
                sparseq.calibrate(model, islice(batches, recipe.quantise.calibration))
            torch.manual_seed(stage.seed)
        else:
            model.load_state_dict(held["model"])
            if schedule is not None:
                schedule.load_state_dict(held["schedule"])
            torch.set_rng_state(held["random"])
        return model.to(recipe.device), schedule

    def loop(
        self,
        stage: Stage,
        model: nn.Module,
        schedule: PruningSchedule | None,
        *,
        data: Dataset | None = None,
        **options: Any,
    ) -> None:
        """Train a network as a stage does.

        Args:
            stage: which.
            model: from `start`.
            schedule: likewise.
            data: other than the workshop's.
            **options: of `train`.
        """
        training = self.recipe.training(stage.chain)
        quantised = "Q" in stage.chain
        if self.recipe.gradient_checkpointing:
            recompute_blocks(model)

        def before(epoch: int) -> None:
            if schedule is not None:
                schedule.step()
            if quantised and 0 < epoch == training.epochs - 1:
                sparseq.quant.freeze_observers(model)  # what is left trains for the final ranges

        train(
            model,
            data or self.data,
            training,
            criterion=self.criterion(stage),
            seed=stage.seed,
            amp=self.amp,
            ranks=self.ranks,
            before_epoch=before,
            **options,
        )

    def criterion(self, stage: Stage) -> Criterion:
        """The loss of a stage: from D on, the baseline answers too."""
        if "D" not in stage.chain:
            return cross_entropy
        teacher = self.trained(Stage(stage.seed, "")).to(self.recipe.device)
        return distill.Loss(teacher, self.recipe.distil.temperature, self.recipe.distil.alpha)


def has_bfloat16(device: str) -> bool:
    """Whether a device multiplies bfloat16 itself, so that autocast makes it faster."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    tests: list[Callable[[], bool]] = [
        getattr(torch.cpu, name)
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        if hasattr(torch.cpu, name)
    ]
    return any(test() for test in tests)


def _hang(model: nn.Module, letter: str, recipe: Recipe) -> None:
    """Put a technique's transforms on the layers."""
    inputs = Quant(symmetric=recipe.quantise.symmetric, observer="moving_average")
    layers = {
        "P": Layer(sparsity=Unstructured(recipe.prune.sparsity)),
        "S": Layer(sparsity=NM(2, 4)),
        "Q": Layer(weight=Quant(axis=0), input=inputs),
    }
    if letter in layers:
        sparseq.prepare(model, Plan({"*": layers[letter]}))


def _thaw(model: nn.Module) -> None:
    """Let the inputs' grids of an earlier stage follow again, until this one's last epoch."""
    for module in model.modules():
        if isinstance(module, FakeQuantize):
            module.frozen = False


def _counts(schedule: PruningSchedule) -> dict[str, Any]:
    """A schedule's state without its masks, which the model's state holds."""
    return {name: value for name, value in schedule.state_dict().items() if name != "masks"}
