"""Peak memory: of a model in this process, of a file in a process of its own, or on a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sparseq.bench import child
from sparseq.bench.files import Architecture, importable, kind_of
from sparseq.bench.inputs import (
    Example,
    call_with,
    evaluating,
    tensors_of,
    threads_set,
)
from sparseq.bench.timing import check_counts

CALLER = "measure_memory"


@dataclass(frozen=True)
class Memory:
    """Bytes of memory while a model ran; `print` shows them.

    Attributes:
        peak_bytes: at most during the calls: the process' resident set, or what torch's CUDA
            allocator had given out.
        before_bytes: just before the first of them, the model loaded.
        idle_bytes: of a file: the runtime was imported, the model not yet loaded. None of a model
            that was there already.
        method: "VmHWM" (the kernel's mark, reset before the calls), "sampled" (every millisecond),
            "getrusage" (at most since the process began: an upper bound) or "cuda".
        where: what ran it: "torch" in this process, or a runtime in a process of its own.
    """

    peak_bytes: int
    before_bytes: int
    idle_bytes: int | None
    method: str
    where: str

    @property
    def added_bytes(self) -> int:
        """What the calls took on top of the loaded model."""
        return self.peak_bytes - self.before_bytes

    @property
    def model_bytes(self) -> int | None:
        """What the model and its calls took on top of the runtime; None of a model in process."""
        return None if self.idle_bytes is None else self.peak_bytes - self.idle_bytes

    def __str__(self) -> str:
        """Megabytes (10^6 bytes)."""
        text = f"peak {self.peak_bytes / 1e6:.1f} MB, {self.added_bytes / 1e6:.1f} MB in the calls"
        if self.model_bytes is not None:
            text += f", {self.model_bytes / 1e6:.1f} MB with the model"
        return f"{text} ({self.where}, {self.method})"


def measure_memory(
    model: nn.Module | str | os.PathLike[str],
    example: Example,
    *,
    calls: int = 3,
    threads: int | None = None,
    architecture: Architecture | None = None,
    runtime: str | None = None,
) -> Memory:
    """Measure the peak memory of ``model(example)``.

    A model is run in this process, where memory that earlier calls left behind counts as there
    before; freed memory is handed back first. A file is run in a new process that holds nothing but
    its runtime, which makes runtimes comparable.

    Args:
        model: a module, on the CPU or a GPU, or a file as `compare` takes it (but no engine).
        example: its input, ``(N, ...)``; a sequence or mapping where it has several.
        calls: how often to run it.
        threads: of the runtime; None for torch's.
        architecture: for a .safetensors file: "MODULE:CALLABLE", the name of a network of
            torchvision or timm, or a function of a module (with keywords: `functools.partial`).
        runtime: for an .onnx file: "onnxruntime" (the default) or "openvino".

    Returns:
        The bytes.

    Raises:
        ValueError: a count is too small, or the file does not run on the example.
        FileNotFoundError: no such file.
        OSError: the system does not tell.
    """
    check_counts(CALLER, calls=(calls, 1), threads=(threads, 1))
    tensors = tensors_of(CALLER, example)
    if isinstance(model, (str, os.PathLike)):
        return _of_file(model, example, calls, threads, architecture, runtime)
    device = tensors[0].device

    def run() -> None:
        for _ in range(calls):
            call_with(model, example)

    with evaluating(model), threads_set(threads), torch.inference_mode():
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            held = torch.cuda.memory_allocated(device)
            run()
            torch.cuda.synchronize(device)
            most = torch.cuda.max_memory_allocated(device)
            return Memory(most, held, None, "cuda", "torch")
        child.give_back()
        before = child.resident() or child.greatest_ever()
        with child.watched() as found:
            run()
    assert before is not None  # or watched had raised
    return Memory(found["peak"], min(before, found["peak"]), None, found["method"], "torch")


def runtime_of(caller: str, path: str | os.PathLike[str], runtime: str | None) -> str:
    """Who runs a file: "torch", "onnxruntime", "openvino" or "tensorrt".

    Raises:
        ValueError: an unknown runtime, or one that does not read this file.
    """
    kind = kind_of(caller, path)
    if runtime not in (None, *child.RUNTIMES):
        raise ValueError(f"{caller}: runtime must be 'onnxruntime' or 'openvino', got {runtime!r}")
    if kind == "onnx":
        return runtime or "onnxruntime"
    if kind == "openvino":
        return "openvino"
    return "tensorrt" if kind == "engine" else "torch"


def _of_file(
    path: str | os.PathLike[str],
    example: Example,
    calls: int,
    threads: int | None,
    architecture: Architecture | None,
    runtime: str | None,
) -> Memory:
    where = runtime_of(CALLER, path, runtime)
    if where == "tensorrt":
        raise ValueError(f"{CALLER}: {str(path)!r} must not be an engine: its memory is the GPU's")
    name, arguments = importable(CALLER, architecture)
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs.npz"
        tensors = tensors_of(CALLER, example)
        np.savez(inputs, *(tensor.numpy(force=True) for tensor in tensors))
        answer = _ask(
            {
                "path": str(Path(path).resolve()),
                "runtime": where,
                "inputs": str(inputs),
                "names": list(example) if isinstance(example, Mapping) else None,
                "calls": calls,
                "threads": threads or torch.get_num_threads(),
                "architecture": name,
                "arguments": arguments,
            }
        )
    if "error" in answer:
        raise ValueError(f"{CALLER}: {str(path)!r} does not run: {answer['error']}")
    before = answer["before"] if answer["before"] is not None else answer["peak"]
    return Memory(answer["peak"], min(before, answer["peak"]), answer["idle"], answer["method"],
                  where)  # fmt: skip


def _ask(request: dict[str, Any]) -> dict[str, Any]:
    """Run the child; the last line that it prints is its answer."""
    paths = [str(Path(__file__).resolve().parents[2]), *(p or os.getcwd() for p in sys.path)]
    done = subprocess.run(
        [sys.executable, child.__file__],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))},
    )
    last = done.stdout.strip().rpartition("\n")[2]
    if done.returncode or not last.startswith("{"):
        told = done.stderr.strip().rpartition("\n")[2] or "no reason given"
        raise ValueError(
            f"{CALLER}: the process for {request['path']!r} ended with {done.returncode}: {told}"
        )
    answer: dict[str, Any] = json.loads(last)
    return answer
