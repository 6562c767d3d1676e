"""What TensorRT's engine inspector tells of each layer, for versions 10 and 11.

TensorRT (not RTX) chooses kernels when it builds, on the GPU, and tells them: the kernel's name
says whether it is a 2:4 one. Its engines do not read otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

_NODE = re.compile(r"\[ONNX Layer: (.*?)\]", re.DOTALL)
_KINDS = {"int8": "int8", "fp16": "half", "half": "half", "fp32": "float", "float": "float"}


@dataclass(frozen=True)
class InspectedLayer:
    """The operands of one engine layer; fields as in `AuditedLayer`."""

    operation: str
    kernel: str
    input: str
    weight: str
    output: str
    sparse_kernel: bool | None


def _kind(text: str) -> str:
    """int8, half or float from "Thirty-two wide channel vectorized row major Int8 format"."""
    lower = text.lower()
    return next((kind for word, kind in _KINDS.items() if word in lower), "?")


def _tensor_kind(tensors: Any) -> str:
    if not tensors:
        return "?"
    first = tensors[0]
    # version 10 has one field for both, version 11 two
    return _kind(str(first.get("Format/Datatype") or first.get("DataType") or ""))


def _nodes(layer: dict[str, Any]) -> Iterator[str]:
    yield from _NODE.findall(str(layer.get("Metadata", "")))


def _is_product(layer: dict[str, Any]) -> bool:
    kind = str(layer.get("ParameterType") or layer.get("LayerType", "")).lower()
    return any(word in kind for word in ("convolution", "gemm", "matmul", "matrix", "fully"))


def inspected_layers(information: Collection[Any]) -> dict[str, InspectedLayer]:
    """ONNX node -> the engine layer that computes its product.

    Args:
        information: the entries of "Layers" in the inspector's JSON; needs an engine that was built
            with detailed profiling verbosity.
    """
    found: dict[str, InspectedLayer] = {}
    for layer in information:
        if not isinstance(layer, dict) or not _is_product(layer):
            continue
        kernel = str(layer.get("TacticName") or "")
        weights = layer.get("Weights")
        row = InspectedLayer(
            operation=str(layer.get("Name", "")),
            kernel=kernel or "?",
            input=_tensor_kind(layer.get("Inputs")),
            weight=_kind(str(weights.get("Type", ""))) if isinstance(weights, dict) else "?",
            output=_tensor_kind(layer.get("Outputs")),
            sparse_kernel="sparse" in kernel.lower() or "sptensor" in kernel.lower()
            if kernel
            else None,
        )
        for node in _nodes(layer):
            found.setdefault(node, row)
    return found
