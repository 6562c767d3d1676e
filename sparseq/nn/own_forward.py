"""Subclasses of torch's layers whose forward is their own: do they compute what the layer does?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


def own_forward(layer: nn.Module, base: type[nn.Module]) -> str | None:
    """Why an integer layer would not compute what a subclass does, or None.

    One that overrides forward (padding that depends on the input, standardised weights, an adapter
    beside the product) is run beside `base.forward` on random inputs of two sizes.

    Args:
        layer: in eval mode.
        base: torch's layer that it derives from.
    """
    kind: type[nn.Module] = parametrize.type_before_parametrizations(layer)
    same_product = _product(kind) is _product(base)
    if kind.forward is base.forward and same_product:
        return None
    with torch.no_grad():
        if same_product and all(_alike(layer, base, x) for x in _probes(layer, base)):
            return None
    return f"{kind.__name__} is no plain nn.{base.__name__}: its forward computes something else"


def _product(kind: type[nn.Module]) -> object:
    return getattr(kind, "_conv_forward", None)


def _probes(layer: Any, base: type[nn.Module]) -> list[Tensor]:
    weight: Tensor = layer.weight
    if base is nn.Embedding:
        return [torch.arange(len(weight), device=weight.device)]
    generator = torch.Generator().manual_seed(0)
    shapes: list[tuple[int, ...]] = [(2, weight.shape[1]), (1, 3, weight.shape[1])]
    if base is not nn.Linear:  # one size each that strides divide and do not
        sizes = [8 + d * (k - 1) for k, d in zip(weight.shape[2:], layer.dilation, strict=True)]
        shapes = [(1, layer.in_channels, *(s + more for s in sizes)) for more in (0, 1)]
    return [torch.randn(s, generator=generator).to(weight.device, weight.dtype) for s in shapes]


def _alike(layer: nn.Module, base: type[nn.Module], x: Tensor) -> bool:
    try:
        own, plain = layer.forward(x), base.forward(layer, x)
    except Exception:  # whatever the forward asks for beside its input
        return False
    return isinstance(own, Tensor) and torch.equal(own, plain)
