"""Which kernel of ONNX Runtime each layer of an exported file runs on, after its optimisation."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparseq.export.require import require
from sparseq.export.scratch import load_model, session

INTEGER_KERNELS = (
    "QLinearConv",
    "QGemm",
    "QLinearMatMul",
    "ConvInteger",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
)
FLOAT_KERNELS = (
    "Conv",
    "FusedConv",
    "ConvTranspose",
    "Gemm",
    "FusedGemm",
    "MatMul",
    "FusedMatMul",
    "Gather",
)


@dataclass(frozen=True)
class Kernel:
    """How one call of a layer runs.

    Attributes:
        layer: the call: the layer's name, or `name@1` for the second call.
        kernel: ONNX Runtime's operator.
        integer: whether that computes on integers.
        reason: why it does not, one sentence; empty if it does.
    """

    layer: str
    kernel: str
    integer: bool
    reason: str = ""

    def __str__(self) -> str:
        """One line."""
        return f"{self.layer}: {self.kernel}" + (f" ({self.reason})" if self.reason else "")


def metadata_of(proto: Any) -> dict[str, str]:
    """A file's metadata_props."""
    return {p.key: p.value for p in proto.metadata_props}


def optimised(proto: Any) -> Any:
    """The graph that ONNX Runtime makes of a model on this CPU: a ModelProto.

    Raises:
        ValueError: ONNX Runtime does not take the model.
    """
    onnx = require("onnx")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        session(proto, "kernels", optimised_path=path)
        return onnx.load(path)


def kernels(path: str | os.PathLike[str]) -> list[Kernel]:
    """Read off ONNX Runtime's optimised graph which kernel each layer runs on.

    Args:
        path: of a file that `export.onnx` wrote.

    Returns:
        One entry a call of an integer layer, in order of execution.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an ONNX file of `export.onnx`, or one that ONNX Runtime does not take.
        ImportError: onnx or onnxruntime is missing.
    """
    proto = load_model(path, "kernels")
    described = metadata_of(proto).get("sparseq_layers")
    if described is None:
        raise ValueError(f"kernels: path must name a file of export.onnx, got {str(path)!r}")
    calls = json.loads(described)
    nodes = optimised(proto).graph.node
    return [_kernel(call, held, nodes) for call, held in calls.items()]


def _kernel(call: str, described: dict[str, Any], nodes: Any) -> Kernel:
    """The product's node: ONNX Runtime keeps its name or its output's, with something around it."""
    names = f"{call or 'layer'}.product", described["values"]["output"]
    layer = call.partition("@")[0]
    parameters = f"{layer}." if layer else ""
    products = [node for node in nodes if node.op_type in INTEGER_KERNELS + FLOAT_KERNELS]
    found = [node for node in products if _is_called(node.name.removeprefix("fused "), names)]
    if not found:
        own = (f"{parameters}weight", f"{parameters}bias")
        found = [n for n in products if any(i.startswith(own) for i in n.input)]
    if not found:
        return Kernel(call, "fused", False, "ONNX Runtime made it part of another node")
    kind = found[0].op_type
    if kind in INTEGER_KERNELS:
        return Kernel(call, kind, True)
    reason = described["reason"] or "ONNX Runtime has no integer kernel for its form"
    return Kernel(call, kind, False, reason)


def _is_called(name: str, names: tuple[str, ...]) -> bool:
    return any(name == known or name.startswith(f"{known}_") for known in names)
