"""`--dry-run`: what a recipe would do, how long it would take, how much memory."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from torch import nn

from sparseq.bench import child
from sparseq.run.folder import Stage, stages_of
from sparseq.run.stage import Workshop
from sparseq.run.train import accuracy
from sparseq.table import text_table

__all__ = ["Estimate", "Plan", "estimate"]

_TRIED = 3  # steps of each stage: the last of them is timed


@dataclass(frozen=True)
class Estimate:
    """What one stage would take.

    Attributes:
        stage: which.
        epochs: of its training.
        steps: batches of all of them.
        step_seconds: that one step took here.
        seconds: for all of its steps and its tests after each epoch; 0 of a finished stage.
        memory_bytes: the process' at most during a step.
        done: whether its result is there already.
    """

    stage: Stage
    epochs: int
    steps: int
    step_seconds: float
    seconds: float
    memory_bytes: int
    done: bool


@dataclass(frozen=True)
class Plan:
    """All stages of a recipe; `print` shows it.

    Attributes:
        rows: parents first.
        workers: processes that would train.
    """

    rows: tuple[Estimate, ...]
    workers: int

    @property
    def seconds(self) -> float:
        """Of training, the longest chain at least, else all work spread over the workers."""
        longest = max(self._until(row.stage) for row in self.rows)
        return max(longest, sum(row.seconds for row in self.rows) / self.workers)

    @property
    def memory_bytes(self) -> int:
        """Of all workers together, at most."""
        each = sorted((row.memory_bytes for row in self.rows if not row.done), reverse=True)
        return sum(each[: self.workers])

    def _until(self, stage: Stage) -> float:
        own = next(row.seconds for row in self.rows if row.stage == stage)
        return own + (self._until(stage.parent) if stage.parent else 0.0)

    def __str__(self) -> str:
        """A line a stage, and the sums."""
        head = ("stage", "", "epochs", "steps", "s/step", "time", "memory")
        body = [
            (
                row.stage.name,
                "done" if row.done else "",
                str(row.epochs),
                f"{row.steps:,}",
                f"{row.step_seconds:.3f}",
                duration(row.seconds),
                f"{row.memory_bytes / 1e6:,.0f} MB",
            )
            for row in self.rows
        ]
        workers = f" in {self.workers} processes" if self.workers > 1 else ""
        return (
            f"{text_table(head, body)}\n"
            f"training: about {duration(self.seconds)}{workers}, at most "
            f"{self.memory_bytes / 1e6:,.0f} MB; measuring and exporting come on top"
        )


def estimate(workshop: Workshop, workers: int = 1) -> Plan:
    """Train a few batches of each stage, on networks that are not trained, and extrapolate.

    Stages that do the same to networks of the same size are tried once. Nothing is written.

    Args:
        workshop: knows recipe and data; stages that are finished there are told as such.
        workers: processes that would train; times are those of one process at a time, with the
            threads that torch has now.
    """
    stages = stages_of(workshop.recipe)
    finished = {s for s in stages if (state := workshop.read(s)) is not None and state["done"]}
    rehearsal = _Rehearsal(workshop.recipe, workshop.data, workshop.folder)
    tried: dict[str, tuple[float, float, int]] = {}
    rows = []
    for stage in stages:
        if stage.chain not in tried:
            tried[stage.chain] = rehearsal.measure(stage)
        step, test, memory = tried[stage.chain]
        epochs = workshop.recipe.training(stage.chain).epochs
        steps, done = workshop.steps(stage), stage in finished
        seconds = 0.0 if done else steps * step + epochs * test
        rows.append(Estimate(stage, epochs, steps, step, seconds, memory, done))
    return Plan(tuple(rows), workers)


def duration(seconds: float) -> str:
    """A time as people say it: "40 s", "12 min", "3.5 h", "2.1 days"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"


class _Rehearsal(Workshop):
    """Networks as if their stages had been trained."""

    def trained(self, stage: Stage) -> nn.Module:
        return self.network(stage).eval()

    def measure(self, stage: Stage) -> tuple[float, float, int]:
        """Seconds of a step, seconds of a test on all test images, bytes."""
        count = _TRIED * self.recipe.training(stage.chain).batch
        few = dataclasses.replace(
            self.data, x_train=self.data.x_train[:count], y_train=self.data.y_train[:count]
        )
        ends = [time.perf_counter()]
        child.give_back()
        with child.watched() as found:
            model, schedule = self.start(stage, None)
            with suppress(_Enough):
                self.loop(stage, model, schedule, data=few, on_step=_noting(ends))
            model.eval()
            tested = self.data.x_test[: min(256, len(self.data.x_test))]
            begun = time.perf_counter()
            part = dataclasses.replace(self.data, x_test=tested, y_test=self.data.y_test[:256])
            accuracy(model, part)
            test = (time.perf_counter() - begun) * len(self.data.x_test) / len(tested)
        return ends[-1] - ends[-2], test, int(found["peak"])


class _Enough(Exception):
    """Enough steps were timed."""


def _noting(ends: list[float]) -> Callable[[float], None]:
    """A watcher of steps that notes when each of them ended."""

    def note(loss: float) -> None:
        ends.append(time.perf_counter())
        if len(ends) > _TRIED:
            raise _Enough

    return note
