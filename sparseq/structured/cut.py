"""Taking channels out of a model's parameters, or masking them with zeros."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sparseq.flow.prepare import leave_fused_paths, take_attentions
from sparseq.flow.resize import HEADS, WIDTHS, in_format_of, note_sizes, set_tensor
from sparseq.nn import MultiheadAttention
from sparseq.structured.classes import Classes, Ids
from sparseq.structured.graph import ChannelGraph, Group
from sparseq.structured.record import layer_of

Cuts = dict[tuple[str, ...], dict[int, Tensor]]  # by a tensor's names and dimension, what is left


def take_all_attentions(model: nn.Module, names: Iterable[str] | None = None) -> None:
    """Give torch's attentions projections of their own, in place: all, or those named."""
    found = [n for n, m in model.named_modules() if type(m) is nn.MultiheadAttention]
    wanted = set(found) if names is None else set(names) & set(found)
    take_attentions(model, [f"{name}.out_proj".lstrip(".") for name in wanted])
    leave_fused_paths(model)


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under every name that they have."""
    found: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    found.update(model.named_buffers(remove_duplicate=False))
    return found


def cuts_of(graph: ChannelGraph, classes: Classes, removed: Ids) -> Cuts:
    """What is left of each dimension when channels go."""
    cuts: Cuts = defaultdict(dict)
    for index, axis in enumerate(graph.axes):
        gone = np.isin(graph.places(index, classes), removed)
        if gone.any():
            cuts[axis.names][axis.dim] = torch.from_numpy(np.flatnonzero(~gone))
    return dict(cuts)


def head_sizes(
    model: nn.Module, groups: Sequence[tuple[Group, int]], graph: ChannelGraph, classes: Classes
) -> dict[str, dict[str, int]]:
    """Attributes of modules that count attention heads, for groups that lose some.

    Args:
        model: as it was.
        groups: with how many channels they lose.
        graph: of the model.
        classes: of the groups.
    """
    found: dict[str, dict[str, int]] = {}
    for group, lost in groups:
        if not lost or not graph.is_heads(group, classes):
            continue
        before, left = len(group.channels), len(group.channels) - lost
        for owner in {name.rpartition(".")[0] for name in group.producers}:
            module = model.get_submodule(owner)
            if isinstance(module, MultiheadAttention):
                continue  # its sizes follow from its projections
            sizes = {k: left for k in HEADS if getattr(module, k, None) == before}
            width = before * group.width
            sizes |= {k: left * group.width for k in WIDTHS if getattr(module, k, None) == width}
            found[owner] = sizes
    return found


@torch.no_grad()
def cut(model: nn.Module, cuts: Cuts, heads: Mapping[str, Mapping[str, int]]) -> None:
    """Take channels out, in place; parameters become new ones."""
    owners = [name.rpartition(".")[0] for names in cuts for name in names]
    take_all_attentions(model, {name.rpartition(".")[0] for name in owners})
    tensors = named_tensors(model)
    for names, dims in cuts.items():
        old = tensors[names[0]]
        value = old.detach()
        for dim, kept in dims.items():
            value = value.index_select(dim, kept.to(value.device))
        value = in_format_of(old, value)
        if isinstance(old, nn.Parameter):
            value = nn.Parameter(value, requires_grad=old.requires_grad)
        for name in names:
            set_tensor(model, name, value)
    sizes: dict[str, Mapping[str, int]] = {}
    layers = [layer_of(name) for names in cuts for name in names]
    for owner in dict.fromkeys([*owners, *layers]):
        sizes[owner] = {}
        above = owner.rpartition(".")[0]
        if isinstance(model.get_submodule(above), MultiheadAttention):
            sizes[above] = {}
    note_sizes(model, sizes | dict(heads))


@torch.no_grad()
def mask(model: nn.Module, cuts: Cuts) -> None:
    """Zero in place what `cut` would take out; layer norms normalise over what would be left."""
    tensors = named_tensors(model)
    for names, dims in cuts.items():
        value = tensors[names[0]]
        for dim, kept in dims.items():
            gone = torch.ones(value.shape[dim], dtype=torch.bool)
            gone[kept] = False
            value.index_fill_(dim, gone.nonzero().flatten().to(value.device), 0)
        owner = model.get_submodule(names[0].rpartition(".")[0])
        if isinstance(owner, (nn.LayerNorm, nn.RMSNorm)) and names[0].endswith("weight"):
            owner.register_forward_hook(_normalised(dims[0]))


def _normalised(kept: Tensor) -> Any:
    """A hook that makes a layer norm one over some of its features."""

    def hook(norm: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x, count = args[0], norm.weight.numel()  # type: ignore[operator]
        dim = -1 if x.shape[-1] == count and "2d" not in type(norm).__name__ else 1
        part = x.movedim(dim, -1)[..., kept]
        weight: Tensor = norm.weight[kept]  # type: ignore[index]
        if isinstance(norm, nn.RMSNorm):
            made = functional.rms_norm(part, (len(kept),), weight, norm.eps)
        else:
            bias = None if norm.bias is None else norm.bias[kept]  # type: ignore[index]
            made = functional.layer_norm(part, (len(kept),), weight, bias, norm.eps)  # type: ignore[arg-type]
        result = torch.zeros_like(output).movedim(dim, -1)
        result[..., kept] = made
        return result.movedim(-1, dim)

    return hook
