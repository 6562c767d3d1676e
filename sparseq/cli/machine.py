"""What this machine runs: ``env``, ``tune``."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from sparseq.cli.app import app, user_errors


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

    with user_errors():
        steps = tune.steps()
        for _ in track(tune.tune(out), total=steps, description="measuring"):
            pass
    Console().print(f"wrote {out or user_table()}", highlight=False, soft_wrap=True)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
