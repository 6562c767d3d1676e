"""Each op of sparseq in terms of ONNX operators, for torch's dynamo exporter.

`translations` gives the table; `NOT_EXPORTED` names the ops that have no place in an inference
graph. Every op is in exactly one of the two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sparseq.export.require import require

NOT_EXPORTED = frozenset(
    {
        # gradients
        "fake_quantize_backward",
        "fake_quantize_learned_backward",
        # how bytes are laid out in sparseq's own files; ONNX has INT4 tensors
        "pack_int4",
        "unpack_int4",
        # an exported layer is fake_quantize and dequantize around the float function, which is the
        # form (Q/DQ) that ONNX Runtime and TensorRT look for to put their own integer kernels in
        "int8_conv2d",
        "int8_linear",
        # likewise: dequantize (INT4 in the file) and the float function; ONNX has no 2:4 product
        "int4_linear",
        "linear_24",
        # the weight as one machine's kernels read it
        "int8_tiles",
        "tiles_24",
        # made once, before or after the graph: ONNX has no 2:4 tensors, its runtimes find the zeros
        "mask_24",
        "pack_24",
        "unpack_24",
    }
)

_NON_NEGATIVE = ("Relu", "Sigmoid", "Softmax", "Abs", "HardSigmoid")
_KEEP_SIGN = ("MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean", "Reshape", "Transpose",
              "Flatten", "Squeeze", "Unsqueeze", "Identity")  # fmt: skip


def _non_negative(x: Any) -> bool:
    """Whether x is the result of something that has no negative values."""
    node = x.producer()
    while node is not None and node.op_type in _KEEP_SIGN:
        node = node.inputs[0].producer()
    return node is not None and node.op_type in _NON_NEGATIVE


def translations(target: str) -> dict[str, Callable[..., Any]]:
    """Op name -> function that builds its ONNX nodes, for `custom_translation_table`.

    Args:
        target: "onnxruntime" puts signed activations on uint8, shifted by 128 (the same numbers):
            its x86 kernels take unsigned activations. "tensorrt" leaves them on int8.
    """
    op = require("onnxscript").opset18
    ir = require("onnx_ir")
    unsigned = target == "onnxruntime"

    def storage(quant_min: int, shift: bool) -> tuple[Any, int, int, int]:
        """Element type that holds the grid, its range, and what the zero point gains in it."""
        if quant_min >= 0:
            return ir.DataType.UINT8, 0, 255, 0
        return (ir.DataType.UINT8, -128, 127, 128) if shift else (ir.DataType.INT8, -128, 127, 0)

    def grid(
        x: Any, scale: Any, zero: Any, low: int, high: int, axis: Any, shift: bool
    ) -> tuple[Any, Any]:
        """X clamped to the grid where its range is narrower than its type's, and the zero point."""
        kind, least, greatest, gain = storage(low, shift)
        if zero is None:
            wide = op.Mul(scale, 0.0)
        elif zero.dtype == ir.DataType.FLOAT:  # learned
            wide = op.Clip(op.Round(zero), float(low), float(high))
        else:
            wide = op.Cast(zero, to=ir.DataType.FLOAT)
        cut_low = low > least and not (_non_negative(x) and axis is None)
        cut_high = high < greatest
        if cut_low or cut_high:
            if axis is not None:
                raise ValueError(
                    "fake_quantize: a range narrower than 8 bits must be per tensor to be exported"
                )
            x = op.Clip(
                x,
                op.Mul(op.Sub(float(low), wide), scale) if cut_low else None,
                op.Mul(op.Sub(float(high), wide), scale) if cut_high else None,
            )
        return x, op.Cast(op.Add(wide, float(gain)) if gain else wide, to=kind)

    def ungrouped(name: str, group_size: int | None) -> None:
        if group_size is not None:
            raise ValueError(f"{name}: group_size cannot be exported for an activation")

    def around(axis: int | None) -> dict[str, int]:
        return {} if axis is None else {"axis": axis}

    def quantize(x, scale, zero, low, high, axis=None, group_size=None):  # type: ignore[no-untyped-def]
        ungrouped("quantize", group_size)
        x, zero = grid(x, scale, zero, low, high, axis, shift=False)
        return op.QuantizeLinear(x, scale, zero, **around(axis))

    def fake_quantize(x, scale, zero, low, high, axis=None, group_size=None, grad_factor=1.0):  # type: ignore[no-untyped-def]
        ungrouped("fake_quantize", group_size)
        x, zero = grid(x, scale, zero, low, high, axis, shift=unsigned)
        q = op.QuantizeLinear(x, scale, zero, **around(axis))
        return op.DequantizeLinear(q, scale, zero, **around(axis))

    def dequantize(q, scale, zero, axis=None, group_size=None, dtype=None):  # type: ignore[no-untyped-def]
        if zero is not None:
            zero = op.Cast(zero, to=q.dtype)
        if group_size is None:
            y = op.DequantizeLinear(q, scale, zero, **around(axis))
        else:  # groups are neighbours in row-major order: one row each
            rows = op.Reshape(q, op.Constant(value_ints=[-1, group_size]))
            flat = op.Constant(value_ints=[-1])
            zero = None if zero is None else op.Reshape(zero, flat)
            y = op.Reshape(
                op.DequantizeLinear(rows, op.Reshape(scale, flat), zero, axis=0), op.Shape(q)
            )
        half = {torch.float16: ir.DataType.FLOAT16, torch.bfloat16: ir.DataType.BFLOAT16}
        return op.Cast(y, to=half[dtype]) if dtype in half else y

    def minmax(x, axis=None, group_size=None):  # type: ignore[no-untyped-def]
        ungrouped("minmax", group_size)
        if axis is None:
            return op.ReduceMin(x, keepdims=0), op.ReduceMax(x, keepdims=0)
        rank = len(x.shape)
        rest = op.Constant(value_ints=[d for d in range(rank) if d != axis % rank])
        return op.ReduceMin(x, rest, keepdims=0), op.ReduceMax(x, rest, keepdims=0)

    functions = (quantize, dequantize, fake_quantize, minmax)
    return {function.__name__: function for function in functions}
