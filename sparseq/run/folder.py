"""The folder of a run: what it is a run of, and the state of each stage."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sparseq.files import atomic_path
from sparseq.run.data import Dataset
from sparseq.run.recipe import BASELINE, Recipe

__all__ = ["Folder", "Stage", "stages_of"]

_FORMAT = 1


@dataclass(frozen=True)
class Stage:
    """One training: the last technique of a chain, after the others.

    Attributes:
        seed: of everything random.
        chain: letters, first to last; none is the baseline's training.
    """

    seed: int
    chain: str

    @property
    def parent(self) -> Stage | None:
        """What must be finished before: the chain without its last letter."""
        return Stage(self.seed, self.chain[:-1]) if self.chain else None

    @property
    def what(self) -> str:
        """What it does, in a word."""
        words = {"D": "distil", "P": "prune", "S": "prune 2:4", "Q": "quantise"}
        return words[self.chain[-1]] if self.chain else "train"

    @property
    def name(self) -> str:
        """Of its file, without the suffix."""
        return f"{self.seed}-{self.chain or BASELINE}"


def stages_of(recipe: Recipe) -> list[Stage]:
    """All trainings of a recipe, each once, parents first; chains share their beginnings."""
    chains = recipe.chains.values()
    prefixes = [chain[:end] for chain in chains for end in range(len(chain) + 1)]
    return [Stage(seed, chain) for seed in recipe.seeds for chain in dict.fromkeys(prefixes)]


class Folder:
    """Reads and writes a run's files; each is written aside and renamed.

    Args:
        path: the folder; `claim` makes it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.stages = self.path / "stages"

    @contextmanager
    def claim(self, recipe: Recipe, data: Dataset, *, fresh: bool = False) -> Iterator[None]:
        """Hold the folder for a run of this recipe while the block lasts.

        Args:
            recipe: what a run that lies there must have been of, as far as it decides weights.
            data: likewise.
            fresh: forget what lies there.

        Raises:
            ValueError: a run of another recipe or other data lies there, or another process is at
                work there.
            OSError: the folder cannot be made or written.
        """
        self.stages.mkdir(parents=True, exist_ok=True)
        with _locked(self.path):
            if fresh:
                shutil.rmtree(self.stages)
                self.stages.mkdir()
            for left in self.stages.glob(".*"):  # written aside by a process that was killed
                left.unlink()
            path = self.stages / "run.json"
            ours = {"format": _FORMAT, "recipe": recipe.decisive(), "data": _digest(data)}
            if path.is_file():
                _check_same(self.path, json.loads(path.read_text("utf-8")), ours)
            else:
                with atomic_path(path) as temporary:
                    temporary.write_text(json.dumps(ours, indent=2) + "\n", encoding="utf-8")
            yield

    def read(self, stage: Stage) -> dict[str, Any] | None:
        """What was written last of a stage; None if nothing was.

        Raises:
            ValueError: the file is damaged.
        """
        path = self._file(stage)
        if not path.is_file():
            return None
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            sound = isinstance(content, dict) and content["format"] == _FORMAT
        except (
            Exception
        ):  # torch.load raises nearly everything, with advice that serves nobody here
            sound = False
        if not sound:
            raise ValueError(
                f"{path} is damaged or of another version; "
                "delete it, and that stage is trained anew"
            )
        return content

    def write(self, stage: Stage, content: Mapping[str, Any]) -> None:
        """Put a stage's state in the place of what was there."""
        with atomic_path(self._file(stage)) as temporary:
            torch.save({"format": _FORMAT, **content}, temporary)

    def _file(self, stage: Stage) -> Path:
        return self.stages / f"{stage.name}.pt"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder; the system lets it go when this process ends, however it ends."""
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{folder}: another run is at work in this folder") from None
        yield
    finally:
        os.close(handle)


def _digest(data: Dataset) -> str:
    digest = hashlib.sha256()
    for tensor in (data.x_train, data.y_train, data.x_test, data.y_test):
        digest.update(str((tensor.shape, tensor.dtype)).encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def _check_same(folder: Path, theirs: Any, ours: dict[str, Any]) -> None:
    """ValueError where a folder holds a run of something else; names what differs."""
    advice = "--fresh starts anew, --out takes another folder"
    if theirs.get("format") != ours["format"]:
        raise ValueError(f"{folder} holds a run of another version of sparseq; {advice}")
    there, here = (dict(_flat(content["recipe"])) for content in (theirs, ours))
    differing = [
        f"{key} was {there.get(key)!r}, is {here.get(key)!r}"
        for key in dict.fromkeys([*here, *there])
        if there.get(key) != here.get(key)
    ]
    if differing:
        raise ValueError(
            f"{folder} holds a run of another recipe: {', '.join(differing)}; {advice}"
        )
    if theirs["data"] != ours["data"]:
        raise ValueError(f"{folder} holds a run of other data; {advice}")


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
