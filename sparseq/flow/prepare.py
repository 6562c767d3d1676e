"""`prepare` hangs transforms on a model's layers."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparseq.flow.precision import attach_dtype
from sparseq.nn import (
    INTEGER_LAYERS,
    MultiheadAttention,
    SparseQuantLayer,
    integer_type,
    outputs_first,
    projections,
    take_over,
)
from sparseq.quant import DynamicQuantize, FakeQuantize
from sparseq.quant.memory import forget_input
from sparseq.reference import scale_shape
from sparseq.sparse import Mask, SwapChannels, serves, update_masks
from sparseq.spec import Block, Layer, Plan, Quant, Sparsity, Unstructured

Model = TypeVar("Model", bound=nn.Module)


SERVED = "nn.Linear, Conv1d, Conv2d, ConvTranspose2d, Embedding or MultiheadAttention"


def layers_of(model: nn.Module, converted: bool = False) -> dict[str, nn.Module]:
    """The layers a plan can serve, by name; with those that are integer ones already if asked for.

    The projections of torch's MultiheadAttention are among them, as layers that show its parameters
    and that nothing calls; `prepare` makes layers of them that are called.
    """
    kinds: tuple[type[nn.Module], ...] = tuple(INTEGER_LAYERS)
    kinds += (SparseQuantLayer,) if converted else ()
    # MultiheadAttention reads the weight of its output projection and never calls it
    never_called = nn.modules.linear.NonDynamicallyQuantizableLinear
    shapeless = nn.modules.lazy.LazyModuleMixin  # until the first batch
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if type(module) is nn.MultiheadAttention:
            for projection, layer in projections(module).items():
                found[f"{name}.{projection}".lstrip(".")] = layer
        elif isinstance(module, kinds) and not isinstance(module, (never_called, shapeless)):
            found[name] = module
    return found


def take_attentions(model: nn.Module, names: Iterable[str]) -> None:
    """Give the attentions that hold these projections layers for them, in place."""
    owners = {name.rpartition(".")[0] for name in names}
    for name, module in list(model.named_modules()):
        if name in owners and type(module) is nn.MultiheadAttention:
            take_over(module)


def leave_fused_paths(model: nn.Module) -> None:
    """Keep torch's encoders from nested tensors, which layers of this package do not take."""
    for encoder in model.modules():
        if isinstance(encoder, nn.TransformerEncoder) and any(
            isinstance(m, (SparseQuantLayer, MultiheadAttention)) or hasattr(m, "sparseq_layer")
            for m in encoder.modules()
        ):
            encoder.use_nested_tensor = False


def refusal_to_prepare(layer: nn.Module) -> str | None:
    """Why nothing can be hung on a layer, or None."""
    kind = integer_type(layer)
    return kind.refusal(layer) if kind is not None and isinstance(layer, nn.Embedding) else None


def sparsity_refusal(layer: nn.Module, spec: Sparsity) -> str | None:
    """Why a layer stays dense, or None."""
    if isinstance(spec, Unstructured):
        return None
    weight = outputs_first(layer, original_weight(layer))
    if isinstance(spec, Block):
        if isinstance(layer, nn.Embedding):
            return "blocks are for products, and this is a table"
        groups = getattr(layer, "groups", 1)  # a block of two groups' outputs would read no input
        if serves(spec, weight) and weight.shape[0] // groups % spec.rows == 0:
            return None
        each = "" if groups == 1 else f" in each of {groups} groups"
        return (
            f"blocks of {spec.rows} x {spec.columns} need multiples of these, got "
            f"{weight.shape[0] // groups} outputs x {weight.shape[1]} inputs{each}"
        )
    if isinstance(layer, nn.Embedding):
        return f"{spec.n}:{spec.m} is for products, and this is a table"
    if serves(spec, weight):
        return None
    return f"{spec.n}:{spec.m} needs a multiple of {spec.m} inputs, got {weight.shape[1]}"


def weight_transforms(layer: nn.Module) -> list[nn.Module]:
    """What hangs on a layer's weight, in order."""
    if not parametrize.is_parametrized(layer, "weight"):
        return []
    return list(layer.parametrizations["weight"])  # type: ignore[index]


def transform_of(layer: nn.Module, kind: type[nn.Module]) -> Any:
    """The mask or the fake-quantiser on a layer's weight, or None."""
    return next((t for t in weight_transforms(layer) if isinstance(t, kind)), None)


def check_single(caller: str, name: str, layer: nn.Module) -> None:
    """ValueError where a layer's weight is computed from more than one tensor."""
    if not parametrize.is_parametrized(layer, "weight"):
        return
    if not hasattr(layer.parametrizations["weight"], "original"):  # type: ignore[index]
        raise ValueError(
            f"{caller}: {name}: weight must be one parameter, got a parametrisation of several "
            "(weight_norm?): remove it first"
        )


def original_weight(layer: nn.Module) -> Tensor:
    """The weight as trained, before any transform."""
    if parametrize.is_parametrized(layer, "weight"):
        return layer.parametrizations["weight"].original  # type: ignore[index, union-attr]
    return layer.weight  # type: ignore[return-value]


def _transform_input(layer: nn.Module, args: Any, kwargs: Any) -> Any:
    layer.sparseq_dims = (args[0] if args else kwargs["input"]).dim()  # for batch_norms
    if args:
        return (layer.input_quantizer(args[0]), *args[1:]), kwargs  # type: ignore[operator]
    return args, {**kwargs, "input": layer.input_quantizer(kwargs["input"])}  # type: ignore[operator]


def _forget_input(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
    forget_input(args[0] if args else kwargs["input"], output)


def _weight_quantizer(name: str, weight: Tensor, spec: Quant) -> FakeQuantize:
    if spec.axis not in (0, None):
        raise ValueError(f"prepare: {name}: weight must have axis 0 or None, got {spec.axis}")
    if spec.group_size is not None and weight[0].numel() % spec.group_size:
        raise ValueError(
            f"prepare: {name}: group_size must divide the {weight[0].numel()} inputs of an output "
            f"channel, got {spec.group_size}"
        )
    shape = scale_shape(tuple(weight.shape), spec.axis, spec.group_size)
    return FakeQuantize(spec, shape, follow=True)


def _input_quantizer(layer: nn.Module, spec: Quant) -> FakeQuantize:
    if not spec.dynamic:
        return FakeQuantize(spec, (), follow=False)
    kind = integer_type(layer)
    return DynamicQuantize(spec, by_rows=kind is not None and kind.by_rows)


def _swap_of(layer: nn.Module) -> SwapChannels | None:
    kind = integer_type(layer)
    return None if kind is None else kind.swap_of(layer)


def attach(name: str, layer: nn.Module, wanted: Layer) -> list[tuple[Mask, Tensor]]:
    """Hang a Layer's transforms on one layer, mask before quantiser; returns a new mask to rank.

    What the Layer leaves None stays; what it names replaces the transform of its kind.
    """
    reason = refusal_to_prepare(layer)
    if reason is not None:
        layer.sparseq_reason = reason  # type: ignore[assignment]
        return []
    weight = outputs_first(layer, original_weight(layer))
    mask, quantizer = transform_of(layer, Mask), transform_of(layer, FakeQuantize)
    new: list[tuple[Mask, Tensor]] = []
    if wanted.sparsity is not None and sparsity_refusal(layer, wanted.sparsity) is None:
        mask = Mask(wanted.sparsity, weight, _swap_of(layer))
        new = [(mask, original_weight(layer))]
    if wanted.weight is not None:
        quantizer = _weight_quantizer(name, weight, wanted.weight).to(weight.device)
    chain = weight_transforms(layer)
    wished = [t for t in chain if not isinstance(t, (Mask, FakeQuantize, SwapChannels))]
    own = [t.train(layer.training) for t in (mask, quantizer) if t is not None]
    swap = _swap_of(layer)
    wished += own if swap is None or not own else [swap, *own, copy.deepcopy(swap)]
    if chain:  # in place: torch's remove_parametrizations would alter deep copies of the model too
        held: nn.ModuleList = layer.parametrizations["weight"]  # type: ignore[index, assignment]
        del held[:]
        held.extend(wished)
    else:
        for transform in wished:  # unsafe: between two swaps the shape is another
            parametrize.register_parametrization(
                layer, "weight", transform, unsafe=swap is not None
            )
    if wanted.input is not None and not isinstance(layer, nn.Embedding):  # indices have no grid
        if not hasattr(layer, "input_quantizer"):
            layer.register_forward_pre_hook(_transform_input, with_kwargs=True)
            layer.register_forward_hook(_forget_input, with_kwargs=True)
        watcher = _input_quantizer(layer, wanted.input).to(weight.device)
        layer.input_quantizer = watcher.train(layer.training)
    if wanted.dtype is not None:
        attach_dtype(layer, wanted.dtype)
    layer.sparseq_layer = _merged(getattr(layer, "sparseq_layer", Layer()), wanted)  # type: ignore[assignment]
    return new


def _merged(old: Layer, new: Layer) -> Layer:
    return Layer(
        new.weight or old.weight,
        new.input or old.input,
        new.sparsity or old.sparsity,
        new.dtype or old.dtype,
    )


def _check_joins(name: str, layer: nn.Module, wanted: Layer) -> None:
    """ValueError where a Layer does not go with what a prepared layer has."""
    held: Layer = getattr(layer, "sparseq_layer", Layer())
    try:
        _merged(held, wanted)
    except ValueError as error:
        raise ValueError(f"prepare: {name} is prepared with {held} already: {error}") from None


def prepare(model: Model, plan: Plan) -> Model:
    """Hang masks and fake-quantisers on a model's layers, in place; the weights stay float.

    A layer computes on `fake_quantize(mask(weight))` and `fake_quantize(input)` from then on, or in
    the plan's dtype (autocast, where it is on, has the last word on that). Masks
    are ranked at once (a PruningSchedule starts them over). Build the optimizer after this. On a
    prepared model new transforms join those that are there.

    Args:
        model: any nn.Module; nn.Linear, Conv1d, Conv2d, ConvTranspose2d and Embedding layers are
            served, and the projections of nn.MultiheadAttention: one that the plan reaches becomes
            `sparseq.nn.MultiheadAttention`, its projections layers with parameters of their own.
        plan: which layer gets what.

    Returns:
        The model.

    Raises:
        TypeError: plan is not a Plan.
        ValueError: a pattern that matches no layer, or a scheme that does not fit a layer.
    """
    if not isinstance(plan, Plan):
        raise TypeError(f"prepare: plan must be a sparseq.Plan, got {type(plan).__name__}")
    layers = layers_of(model)
    if not layers:
        raise ValueError(f"prepare: model must hold {SERVED} layers, got none")
    chosen = plan.match(layers)
    for name, wanted in chosen.items():  # all checks before the first change
        check_single("prepare", name, layers[name])
        _check_joins(name, layers[name], wanted)
        if wanted.weight is not None:
            weight = outputs_first(layers[name], original_weight(layers[name]))
            _weight_quantizer(name, weight, wanted.weight)
    take_attentions(model, chosen)
    layers = layers_of(model)
    new = [pair for name, wanted in chosen.items() for pair in attach(name, layers[name], wanted)]
    # what needs data to be ranked keeps all weights until then
    update_masks(pair for pair in new if not pair[0].needs_data)
    leave_fused_paths(model)
    return model


def input_quantizers(model: nn.Module) -> dict[str, FakeQuantize]:
    """The fake-quantisers of inputs, by their layer's name."""
    return {
        name: layer.input_quantizer  # type: ignore[misc]
        for name, layer in layers_of(model).items()
        if hasattr(layer, "input_quantizer")
    }
