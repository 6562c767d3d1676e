"""The exercise: ``demo``."""

from __future__ import annotations

import time
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from sparseq.cli.app import app, user_errors

if TYPE_CHECKING:
    from sparseq.run.exercise import Row
    from sparseq.run.results import Variant


class Model(str, Enum):
    """The networks that ``--model`` takes."""

    small = "small"
    resnet18 = "resnet18"


@app.command()
def demo(
    data: Annotated[str, typer.Option(help="digits, cifar10, or an .npz file")] = "digits",
    model: Annotated[Model, typer.Option(help="network to compress")] = Model.small,
    epochs: Annotated[int | None, typer.Option(min=1, help="of the baseline")] = None,
    seed: Annotated[int, typer.Option(min=0, help="of everything random")] = 0,
    out: Annotated[Path, typer.Option(help="folder for report, chart and model")] = Path("out"),
    threads: Annotated[int | None, typer.Option(min=1, help="torch's threads")] = None,
) -> None:
    """Train the baseline and every mix of quantising, pruning, distilling; report; export."""
    import torch

    with user_errors("run,export"):
        if threads is not None:
            torch.set_num_threads(threads)
        _demo(data, model.value, epochs, seed, out)


def _demo(source: str, model: str, epochs: int | None, seed: int, out: Path) -> None:
    from sparseq import bench
    from sparseq.run import data, deploy, exercise, report
    from sparseq.run.progress import Bars
    from sparseq.run.results import Deployment, Results

    start = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)  # a folder that cannot be made is told before training
    console = Console()
    images = data.load(source)
    if epochs is None:
        epochs = 10 if len(images.x_train) < 10_000 else 30
    settings = exercise.Settings(model=model, epochs=epochs, seed=seed)
    stages = len(exercise.VARIANTS)
    with Bars(stages, console) as bars:
        course = exercise.Exercise(images, settings, bars)
        variants = course.run()
    with console.status("measuring"):
        rows = exercise.measure(variants, images, out / "models")
        chosen = exercise.choose_best(rows)
        best = next(variant for variant in variants if variant.name == chosen.name)
        deployment = deploy.deploy(best, images, out / "best.onnx")
    seconds = time.monotonic() - start
    results = Results(
        recipe=asdict(settings),
        data=f"{images.name} ({len(images.x_train):,} + {len(images.x_test):,} images)",
        variants=tuple(_variant(row, seed, course.losses, seconds) for row in rows),
        best=Deployment(**asdict(deployment), engine=None, engine_note=""),
        limit=exercise.LIMIT,
        sensitivity={},
        environment=bench.environment(),
        seconds=seconds,
    )
    paths = report.write(results, out)
    console.print(report.table(results))
    console.print(f"Deploy {chosen.name}. {deployment.verified}", highlight=False, soft_wrap=True)
    for path in [*paths, out / deployment.file]:
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)
    if not deployment.passed:
        raise typer.Exit(1)


def _variant(row: Row, seed: int, losses: dict[str, list[float]], seconds: float) -> Variant:
    """A measured row of one seed as a report takes it."""
    from sparseq.run import exercise
    from sparseq.run.results import Run, Variant

    own = {
        stage: values
        for variant, _, stage, values in (
            (*title.partition(": "), values) for title, values in losses.items()
        )
        if variant == row.name
    }
    return Variant(
        **asdict(row),
        chain=exercise.VARIANTS[row.name],
        runs=(Run(seed, row.accuracy, own, {}, seconds),),
        spread=0.0,
        macs=None,
        layers=(),
    )
