"""`export.tensorrt`: an engine from an exported file, built in a process of its own."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from sparseq.export.engine import worker
from sparseq.export.engine.audit import (
    EngineAudit,
    audited_layers,
    audited_plan,
    checked_patterns,
)
from sparseq.export.engine.half import to_half
from sparseq.export.engine.progress import Callback, shown
from sparseq.export.engine.settings import Settings, checked_settings
from sparseq.export.engine.source import Source
from sparseq.files import atomic_path

CALLER = "export.tensorrt"
_log = logging.getLogger(__name__)


class EngineBuildError(RuntimeError):
    """TensorRT did not build the engine; says which layer, why and what to do."""


class _Built:
    """What the worker sent."""

    def __init__(self) -> None:
        self.plan = b""
        self.cache: bytes | None = None
        self.layers: list[Any] | None = None
        self.version = ""
        self.error: dict[str, Any] | None = None

    def take(self, event: dict[str, Any], payload: bytes) -> None:
        kind = event["event"]
        if kind == "plan":
            self.plan = payload
            for message in dict.fromkeys(event["messages"]):
                _log.info("%s", message)
        elif kind == "cache":
            self.cache = payload
        elif kind == "layers":
            self.layers = json.loads(payload)
        elif kind == "version":
            self.version = event["version"]
        elif kind == "error":
            self.error = event


class _Phases:
    """Turns the monitor's events into calls of the progress function."""

    def __init__(self, callback: Callback) -> None:
        self.callback = callback
        self.steps: dict[str, int] = {}

    def take(self, event: dict[str, Any]) -> None:
        name = event["name"]
        if event["event"] == "phase":
            self.steps[name] = event["steps"]
            self.callback(name, 0, event["steps"])
        elif event["event"] == "step":
            self.callback(name, event["step"] + 1, self.steps.get(name, event["step"] + 1))
        else:
            self.callback(name, self.steps.get(name, 1), self.steps.get(name, 1))


def _read_events(stream: IO[bytes], built: _Built, progress: Callback | None) -> None:
    phases = _Phases(progress) if progress is not None else None
    while line := stream.readline():
        event = json.loads(line)
        payload = stream.read(event["bytes"])
        if len(payload) < event["bytes"]:
            return  # it was ended in the middle
        if event["event"] in ("phase", "step", "finish"):
            if phases is not None:
                phases.take(event)
        else:
            built.take(event, payload)


def _run_worker(
    settings: Settings, model: bytes, onnx: str, progress: Callback | None, inspect: bool
) -> _Built:
    """Build in another process; it is gone when this returns or raises."""
    request = asdict(settings) | {
        "module": settings.runtime,
        "onnx": onnx,
        "model_bytes": len(model),
        "progress": progress is not None,
        "inspect": inspect,
    }
    if settings.hardware_compatibility:
        request["hardware_compatibility"] = settings.hardware_compatibility.upper()
    built = _Built()
    with tempfile.TemporaryFile() as printed:
        process = subprocess.Popen(
            [sys.executable, str(Path(worker.__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=printed,
        )
        assert process.stdin is not None and process.stdout is not None
        try:
            try:
                process.stdin.write(json.dumps(request).encode() + b"\n" + model)
                process.stdin.flush()
            except BrokenPipeError:
                pass  # it ended already: why is told below
            _read_events(process.stdout, built, progress)
        finally:
            process.kill()
            process.stdout.close()
            try:
                process.stdin.close()
            except BrokenPipeError:
                pass
            status = process.wait()
        if not built.plan and built.error is None:
            printed.seek(0)
            lines = printed.read().decode(errors="replace").strip().splitlines()
            last = f": {lines[-1]}" if lines else ""
            raise EngineBuildError(f"{CALLER}: the builder's process ended ({status}){last}")
    return built


def _refusal(error: dict[str, Any], source: Source, settings: Settings) -> Exception:
    """What the worker's error means to the user."""
    kind = error["kind"]
    said = "; ".join(error["messages"][-2:]) or "TensorRT gives no reason"
    if kind == "parse":
        return EngineBuildError(f"{CALLER}: {_parser_errors(error['errors'], source)}")
    if kind == "capability":
        numbers = sorted((int(n[2:-1]), int(n[-1])) for n in error["known"])
        known = ", ".join(f"{major}.{minor}" for major, minor in numbers)
        return ValueError(
            f"{CALLER}: compute_capabilities holds {error['capability']!r}, which this version of "
            f"{settings.runtime} does not know: it has {known}"
        )
    if kind == "profile":
        return ValueError(f"{CALLER}: batch: TensorRT does not take {error['shapes']}: {said}")
    if kind == "cache":
        return ValueError(
            f"{CALLER}: timing_cache: {error['path']!r} is not a timing cache of this version and "
            f"GPU; delete it"
        )
    if kind == "build":
        return EngineBuildError(f"{CALLER}: TensorRT did not build the engine: {said}")
    return EngineBuildError(f"{CALLER}: {settings.runtime} failed: {error['reason']}; {said}")


def _parser_errors(errors: Sequence[dict[str, str]], source: Source) -> str:
    """Which layer, why, what to do."""
    told = []
    for error in errors:
        layer = source.layer_of(error["node"]) if error["node"] else None
        operator = error["operator"] or "a node"
        what = f"{operator} ({error['node']})" if error["node"] else operator
        place = f"at layer {layer}" if layer is not None else "in the model"
        reason = error["reason"].strip().partition("\n")[0].removeprefix("Assertion failed: ")
        told.append(f"TensorRT does not take {what} {place}: {reason}")
    advice = (
        "replace the operation in the model, or export with target='tensorrt' if the file was made "
        "for another runtime"
    )
    return f"{'; '.join(told)}. {advice[0].upper()}{advice[1:]}."


def _check_folder(name: str, path: str | os.PathLike[str]) -> None:
    """OSError at once, not after a long build, where no file can be made."""
    folder = Path(path).parent
    try:
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise type(error)(
            f"{CALLER}: {name} cannot be written to the folder {str(folder)!r}: {error.strerror}"
        ) from error


def tensorrt(
    onnx: str | os.PathLike[str],
    engine: str | os.PathLike[str],
    *,
    sparse: bool = False,
    half: bool = False,
    batch: Sequence[int] | None = None,
    workspace: int | None = None,
    timing_cache: str | os.PathLike[str] | None = None,
    compute_capabilities: Sequence[str] | None = None,
    hardware_compatibility: str | None = None,
    runtime: str | None = None,
    progress: bool | Callable[[str, int, int], Any] = False,
    audit: bool = True,
    allow_float: Iterable[str] = (),
) -> EngineAudit | None:
    """Build a TensorRT engine from a file that `export.onnx` wrote with target "tensorrt".

    Layers run on integers where the file has QuantizeLinear and DequantizeLinear, in all versions
    (strongly typed networks); what is float in the file stays float. The engine is built in a
    process of its own, audited, written aside and renamed: a build that fails, is stopped or whose
    audit fails leaves no file.

    TensorRT builds on the GPU that the engine is for; TensorRT-RTX needs none, and chooses kernels
    on the user's GPU when the engine is loaded.

    Args:
        onnx: the file.
        engine: where the engine shall be.
        sparse: let 2:4 kernels run where weights are 2:4. TensorRT-RTX 1.7 takes the flag and
            builds the same engine with and without it: its kernels are chosen on the device.
        half: compute in float16 what is not quantised; inputs and outputs stay float32.
        batch: smallest, usual and largest batch for files with an open batch; None takes
            (1, 8, 32).
        workspace: bytes that a kernel may use beside its operands; None leaves it to TensorRT.
        timing_cache: a file with measured times, read if it exists and written; TensorRT only.
        compute_capabilities: of the GPUs that the engine shall run on, such as ("8.6", "12.0");
            TensorRT-RTX only. None takes all that it knows, but for Turing.
        hardware_compatibility: "ampere_plus" or "same_compute_capability"; TensorRT only.
        runtime: "tensorrt", "tensorrt_rtx", or None for the first that is installed.
        progress: True shows bars; a function is called with a phase, the steps done and all steps;
            what it raises ends the build.
        audit: hold every integer layer to integer operands in the engine (see `audit`).
        allow_float: layers, or fnmatch patterns, that the audit lets run in floating point.

    Returns:
        The audit's table; None without an audit.

    Raises:
        EngineAuditError: a layer fell back to floating point.
        EngineBuildError: TensorRT does not take the file; names the layer.
        ValueError: an argument, an ONNX file that is not sound, or one with zero points, unsigned
            grids or int32 biases.
        FileNotFoundError, OSError: no such file, or the engine cannot be written.
        ModuleNotFoundError: TensorRT is not installed.
    """
    patterns = checked_patterns(allow_float, CALLER)
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
    )
    for name, path in (("engine", engine), ("timing_cache", timing_cache)):
        if path is not None:
            _check_folder(name, path)
    source.check()
    model = to_half(source) if half else Path(onnx).read_bytes()
    inspect = audit and settings.runtime == "tensorrt"
    with shown(progress) as callback:
        built = _run_worker(settings, model, os.path.abspath(onnx), callback, inspect)
    if built.error is not None:
        raise _refusal(built.error, source, settings)
    found = None
    if audit:
        if inspect:
            found = audited_layers(built.layers or [], source)
        else:
            found = audited_plan(built.plan, source)
        found.check(patterns)
    if built.cache is not None and timing_cache is not None:
        _write(timing_cache, built.cache)
    _write(engine, built.plan)
    return found


def _write(path: str | os.PathLike[str], data: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
