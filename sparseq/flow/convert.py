"""`convert`: from a prepared model to one that runs on integers. The one swap."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparseq.flow.dense import remember
from sparseq.flow.fold import batch_norms
from sparseq.flow.precision import lift, own_dtype, store
from sparseq.flow.prepare import (
    layers_of,
    leave_fused_paths,
    original_weight,
    transform_of,
    weight_transforms,
)
from sparseq.flow.resize import in_format_of, pass_on_sizes
from sparseq.lower import lower
from sparseq.nn import InputGrid, SparseQuantLayer, integer_type, outputs_first, own_forward
from sparseq.nn.batch_norm import affine_of
from sparseq.packed import PackedWeight
from sparseq.quant import FakeQuantize
from sparseq.sparse import named_masks


def set_module(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Replace a submodule under every name it has; returns the root, which may be the new one."""
    old = model.get_submodule(name)
    pass_on_sizes(old, module)
    if old is model:
        return module
    for parent in list(model.modules()):
        for child, held in list(parent._modules.items()):
            if held is old:
                setattr(parent, child, module)
                if isinstance(parent, nn.TransformerEncoderLayer):
                    parent.activation_relu_or_gelu = 0  # keeps torch off its fused float path
    return model


def _bake(layer: nn.Module) -> None:
    """Make a parametrised layer plain, on its weight as computed.

    torch's remove_parametrizations would alter the class, which a deep copy shares with its
    original.
    """
    kind = parametrize.type_before_parametrizations(layer)
    parametrized: nn.ModuleDict = layer.parametrizations  # type: ignore[assignment]
    values = {name: getattr(layer, name).detach() for name in parametrized}
    del layer.parametrizations
    layer.__class__ = kind
    for name, value in values.items():
        setattr(layer, name, nn.Parameter(value))


def _integer_layer(name: str, layer: nn.Module) -> SparseQuantLayer | str:
    """The integer module for a prepared layer, or why it stays float."""
    quantizer = transform_of(layer, FakeQuantize)
    dtype = own_dtype(layer)
    if dtype is not None:
        return f"{str(dtype).removeprefix('torch.')} by the plan"
    if quantizer is None:
        return getattr(layer, "sparseq_reason", "no weight quantiser in the plan")
    kind = integer_type(layer)
    assert kind is not None
    refusal = own_forward(layer, kind.float_type) or kind.refusal(layer)
    if refusal:
        return refusal
    with torch.no_grad():
        chain = weight_transforms(layer)
        weight = original_weight(layer)
        for transform in chain[: chain.index(quantizer)]:
            weight = transform(weight)
        quantizer(weight)  # the grid follows the weight as it is now
        values, scale, zero_point = quantizer.quantized(weight)
        packed = PackedWeight.from_integers(values, scale, zero_point, quantizer.spec)
    grid = None
    if hasattr(layer, "input_quantizer"):
        observed: FakeQuantize = layer.input_quantizer  # type: ignore[assignment]
        if not observed.known():
            raise ValueError(
                f"convert: the input of {name} has no range yet: run calibrate(model, batches) or "
                "train first"
            )
        if observed.spec.dynamic:
            return kind(packed, layer.bias, InputGrid(observed.spec), layer)  # type: ignore[arg-type]
        scale, zero_point = observed.grid()
        if zero_point is not None:
            spec = observed.spec
            zero_point = zero_point.detach().round().clamp(spec.quant_min, spec.quant_max).int()
        grid = InputGrid(observed.spec, scale.detach().clone(), zero_point)
    return kind(packed, getattr(layer, "bias", None), grid, layer)


def _fold(layer: nn.Module, factor: Tensor, shift: Tensor) -> None:
    """Make `layer` compute `factor * layer(x) + shift`."""
    bias = getattr(layer, "bias", None)
    folded = shift if bias is None else bias.detach() * factor + shift
    if isinstance(layer, SparseQuantLayer):
        layer.set_weight(layer.packed().scaled(factor))
        layer.bias = folded
    else:
        weight: Tensor = layer.weight  # type: ignore[assignment]
        rows = outputs_first(layer, weight.detach())
        per_row = factor.reshape([-1] + [1] * (weight.dim() - 1)).to(weight.dtype)
        scaled = outputs_first(layer, rows * per_row).contiguous()
        layer.weight = nn.Parameter(in_format_of(weight, scaled))
        layer.bias = nn.Parameter(folded.to(weight.dtype))


@torch.no_grad()
def convert(model: nn.Module, example: Tensor | None = None) -> nn.Module:
    """Swap a prepared model's layers for integer ones; masks are baked in, batch norms folded.

    With an example the layers are also lowered into programs (`sparseq.lower`): activations stay
    uint8 between them, and what follows a layer is part of it. What reads an activation beside the
    next layer (a residual sum, a mean) then reads it rounded to that layer's grid, half a step off
    at most. docs/lowering.md.

    A batch norm that directly follows a layer becomes part of its scales and bias: the integers
    stay as trained, so zeros stay zeros and no rounding is added. What cannot run on integers
    computes in float on the same fake-quantised weight; `explain` says which and why. Layers with a
    dtype keep their parameters in it, rounded after the batch norm became part of them.

    Args:
        model: prepared, and calibrated or trained; not changed.
        example: an input of the batch size to be used; where given, the converted model is run on
            it once, each layer chooses its kernel for as many rows (`sparseq.choice`), and the
            model is traced and lowered.

    Returns:
        A new model in eval mode: with an example a `sparseq.lower.Lowered`, or, where it cannot be
        lowered, the layers, with the reason in `explain`.

    Raises:
        ValueError: an input without a range, a mask without its ranking, or a weight too large for
            its layer's dtype.
    """
    for name, (mask, _) in named_masks(model).items():
        if mask.needs_data and not mask.settled:
            raise ValueError(
                f"convert: the mask of {name} was not ranked yet: run update_masks(model, "
                "scores=sparse.score(model, batches)) or a PruningSchedule first"
            )
    fast = copy.deepcopy(model).eval()
    remember(fast)
    pairs, untraced = batch_norms(fast)
    for name, layer in layers_of(fast).items():
        swapped = _integer_layer(name, layer)
        if isinstance(swapped, str):
            if parametrize.is_parametrized(layer, "weight"):
                lift(layer)
                _bake(layer)
            layer.sparseq_reason = swapped  # type: ignore[assignment]
        else:
            if hasattr(layer, "sparseq_dense"):
                swapped.sparseq_dense = layer.sparseq_dense
            fast = set_module(fast, name, swapped)
    for name, norm in pairs.items():
        _fold(fast.get_submodule(name), *affine_of(fast.get_submodule(norm)))
        set_module(fast, norm, nn.Identity())
    for name, layer in layers_of(fast).items():
        dtype = own_dtype(layer)
        if dtype is not None:  # rounded once, with the batch norm in it
            store(name, layer, dtype)
    leave_fused_paths(fast)
    if untraced:
        fast.sparseq_unfolded = f"batch norms stay in float: {untraced}"  # type: ignore[assignment]
    if example is not None:
        _settle(fast, example)
        return lower(fast, example)
    return fast


def _settle(model: nn.Module, example: Tensor) -> None:
    """Run the model once; each layer then chooses its kernel for the rows it was given."""

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, SparseQuantLayer)
        rows[layer] = output.numel() // max(1, layer.weight_values.shape[0])

    rows: dict[SparseQuantLayer, int] = {}
    layers = [m for m in model.modules() if isinstance(m, SparseQuantLayer)]
    handles = [layer.register_forward_hook(note) for layer in layers]
    try:
        model(example)
    finally:
        for handle in handles:
            handle.remove()
    for layer, seen in rows.items():
        layer.settle(max(1, seen))
