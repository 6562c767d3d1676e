"""PruningSchedule in loops that are not the user's own: Lightning's and Hugging Face's Trainer."""

from __future__ import annotations

import importlib
import math
from typing import Any

from sparseq.sparse.schedule import PruningSchedule

_EPSILON = 1e-6  # Hugging Face counts epochs in fractions


def _check(caller: str, schedule: PruningSchedule, every: int | None) -> None:
    if not isinstance(schedule, PruningSchedule):
        raise TypeError(
            f"{caller}: schedule must be a PruningSchedule, got {type(schedule).__name__}"
        )
    if every is not None and (not isinstance(every, int) or isinstance(every, bool) or every < 1):
        raise ValueError(
            f"{caller}: every must be a number of optimizer steps from 1, or None for epochs, "
            f"got {every!r}"
        )


def _advance(schedule: PruningSchedule, wanted: int) -> None:
    while not schedule.done and schedule.taken < wanted:
        schedule.step()


def _lightning() -> Any:
    """Lightning's Callback: of either package, whose Trainer takes its own."""
    for package in ("lightning.pytorch", "pytorch_lightning"):
        try:
            return importlib.import_module(f"{package}.callbacks").Callback
        except ModuleNotFoundError:
            continue
    raise ModuleNotFoundError(
        "lightning_callback needs the package lightning: pip install 'sparseq[lightning]'"
    )


def lightning_callback(schedule: PruningSchedule, every: int | None = None) -> Any:
    """A Lightning callback that steps a schedule; its state goes into Lightning's checkpoints.

    Args:
        schedule: of the LightningModule, or of a module in it.
        every: optimizer steps between the schedule's steps; None steps it at the beginning of
            each epoch, so that the epoch retrains.

    Returns:
        For `Trainer(callbacks=[...])`.

    Raises:
        ModuleNotFoundError: neither lightning nor pytorch_lightning is installed.
        TypeError: schedule is none.
        ValueError: every is no positive number.
    """
    _check("lightning_callback", schedule, every)
    base: Any = _lightning()

    class LightningPruning(base):  # type: ignore[misc, unused-ignore]
        """Steps a PruningSchedule."""

        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            """Prune, then the epoch retrains."""
            if every is None:
                _advance(schedule, trainer.current_epoch + 1)

        def on_train_batch_end(self, trainer: Any, *others: Any, **named: Any) -> None:
            """Prune after every so many optimizer steps."""
            if every is not None:
                _advance(schedule, trainer.global_step // every)

        def state_dict(self) -> dict[str, Any]:
            """The schedule's."""
            return schedule.state_dict()

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            """Go on where the checkpoint was."""
            schedule.load_state_dict(state_dict)

    return LightningPruning()


def transformers_callback(schedule: PruningSchedule, every: int | None = None) -> Any:
    """A callback of Hugging Face's Trainer that steps a schedule.

    Where training resumes from a checkpoint, the steps taken follow from the Trainer's counters,
    the masks come with the model.

    Args:
        schedule: of the Trainer's model.
        every: optimizer steps between the schedule's steps; None steps it at the beginning of
            each epoch, so that the epoch retrains.

    Returns:
        For `Trainer(callbacks=[...])`.

    Raises:
        ModuleNotFoundError: transformers is not installed.
        TypeError: schedule is none.
        ValueError: every is no positive number.
    """
    _check("transformers_callback", schedule, every)
    try:
        from transformers import TrainerCallback
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "transformers_callback needs the package transformers: "
            "pip install 'sparseq[transformers]'"
        ) from error

    class TransformersPruning(TrainerCallback):  # type: ignore[misc, unused-ignore]
        """Steps a PruningSchedule."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **named: Any) -> None:
            """Go on where the checkpoint was."""
            if state.global_step > 0:
                epochs = math.ceil((state.epoch or 0) - _EPSILON)
                taken = epochs if every is None else state.global_step // every
                schedule.load_state_dict({"taken": min(taken, schedule.steps)})

        def on_epoch_begin(self, args: Any, state: Any, control: Any, **named: Any) -> None:
            """Prune, then the epoch retrains."""
            if every is None:
                _advance(schedule, math.floor((state.epoch or 0) + _EPSILON) + 1)

        def on_step_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
            """Prune after every so many optimizer steps."""
            if every is not None:
                _advance(schedule, state.global_step // every)

    return TransformersPruning()
