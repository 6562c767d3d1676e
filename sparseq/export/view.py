"""The model that is exported, and what a target asks of it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from sparseq.flow.convert import convert
from sparseq.flow.precision import own_dtype
from sparseq.lower import layerwise
from sparseq.nn import SparseQuantLayer, SparseQuantLinear
from sparseq.quant import Cast, FakeQuantize
from sparseq.spec import Quant


def quantised_layers(model: nn.Module) -> dict[str, SparseQuantLayer]:
    """The integer layers of a converted model, by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, SparseQuantLayer)}


def quantised_by_rows(layer: SparseQuantLayer) -> bool:
    """Whether each row of a layer's input has a grid of its own: the file then holds a matrix."""
    dynamic = layer.input_spec is not None and layer.input_scale is None
    return dynamic and isinstance(layer, SparseQuantLinear)


def as_converted(model: nn.Module) -> nn.Module:
    """The model with integer layers where it was prepared; a converted or float one as it is.

    Of a lowered model the layers: a file has its own runtime's programs.
    """
    model = layerwise(model)
    prepared = any(isinstance(m, (Cast, FakeQuantize)) for m in model.modules())
    return convert(model) if prepared and not quantised_layers(model) else model


def _grids(model: nn.Module) -> Iterator[tuple[str, str, Quant]]:
    for name, module in model.named_modules():
        if isinstance(module, SparseQuantLayer):
            yield name, "weight", module.weight_spec
            if module.input_spec is not None:
                yield name, "input", module.input_spec
        elif isinstance(module, FakeQuantize):
            yield name.removesuffix(".input_quantizer"), "input", module.spec


def check_types(model: nn.Module, target: str) -> None:
    """ValueError, naming the layer, where a target has no kernels for the type of a layer."""
    for name, module in model.named_modules():
        if own_dtype(module) == torch.bfloat16 and target == "onnxruntime":
            raise ValueError(
                "export.onnx: target 'onnxruntime' has no bfloat16 kernels on a CPU: "
                f"{name} computes in it; use float16"
            )


def check_tensorrt(model: nn.Module) -> None:
    """ValueError, naming the layer, where TensorRT does not take a grid."""
    for name, what, spec in _grids(model):
        if not (spec.symmetric and spec.signed):
            raise ValueError(
                f"export.onnx: target 'tensorrt' takes symmetric signed grids (zero point 0) only: "
                f"the {what} of {name} has {spec}"
            )
    for name, layer in quantised_layers(model).items():
        if layer.input_spec is not None and layer.input_scale is None:
            raise ValueError(
                f"export.onnx: target 'tensorrt' needs a fixed input range: the input of {name} "
                f"takes {layer.own_range.removesuffix(' range')}; calibrate it"
            )
