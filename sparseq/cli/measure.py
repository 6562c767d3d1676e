"""Two models beside each other: ``bench``."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from torch import Tensor, nn

from sparseq.bench.files import is_file
from sparseq.cli import given
from sparseq.cli.app import app, user_errors
from sparseq.cli.table import show


class Runtime(str, Enum):
    """What runs an ONNX file."""

    onnxruntime = "onnxruntime"
    openvino = "openvino"


class Order(str, Enum):
    """Whose turn it is."""

    abba = "abba"
    random = "random"


HELP = (
    "a file: .pt or .pt2 (torch.export or torch.jit), .safetensors, .onnx, .xml (OpenVINO), "
    ".engine; or MODULE:CALLABLE or a network's name, with random weights"
)


@app.command("bench")
def compare(
    first: Annotated[str, typer.Argument(metavar="A", help=HELP)],
    second: Annotated[str, typer.Argument(metavar="B", help="as A")],
    model: Annotated[
        str | None,
        typer.Option(
            help="network of a .safetensors file: MODULE:CALLABLE, or a name of torchvision or timm"
        ),
    ] = None,
    argument: Annotated[
        list[str] | None,
        typer.Option("--argument", "-a", help="KEY=VALUE for the network; may be repeated"),
    ] = None,
    shape: Annotated[
        str | None, typer.Option(help="of one input, such as 3,224,224: random numbers")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="digits, cifar10, an .npz file or a folder: its test images")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="images in a call")] = 1,
    threads: Annotated[
        int | None, typer.Option(min=1, help="of both runtimes; default: torch's")
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(min=1, help="rounds; default: as many as fit into --seconds")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0, help="how long, without --repeats")] = 10.0,
    order: Annotated[Order, typer.Option(help="of the turns")] = Order.abba,
    runtime: Annotated[
        Runtime | None, typer.Option(help="of .onnx files; default: onnxruntime")
    ] = None,
    second_runtime: Annotated[
        Runtime | None, typer.Option(help="of B, where it differs from A's")
    ] = None,
    memory: Annotated[
        bool, typer.Option(help="also run each file in a process of its own: peak memory")
    ] = False,
) -> None:
    """Time two models or files in turns; print medians and their ratio with its interval."""
    from sparseq import bench
    from sparseq.bench.inputs import of_batch

    console = Console()
    with user_errors("export"):
        arguments = argument or ()
        images = next(iter(given.inputs(shape, data)))
        example = of_batch(images, batch)
        assert isinstance(example, Tensor)
        sides = [_given(text, model is None, arguments) for text in (first, second)]
        architecture = None if model is None else given.architecture(model, arguments)
        runtimes = [r.value if r else None for r in (runtime, second_runtime or runtime)]
        with console.status("measuring"):
            found = bench.compare(
                sides[0],
                sides[1],
                example,
                repeats=repeats,
                threads=threads,
                seconds=seconds,
                order=order.value,
                architecture=architecture,
                runtime=(runtimes[0], runtimes[1]),
                names=(_label(first), _label(second)),
            )
        taken: list[bench.Memory] = []
        if memory:
            with console.status("measuring memory"):
                taken = [
                    bench.measure_memory(
                        side,
                        example,
                        threads=threads,
                        architecture=architecture,
                        runtime=chosen,
                    )
                    for side, chosen in zip(sides, runtimes, strict=True)
                ]
    console.print(f"outputs: {found.agreement}", highlight=False, markup=False, soft_wrap=True)
    show(found.cells(), left=2)
    console.print(found.verdict, style="bold", highlight=False, markup=False, soft_wrap=True)
    time = found.times[0]
    console.print(
        f"batch {time.images}, threads {time.threads}, {found.rounds} rounds in turns",
        highlight=False,
        soft_wrap=True,
    )
    for name, used in zip(found.names, taken, strict=False):
        console.print(f"memory of {name}: {used}", highlight=False, markup=False, soft_wrap=True)


def _given(text: str, alone: bool, arguments: Iterable[str]) -> Path | nn.Module:
    """A file, or a network by name; --argument is the network's that --model names, if it does."""
    if is_file(text):
        return Path(text)
    return given.network(text, arguments if alone else ())


def _label(text: str) -> str:
    return Path(text).name if is_file(text) else text
