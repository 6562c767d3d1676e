"""From a saved model to a file that other runtimes read: ``export``, ``verify``, ``inspect``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from sparseq.cli import given
from sparseq.cli.app import app, user_errors
from sparseq.cli.table import show


class Target(str, Enum):
    """Runtimes that an ONNX file is written for."""

    onnxruntime = "onnxruntime"
    tensorrt = "tensorrt"


class Exporter(str, Enum):
    """Torch's exporters."""

    dynamo = "dynamo"
    torchscript = "torchscript"


Saved = Annotated[Path, typer.Argument(help="what sparseq.save wrote")]
Network = Annotated[
    str,
    typer.Option(
        "--model",
        help="MODULE:CALLABLE that makes the float network, such as torchvision.models:resnet18, "
        "or the name of one of torchvision or timm",
    ),
]
Arguments = Annotated[
    list[str] | None,
    typer.Option("--argument", "-a", help="KEY=VALUE for the callable; may be repeated"),
]
Shape = Annotated[
    str | None, typer.Option(help="of one input, such as 3,224,224: random inputs are compared")
]
Data = Annotated[
    str | None,
    typer.Option(help="digits, cifar10, an .npz file or a folder: its test images are compared"),
]


@app.command()
def export(
    saved: Saved,
    model: Network,
    argument: Arguments = None,
    shape: Shape = None,
    data: Data = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="ONNX file; default: beside the saved one")
    ] = None,
    target: Annotated[Target, typer.Option(help="who will run it")] = Target.onnxruntime,
    opset: Annotated[int | None, typer.Option(help="version of ONNX's operators")] = None,
    exporter: Annotated[Exporter, typer.Option(help="torch's")] = Exporter.dynamo,
    dynamic_batch: Annotated[
        bool, typer.Option("--dynamic-batch/--static-batch", help="or fix the first dimension at 1")
    ] = True,
    accuracy: Annotated[float | None, typer.Option(help="noted in the file")] = None,
    verified: Annotated[
        bool, typer.Option("--verify/--no-verify", help="compare with ONNX Runtime")
    ] = True,
) -> None:
    """Write a saved model as ONNX and compare it with ONNX Runtime."""
    from sparseq import export as to
    from sparseq import load

    console = Console()
    with user_errors("export"):
        batches = list(given.inputs(shape, data))
        if not dynamic_batch:
            batches = [batch[:1] for batch in batches]
        network = load(saved, given.network(model, argument or ()))
        path = out or saved.with_suffix(".onnx")
        with console.status("exporting"):
            report = to.onnx(
                network,
                batches[0][:1],
                path,
                target=target.value,
                opset=opset,
                exporter=exporter.value,
                dynamic_batch=dynamic_batch,
                accuracy=accuracy,
                verify=batches if verified else False,
            )
    if report is not None:
        console.print(str(report), highlight=False, soft_wrap=True)
    console.print(f"wrote {path}", highlight=False, soft_wrap=True)


@app.command()
def verify(
    saved: Saved,
    onnx: Annotated[Path, typer.Argument(help="ONNX file that was exported from it")],
    model: Network,
    argument: Arguments = None,
    shape: Shape = None,
    data: Data = None,
) -> None:
    """Compare an ONNX file, layer by layer, with the model that it was exported from."""
    from sparseq import export as to
    from sparseq import load

    console = Console()
    with user_errors("export"), console.status("verifying"):
        network = load(saved, given.network(model, argument or ()))
        report = to.verify(network, onnx, given.inputs(shape, data))
    console.print(str(report), highlight=False, soft_wrap=True)
    if not report.passed:
        raise typer.Exit(1)


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="an .onnx or .safetensors file, or an engine")],
) -> None:
    """List what a model file holds: layers, bits, sparsity, size, MACs."""
    from sparseq import export as to

    with user_errors("export"):
        found = to.inspect(file)
    show(found.cells(), left=3, footer=True)
    console = Console()
    for key, value in found.facts.items():
        console.print(f"{key}: {value}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def engine(
    onnx: Annotated[Path, typer.Argument(help="what export --target tensorrt wrote")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="engine; default: beside the ONNX file")
    ] = None,
    sparse: Annotated[bool, typer.Option(help="let 2:4 kernels run")] = True,
    half: Annotated[bool, typer.Option(help="float16 for what is not quantised")] = False,
    batch: Annotated[
        str | None, typer.Option(help="smallest,usual,largest batch; default: 1,8,32")
    ] = None,
    workspace: Annotated[str | None, typer.Option(help="bytes for kernels, such as 2G")] = None,
    timing_cache: Annotated[Path | None, typer.Option(help="file of measured times")] = None,
    compute_capability: Annotated[
        list[str] | None, typer.Option(help="of a GPU, such as 8.6; may be repeated (RTX)")
    ] = None,
    hardware_compatibility: Annotated[
        str | None, typer.Option(help="ampere_plus or same_compute_capability (TensorRT)")
    ] = None,
    runtime: Annotated[str | None, typer.Option(help="tensorrt or tensorrt_rtx")] = None,
    allow_float: Annotated[
        list[str] | None, typer.Option(help="layers that may run in float; may be repeated")
    ] = None,
    command: Annotated[
        bool, typer.Option("--command", help="only print what to type for TensorRT's own tool")
    ] = False,
) -> None:
    """Build a TensorRT engine and audit it: every quantised layer must run on integers."""
    from sparseq import export as to

    console = Console()
    path = out or onnx.with_suffix(".engine")
    with user_errors("tensorrt-rtx"):
        options: dict[str, Any] = {
            "sparse": sparse,
            "batch": None if batch is None else given.shape(batch),
            "workspace": None if workspace is None else given.size(workspace),
            "timing_cache": timing_cache,
            "compute_capabilities": compute_capability or None,
            "hardware_compatibility": hardware_compatibility,
        }
        if command:
            line = to.trtexec_command(onnx, path, runtime=runtime or "tensorrt", **options)
            console.print(str(line), highlight=False, markup=False, soft_wrap=True)
            return
        try:
            found = to.tensorrt(
                onnx,
                path,
                half=half,
                runtime=runtime,
                progress=True,
                allow_float=allow_float or (),
                **options,
            )
        except (to.EngineBuildError, to.EngineAuditError) as error:
            raise ValueError(str(error)) from error
    console.print(str(found), highlight=False, markup=False, soft_wrap=True)
    console.print(f"wrote {path}", highlight=False, soft_wrap=True)
