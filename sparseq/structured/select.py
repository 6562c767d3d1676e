"""Which channels go: what each is worth, and how many of each coupled set."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sparseq.spec import Channels
from sparseq.structured.classes import Classes, Ids
from sparseq.structured.graph import ChannelGraph, Group

Worth = npt.NDArray[np.float64]


def worth(
    model: nn.Module,
    graph: ChannelGraph,
    classes: Classes,
    group: Group,
    criterion: str,
    scores: Mapping[str, Tensor] | None,
) -> Worth | None:
    """What each channel of a group is worth; one is the mean of its layers.

    None where there is nothing to tell: no scores for these layers, no weights.

    Args:
        model: whose parameters are read.
        graph: of it.
        classes: of the groups.
        group: the channels.
        criterion: of `Channels`.
        scores: by parameter, a score for each element, instead of the criterion.
    """
    if criterion == "random" and scores is None:
        return torch.rand(len(group.channels), dtype=torch.float64).numpy()
    tensors = dict(model.named_parameters(remove_duplicate=False))
    layers: list[Worth] = []
    for index in group.axes:
        axis = graph.axes[index]
        held = tensors.get(axis.names[0])
        if held is None:
            continue
        elements = held.detach().double().cpu()
        if scores is not None:
            if axis.names[0] not in scores:
                continue
            elements = scores[axis.names[0]].detach().double().cpu()
        elif criterion == "batch_norm":
            owner = model.get_submodule(axis.layer)
            if not isinstance(owner, nn.modules.batchnorm._BatchNorm) or held is not owner.weight:
                continue
        elif held.dim() < 2:
            continue
        along = elements.movedim(axis.dim, 0).flatten(1) if held.dim() > 1 else elements[:, None]
        squared = criterion == "l2" and scores is None
        each = (along.square() if squared else along if scores is not None else along.abs()).sum(1)
        places = np.searchsorted(group.channels, graph.places(index, classes))
        inside = np.isin(graph.places(index, classes), group.channels)
        total = np.bincount(
            places[inside], weights=each.numpy()[inside], minlength=len(group.channels)
        )
        total = np.sqrt(total) if squared else total
        layers.append(total / max(float(np.abs(total).mean()), 1e-30))
    if not layers:
        if criterion == "batch_norm" and scores is None:
            return worth(model, graph, classes, group, "l2", None)
        return None
    return np.mean(layers, axis=0)


def kept_count(group: Group, left: int, spec: Channels) -> int:
    """How many channels stay if `left` should: rounded up, and not below the limit."""
    count = len(group.channels)
    step = spec.round_to // math.gcd(spec.round_to, group.width)
    least = max(1, math.ceil(count * (1 - spec.limit) - 1e-9), left)
    return min(count, math.ceil(least / step) * step)


def select(groups: Sequence[tuple[Group, Channels, Worth]], factor: float = 1.0) -> list[Ids]:
    """The channels that each group loses.

    Args:
        groups: with their spec, and what their channels are worth.
        factor: on each spec's sparsity; the limit holds.

    Returns:
        Numbers of channels, for each group.
    """
    lefts = [0] * len(groups)
    ranked: dict[tuple[float, str], list[int]] = {}
    for i, (group, spec, _) in enumerate(groups):
        share = min(spec.sparsity * factor, spec.limit)
        if spec.scope == "local":
            lefts[i] = len(group.channels) - math.floor(len(group.channels) * share + 1e-9)
        else:
            ranked.setdefault((share, spec.criterion), []).append(i)
    for (share, _), members in ranked.items():
        values = np.concatenate([groups[i][2] for i in members])
        of = np.concatenate([np.full(len(groups[i][2]), i) for i in members])
        gone = of[np.argsort(values, kind="stable")[: math.floor(len(values) * share + 1e-9)]]
        for i in members:
            lefts[i] = len(groups[i][2]) - int((gone == i).sum())
    removed = []
    for left, (group, spec, value) in zip(lefts, groups, strict=True):
        kept = kept_count(group, left, spec)
        order = np.argsort(value, kind="stable")
        removed.append(np.sort(group.channels[order[: len(group.channels) - kept]]))
    return removed
