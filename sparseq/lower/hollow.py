"""Calls of torch on shapes and dtypes: their floats have no values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx


class _NeedsValues(Exception):
    """Numbers that are no floats were made of floats."""


def hollow_call(call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """What a call returns, but for the values of floats: less runs, and less memory is touched.

    Raises:
        Exception: what the meta device does where sizes or numbers depend on values.
    """
    floats = False

    def emptied(x: Any) -> Any:
        nonlocal floats
        floats = floats or (isinstance(x, Tensor) and x.is_floating_point())
        return x.to("meta") if isinstance(x, Tensor) else x

    def filled(y: Any) -> Any:
        if not isinstance(y, Tensor):
            return y
        if not y.is_floating_point():
            raise _NeedsValues
        return torch.empty_strided(y.shape, y.stride(), dtype=y.dtype)

    empty_args, empty_kwargs = fx.node.map_aggregate((args, kwargs), emptied)
    if not floats:
        return call(*args, **kwargs)
    y = call(*empty_args, **empty_kwargs)
    return y if isinstance(y, torch.Size) else fx.node.map_aggregate(y, filled)
