"""Sparseq's ops for torch's TorchScript exporter (`torch.onnx.export(..., dynamo=False)`).

Torch 2.14 still has that exporter, deprecated; where a later one has not, there is nothing to
register and `export.onnx(exporter="torchscript")` says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sparseq.export.translate import (
    BFLOAT16,
    FLOAT,
    FLOAT16,
    INT8,
    OPS,
    UINT8,
    Meanings,
    check_target,
)

TORCHSCRIPT_OPSETS = range(17, 21)  # what it writes itself; 20 is its last
_FIRST = 13  # QuantizeLinear with an axis
_KINDS = {"Float": FLOAT, "Half": FLOAT16, "BFloat16": BFLOAT16, "Char": INT8, "Byte": UINT8}
_DTYPES = {5: torch.float16, 6: torch.float32, 15: torch.bfloat16}  # as TorchScript numbers them


class TorchScript:
    """Torch's TorchScript exporter, through its GraphContext."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph

    def op(self, kind: str, *inputs: Any, **attributes: Any) -> Any:
        """Add a node of one output."""
        values = [self._value(i) for i in inputs]
        while values and values[-1] is None:
            del values[-1]
        absent = [self.graph.op("prim::Constant") if v is None else v for v in values]
        if kind in ("ReduceMin", "ReduceMax") and self.graph.opset < 18 and len(absent) == 2:
            attributes["axes"] = constant_of(absent.pop()).tolist()
        return self.graph.op(kind, *absent, **{_typed(k, v): v for k, v in attributes.items()})

    def _value(self, given: Any) -> Any:
        if isinstance(given, float):
            return self.graph.op("Constant", value_t=torch.tensor(given))
        return given

    def ints(self, values: list[int]) -> Any:
        """A constant of int64."""
        return self.graph.op("Constant", value_t=torch.tensor(values))

    def dtype(self, value: Any) -> int | None:
        """Element type, as in TensorProto; None where unknown."""
        return _KINDS.get(value.type().scalarType() or "")

    def rank(self, value: Any) -> int:
        """Number of dimensions."""
        return int(value.type().dim())

    def source(self, value: Any) -> tuple[str, Any] | None:
        """Kind and first input of the node that makes value; None for inputs."""
        node = value.node()
        if not node.kind().startswith("onnx::"):
            return None
        first = next(iter(node.inputs()), None)
        return node.kind().removeprefix("onnx::"), first


def _typed(name: str, value: Any) -> str:
    """An attribute's name as GraphContext.op wants it."""
    return f"{name}_{'s' if isinstance(value, str) else 'i'}"


def constant_of(value: Any) -> Any:
    """What a constant holds: a tensor or a string."""
    node = value.node()
    return getattr(node, node.kindOf("value"))("value")


def _given(value: Any) -> Any:
    """None for none, a Python number for a constant one, else the value itself."""
    if not isinstance(value, torch._C.Value):
        return value
    if value.node().mustBeNone():
        return None
    if value.node().kind() not in ("onnx::Constant", "prim::Constant"):
        return value
    held = constant_of(value)
    if isinstance(held, torch.Tensor):
        return held.item() if held.dim() == 0 else value
    return held


def _symbolic(name: str, target: str) -> Callable[..., Any]:
    tensors = {"quantize": 3, "dequantize": 3, "fake_quantize": 3, "minmax": 1}[name]

    def symbolic(g: Any, *arguments: Any) -> Any:
        given = [None if a is None or a.node().mustBeNone() else a for a in arguments[:tensors]]
        rest = [_given(a) for a in arguments[tensors:]]
        if name == "dequantize" and len(rest) == 3:
            rest[2] = _DTYPES.get(rest[2])
        return getattr(Meanings(TorchScript(g), target), name)(*given, *rest)

    return symbolic


def available() -> bool:
    """Whether torch still has the TorchScript exporter."""
    return hasattr(torch.onnx, "register_custom_op_symbolic")


def register_symbolics(target: str = "onnxruntime") -> None:
    """Teach torch's TorchScript exporter sparseq's ops, to export a prepared model with it.

    Importing `sparseq.export` does this for "onnxruntime"; call it to change the target. From then
    on `torch.onnx.export(model, args, "m.onnx", dynamo=False)` takes prepared models, from opset 13
    on.

    Args:
        target: as for `sparseq.export.onnx`.

    Raises:
        ValueError: another target.
        RuntimeError: this torch has no TorchScript exporter any more.
    """
    check_target("register_symbolics", target)
    if not available():
        raise RuntimeError(
            "register_symbolics: this torch has no TorchScript exporter; use the dynamo exporter"
        )
    for name in OPS:
        torch.onnx.register_custom_op_symbolic(  # type: ignore[attr-defined]
            f"sparseq::{name}", _symbolic(name, target), _FIRST
        )
