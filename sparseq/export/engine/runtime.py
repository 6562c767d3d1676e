"""Which TensorRT is installed. It is not imported here: only builders and runners load it."""

from __future__ import annotations

import importlib.util
from importlib import metadata

RUNTIMES = ("tensorrt", "tensorrt_rtx")


def installed(name: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(name) is not None


def find_runtime(runtime: str | None, caller: str, must_be_installed: bool = True) -> str:
    """The module to use.

    Args:
        runtime: one of RUNTIMES, or None for the first that is installed.
        caller: what error messages begin with.
        must_be_installed: False takes a runtime that is named for granted.

    Raises:
        ValueError: another name.
        ModuleNotFoundError: it is not installed; says what to install.
    """
    if runtime is not None and runtime not in RUNTIMES:
        raise ValueError(f"{caller}: runtime must be one of {RUNTIMES} or None, got {runtime!r}")
    if runtime and not must_be_installed:
        return runtime
    for name in (runtime,) if runtime else RUNTIMES:
        if installed(name):
            return name
    if runtime:
        wanted = f"the package {runtime}: pip install 'sparseq[{runtime.replace('_', '-')}]'"
    else:
        wanted = (
            "TensorRT: pip install 'sparseq[tensorrt]' (data centre GPUs, builds on the GPU) or "
            "'sparseq[tensorrt-rtx]' (RTX GPUs, builds anywhere)"
        )
    raise ModuleNotFoundError(f"{caller} needs {wanted}")


def major_version(runtime: str) -> int | None:
    """The installed version's first number, or None."""
    try:
        return int(metadata.version(runtime).partition(".")[0])
    except (metadata.PackageNotFoundError, ValueError):
        return None
