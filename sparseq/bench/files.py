"""Model files that torch runs: which kind a file is, and the module in it."""

from __future__ import annotations

import importlib
import json
import os
import warnings
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sparseq.flow.meta import materialize
from sparseq.flow.storage import KEY, load, read_file

Architecture = str | Callable[[], nn.Module]
ZOOS = ("torchvision.models", "timm")  # where a plain name is looked for
TORCH_FILES = (".pt", ".pt2", ".pth", ".ts", ".safetensors")
FILES = (".onnx", ".xml")
ENGINES = (".engine", ".plan", ".trt")


def find_architecture(
    caller: str, name: Architecture | None, arguments: Mapping[str, Any] | None = None
) -> Callable[[], nn.Module] | None:
    """What makes a network of a name.

    Args:
        caller: named in errors.
        name: "MODULE:CALLABLE", or the name of a network of torchvision, else of timm, which comes
            without trained weights; a callable is returned as it is.
        arguments: for the callable.

    Returns:
        A callable without arguments that makes a new network; None for None.

    Raises:
        ValueError: there is none of this name.
    """
    if name is None:
        return None
    keywords = dict(arguments or {})
    if callable(name):
        return partial(name, **keywords) if keywords else name
    module_name, colon, attribute = name.partition(":")
    try:
        if colon and module_name and attribute:
            made: Any = importlib.import_module(module_name)
            for part in attribute.split("."):
                made = getattr(made, part)
            return partial(made, **keywords)
        if not colon and name:
            return _of_zoo(caller, name, keywords)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{caller}: model {name!r} cannot be imported: {error}") from error
    raise ValueError(_unknown(caller, name))


def _unknown(caller: str, name: str) -> str:
    return (
        f"{caller}: model must be MODULE:CALLABLE, such as torchvision.models:resnet18, or the "
        f"name of a network of torchvision or timm, got {name!r}"
    )


def _of_zoo(caller: str, name: str, keywords: dict[str, Any]) -> Callable[[], nn.Module]:
    missing = []
    for zoo in ZOOS:
        try:
            module = importlib.import_module(zoo)
        except ModuleNotFoundError:
            missing.append(zoo.partition(".")[0])
            continue
        known = module.list_models()
        if name in known and zoo == "timm":
            return partial(module.create_model, name, **keywords)
        if name in known:
            return partial(module.get_model, name, **{"weights": None, **keywords})
    tail = f" ({' and '.join(missing)} not installed)" if missing else ""
    raise ValueError(_unknown(caller, name) + tail)


def importable(caller: str, architecture: Architecture | None) -> tuple[str | None, dict[str, Any]]:
    """An architecture as a name and arguments that another process can use.

    Raises:
        ValueError: a callable that has no name in a module, or arguments that JSON cannot hold.
    """
    if architecture is None or isinstance(architecture, str):
        return architecture, {}
    function, keywords = architecture, {}
    args: tuple[Any, ...] = ()
    if isinstance(architecture, partial):
        function, keywords, args = architecture.func, dict(architecture.keywords), architecture.args
    name = f"{getattr(function, '__module__', None)}:{getattr(function, '__qualname__', None)}"
    try:
        json.dumps(keywords)
        if args or "<" in name or name.startswith("__main__:"):
            raise TypeError("it has no name that another process could import")
        find_architecture(caller, name)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{caller}: architecture must be a name, or a function of a module with keywords at "
            f"most, got {architecture!r}: {error}"
        ) from error
    return name, keywords


def is_file(text: str) -> bool:
    """Whether a text names a file, there or missing, rather than a network."""
    return os.path.isfile(text) or Path(text).suffix.lower() in (*FILES, *TORCH_FILES, *ENGINES)


def kind_of(caller: str, path: str | os.PathLike[str]) -> str:
    """What a file is: "onnx", "openvino", "engine", "safetensors", "torchscript", "export", "aoti".

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is of no kind that can run.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{caller}: path must name a file, got {str(path)!r}")
    suffix = file.suffix.lower()
    if suffix in (".onnx", ".safetensors"):
        return suffix[1:]
    if suffix == ".xml":
        return "openvino"
    if suffix in ENGINES:
        return "engine"
    if suffix in TORCH_FILES and zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            inside = [name.partition("/")[2] for name in archive.namelist()]
        if any(name.startswith("data/aotinductor/") for name in inside):
            return "aoti"
        if any(name.startswith("models/") for name in inside):
            return "export"
        if any(name.startswith("code/") for name in inside):
            return "torchscript"
    if suffix in TORCH_FILES:
        raise ValueError(
            f"{caller}: {str(path)!r} must be an archive of torch.export.save or torch.jit.save, "
            "which hold the network; weights that torch.save pickled do not: write them with "
            "sparseq.save and name the architecture"
        )
    raise ValueError(
        f"{caller}: {str(path)!r} must end in .pt, .pt2, .safetensors, .onnx, .xml or .engine"
    )


def open_torch(
    caller: str, path: str | os.PathLike[str], build: Callable[[], nn.Module] | None
) -> Callable[..., Any]:
    """The model in a file of torch's, or of safetensors, in evaluation mode.

    Args:
        caller: named in errors.
        path: of the file.
        build: makes the float network that a safetensors file belongs to.

    Raises:
        ValueError: safetensors without a network, or of another one.
    """
    kind = kind_of(caller, path)
    if kind == "safetensors":
        if build is None:
            raise ValueError(
                f"{caller}: {str(path)!r} holds weights only: name the architecture (--model)"
            )
        model = _architecture(build)
        if not isinstance(model, nn.Module):
            raise ValueError(
                f"{caller}: the architecture must make an nn.Module, got {type(model).__name__}"
            )
        return _with_weights(caller, path, model).eval()
    if kind == "aoti":
        compiled: Callable[..., Any] = torch._inductor.aoti_load_package(str(path))
        return compiled
    if kind == "export":
        return torch.export.load(path).module()  # a graph of evaluation mode, if it was made in it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated, and still what people have
        warnings.simplefilter("ignore", DeprecationWarning)
        script: nn.Module = torch.jit.load(str(path), map_location="cpu")
    return script.eval()


class _Uninitialised(TorchFunctionMode):
    """What would fill tensors of the meta device runs not at all: it touches a megabyte of code."""

    fills = (Tensor.normal_, Tensor.uniform_, Tensor.zero_, Tensor.fill_)

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run the function, unless it is one of those."""
        given = kwargs or {}
        if function in self.fills or getattr(function, "__module__", None) == nn.init.__name__:
            filled = args[0] if args else given["tensor"]
            if filled.is_meta:
                return filled
        return function(*args, **given)


def _architecture(build: Callable[[], nn.Module]) -> nn.Module:
    """On the meta device where it can be made there: a file brings all that it holds."""
    try:
        with torch.device("meta"), _Uninitialised():
            model = build()
        alone = [n for m in model.modules() for n in m._non_persistent_buffers_set]
    except Exception:  # what it computes on the way needs values
        return build()
    return build() if alone else model


def _with_weights(caller: str, path: str | os.PathLike[str], model: nn.Module) -> nn.Module:
    try:
        metadata, state = read_file(path)
    except ValueError as error:
        raise ValueError(f"{caller}: {str(path)!r}: {error}") from error
    if KEY in metadata:
        return load(path, model)
    try:
        materialize(model)
        model.load_state_dict(state)
    except RuntimeError as error:
        line = " ".join(str(error).split())
        raise ValueError(f"{caller}: {str(path)!r} does not fit this model: {line}") from error
    return model
