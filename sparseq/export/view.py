"""The model as it is traced for export: each integer layer as Q/DQ around its float function."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from sparseq.flow.convert import convert
from sparseq.nn import SparseQuantLayer, SparseQuantLinear
from sparseq.quant import FakeQuantize
from sparseq.spec import Quant

_ops = torch.ops.sparseq


def quantised_layers(model: nn.Module) -> dict[str, SparseQuantLayer]:
    """The integer layers of a converted model, by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, SparseQuantLayer)}


def quantised_by_rows(layer: SparseQuantLayer) -> bool:
    """Whether each row of a layer's input has a grid of its own: the file then holds a matrix."""
    dynamic = layer.input_spec is not None and layer.input_scale is None
    return dynamic and isinstance(layer, SparseQuantLinear)


def as_converted(model: nn.Module) -> nn.Module:
    """The model with integer layers where it was prepared; a converted or float one as it is."""
    prepared = any(isinstance(m, FakeQuantize) for m in model.modules())
    return convert(model) if prepared and not quantised_layers(model) else model


def _traced_forward(layer: SparseQuantLayer) -> Callable[[Tensor], Tensor]:
    """What `layer.forward` computes, in ops that have an ONNX translation."""
    shape = tuple(layer.weight_values.shape)
    if layer.weight_scale.dim() == 2:  # one row a group, so that ONNX sees scales per row
        rows = layer.weight_scale.numel()
        layer.weight_values = layer.weight_values.reshape(rows, -1)
        layer.weight_scale = layer.weight_scale.reshape(rows)
        if layer.weight_zero_point is not None:
            layer.weight_zero_point = layer.weight_zero_point.reshape(rows)
    if layer.input_scale is not None and layer.input_zero_point is not None:
        layer.input_scale = layer.input_scale.reshape(())
        layer.input_zero_point = layer.input_zero_point.reshape(())

    by_rows = quantised_by_rows(layer)

    def forward(x: Tensor) -> Tensor:
        wide, spec = x.float(), layer.input_spec
        if by_rows:
            wide = _rounded_rows(layer, wide.reshape(-1, shape[1]))
        elif spec is not None:
            scale, zero_point = layer.input_grid(wide)
            wide = _ops.fake_quantize(
                wide, scale, zero_point, spec.quant_min, spec.quant_max, None, None, 1.0
            )
        weight = _ops.dequantize(
            layer.weight_values, layer.weight_scale, layer.weight_zero_point, 0, None, torch.float32
        )
        y = layer.float_kernel(wide, weight.reshape(shape)).to(x.dtype)
        return y.reshape(*x.shape[:-1], shape[0]) if by_rows else y

    return forward


def _rounded_rows(layer: SparseQuantLayer, rows: Tensor) -> Tensor:
    """Rows on grids of their own: in ONNX one scale and zero point along axis 0.

    The integers take all of their type there, so what a narrower range would cut off is cut off
    before.
    """
    assert layer.input_spec is not None and layer.input_limits is not None
    low, high = layer.input_limits
    scale, zero_point = layer.input_grid(rows)
    if layer.input_spec.bits < 8:
        rows = torch.maximum(rows, (low - zero_point) * scale)
        rows = torch.minimum(rows, (high - zero_point) * scale)
    full = (-128, 127) if low < 0 else (0, 255)
    return _ops.fake_quantize(rows, scale[:, 0], zero_point[:, 0], *full, 0, None, 1.0)


def export_view(model: nn.Module) -> nn.Module:
    """A copy of a converted model, on the CPU, whose integer layers trace to exportable ops."""
    view = copy.deepcopy(model).cpu().eval()
    for layer in quantised_layers(view).values():
        layer.forward = _traced_forward(layer)  # type: ignore[assignment, method-assign]
    return view


def _grids(model: nn.Module) -> Iterator[tuple[str, str, Quant]]:
    for name, module in model.named_modules():
        if isinstance(module, SparseQuantLayer):
            yield name, "weight", module.weight_spec
            if module.input_spec is not None:
                yield name, "input", module.input_spec
        elif isinstance(module, FakeQuantize):
            yield name.removesuffix(".input_quantizer"), "input", module.spec


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
