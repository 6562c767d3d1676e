"""What `compare` runs: a module or a file, opened by its runtime, with its inputs at hand."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sparseq.bench import child
from sparseq.bench.files import Architecture, find_architecture, open_torch
from sparseq.bench.inputs import Example, call_with, evaluating, mapped, waiting
from sparseq.bench.memory import runtime_of
from sparseq.export.require import require

Given = nn.Module | Callable[..., Any] | str | os.PathLike[str]


@dataclass(frozen=True)
class Contender:
    """A model that is ready to run.

    Attributes:
        name: for people.
        runtime: "torch", "onnxruntime", "openvino" or "tensorrt".
        call: one inference on the inputs that it holds.
    """

    name: str
    runtime: str
    call: Callable[[], Any]

    def outputs(self) -> list[Tensor]:
        """What one inference gives, copied to the CPU."""
        return [_tensor(leaf) for leaf in tree_leaves(self.call()) if _holds_numbers(leaf)]


def _holds_numbers(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) or hasattr(leaf, "numpy") or hasattr(leaf, "data")


def _tensor(leaf: Any) -> Tensor:
    if isinstance(leaf, Tensor):
        return leaf.detach().cpu().clone()
    array = leaf.numpy() if hasattr(leaf, "numpy") else leaf.data
    return torch.from_numpy(np.array(array))


@contextmanager
def opened(
    caller: str,
    given: Given,
    example: Example,
    *,
    threads: int,
    architecture: Architecture | None = None,
    runtime: str | None = None,
    name: str | None = None,
) -> Iterator[Contender]:
    """Open a model or file for as long as the block lasts.

    Args:
        caller: named in errors.
        given: a module or a function of the inputs, or the path of a file.
        example: the inputs.
        threads: for runtimes that have threads of their own; torch's are the caller's business.
        architecture: for .safetensors.
        runtime: for .onnx.
        name: for people; the file's, or the class', where it is None.

    Raises:
        ValueError: it cannot be opened, or does not run on the example.
        FileNotFoundError: no such file.
        ModuleNotFoundError: its runtime is not installed.
    """
    if not isinstance(given, (str, os.PathLike)):
        if not callable(given):
            raise TypeError(
                f"{caller}: a model must be a module, a callable or the path of a file, got "
                f"{type(given).__name__}"
            )
        with evaluating(given):
            yield _torch(name or type(given).__name__, given, example)
        return
    path, label = str(given), name or Path(given).name
    where = runtime_of(caller, path, runtime)
    if where == "torch":
        build = find_architecture(caller, architecture)
        yield _torch(label, open_torch(caller, path, build), example)
    elif where == "tensorrt":
        with _engine(caller, path, label, example) as contender:
            yield contender
    else:
        require(where) if where == "onnxruntime" else _require_openvino(caller)
        call = _run(caller, path, lambda: child.RUNTIMES[where](path, _arrays(example), threads))
        _run(caller, path, call)
        yield Contender(label, where, call)


def _require_openvino(caller: str) -> None:
    import importlib

    try:
        importlib.import_module("openvino")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{caller}: runtime 'openvino' needs the package openvino: pip install openvino"
        ) from error


def _arrays(example: Example) -> Any:
    found = mapped(example, lambda tensor: tensor.detach().cpu().contiguous())
    if isinstance(found, Tensor):
        return [found.numpy()]
    if isinstance(found, Mapping):
        return {name: value.numpy() for name, value in found.items()}
    return [value.numpy() for value in found]


def _run(caller: str, path: str, action: Callable[[], Any]) -> Any:
    """Do what a runtime may refuse, in exceptions of its own; the first line of its reason."""
    try:
        return action()
    except Exception as error:
        told = child.reason(error)
        raise ValueError(f"{caller}: {path!r} does not run on this example: {told}") from error


def _torch(name: str, model: Callable[..., Any], example: Example) -> Contender:
    device = _device(model, example)
    moved = mapped(example, lambda tensor: tensor.to(device))

    def call() -> Any:
        with torch.inference_mode():
            return call_with(model, moved)

    return Contender(name, "torch", waiting(call, device))


def _device(model: object, example: Example) -> torch.device:
    if isinstance(model, nn.Module):
        for tensor in (*model.parameters(), *model.buffers()):
            return tensor.device
    first: Tensor = next(leaf for leaf in tree_leaves(example) if isinstance(leaf, Tensor))
    return first.device


@contextmanager
def _engine(caller: str, path: str, name: str, example: Example) -> Iterator[Contender]:
    from sparseq.export.engine.runner import Engine

    if not torch.cuda.is_available():
        raise ValueError(
            f"{caller}: {path!r} is a TensorRT engine, which needs a CUDA device, and torch sees "
            "none"
        )
    try:
        engine = Engine(path)
    except RuntimeError as error:
        raise ValueError(f"{caller}: {error}") from error
    with engine:
        moved = mapped(example, lambda tensor: tensor.to(engine.device))
        call = waiting(lambda: call_with(engine, moved), engine.device)
        _run(caller, path, call)
        yield Contender(name, "tensorrt", call)
