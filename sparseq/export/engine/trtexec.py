"""The command line that builds the same engine with the tools that come with TensorRT."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

from sparseq.export.engine.runtime import major_version
from sparseq.export.engine.settings import checked_settings
from sparseq.export.engine.source import Source

CALLER = "export.trtexec_command"
_TOOLS = {"tensorrt": "trtexec", "tensorrt_rtx": "tensorrt_rtx"}
_HARDWARE = {"ampere_plus": "ampere+", "same_compute_capability": "sameComputeCapability"}


class Command(list[str]):
    """A program and its arguments, for subprocess; as text, for a shell."""

    def __str__(self) -> str:
        return shlex.join(self)


def _sizes(shape: Sequence[int]) -> str:
    return "x".join(str(n) for n in shape)


def trtexec_command(
    onnx: str | os.PathLike[str],
    engine: str | os.PathLike[str],
    *,
    sparse: bool = False,
    batch: Sequence[int] | None = None,
    workspace: int | None = None,
    timing_cache: str | os.PathLike[str] | None = None,
    compute_capabilities: Sequence[str] | None = None,
    hardware_compatibility: str | None = None,
    runtime: str = "tensorrt",
    version: int | None = None,
) -> Command:
    """What to type to build the engine that `tensorrt` builds with the same arguments.

    The command is for where TensorRT's own tools are, such as NVIDIA's container; nothing is
    imported or run, and TensorRT need not be installed. For an engine in half precision, give it a
    file that is.

    Args:
        onnx: the file; it is read for its inputs' shapes.
        engine: where the engine shall be.
        sparse: as for `tensorrt`.
        batch: as for `tensorrt`.
        workspace: as for `tensorrt`.
        timing_cache: as for `tensorrt`.
        compute_capabilities: as for `tensorrt`.
        hardware_compatibility: as for `tensorrt`.
        runtime: "tensorrt" for trtexec, "tensorrt_rtx" for the tool of that name.
        version: TensorRT's first number, 10 or 11; None takes the installed one, or else 11.

    Returns:
        A list of strings for subprocess; `str` of it is one line for a shell.

    Raises:
        ValueError: as `tensorrt`.
        FileNotFoundError: there is no such ONNX file.
    """
    if version is not None and version not in (10, 11):
        raise ValueError(f"{CALLER}: version must be 10, 11 or None, got {version!r}")
    source = Source(onnx, CALLER)
    settings = checked_settings(
        source,
        sparse=sparse,
        batch=batch,
        workspace=workspace,
        timing_cache=timing_cache,
        compute_capabilities=compute_capabilities,
        hardware_compatibility=hardware_compatibility,
        runtime=runtime,
        caller=CALLER,
        must_be_installed=False,
    )
    command = Command([_TOOLS[settings.runtime]])
    command.append(f"--onnx={os.fspath(onnx)}")
    command.append(f"--saveEngine={os.fspath(engine)}")
    installed = version or (major_version("tensorrt") if settings.runtime == "tensorrt" else None)
    if settings.runtime == "tensorrt" and installed == 10:
        command.append("--stronglyTyped")  # always so since 11, and in TensorRT-RTX
    if settings.sparse:
        command.append("--sparsity=enable")
    for index, what in enumerate(("min", "opt", "max")):
        shapes = [f"{name}:{_sizes(shape[index])}" for name, shape in settings.shapes.items()]
        if shapes:
            command.append(f"--{what}Shapes={','.join(shapes)}")
    if settings.workspace is not None:
        command.append(f"--memPoolSize=workspace:{settings.workspace}B")
    if settings.timing_cache is not None and timing_cache is not None:
        command.append(f"--timingCacheFile={os.fspath(timing_cache)}")
    if settings.compute_capabilities:
        numbers = (c.replace(".", "") for c in settings.compute_capabilities)
        command.append(f"--computeCapabilities={','.join(numbers)}")
    if settings.hardware_compatibility is not None:
        level = _HARDWARE[settings.hardware_compatibility]
        command.append(f"--hardwareCompatibilityLevel={level}")
    command += ["--profilingVerbosity=detailed", "--skipInference"]
    return command
