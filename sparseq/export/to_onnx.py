"""`export.onnx`: from a model to one ONNX file whose numbers are the model's."""

from __future__ import annotations

import ast
import json
import os
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from sparseq.export.compare import VerificationError, verify
from sparseq.export.require import require
from sparseq.export.translate import translations
from sparseq.export.view import as_converted, check_tensorrt, export_view, quantised_layers
from sparseq.export.weights import PRODUCTS, WeightForms
from sparseq.files import atomic_path
from sparseq.nn import SparseQuantLayer

TARGETS = ("onnxruntime", "tensorrt")
OPSETS = range(18, 24)
DEFAULT_OPSET = 21  # the first with INT4
_SCOPES = "pkg.torch.onnx.name_scopes"


def _check(model: nn.Module, example: Tensor, target: str, opset: int | None) -> int:
    if not isinstance(model, nn.Module):
        raise TypeError(f"export.onnx: model must be an nn.Module, got {type(model).__name__}")
    if not isinstance(example, Tensor) or example.dim() < 1:
        got = "a scalar" if isinstance(example, Tensor) else type(example).__name__
        raise TypeError(f"export.onnx: example must be a tensor with a batch dimension, got {got}")
    if target not in TARGETS:
        raise ValueError(f"export.onnx: target must be one of {TARGETS}, got {target!r}")
    if opset is None:
        return DEFAULT_OPSET
    if opset not in OPSETS:
        raise ValueError(
            f"export.onnx: opset must be from {OPSETS[0]} to {OPSETS[-1]}, got {opset!r}"
        )
    return opset


def _trace(view: nn.Module, example: Tensor, target: str, dynamic_batch: bool, opset: int) -> Any:
    """Torch's dynamo exporter on the view: an onnx_ir model."""
    require("onnxscript")
    table = {
        getattr(torch.ops.sparseq, name).default: function
        for name, function in translations(target).items()
    }
    shapes: Any = None
    if dynamic_batch:
        # torch.export takes a dimension of 1 for a constant
        example = torch.cat([example[:1], example[:1]])
        shapes = ({0: torch.export.Dim("batch")},)
    try:
        program = torch.onnx.export(
            view,
            (example,),
            dynamo=True,
            opset_version=opset,
            input_names=["input"],
            output_names=["output"],
            dynamic_shapes=shapes,
            custom_translation_table=table,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = str(cause).strip().partition("\n")[0]
        hint = "; try dynamic_batch=False" if dynamic_batch else ""
        raise ValueError(f"export.onnx: torch cannot export the model: {reason}{hint}") from error
    assert program is not None
    return program.model


def _layer_of(node: Any, layers: dict[str, SparseQuantLayer]) -> str | None:
    """The integer layer that a node belongs to."""
    scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    return next((scope for scope in scopes if scope in layers), None)


def _integer_source(value: Any) -> Any:
    """The integers that an activation was dequantised from, or None."""
    dequantize = value.producer()
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return None
    source = dequantize.inputs[0]
    is_quantised = source.producer() is not None and source.producer().op_type == "QuantizeLinear"
    return source if is_quantised else None


def _name_calls(graph: Any, layers: dict[str, SparseQuantLayer]) -> dict[str, dict[str, str]]:
    """Name the values that `verify` looks at after their layers.

    Returns:
        For each call of a layer (`name`, then `name@1`) in order of execution: the names of its
        output and, where that is quantised, of its integer input.
    """
    calls: dict[str, dict[str, Any]] = {}
    current: dict[str, str] = {}
    count: Counter[str] = Counter()
    for node in graph:
        name = _layer_of(node, layers)
        if name is None:
            continue
        if node.op_type in PRODUCTS:
            current[name] = f"{name}@{count[name]}" if count[name] else name
            count[name] += 1
            calls[current[name]] = {"output": node.outputs[0]}
            source = _integer_source(node.inputs[0])
            if source is not None:
                calls[current[name]]["input"] = source
        elif name in current and calls[current[name]]["output"] in node.inputs:
            if node.op_type in ("Add", "Cast", "Reshape"):  # a bias that is added apart, a dtype
                calls[current[name]]["output"] = node.outputs[0]
    named: set[int] = set()
    for call, values in calls.items():
        for role, value in values.items():
            if id(value) not in named and not value.is_graph_output():
                value.name = f"{call}.{role}"
                named.add(id(value))
    return {c: {role: value.name for role, value in v.items()} for c, v in calls.items()}


def _drop_notes(graph: Any) -> None:
    """Take out the exporter's metadata: they hold paths of source files."""
    for node in graph:
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
        value.metadata_props.clear()


def _describe(model: nn.Module, calls: dict[str, dict[str, str]]) -> str:
    """What the file's metadata says of each layer."""
    layers = quantised_layers(model)
    described = {}
    for name, values in calls.items():
        layer = layers[name.partition("@")[0]]
        described[name] = {
            "kind": type(layer).__name__,
            "weight": vars(layer.weight_spec),
            "input": layer.input_spec and vars(layer.input_spec),
            "values": values,
        }
    return json.dumps(described)


def onnx(
    model: nn.Module,
    example: Tensor,
    path: str | os.PathLike[str],
    *,
    target: str = "onnxruntime",
    dynamic_batch: bool = True,
    opset: int | None = None,
    verify: bool = True,
) -> None:
    """Write a model as ONNX with quantised weights stored as integers.

    A prepared model is converted first. Each integer layer becomes QuantizeLinear and
    DequantizeLinear around its Conv or Gemm: the form that runtimes put their integer kernels in.
    Weights are int8, or INT4 with 4 bits or fewer and opset 21 (ONNX Runtime). The graph's input
    is called "input", its output "output"; the metadata hold sparseq's version and each layer's
    scheme.

    Args:
        model: float, prepared or converted; one tensor in, one out. Not changed.
        example: an input, any batch size.
        path: of the file; written aside and renamed.
        target: "onnxruntime": signed activations are stored as uint8, shifted by 128, and weights
            in the form that its x86 kernels compute exactly; "tensorrt": int8 with zero point 0.
        dynamic_batch: leave the first dimension open.
        opset: version of ONNX's operators, 18 to 23; None takes 21.
        verify: compare with ONNX Runtime on `example` (see `verify`); a file that fails is not
            left.

    Raises:
        ValueError: a target, an opset, a grid that the target cannot take, or a model that torch
            cannot export.
        TypeError: model or example is of another type.
        VerificationError: ONNX Runtime's answers differ.
        OSError: the file cannot be written.
        ImportError: onnx, onnxscript or onnxruntime is missing.

    Reference:
        ONNX operators QuantizeLinear, DequantizeLinear; Jacob et al. 2018, section 2.
    """
    opset = _check(model, example, target, opset)
    with atomic_path(
        path
    ) as temporary:  # first of all: a path that cannot be written fails at once
        integer = as_converted(model)
        if target == "tensorrt":
            check_tensorrt(integer)
        proto = _build(integer, example.detach().cpu(), target, dynamic_batch, opset)
        temporary.write_bytes(proto.SerializeToString())
        if verify:
            _verified(integer, temporary, example)


def _verified(model: nn.Module, path: os.PathLike[str], example: Tensor) -> None:
    report = verify(model, path, [example])
    if not report.passed:
        raise VerificationError(f"export.onnx: the file was not written: {report.reason}")


def _build(model: nn.Module, example: Tensor, target: str, dynamic_batch: bool, opset: int) -> Any:
    """The checked ModelProto."""
    import sparseq

    onnx_package, ir = require("onnx"), require("onnx_ir")
    view = export_view(model)
    layers = quantised_layers(view)
    traced = _trace(view, example, target, dynamic_batch, opset)
    weights = [
        (node, layers[name])
        for node in traced.graph
        if (name := _layer_of(node, layers)) is not None
        and node.op_type == "DequantizeLinear"
        and node.inputs[0].is_initializer()
    ]
    calls = _name_calls(traced.graph, layers)
    _drop_notes(traced.graph)
    forms = WeightForms(traced.graph, target, opset)
    for node, layer in weights:
        forms.apply(node, layer)
    used = {value.name for node in traced.graph for value in node.inputs if value is not None}
    for name in set(traced.graph.initializers) - used:
        del traced.graph.initializers[name]
    traced.producer_name, traced.producer_version = "sparseq", sparseq.__version__
    traced.metadata_props.clear()
    traced.metadata_props.update(
        sparseq_version=sparseq.__version__,
        sparseq_target=target,
        sparseq_layers=_describe(model, calls),
    )
    proto = onnx_package.shape_inference.infer_shapes(ir.to_proto(traced), strict_mode=True)
    onnx_package.checker.check_model(proto, full_check=True)
    return proto
