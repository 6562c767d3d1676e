"""Calls of torch on shapes and dtypes: floats have no values, less runs, less memory is touched."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn


class _NeedsValues(Exception):
    """Numbers that are no floats were made of floats."""


def hollow_call(call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """What a call returns, but for the values of floats.

    Raises:
        Exception: what the meta device does where sizes or numbers depend on values.
    """
    floats: list[bool] = []
    fx.node.map_aggregate((args, kwargs), lambda x: floats.append(_is_float(x)))
    return _on_meta(call, args, kwargs) if any(floats) else call(*args, **kwargs)


def hollow_layer(layer: nn.Module, args: Any, kwargs: Any) -> Any:
    """The same of a layer whose result depends on its arguments, parameters and buffers alone.

    Where the meta device does not run it, it runs on values.
    """
    held = chain(layer.named_parameters(), layer.named_buffers())
    empty = {name: x.to("meta") for name, x in held}

    def call(*args: Any, **kwargs: Any) -> Any:
        return torch.func.functional_call(layer, empty, args, kwargs)

    try:
        return _on_meta(call, args, kwargs)
    except Exception:  # of a kernel of torch's, or of another extension's
        return layer(*args, **kwargs)


def _is_float(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _on_meta(call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    def emptied(x: Any) -> Any:
        return x.to("meta") if isinstance(x, Tensor) else x

    def filled(y: Any) -> Any:
        if not isinstance(y, Tensor):
            return y
        if not _is_float(y):
            raise _NeedsValues
        return torch.empty_strided(y.shape, y.stride(), dtype=y.dtype)

    empty_args, empty_kwargs = fx.node.map_aggregate((args, kwargs), emptied)
    y = call(*empty_args, **empty_kwargs)
    return y if isinstance(y, torch.Size) else fx.node.map_aggregate(y, filled)
