"""The command line: what this machine runs (``env``, ``tune``), and the exercise (``demo``)."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["app", "main"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="Quantise, prune and distil PyTorch models, and run them fast.",
)


class Model(str, Enum):
    """The networks that ``--model`` takes."""

    small = "small"
    resnet18 = "resnet18"


@contextmanager
def _user_errors() -> Iterator[None]:
    """Turn an error of the user's input into one red line and exit code 2."""
    try:
        yield
    except (ValueError, OSError, ModuleNotFoundError) as error:
        line = " ".join(str(error).split())
        if isinstance(error, ModuleNotFoundError):
            line += "; the demo needs: pip install 'sparseq[run,export]'"
        Console(stderr=True).print(Text(f"error: {line}", style="bold red"), soft_wrap=True)
        raise typer.Exit(2) from None


@app.command()
def env() -> None:
    """Print versions, CPU, build and kernels: what a bug report needs."""
    from sparseq import _C, bench, ops

    console = Console()
    facts = {name: _version(name) for name in ("sparseq", "torch", "torchvision")}
    facts |= {name: _version(name) for name in ("onnx", "onnxscript", "onnxruntime")}
    facts["python"] = platform.python_version()
    facts["system"] = platform.platform()
    where = bench.environment()
    facts |= {name: where[name] for name in ("cpu", "threads", "commit") if where[name]}
    facts["isa"] = f"{_C.isa()} (supported: {', '.join(_C.supported_isas())})"
    if lowered := os.environ.get("SPARSEQ_ISA"):
        facts["isa"] += f", SPARSEQ_ISA={lowered}"
    facts |= {f"build {name}": value for name, value in _C.build_info().items()}
    width = max(map(len, facts))
    for name, value in facts.items():
        console.print(f"{name:<{width}}  {value}", highlight=False, markup=False, soft_wrap=True)
    kernels = Table(title="kernels", box=box.SIMPLE_HEAD, title_justify="left")
    for column in ("op", "CPU", "CUDA"):
        kernels.add_column(column)
    for op, devices in ops.kernels().items():
        kernels.add_row(op, *("yes" if key in devices else "no" for key in ("CPU", "CUDA")))
    console.print(kernels)


@app.command()
def tune(
    out: Annotated[
        Path | None, typer.Option(help="table to write; default: the user's cache")
    ] = None,
) -> None:
    """Measure this machine's kernels, so that layers choose by its own times."""
    from rich.progress import track

    from sparseq.choice import user_table
    from sparseq.flow import tune

    with _user_errors():
        steps = tune.steps()
        for _ in track(tune.tune(out), total=steps, description="measuring"):
            pass
    Console().print(f"wrote {out or user_table()}", highlight=False, soft_wrap=True)


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

    with _user_errors():
        if threads is not None:
            torch.set_num_threads(threads)
        _demo(data, model.value, epochs, seed, out)


def _demo(source: str, model: str, epochs: int | None, seed: int, out: Path) -> None:
    from sparseq import bench
    from sparseq.run import data, deploy, exercise, report
    from sparseq.run.progress import Bars

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
    results = report.Results(
        data=f"{images.name} ({len(images.x_train):,} + {len(images.x_test):,} images)",
        settings=settings,
        rows=rows,
        losses=course.losses,
        best=deployment,
        limit=exercise.LIMIT,
        environment=bench.environment(),
        seconds=time.monotonic() - start,
    )
    paths = report.write(results, out)
    console.print(report.table(results))
    console.print(f"Deploy {chosen.name}. {deployment.verified}", highlight=False, soft_wrap=True)
    for path in [*paths, out / deployment.file]:
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)
    if not deployment.passed:
        raise typer.Exit(1)


def main() -> None:
    """Run the command line; the ``sparseq`` script."""
    app()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
