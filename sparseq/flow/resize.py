"""Modules whose parameters got another shape: their sizes made to fit, and kept for `load`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparseq.nn import MultiheadAttention

RESIZED = "sparseq_resized"  # of a module: its counts and the shapes of its tensors
HEADS = ("num_heads", "heads", "n_heads", "num_attention_heads")  # attributes of others' attentions
WIDTHS = ("attn_dim", "all_head_dim", "all_head_size", "inner_dim")
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.InstanceNorm1d,
          nn.InstanceNorm2d, nn.InstanceNorm3d)  # fmt: skip


def sizes_of(module: nn.Module) -> dict[str, Any]:
    """The attributes of one of torch's modules that follow from its parameters' shapes.

    Of a grouped convolution whole groups are taken to have gone, and so of a group norm.
    """
    weight = getattr(module, "weight", None)
    if weight is None:  # a norm without scales
        weight = getattr(module, "running_mean", None)
    if isinstance(module, MultiheadAttention):
        queries: nn.Linear = module.q_proj  # type: ignore[assignment]
        return {"num_heads": queries.weight.shape[0] // module.head_dim}
    if not isinstance(weight, Tensor):
        return {}
    shape = weight.shape
    if isinstance(module, nn.Linear):
        return {"in_features": shape[1], "out_features": shape[0]}
    if isinstance(module, _CONVOLUTIONS):
        groups = module.groups * shape[0] // module.out_channels if module.groups > 1 else 1
        return {"out_channels": shape[0], "groups": groups, "in_channels": shape[1] * groups}
    if isinstance(module, _TRANSPOSED):
        groups = module.groups * shape[0] // module.in_channels if module.groups > 1 else 1
        return {"in_channels": shape[0], "groups": groups, "out_channels": shape[1] * groups}
    if isinstance(module, _NORMS):
        return {"num_features": shape[0]}
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return {"normalized_shape": tuple(shape)}
    if isinstance(module, nn.GroupNorm):
        groups = module.num_groups
        if groups > 1:
            groups = groups * shape[0] // module.num_channels
        return {"num_channels": shape[0], "num_groups": groups}
    if isinstance(module, nn.Embedding):
        return {"num_embeddings": shape[0], "embedding_dim": shape[1]}
    if isinstance(module, nn.PReLU):
        return {"num_parameters": shape[0]}
    return {}


def set_tensor(model: nn.Module, name: str, value: Tensor) -> None:
    """Put a new parameter or buffer in the place of one; its shape may be another."""
    owner, _, short = name.rpartition(".")
    module = model.get_submodule(owner)
    if short in module._parameters:
        held = module._parameters[short]
        assert held is not None
        kept = isinstance(value, nn.Parameter)
        module._parameters[short] = (
            value if kept else nn.Parameter(value, requires_grad=held.requires_grad)  # type: ignore[assignment]
        )
    else:
        module._buffers[short] = value


def note_sizes(model: nn.Module, names: Mapping[str, Mapping[str, int]]) -> None:
    """Make modules' attributes fit their tensors, and keep the shapes for `save`.

    Args:
        model: its tensors have their new shapes already.
        names: by module, what to set beside: `HEADS` and `WIDTHS` only.
    """
    for name, counts in names.items():
        module = model.get_submodule(name)
        _set(name, module, {**sizes_of(module), **counts})
        own = [*module._parameters.items(), *module._buffers.items()]
        shapes = {key: list(value.shape) for key, value in own if value is not None}
        held = getattr(module, RESIZED, {"counts": {}})["counts"]
        setattr(module, RESIZED, {"counts": {**held, **counts}, "shapes": shapes})


def noted_sizes(model: nn.Module) -> dict[str, Any]:
    """What `note_sizes` kept, by the names that modules have in this model."""
    noted = {name: getattr(module, RESIZED, None) for name, module in model.named_modules()}
    return {name: entry for name, entry in noted.items() if entry is not None}


def pass_on_sizes(old: nn.Module, new: nn.Module) -> None:
    """Keep what was noted of a module with the one that takes its place."""
    if hasattr(old, RESIZED):
        setattr(new, RESIZED, getattr(old, RESIZED))


def _set(name: str, module: nn.Module, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if min(value if isinstance(value, tuple) else (value,)) < 1:
            raise ValueError(f"{name}.{key} must be at least 1, got {value}")
        setattr(module, key, value)


def restore_sizes(model: nn.Module, noted: Mapping[str, Any]) -> None:
    """Give a float model the sizes that `note_sizes` kept; tensors that shrink become zeros.

    What is one parameter of several modules stays one.

    Raises:
        ValueError: a tensor or count that the model lacks, or that would grow.
    """
    made: dict[int, tuple[Tensor, Tensor]] = {}  # the old ones are held: no identity comes twice
    for name, entry in noted.items():
        module = model.get_submodule(name)
        for key, shape in entry["shapes"].items():
            held = module._parameters.get(key, module._buffers.get(key))
            old = [] if held is None else list(held.shape)
            if held is None or not _shrinks(old, shape):
                raise ValueError(f"{name}.{key} of shape {old} cannot become {shape}")
            if shape != old:
                zeros = _zeros(held, shape)
                _, value = made.setdefault(id(held), (held, zeros))
                set_tensor(model, f"{name}.{key}".lstrip("."), value)
    for name, entry in noted.items():
        module = model.get_submodule(name)
        for key, value in entry["counts"].items():
            held = getattr(module, key, None)
            known = key in HEADS + WIDTHS and type(held) is int and type(value) is int
            if not known or not 0 < value <= held:
                raise ValueError(f"{name}.{key} cannot become {value!r}")
        _set(name, module, {**sizes_of(module), **entry["counts"]})
        setattr(module, RESIZED, entry)


def in_format_of(like: Tensor, value: Tensor) -> Tensor:
    """A tensor in the memory format of another."""
    if like.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last):
        return value.contiguous(memory_format=torch.channels_last)
    return value


def _zeros(like: Tensor, shape: list[int]) -> Tensor:
    zeros = in_format_of(like, torch.zeros(shape, dtype=like.dtype, device=like.device))
    if isinstance(like, nn.Parameter):
        return nn.Parameter(zeros, requires_grad=like.requires_grad)
    return zeros


def _shrinks(old: list[int], new: Any) -> bool:
    fits = isinstance(new, list) and len(new) == len(old)
    return fits and all(type(n) is int and 0 < n <= o for n, o in zip(new, old, strict=True))
