"""The exercise, whole: train a recipe's stages, measure its variants, deploy the best.

A technique is a step from a trained network to a trained network; a variant applies some of them in
an order: usually the student first (D), then fewer weights (P or S), rounded last (Q), under a mask
that stays. Variants with the same beginning share it: Q+P starts from what P ended with, and each
result is what its chain alone would have given.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path

from rich.console import Console

from sparseq import bench
from sparseq.run import data
from sparseq.run.deploy import deploy
from sparseq.run.estimate import Plan, estimate
from sparseq.run.folder import Folder, stages_of
from sparseq.run.measure import choose_best, deployed, measure, sensitivity
from sparseq.run.progress import Bars
from sparseq.run.ranks import Ranks, ranks_of_this_run
from sparseq.run.recipe import Recipe
from sparseq.run.results import Results
from sparseq.run.stage import Workshop
from sparseq.run.sweep import train_stages

__all__ = ["plan", "run"]


def run(
    recipe: Recipe,
    out: Path,
    *,
    workers: int = 1,
    fresh: bool = False,
    console: Console | None = None,
) -> Results | None:
    """Do what a recipe says, or go on with it where an earlier call was ended.

    Started by torchrun, its processes train together and the first of them does the rest.

    Args:
        recipe: what to do.
        out: folder for the stages, the models and the best one's files.
        workers: processes of this machine that the stages are spread over.
        fresh: forget what an earlier call left in the folder.
        console: where to show how far it is; None for nowhere.

    Returns:
        What was found; None in all processes but the first.

    Raises:
        ValueError: the folder holds a run of another recipe or data, workers do not go together
            with torchrun, or the data does not serve.
        ArithmeticError: a training diverged.
        OSError: data cannot be read, or the folder not be written.
    """
    begun = time.monotonic()
    with ExitStack() as held:
        with ranks_of_this_run(recipe.device) as ranks:
            if ranks.count > 1 and workers > 1:
                raise ValueError("run: workers must be 1 under torchrun, which has its own")
            folder = Folder(out)
            if ranks.writes:
                out.mkdir(parents=True, exist_ok=True)  # what is wrong with it is told at once
            images = _load(recipe, ranks)
            if ranks.writes:
                held.enter_context(folder.claim(recipe, images, fresh=fresh))
            ranks.shared(None)  # the folder is there, and its run is of this recipe
            workshop = Workshop(recipe, images, folder, ranks)
            stages = stages_of(recipe)
            earlier = sum(s["seconds"] for stage in stages if (s := workshop.read(stage)))
            steps = sum(workshop.steps(stage) for stage in stages)
            with Bars(steps, console if ranks.writes else None) as bars:
                train_stages(workshop, bars, workers)
        if not ranks.writes:
            return None
        # the others are gone: from here on nothing may ask them
        alone = Workshop(recipe, images, folder)
        with console.status("measuring") if console is not None else nullcontext():
            return _finish(alone, out, lambda: earlier + time.monotonic() - begun)


def plan(recipe: Recipe, out: Path, *, workers: int = 1) -> Plan:
    """What `run` would do, with estimated time and memory; writes nothing.

    Args:
        recipe: what to do.
        out: the folder; stages that are finished there are told as such.
        workers: processes that the stages would be spread over.
    """
    return estimate(Workshop(recipe, _load(recipe, Ranks()), Folder(out)), workers)


def _load(recipe: Recipe, ranks: Ranks) -> data.Dataset:
    """The data; the first process downloads, the others find it there."""
    if ranks.writes:
        images = data.load(recipe.data, image_size=recipe.image_size)
    ranks.shared(None)
    if not ranks.writes:
        images = data.load(recipe.data, image_size=recipe.image_size)
    return images


def _finish(workshop: Workshop, out: Path, seconds: Callable[[], float]) -> Results:
    recipe, images = workshop.recipe, workshop.data
    variants = measure(workshop, out / "models")
    best = choose_best(variants, recipe.limit)
    model = deployed(workshop, best.chain, recipe.seeds[0])
    deployment = deploy(best.name, model, images, out, engine=recipe.engine)
    return Results(
        recipe=recipe.model_dump(mode="json"),
        data=f"{images.name} ({len(images.x_train):,} + {len(images.x_test):,} images)",
        variants=tuple(variants),
        best=deployment,
        limit=recipe.limit,
        sensitivity=sensitivity(workshop),
        environment=bench.environment(),
        seconds=seconds(),
    )
