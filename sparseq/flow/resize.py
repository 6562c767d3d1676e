"""Modules whose parameters got another shape: their sizes made to fit, and kept for `load`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparseq.nn import MultiheadAttention

RESIZED = "sparseq_resized"  # of a model: by module, its attributes and the shapes of its tensors
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.InstanceNorm1d,
          nn.InstanceNorm2d, nn.InstanceNorm3d)  # fmt: skip


def sizes_of(module: nn.Module) -> dict[str, Any]:
    """The attributes of one of torch's modules that follow from its parameters' shapes.

    Of a grouped convolution whole groups are taken to have gone, and so of a group norm.
    """
    weight = getattr(module, "weight", None)
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
            value if kept else nn.Parameter(value, requires_grad=held.requires_grad)
        )
    else:
        module._buffers[short] = value


def note_sizes(model: nn.Module, names: Mapping[str, Mapping[str, Any]]) -> None:
    """Set attributes of modules, and keep them and their tensors' shapes for `save`.

    Args:
        model: its tensors have their new shapes already.
        names: by module, attributes to set.
    """
    noted: dict[str, Any] = dict(getattr(model, RESIZED, {}))
    for name, attributes in names.items():
        module = model.get_submodule(name)
        for key, value in attributes.items():
            setattr(module, key, value)
        own = [*module._parameters.items(), *module._buffers.items()]
        shapes = {key: list(value.shape) for key, value in own if value is not None}
        held = noted.get(name, {"attributes": {}})["attributes"]
        noted[name] = {"attributes": {**held, **attributes}, "shapes": shapes}
    setattr(model, RESIZED, noted)


def restore_sizes(model: nn.Module, noted: Mapping[str, Any]) -> None:
    """Give a float model the sizes that `note_sizes` kept; its tensors there become zeros.

    Raises:
        ValueError: a module, tensor or attribute that the model lacks, or another kind of value.
    """
    for name, entry in noted.items():
        module = model.get_submodule(name)
        for key, value in entry["attributes"].items():
            held = getattr(module, key, None)
            value = tuple(value) if isinstance(value, list) else value
            if type(held) is not type(value) or not _sound(value):
                raise ValueError(f"{name}.{key} cannot become {value!r}")
            setattr(module, key, value)
        for key, shape in entry["shapes"].items():
            held = module._parameters.get(key, module._buffers.get(key))
            old = [] if held is None else list(held.shape)
            smaller = len(old) == len(shape) and all(
                isinstance(n, int) and 0 < n <= o for n, o in zip(shape, old, strict=True)
            )
            if held is None or not smaller:
                raise ValueError(f"{name}.{key} of shape {old} cannot become {shape}")
            if list(shape) != old:
                owner = f"{name}.{key}".lstrip(".")
                set_tensor(model, owner, torch.zeros(shape, dtype=held.dtype, device=held.device))
    if noted:
        setattr(model, RESIZED, dict(noted))


def _sound(value: Any) -> bool:
    values = value if isinstance(value, tuple) else (value,)
    return all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in values)
