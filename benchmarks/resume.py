"""Trainings of hours that go on where they were killed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparseq.files import atomic_path
from sparseq.run.data import Dataset
from sparseq.run.recipe import Training
from sparseq.run.train import train


def trained(
    model: nn.Module, dataset: Dataset, training: Training, kept: Path, **how: Any
) -> tuple[list[float], float]:
    """As `train`; after each epoch all that it needs is written to `kept`, which goes at the end.

    Returns:
        The loss of each epoch, and the seconds of all epochs.
    """
    state, before = None, 0.0
    if kept.is_file():
        held = torch.load(kept, weights_only=True)
        model.load_state_dict(held["model"])
        state, before = held["state"], held["seconds"]
    begun = time.monotonic() - before

    def after_epoch(state: dict[str, Any]) -> None:
        seconds = time.monotonic() - begun
        with atomic_path(kept) as temporary:
            torch.save({"model": model.state_dict(), "state": state, "seconds": seconds}, temporary)
        print(f"{kept.stem}: epoch {len(state['history'])} of {training.epochs}", flush=True)

    history = train(model, dataset, training, state=state, after_epoch=after_epoch, **how)
    kept.unlink(missing_ok=True)
    return history, time.monotonic() - begun
