"""`export.onnx`: from a model to one ONNX file whose numbers are the model's."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from sparseq.export.clean import clean
from sparseq.export.compare import Report, VerificationError, verify
from sparseq.export.describe import Accuracy, check_accuracy, metadata
from sparseq.export.lower import Lowering
from sparseq.export.opsets import OPSETS, oldest_format, to_opset
from sparseq.export.require import require
from sparseq.export.trace import DOMAIN, EXPORTERS, trace
from sparseq.export.translate import TARGETS
from sparseq.export.view import as_converted, check_tensorrt, check_types, quantised_layers
from sparseq.files import atomic_path

DEFAULT_OPSET = 21  # the first with INT4
LARGEST = 2**31 - 1  # bytes of one protobuf message


def _check(
    model: nn.Module,
    example: Tensor,
    target: str,
    exporter: str,
    opset: int | None,
    accuracy: object,
) -> int:
    if not isinstance(model, nn.Module):
        raise TypeError(f"export.onnx: model must be an nn.Module, got {type(model).__name__}")
    if not isinstance(example, Tensor) or example.dim() < 1:
        got = "a scalar" if isinstance(example, Tensor) else type(example).__name__
        raise TypeError(f"export.onnx: example must be a tensor with a batch dimension, got {got}")
    for name, value, known in (("target", target, TARGETS), ("exporter", exporter, EXPORTERS)):
        if value not in known:
            raise ValueError(f"export.onnx: {name} must be one of {known}, got {value!r}")
    check_accuracy(accuracy)
    if opset is None:
        return DEFAULT_OPSET
    if isinstance(opset, bool) or opset not in OPSETS:
        raise ValueError(
            f"export.onnx: opset must be from {OPSETS[0]} to {OPSETS[-1]}, got {opset!r}"
        )
    return opset


def onnx(
    model: nn.Module,
    example: Tensor,
    path: str | os.PathLike[str],
    *,
    target: str = "onnxruntime",
    exporter: str = "dynamo",
    dynamic_batch: bool = True,
    opset: int | None = None,
    accuracy: Accuracy | None = None,
    verify: bool | Iterable[Any] = True,
) -> Report | None:
    """Write a model as ONNX with quantised weights stored as integers.

    A prepared model is converted first. Each integer layer takes the form that its runtime has an
    integer kernel for; `export.kernels` tells which one. Weights are int8, or INT4 with 4 bits or
    fewer from opset 21 on (ONNX Runtime). 2:4 zeros stay zeros, and take their byte: ONNX's sparse
    tensors hold an int64 index a value, so a 2:4 weight would take 4.5 times as much, and ONNX
    Runtime makes them dense. Channels that were removed are not in the file. The graph's input is
    called "input", its output "output". The metadata hold sparseq's version, the target, the plan
    (`Plan.from_json(metadata["sparseq_plan"])`) and, if given, the accuracy.

    Args:
        model: float, prepared or converted; one tensor in, one out. Not changed.
        example: an input, any batch size.
        path: of the file; written aside and renamed.
        target: "onnxruntime": uint8 activations (signed ones shifted by 128), every integer layer
            in a form that its x86 kernels compute exactly; "tensorrt": int8 with zero point 0, Q/DQ
            around each layer.
        exporter: which of torch's traces the model: "dynamo", or "torchscript", deprecated there.
        dynamic_batch: leave the first dimension open.
        opset: version of ONNX's operators, 17 to 27; None takes 21.
        accuracy: noted in the file: a number, or names with numbers.
        verify: compare with ONNX Runtime (see `verify`) on `example`, or on these batches; a file
            that fails is not left. False does without.

    Returns:
        The comparison's report, or None without one.

    Raises:
        ValueError: a target, an exporter, an opset, a grid that the target cannot take, or a model
            that torch cannot export: an op without translation is named, with its module.
        TypeError: an argument of another type.
        VerificationError: ONNX Runtime's answers differ.
        OSError: the file cannot be written.
        ImportError: onnx, onnxscript or onnxruntime is missing.

    Reference:
        ONNX operators QuantizeLinear, DequantizeLinear, ConvInteger, MatMulInteger; Jacob et al.
        2018, section 2.
    """
    opset = _check(model, example, target, exporter, opset, accuracy)
    newest = require("onnx").defs.onnx_opset_version()
    if opset > newest:
        raise ValueError(
            f"export.onnx: opset must be at most {newest}, as the installed onnx has, got {opset}"
        )
    with atomic_path(
        path
    ) as temporary:  # first of all: a path that cannot be written fails at once
        integer = as_converted(model)
        check_types(integer, target)
        if target == "tensorrt":
            check_tensorrt(integer)
        built, calls = _build(
            integer, example.detach().cpu(), target, exporter, dynamic_batch, opset
        )
        built.metadata_props.update(metadata(integer, model, calls, target, exporter, accuracy))
        proto = _checked(built)
        temporary.write_bytes(proto.SerializeToString())
        if verify is False:
            return None
        return _verified(integer, temporary, [example] if verify is True else verify)


def _verified(model: nn.Module, path: os.PathLike[str], batches: Iterable[Any]) -> Report:
    report = verify(model, path, batches)
    if not report.passed:
        raise VerificationError(f"export.onnx: the file was not written: {report.reason}")
    return report


def _build(
    model: nn.Module, example: Tensor, target: str, exporter: str, dynamic_batch: bool, opset: int
) -> tuple[Any, dict[str, Any]]:
    """The onnx_ir model without metadata, and its layers' calls."""
    import sparseq

    view = copy.deepcopy(model).cpu().eval()
    layers = quantised_layers(view)
    traced = trace(view, layers, example, target, exporter, dynamic_batch, opset)
    clean(traced, rename=exporter == "torchscript")
    opaque = [node for node in traced.graph if node.domain == DOMAIN]
    calls = Lowering(traced.graph, layers, target, opset).run(opaque)
    traced.opset_imports.pop(DOMAIN, None)
    to_opset(traced, opset)
    used = {value.name for node in traced.graph for value in node.inputs if value is not None}
    for name in set(traced.graph.initializers) - used:
        del traced.graph.initializers[name]
    traced.producer_name, traced.producer_version = "sparseq", sparseq.__version__
    traced.ir_version = oldest_format(opset)
    return traced, calls


def _checked(model: Any) -> Any:
    """The ModelProto, with all shapes; onnx's checker has passed it."""
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    if size > LARGEST:
        raise ValueError(
            f"export.onnx: model must be smaller than 2 GiB in one ONNX file, got {size} bytes"
        )
    onnx_package, ir = require("onnx"), require("onnx_ir")
    proto = onnx_package.shape_inference.infer_shapes(ir.to_proto(model), strict_mode=True)
    onnx_package.checker.check_model(proto, full_check=True)
    return proto
