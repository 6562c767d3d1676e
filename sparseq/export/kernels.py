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
    name = f"{call or 'layer'}.product"
    for node in nodes:  # ONNX Runtime keeps a node's name, with something behind it
        if node.name == name or node.name.startswith(f"{name}_"):
            if node.op_type in INTEGER_KERNELS:
                return Kernel(call, node.op_type, True)
            if node.op_type in ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"):
                reason = described["reason"] or "ONNX Runtime has no integer kernel for its form"
                return Kernel(call, node.op_type, False, reason)
    return Kernel(call, "fused", False, "ONNX Runtime made it part of another node")
