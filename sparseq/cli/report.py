"""A report once more: ``report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from sparseq.cli.app import app, user_errors


@app.command("report")
def render(
    results: Annotated[Path, typer.Argument(help="results.json of an exercise")],
    out: Annotated[
        Path | None, typer.Option(help="folder for the report; default: that of the results")
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="also write logs for TensorBoard")
    ] = False,
) -> None:
    """Make report.html, report.md and the charts again from results.json."""
    from sparseq.run import report

    console = Console()
    with user_errors("run"):
        found = report.read(results)
        folder = results.parent if out is None else out
        paths = report.write(found, folder)
        if tensorboard:
            paths.append(report.tensorboard(found, folder / "tensorboard"))
    console.print(report.table(found))
    for path in paths:
        console.print(f"wrote {path}", highlight=False, markup=False, soft_wrap=True)
