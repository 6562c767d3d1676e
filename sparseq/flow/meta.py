"""Tensors on the meta device, which have a shape and no memory: for models that a file fills."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from sparseq.flow.resize import in_format_of
from sparseq.nn import SparseQuantLayer

Model = TypeVar("Model", bound=nn.Module)


def shapes_of(model: Model) -> Model:
    """A deep copy whose parameters, and buffers that state dicts have, are on the meta device."""
    memo: dict[int, object] = {}
    for module in model.modules():
        for name, held in (*module._parameters.items(), *module._buffers.items()):
            if held is None or name in module._non_persistent_buffers_set:
                continue
            empty = torch.empty_like(held, device="meta")
            if isinstance(held, nn.Parameter):
                empty = nn.Parameter(empty, requires_grad=held.requires_grad)
            memo[id(held)] = empty
    return copy.deepcopy(model, memo)


def materialize(model: nn.Module, device: torch.device | str = "cpu") -> None:
    """Put zeros in place of what is on the meta device; what is shared stays shared.

    Raises:
        ValueError: a buffer that state dicts lack is among them: no file has its values.
    """
    made: dict[int, Tensor] = {}
    integer = {m for n in model.modules() if isinstance(n, SparseQuantLayer) for m in n.modules()}
    for owner, module in model.named_modules():
        for tensors in (module._parameters, module._buffers):
            for name, held in tensors.items():
                if held is None or not held.is_meta:
                    continue
                if name in module._non_persistent_buffers_set:
                    if module in integer:
                        continue  # derived, and made anew when the layer is filled
                    raise ValueError(
                        f"{f'{owner}.{name}'.lstrip('.')} is on the meta device and not saved with "
                        "the model: make the model on the CPU"
                    )
                if id(held) not in made:
                    zeros = torch.zeros(held.shape, dtype=held.dtype, device=device)
                    zeros = in_format_of(held, zeros)
                    if isinstance(held, nn.Parameter):
                        zeros = nn.Parameter(zeros, requires_grad=held.requires_grad)
                    made[id(held)] = zeros
                tensors[name] = made[id(held)]
