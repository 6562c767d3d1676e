"""Each op of sparseq in terms of ONNX operators: written once, for both of torch's exporters.

An exporter is seen through a `Builder`. `NOT_EXPORTED` names the ops that have no place in an
inference graph; every op is there or in `meanings`, exactly once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from sparseq.export.require import require

NOT_EXPORTED = frozenset(
    {
        # gradients
        "fake_quantize_backward",
        "fake_quantize_learned_backward",
        # what calibration and training look at
        "histogram",
        "fake_quantize_observed",
        # how bytes are laid out in sparseq's own files; ONNX has INT4 tensors
        "pack_int4",
        "unpack_int4",
        # inside an integer layer, which `sparseq.export.lower` writes as a whole
        "int8_conv2d",
        "int8_linear",
        "int4_linear",
        # ONNX has no 2:4 product
        "linear_24",
        # the weight as one machine's kernels read it
        "int8_tiles",
        "tiles_24",
        # a lowered model's: it is exported as the layers that it came from
        "network",
        # made once, before or after the graph: ONNX has no 2:4 tensors, its runtimes find the zeros
        "mask_24",
        "pack_24",
        "unpack_24",
    }
)

TARGETS = ("onnxruntime", "tensorrt")

# TensorProto.DataType
FLOAT, UINT8, INT8, FLOAT16, BFLOAT16 = 1, 2, 3, 10, 16
_HALVES = {torch.float16: FLOAT16, torch.bfloat16: BFLOAT16}

_NON_NEGATIVE = ("Relu", "Sigmoid", "Softmax", "Abs", "HardSigmoid")
_KEEP_SIGN = ("MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean", "Reshape", "Transpose",
              "Flatten", "Squeeze", "Unsqueeze", "Identity")  # fmt: skip


class Builder(Protocol):
    """What the two exporters have in common; values are the exporter's own."""

    def op(self, kind: str, *inputs: Any, **attributes: Any) -> Any:
        """Add a node of one output; inputs are values, numbers (float32 constants) or None."""

    def ints(self, values: list[int]) -> Any:
        """A constant of int64."""

    def dtype(self, value: Any) -> int | None:
        """Element type, as in TensorProto; None where unknown."""

    def rank(self, value: Any) -> int:
        """Number of dimensions."""

    def source(self, value: Any) -> tuple[str, Any] | None:
        """Kind and first input of the node that makes value; None for inputs of the graph."""


class Sources(Protocol):
    """Where a value comes from: a Builder, or a graph that is finished."""

    def source(self, value: Any) -> tuple[str, Any] | None:
        """As a Builder's."""


def non_negative(build: Sources, x: Any) -> bool:
    """Whether x is the result of something that has no negative values."""
    made = build.source(x)
    while made is not None and made[0] in _KEEP_SIGN:
        made = build.source(made[1])
    return made is not None and made[0] in _NON_NEGATIVE


def check_target(caller: str, target: str) -> None:
    """ValueError unless target is one of TARGETS."""
    if target not in TARGETS:
        raise ValueError(f"{caller}: target must be one of {TARGETS}, got {target!r}")


class Meanings:
    """The ops on one builder; a method an op, with the op's arguments.

    Args:
        build: an exporter.
        target: "onnxruntime" puts signed activations on uint8, shifted by 128 (the same numbers):
            its x86 kernels take unsigned activations. "tensorrt" leaves them on int8.
    """

    def __init__(self, build: Builder, target: str) -> None:
        self.build, self.unsigned = build, target == "onnxruntime"

    def quantize(
        self,
        x: Any,
        scale: Any,
        zero: Any,
        low: int,
        high: int,
        axis: Any = None,
        group: Any = None,
    ) -> Any:
        """`clamp(rne(x / scale) + zero, low, high)`."""
        if group is not None:
            raise ValueError("quantize: group_size has no ONNX form for an activation")
        rank = 0 if axis is None else self.build.rank(x)
        x, zero = self._grid(self._float(x), scale, zero, low, high, axis, rank, shift=False)
        return self.build.op("QuantizeLinear", x, scale, zero, **_around(axis))

    def fake_quantize(
        self,
        x: Any,
        scale: Any,
        zero: Any,
        low: int,
        high: int,
        axis: Any = None,
        group: Any = None,
        grad_factor: Any = 1.0,
    ) -> Any:
        """`dequantize(quantize(x))`."""
        kind, whole = self.build.dtype(x), x
        rank = 0 if axis is None else self.build.rank(x)
        x = self._float(x)
        if group is not None:
            x, scale, zero = self._rows(x, scale, zero, group)
            axis, rank = 0, 2
        shift = self.unsigned and axis is None
        x, zero = self._grid(x, scale, zero, low, high, axis, rank, shift)
        q = self.build.op("QuantizeLinear", x, scale, zero, **_around(axis))
        y = self.build.op("DequantizeLinear", q, scale, zero, **_around(axis))
        if group is not None:
            y = self.build.op("Reshape", y, self.build.op("Shape", whole))
        return self.build.op("Cast", y, to=kind) if kind in (FLOAT16, BFLOAT16) else y

    def dequantize(
        self, q: Any, scale: Any, zero: Any, axis: Any = None, group: Any = None, dtype: Any = None
    ) -> Any:
        """`(q - zero) * scale`."""
        whole = q
        if zero is not None:
            zero = self.build.op("Cast", zero, to=self.build.dtype(q))
        if group is not None:
            q, scale, zero = self._rows(q, scale, zero, group)
            axis = 0
        y = self.build.op("DequantizeLinear", q, scale, zero, **_around(axis))
        if group is not None:
            y = self.build.op("Reshape", y, self.build.op("Shape", whole))
        return self.build.op("Cast", y, to=_HALVES[dtype]) if dtype in _HALVES else y

    def minmax(self, x: Any, axis: Any = None, group: Any = None) -> tuple[Any, Any]:
        """Least and greatest value: of all, or a value a channel or a group."""
        rank, x = self.build.rank(x), self._float(x)
        if group is not None:
            if axis is not None and rank > 1 and axis % rank == 0:  # a channel's elements, flat
                x, rank = self.build.op("Reshape", x, self.build.ints([0, -1])), 2
            x = self.build.op("Reshape", x, self.build.ints([0] * (rank - 1) + [-1, group]))
            return self._reduced(x, [rank])
        return self._reduced(
            x, [] if axis is None else [d for d in range(rank) if d != axis % rank]
        )

    def _reduced(self, x: Any, axes: list[int]) -> tuple[Any, Any]:
        over = [self.build.ints(axes)] if axes else []
        low, high = (
            self.build.op(f"Reduce{kind}", x, *over, keepdims=0) for kind in ("Min", "Max")
        )
        return low, high

    def _float(self, x: Any) -> Any:
        """QuantizeLinear takes float32 in every opset, halves only in later ones."""
        kind = self.build.dtype(x)
        return self.build.op("Cast", x, to=FLOAT) if kind in (FLOAT16, BFLOAT16) else x

    def _rows(self, x: Any, scale: Any, zero: Any, group: int) -> tuple[Any, Any, Any]:
        """Groups are neighbours in row-major order: one row each."""
        flat = self.build.ints([-1])
        zero = None if zero is None else self.build.op("Reshape", zero, flat)
        rows = self.build.op("Reshape", x, self.build.ints([-1, group]))
        return rows, self.build.op("Reshape", scale, flat), zero

    def _grid(
        self,
        x: Any,
        scale: Any,
        zero: Any,
        low: int,
        high: int,
        axis: int | None,
        rank: int,
        shift: bool,
    ) -> tuple[Any, Any]:
        """X clamped to the grid where its range is narrower than its type's, and the zero point."""
        kind, least, greatest, gain = storage(low, shift)
        op = self.build.op
        if zero is None:
            wide = op("Mul", scale, 0.0)
        elif self.build.dtype(zero) == FLOAT:  # learned
            wide = op("Clip", op("Round", zero), float(low), float(high))
        else:
            wide = op("Cast", zero, to=FLOAT)
        if low > least and not (axis is None and non_negative(self.build, x)):
            x = self._cut("Max", x, op("Mul", op("Sub", float(low), wide), scale), axis, rank)
        if high < greatest:
            x = self._cut("Min", x, op("Mul", op("Sub", float(high), wide), scale), axis, rank)
        return x, op("Cast", op("Add", wide, float(gain)) if gain else wide, to=kind)

    def _cut(self, kind: str, x: Any, bound: Any, axis: int | None, rank: int) -> Any:
        if axis is not None:
            shape = [-1 if d == axis % rank else 1 for d in range(rank)]
            bound = self.build.op("Reshape", bound, self.build.ints(shape))
        return self.build.op(kind, x, bound)


def _around(axis: int | None) -> dict[str, int]:
    return {} if axis is None else {"axis": axis}


def storage(low: int, shift: bool) -> tuple[int, int, int, int]:
    """Element type that holds the grid, its range, and what the zero point gains in it."""
    if low >= 0:
        return UINT8, 0, 255, 0
    return (UINT8, -128, 127, 128) if shift else (INT8, -128, 127, 0)


OPS = ("quantize", "dequantize", "fake_quantize", "minmax")


class _Dynamo:
    """Torch's dynamo exporter, through onnxscript."""

    def __init__(self) -> None:
        self.opset = require("onnxscript").opset18

    def op(self, kind: str, *inputs: Any, **attributes: Any) -> Any:
        return getattr(self.opset, kind)(*inputs, **attributes)

    def ints(self, values: list[int]) -> Any:
        return self.opset.Constant(value_ints=values)

    def dtype(self, value: Any) -> int | None:
        return None if value.dtype is None else int(value.dtype)

    def rank(self, value: Any) -> int:
        return len(value.shape)

    def source(self, value: Any) -> tuple[str, Any] | None:
        node = value.producer()
        return None if node is None else (node.op_type, node.inputs[0] if node.inputs else None)


def translations(target: str = "onnxruntime") -> dict[Callable[..., Any], Callable[..., Any]]:
    """Sparseq's ops for torch's dynamo exporter, to export a prepared model with it yourself.

    `torch.onnx.export(model, args, "m.onnx", custom_translation_table=translations())`: the file
    then holds float weights with QuantizeLinear and DequantizeLinear behind them, which is the form
    that other tools know. `sparseq.export.onnx` writes the integers themselves.

    Args:
        target: as for `sparseq.export.onnx`.

    Returns:
        Op -> function that builds its ONNX nodes.

    Raises:
        ValueError: another target.
        ImportError: onnxscript is missing.
    """
    check_target("translations", target)
    meanings = Meanings(_Dynamo(), target)

    # the exporter reads the parameters' names: they must be the op's
    def quantize(x, scale, zero_point, quant_min, quant_max, axis=None, group_size=None):  # type: ignore[no-untyped-def]
        return meanings.quantize(x, scale, zero_point, quant_min, quant_max, axis, group_size)

    def dequantize(q, scale, zero_point, axis=None, group_size=None, dtype=None):  # type: ignore[no-untyped-def]
        return meanings.dequantize(q, scale, zero_point, axis, group_size, dtype)

    def fake_quantize(  # type: ignore[no-untyped-def]
        x, scale, zero_point, quant_min, quant_max, axis=None, group_size=None, grad_factor=1.0
    ):
        return meanings.fake_quantize(
            x, scale, zero_point, quant_min, quant_max, axis, group_size, grad_factor
        )

    def minmax(x, axis=None, group_size=None):  # type: ignore[no-untyped-def]
        return meanings.minmax(x, axis, group_size)

    functions = (quantize, dequantize, fake_quantize, minmax)
    return {getattr(torch.ops.sparseq, f.__name__).default: f for f in functions}
