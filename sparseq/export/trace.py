"""Torch's two exporters, each run on a model whose integer layers are opaque: one node a layer.

A layer becomes `sparseq.export::Layer(x[, scale, zero_point], name=, rank=, dtype=)`. What torch
does with the rest of the graph is its own affair; what a layer is in ONNX is decided in one place,
for both exporters, afterwards (`sparseq.export.lower`). Scale and zero point are there where the
input has no fixed grid: they are computed in the graph.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sparseq.export.failure import reason_of
from sparseq.export.require import require
from sparseq.export.symbolics import (
    TORCHSCRIPT_OPSETS,
    TorchScript,
    available,
    constant_of,
    register_symbolics,
)
from sparseq.export.translate import FLOAT, translations
from sparseq.nn import SparseQuantConvTranspose2d, SparseQuantEmbedding, SparseQuantLayer
from sparseq.sparse import swap_channels

DOMAIN, OPAQUE = "sparseq.export", "Layer"
EXPORTERS = ("dynamo", "torchscript")
DYNAMO_OPSETS = range(18, 26)  # what torch's dynamo exporter writes, by onnxscript's converter

_EXPECTED_WARNINGS = (  # of the TorchScript exporter; those about the user's model go through
    "You are using the legacy TorchScript-based ONNX export",
    "The feature will be removed",
    "Constant folding",
)

_layers: dict[str, SparseQuantLayer] = {}  # of the model that is being traced


@torch.library.custom_op(
    "sparseq_export::layer",
    mutates_args=(),
    schema="(Tensor x, Tensor? scale, Tensor? zero_point, str name) -> Tensor",
)
def _layer(x: Tensor, scale: Tensor | None, zero_point: Tensor | None, name: str) -> Tensor:
    return _layers[name](x)


@_layer.register_fake
def _(x: Tensor, scale: Tensor | None, zero_point: Tensor | None, name: str) -> Tensor:
    layer = _layers[name]
    shape = layer.weight_values.shape
    if isinstance(layer, SparseQuantEmbedding):
        return x.new_empty((*x.shape, shape[1]), dtype=layer.dtype)
    if len(shape) == 2:
        return x.new_empty((*x.shape[:-1], shape[0]))
    weight = x.new_empty(shape)
    if isinstance(layer, SparseQuantConvTranspose2d):
        weight = swap_channels(weight, layer.arguments["groups"])
        return functional.conv_transpose2d(x, weight, None, **layer.arguments)
    function = functional.conv1d if len(shape) == 3 else functional.conv2d
    return function(x, weight, None, **layer.arguments)


class _Opaque(nn.Module):
    """Stands for an integer layer in the traced model."""

    def __init__(self, name: str, layer: SparseQuantLayer) -> None:
        super().__init__()
        self.name = name
        self.grid = None
        if layer.input_spec is not None and layer.input_scale is None:
            self.grid = layer.input_grid

    def forward(self, x: Tensor) -> Tensor:
        scale, zero_point = (None, None) if self.grid is None else self.grid(x.float())
        return _layer(x, scale, zero_point, self.name)


@contextmanager
def _opaque(model: nn.Module, layers: dict[str, SparseQuantLayer]) -> Iterator[nn.Module]:
    """The model with opaque layers, for as long as it is traced."""
    if model in layers.values():
        model = nn.Sequential(_Opaque("", layers[""])).eval()
    else:
        for name in layers:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, _Opaque(name, layers[name]))
    _layers.update(layers)
    try:
        yield model
    finally:
        _layers.clear()


def _layer_in_torchscript(g: Any, x: Any, scale: Any, zero_point: Any, name: Any) -> Any:
    """The opaque node; its type is the fake kernel's business in the other exporter, ours here."""
    grid = [] if scale.node().mustBeNone() else [scale, zero_point]
    text, seen = constant_of(name), TorchScript(g)
    attributes = {"rank": seen.rank(x), "dtype": seen.dtype(x) or FLOAT}
    y = seen.op(f"{DOMAIN}::{OPAQUE}", x, *grid, **attributes, name=text)
    layer = _layers[text]
    weight = layer.weight_values
    sizes: list[int | None] = [None] * seen.rank(x)
    if isinstance(layer, SparseQuantEmbedding):
        y.setType(x.type().with_dtype(layer.dtype).with_sizes([*sizes, weight.shape[1]]))
        return y
    sizes[-1 if weight.dim() == 2 else 1] = weight.shape[0]
    y.setType(x.type().with_sizes(sizes))
    return y


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch from printing its whole graph when an op has no translation."""
    name = "_jit_onnx_log"
    log = getattr(torch._C, name, None)
    if log is None:
        yield
        return
    setattr(torch._C, name, lambda *arguments: None)
    try:
        yield
    finally:
        setattr(torch._C, name, log)


def by_torchscript(
    model: nn.Module,
    layers: dict[str, SparseQuantLayer],
    example: Tensor,
    target: str,
    dynamic_batch: bool,
    opset: int,
) -> Any:
    """The graph as the TorchScript exporter traces it: an onnx_ir model."""
    ir = require("onnx_ir")
    file = io.BytesIO()
    axes = {"input": {0: "batch"}, "output": {0: "batch"}} if dynamic_batch else None
    with _opaque(model, layers) as opaque, warnings.catch_warnings(), _quiet():
        for text in _EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", text)
        # sparseq's own looks at shapes; those of the user's model are for the user to see
        tracer = torch.jit.TracerWarning  # type: ignore[attr-defined]
        warnings.filterwarnings("ignore", category=tracer, module=r"sparseq\.")
        register_symbolics(target)
        torch.onnx.register_custom_op_symbolic(  # type: ignore[attr-defined]
            "sparseq_export::layer", _layer_in_torchscript, TORCHSCRIPT_OPSETS[0]
        )
        torch.onnx.export(
            opaque,
            (example,),
            file,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=_nearest(opset, TORCHSCRIPT_OPSETS),
            input_names=["input"],
            output_names=["output"],
            dynamic_axes=axes,
            custom_opsets={DOMAIN: 1} if layers else None,
        )
    return ir.from_proto(require("onnx").load_model_from_string(file.getvalue()))


def _opaque_operator() -> Any:
    """The opaque node as an onnxscript operator."""
    defs, values = require("onnx").defs, require("onnxscript").values
    schema = defs.OpSchema
    optional = schema.FormalParameterOption.Optional
    floats = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"]
    layer = schema(
        OPAQUE,
        DOMAIN,
        1,
        inputs=[
            schema.FormalParameter("x", "T"),
            schema.FormalParameter("scale", "tensor(float)", param_option=optional),
            schema.FormalParameter("zero_point", "tensor(int32)", param_option=optional),
        ],
        outputs=[schema.FormalParameter("y", "U")],
        type_constraints=[
            ("T", [*floats, "tensor(int32)", "tensor(int64)"], ""),
            ("U", floats, ""),
        ],
        attributes=[
            schema.Attribute("name", schema.AttrType.STRING),
            schema.Attribute("rank", schema.AttrType.INT),
            schema.Attribute("dtype", schema.AttrType.INT),
        ],
    )
    return values.Op(values.Opset(DOMAIN, 1), OPAQUE, layer)


def by_dynamo(
    model: nn.Module,
    layers: dict[str, SparseQuantLayer],
    example: Tensor,
    target: str,
    dynamic_batch: bool,
    opset: int,
) -> Any:
    """The graph as the dynamo exporter traces it: an onnx_ir model."""
    node = _opaque_operator()

    def layer(x, scale, zero_point, name):  # type: ignore[no-untyped-def]
        return node(x, scale, zero_point, name=name, rank=len(x.shape), dtype=int(x.dtype))

    table: dict[Any, Any] = {torch.ops.sparseq_export.layer.default: layer, **translations(target)}
    shapes: Any = None
    if dynamic_batch:
        # torch.export takes a dimension of 1 for a constant
        example = torch.cat([example[:1], example[:1]])
        shapes = ({0: torch.export.Dim("batch")},)
    with _opaque(model, layers) as opaque:
        program = torch.onnx.export(
            opaque,
            (example,),
            dynamo=True,
            opset_version=_nearest(opset, DYNAMO_OPSETS),
            input_names=["input"],
            output_names=["output"],
            dynamic_shapes=shapes,
            custom_translation_table=table,
            verbose=False,
        )
    assert program is not None
    return program.model


def _nearest(opset: int, known: range) -> int:
    return min(max(opset, known[0]), known[-1])


def trace(
    model: nn.Module,
    layers: dict[str, SparseQuantLayer],
    example: Tensor,
    target: str,
    exporter: str,
    dynamic_batch: bool,
    opset: int,
) -> Any:
    """The graph with opaque layers: an onnx_ir model.

    Args:
        model: converted or float, on the CPU; its layers are replaced.
        layers: its integer layers, by name.
        example: an input.
        target: as for `sparseq.export.onnx`.
        exporter: "dynamo" or "torchscript".
        dynamic_batch: leave the first dimension open.
        opset: wanted; the graph may be in the nearest that the exporter writes.

    Raises:
        ValueError: torch cannot export the model.
        ImportError: onnx or onnxscript is missing.
    """
    for package in ("onnx", "onnx_ir", "onnxscript"):
        require(package)
    run = by_dynamo
    if exporter == "torchscript":
        if not available():
            raise ValueError(
                "export.onnx: exporter 'torchscript' is gone from this torch; take 'dynamo'"
            )
        run = by_torchscript
    try:
        traced = run(model, layers, example, target, dynamic_batch, opset)
    except ImportError:
        raise
    except Exception as error:  # torch's, and whatever the user's model raises
        reason = reason_of(error, model, example)
        hint = "; try dynamic_batch=False" if dynamic_batch and "translation" not in reason else ""
        raise ValueError(f"export.onnx: torch cannot export the model: {reason}{hint}") from error
    if len(traced.graph.outputs) != 1:
        raise ValueError(
            f"export.onnx: model must return one tensor, got {len(traced.graph.outputs)}"
        )
    return traced
