"""The exercise: ``run``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from sparseq.cli.app import app, user_errors


@app.command()
def run(
    recipe: Annotated[
        str, typer.Argument(help="a YAML file, or: digits, cifar10-quick, cifar10-resnet18")
    ] = "digits",
    change: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE, such as train.epochs=3; may be repeated"),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="digits, cifar10, an .npz file, or a folder of images"),
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(min=0, help="of everything random; may be repeated")
    ] = None,
    out: Annotated[Path, typer.Option(help="folder for report, charts and models")] = Path("out"),
    threads: Annotated[int | None, typer.Option(min=1, help="torch's, of all workers")] = None,
    workers: Annotated[int, typer.Option(min=1, help="processes that train")] = 1,
    fresh: Annotated[bool, typer.Option(help="forget what an earlier run left in --out")] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="also write logs for TensorBoard")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="only show the plan, with time and memory")
    ] = False,
) -> None:
    """Train what a recipe says, baseline and combinations; report; export the best.

    Ended at any point, the same command goes on from there. Under torchrun the processes train
    together.
    """
    import torch

    with user_errors("run,export"):
        from sparseq.run import exercise, recipe_file, report

        if threads is not None:
            torch.set_num_threads(threads)
        changes = list(change or ())
        if data is not None:
            changes.append(f"data={recipe_file.quoted(data)}")
        if seed:
            changes.append(f"seeds={seed}")
        wanted = recipe_file.load(recipe, changes)
        console = Console() if os.environ.get("RANK", "0") == "0" else None
        if dry_run:
            if console is not None:
                found = str(exercise.plan(wanted, out, workers=workers))
                console.print(found, highlight=False, markup=False, soft_wrap=True)
            return
        try:
            results = exercise.run(wanted, out, workers=workers, fresh=fresh, console=console)
        except ArithmeticError as error:  # the training diverged
            raise ValueError(str(error)) from error
        if results is None or console is None:
            return
        paths = report.write(results, out)
        if tensorboard:
            paths.append(report.tensorboard(results, out / "tensorboard"))
    best = results.best
    console.print(report.table(results))
    console.print(f"Deploy {best.name}. {best.verified}", highlight=False, soft_wrap=True)
    console.print(f"TensorRT engine: {best.engine_note}", highlight=False, soft_wrap=True)
    files = [best.file, *([best.engine] if best.engine else [])]
    for path in [*paths, *(out / file for file in files)]:
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)
    if not best.passed:
        raise typer.Exit(1)


app.command("demo", hidden=True)(run)  # what it was called before
