"""What an engine is built with: checked once, for the builder and for the command line alike."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sparseq.export.engine.runtime import find_runtime
from sparseq.export.engine.source import Source

DEFAULT_BATCH = (1, 8, 32)
HARDWARE = ("ampere_plus", "same_compute_capability")
_CAPABILITY = re.compile(r"\d{1,2}\.\d")

Shapes = dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]


@dataclass(frozen=True)
class Settings:
    """Checked arguments of a build; `shapes` is empty where all sizes are fixed."""

    runtime: str
    sparse: bool
    shapes: Shapes
    workspace: int | None
    timing_cache: str | None
    compute_capabilities: tuple[str, ...]
    hardware_compatibility: str | None


def _profile(source: Source, batch: Sequence[int] | None, caller: str) -> Shapes:
    if batch is not None:
        numbers = tuple(batch) if isinstance(batch, (tuple, list)) else ()
        whole = all(isinstance(n, int) and not isinstance(n, bool) for n in numbers)
        if len(numbers) != 3 or not whole or not 1 <= numbers[0] <= numbers[1] <= numbers[2]:
            raise ValueError(
                f"{caller}: batch must be three numbers, 1 <= min <= opt <= max, got {batch!r}"
            )
    shapes: Shapes = {}
    for name, sizes in source.inputs().items():
        if None in sizes[1:]:
            raise ValueError(
                f"{caller}: only the batch may be open, but the input {name!r} is {sizes}"
            )
        rest = tuple(s for s in sizes[1:] if s is not None)
        if sizes and sizes[0] is None:
            least, usual, most = batch or DEFAULT_BATCH
            shapes[name] = ((least, *rest), (usual, *rest), (most, *rest))
        elif batch is not None and sizes and tuple(batch) != (sizes[0],) * 3:
            raise ValueError(
                f"{caller}: batch is {tuple(batch)}, but the file's batch is fixed at {sizes[0]}; "
                f"export with dynamic_batch=True"
            )
    return shapes


def _capabilities(given: Sequence[str], caller: str) -> tuple[str, ...]:
    found = () if isinstance(given, str) else tuple(given)
    sound = all(isinstance(c, str) and _CAPABILITY.fullmatch(c) for c in found)
    if not found or not sound or len(set(found)) < len(found):
        raise ValueError(
            f"{caller}: compute_capabilities must be different strings like '8.6', got {given!r}"
        )
    return found


def checked_settings(
    source: Source,
    *,
    sparse: bool,
    batch: Sequence[int] | None,
    workspace: int | None,
    timing_cache: str | os.PathLike[str] | None,
    compute_capabilities: Sequence[str] | None,
    hardware_compatibility: str | None,
    runtime: str | None,
    caller: str,
    must_be_installed: bool = True,
) -> Settings:
    """Arguments of `tensorrt` and `trtexec_command` after their checks.

    Raises:
        ValueError: an argument is not what it must be, or the runtime has no such thing.
        ModuleNotFoundError: the runtime is not installed.
    """
    shapes = _profile(source, batch, caller)
    if workspace is not None and (not _is_count(workspace) or workspace < 1):
        raise ValueError(f"{caller}: workspace must be a number of bytes, got {workspace!r}")
    capabilities: tuple[str, ...] = ()
    if compute_capabilities is not None:
        capabilities = _capabilities(compute_capabilities, caller)
    if hardware_compatibility is not None and hardware_compatibility not in HARDWARE:
        raise ValueError(
            f"{caller}: hardware_compatibility must be one of {HARDWARE} or None, got "
            f"{hardware_compatibility!r}"
        )
    module = find_runtime(runtime, caller, must_be_installed)
    if module == "tensorrt" and capabilities:
        raise ValueError(
            f"{caller}: compute_capabilities is for TensorRT-RTX; TensorRT builds for the GPU that "
            f"it runs on, see hardware_compatibility"
        )
    if module == "tensorrt_rtx" and (timing_cache is not None or hardware_compatibility):
        what = "timing_cache" if timing_cache is not None else "hardware_compatibility"
        instead = {
            "timing_cache": "it measures nothing when it builds",
            "hardware_compatibility": "see compute_capabilities",
        }[what]
        raise ValueError(f"{caller}: TensorRT-RTX has no {what}: {instead}")
    return Settings(
        runtime=module,
        sparse=bool(sparse),
        shapes=shapes,
        workspace=workspace,
        timing_cache=None if timing_cache is None else os.path.abspath(timing_cache),
        compute_capabilities=capabilities,
        hardware_compatibility=hardware_compatibility,
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
