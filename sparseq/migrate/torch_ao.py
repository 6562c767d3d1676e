"""`from_torch_ao`: a model of torch.ao.quantization becomes one that sparseq prepared."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from sparseq.flow.convert import set_module
from sparseq.flow.prepare import attach, transform_of
from sparseq.migrate.functional import Functional
from sparseq.migrate.grids import Grid, input_spec, read_grid, set_input, set_weight, weight_spec
from sparseq.migrate.producers import follow
from sparseq.nn import INTEGER_LAYERS
from sparseq.nn.batch_norm import affine_of
from sparseq.quant import FakeQuantize, freeze_batch_norms
from sparseq.spec import Layer


@dataclass(frozen=True)
class _Found:
    """A quantised layer of torch.ao: what it is made of, and where its weight's grid is."""

    layer: nn.Module
    norm: nn.Module | None
    relu: nn.Module | None
    weight: Any
    frozen_norm: bool


def from_torch_ao(
    model: nn.Module,
    example: Tensor | tuple[Tensor, ...],
    *,
    reduce_range: bool = False,
    follow_weights: bool = False,
) -> nn.Module:
    """Take over a model of torch.ao.quantization's eager flow with its learned ranges.

    Fused layers come apart again into layer, batch norm and ReLU under their old names; stubs,
    observers and fake-quantisers go. torch.ao rounds what a layer gives, sparseq what a layer
    reads: each layer's input gets the grid of the observer whose values reach it, found by running
    a copy of the model once. torch.ao rounds the weight times the batch norm's factor; the same
    grid on the weight itself has its scales divided by `|factor|`.

    Differences that remain: weights are rounded to [-127, 127], not [-128, 127]; what no layer
    reads (the sum of a residual connection, the last layer's result) stays float; the input after
    an average pooling is rounded, which torch.ao does in the converted model only.

    Args:
        model: after `prepare_qat` (trained) or `prepare` (calibrated); not changed.
        example: an input of the model, or a tuple of inputs.
        reduce_range: torch.ao's fbgemm and x86 configurations spare an input's eighth bit, which
            sparseq's exact products do not need. False gives it back over the same range: closer to
            the float model and, on digits, to torch.ao's own, too. True keeps the 7-bit grid.
        follow_weights: False keeps the weights' grids as they were trained; True lets each follow
            its weight from now on, for training that goes on.

    Returns:
        A new float model, prepared: evaluate it, train it on, or `convert` it.

    Raises:
        TypeError: the model is not an eager one.
        ValueError: something that cannot be taken over; names all of it.

    Reference:
        Krishnamoorthi 2018, section 3.2.2 (rounding the weight times the batch norm's factor).
    """
    if isinstance(model, fx.GraphModule) or not isinstance(model, nn.Module):
        kind = "a torch.fx GraphModule" if isinstance(model, nn.Module) else type(model).__name__
        raise TypeError(
            "from_torch_ao: model must be one of torch.ao's eager prepare or prepare_qat, got "
            f"{kind}"
        )
    found, problems = _layers(model)
    observers = _observers(model)
    if not found and not problems:
        raise ValueError(
            "from_torch_ao: model must hold layers that torch.ao prepared, got none (a converted "
            "one? take over the model before torch.ao's convert)"
        )
    flow = follow(model, example, list(found), list(observers), list(found))
    grids: dict[str, tuple[Grid, Grid]] = {}
    for name, entry in found.items():
        try:
            weight = read_grid(entry.weight)
        except ValueError as error:
            problems.append(f"the weight of {name} {error}")
            continue
        tags = flow.reads.get(name, set())
        if len(tags) != 1 or None in tags:
            source = flow.sources.get(name, "values of several observers" if tags else "nothing")
            problems.append(f"the input of {name} is {source}, which no single observer watches")
            continue
        (tag,) = tags
        try:
            grids[name] = weight, read_grid(observers[str(tag)])
        except ValueError as error:
            problems.append(f"{tag}, whose values {name} reads, {error}")
    if problems:
        raise ValueError(f"from_torch_ao: {'; '.join(problems)}")

    result = copy.deepcopy(model)
    for name, entry in _layers(result)[0].items():
        places = flow.followers.get(name, [])
        result, place = _take_apart(result, name, entry, places)
        weight, activation = grids[name]
        factor = None if entry.norm is None else affine_of(entry.norm)[0]
        wanted = Layer(
            weight=weight_spec(weight, weight.per_channel or factor is not None),
            input=input_spec(activation, reduce_range),
        )
        attach(place, entry.layer, wanted)
        quantizer: FakeQuantize = transform_of(entry.layer, FakeQuantize)
        set_weight(quantizer, weight, factor, follow_weights)
        set_input(entry.layer.input_quantizer, activation)  # type: ignore[arg-type]
    return _clean(result)


def _observers(model: nn.Module) -> dict[str, nn.Module]:
    """What watches activations, by name."""
    from torch.ao.quantization import FakeQuantizeBase, ObserverBase

    return {
        f"{name}.activation_post_process".removeprefix("."): child
        for name, module in model.named_modules()
        if not isinstance(module, FakeQuantizeBase)
        and isinstance(
            child := module._modules.get("activation_post_process"),
            (FakeQuantizeBase, ObserverBase),
        )
    }


def _layers(model: nn.Module) -> tuple[dict[str, _Found], list[str]]:
    """The quantised layers by name, and what sparseq has no layer for."""
    from torch.ao.nn import quantized
    from torch.ao.nn.intrinsic.modules.fused import _FusedModule

    found: dict[str, _Found] = {}
    problems = []
    inside: set[str] = set()
    module: Any
    for name, module in model.named_modules():
        if name in inside:
            continue
        whole: Any = module  # as isinstance would narrow it to an object
        kind = type(module).__name__
        prefix = f"{name}." if name else ""
        observed = "activation_post_process" in module._modules
        if type(module).__module__.startswith(quantized.__name__ + ".modules") and not isinstance(
            module, quantized.FloatFunctional
        ):
            problems.append(f"{name} is a converted {kind}: take over the model before convert")
        elif hasattr(module, "weight_fake_quant"):
            plain = _plain(module)
            if plain is None:
                problems.append(f"{name} is a {kind}, which sparseq does not quantise")
                continue
            norm: nn.Module | None = module._modules.get("bn")
            relu: nn.Module | None = nn.ReLU() if "ReLU" in kind else None
            frozen = bool(getattr(module, "freeze_bn", False))
            found[name] = _Found(plain, norm, relu, module.weight_fake_quant, frozen)
            inside |= {f"{prefix}{n}" for n, _ in module.named_modules() if n}
        elif isinstance(module, _FusedModule):
            inside |= {f"{prefix}{n}" for n, _ in module.named_modules() if n}
            parts: list[Any] = [
                m for n, m in module.named_children() if n != "activation_post_process"
            ]
            layer: Any = parts[0]
            if isinstance(parts[0], tuple(INTEGER_LAYERS)) and observed:
                norms = [m for m in parts if isinstance(m, nn.modules.batchnorm._BatchNorm)]
                norm = norms[0] if norms else None
                relu = parts[-1] if "ReLU" in kind else None
                observer = _weight_observer(module, layer)
                found[name] = _Found(layer, norm, relu, observer, False)
            else:
                problems.append(f"{name} is a {kind}, which sparseq does not quantise")
        elif observed and isinstance(module, tuple(INTEGER_LAYERS)):
            found[name] = _Found(whole, None, None, _weight_observer(whole, whole), False)
    return found, problems


def _weight_observer(module: Any, layer: Any) -> Any:
    """torch.ao's `prepare` observes a weight only when it converts: so here."""
    observer = module.qconfig.weight()
    observer(layer.weight)
    return observer


def _plain(module: Any) -> nn.Module | None:
    """The float layer of a layer that was prepared for training, on copies of its parameters."""
    layer: nn.Module
    bias, weight = module.bias is not None, module.weight
    where = {"device": weight.device, "dtype": weight.dtype}
    kind: Any = next((k for k in INTEGER_LAYERS if isinstance(module, k)), None)
    if kind is None:
        return None
    if kind is nn.Linear:
        layer = nn.Linear(module.in_features, module.out_features, bias, **where)
    else:
        layer = kind(
            module.in_channels,
            module.out_channels,
            module.kernel_size,
            module.stride,
            module.padding,
            dilation=module.dilation,
            groups=module.groups,
            bias=bias,
            padding_mode=module.padding_mode,
            **where,
        )
    for name, parameter in layer.named_parameters():
        source = getattr(module, name)
        parameter.requires_grad_(source.requires_grad)
        parameter.data.copy_(source.data)
    return layer.train(module.training)


def _take_apart(
    model: nn.Module, name: str, entry: _Found, places: list[str]
) -> tuple[nn.Module, str]:
    """Put layer, batch norm and ReLU where they were before they were fused.

    Returns:
        The model, and the layer's name.
    """
    if entry.frozen_norm and entry.norm is not None:
        freeze_batch_norms(entry.norm)
    rest = [part for part in (entry.norm, entry.relu) if part is not None]
    for part in rest:
        part.train(entry.layer.training and not (entry.frozen_norm and part is entry.norm))
    if len(places) < len(rest):  # it was built fused
        return set_module(model, name, nn.Sequential(entry.layer, *rest)), f"{name}.0"
    model = set_module(model, name, entry.layer)
    for place, part in zip(places, rest, strict=False):
        set_module(model, place, part)
    return model, name


def _clean(model: nn.Module) -> nn.Module:
    """Take out what else torch.ao put in: observers, their hooks, stubs, configurations."""
    from torch.ao.nn.quantized import FloatFunctional
    from torch.ao.quantization import DeQuantStub, QuantStub, QuantWrapper
    from torch.ao.quantization.quantize import _observer_forward_hook, _observer_forward_pre_hook

    for name, module in list(model.named_modules()):
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key, hook in list(hooks.items()):
                if hook in (_observer_forward_hook, _observer_forward_pre_hook):
                    del hooks[key]
        module._modules.pop("activation_post_process", None)
        if "qconfig" in module.__dict__:
            del module.qconfig
        if isinstance(module, (QuantStub, DeQuantStub)):
            model = set_module(model, name, nn.Identity().train(module.training))
        elif isinstance(module, FloatFunctional):
            model = set_module(model, name, Functional().train(module.training))
    wrappers = [name for name, m in model.named_modules() if isinstance(m, QuantWrapper)]
    for name in reversed(wrappers):  # the inner ones first
        wrapper: Any = model.get_submodule(name)
        model = set_module(model, name, wrapper.module)
    return model
