"""`prune_channels`: a smaller dense model."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparseq.flow.prepare import transform_of
from sparseq.nn import SparseQuantLayer
from sparseq.quant import FakeQuantize
from sparseq.sparse import Mask
from sparseq.spec import Channels
from sparseq.structured.check import Trial
from sparseq.structured.classes import Classes, Ids
from sparseq.structured.cut import cut, cuts_of, head_sizes, take_all_attentions
from sparseq.structured.graph import ChannelGraph, Group
from sparseq.structured.record import layer_of
from sparseq.structured.report import ChannelReport, Pruned
from sparseq.structured.select import Worth, select, worth

Specs = Channels | Mapping[str, Channels | None]


def prune_channels(
    model: nn.Module,
    example: Any,
    spec: Specs,
    *,
    macs: float | None = None,
    scores: Mapping[str, Tensor] | None = None,
    through_norms: bool = False,
) -> ChannelReport:
    """Remove channels for real, in place: a smaller dense model. Do it before `prepare`.

    Channels that a residual sum, a concatenation, a depthwise convolution or a norm couples go
    together; attention heads and the groups of a grouped convolution go as a whole. The result
    computes, to rounding, what the model would with those slices of its parameters zero: that is
    checked on the example before the model is touched. Parameters that shrink are new ones: build
    the optimizer after this.

    Args:
        model: float, not prepared. An nn.MultiheadAttention that loses heads becomes
            `sparseq.nn.MultiheadAttention`.
        example: a tensor, an (input, ...) tuple, or a dict of arguments; one sample will do.
        spec: what to remove: for all layers, or by fnmatch patterns of the names of layers that
            make channels (the last match wins, None leaves alone). Of a coupled set whose layers
            match several, the least sparsity counts.
        macs: share of the multiplications to leave, in (0, 1): one factor on all sparsities is
            searched, up to their limits.
        scores: by parameter name, a tensor of its shape that says what each element is worth
            (a Taylor criterion, say); instead of the spec's criterion.
        through_norms: features that a layer norm normalises together may go one by one. It then
            normalises over those that are left, which is what the check compares with.

    Returns:
        What was removed, and what could not be, with reasons.

    Raises:
        TypeError: spec, or one of its values.
        ValueError: a prepared or converted model, a pattern that matches nothing, a score of
            another shape, or macs that the limits do not allow.
        RuntimeError: the smaller model does not compute what the masked one does, for whatever
            cause; the model is unchanged.

    Reference:
        Fang et al. 2023, DepGraph: Towards Any Structural Pruning.
    """
    check_float("prune_channels", model)
    if macs is not None and not 0 < macs < 1:
        raise ValueError(f"prune_channels: macs must be in (0, 1), got {macs}")
    if scores is not None:
        scores = _scores(model, scores)
    draft = copy.deepcopy(model)
    take_all_attentions(draft)
    graph = ChannelGraph(draft, example, "prune_channels")
    check_seen("prune_channels", draft, graph)
    classes = graph.pruning_classes(through_norms)
    groups = graph.groups(classes)
    specs = _specs(spec, groups)
    parameters = sum(p.numel() for p in model.parameters())
    values: dict[int, Worth] = {}
    for i, (group, chosen) in enumerate(zip(groups, specs, strict=True)):
        if chosen is not None and group.reason is None:
            value = worth(draft, graph, classes, group, chosen.criterion, scores)
            if value is None:
                groups[i] = replace(group, reason="nothing tells what they are worth")
            else:
                values[i] = value
    trial = Trial(draft, example)

    def choose() -> list[Ids]:
        free = [(i, (groups[i], specs[i], values[i])) for i in values if groups[i].reason is None]
        chosen: list[tuple[Group, Channels, Worth]] = [item for _, item in free]  # type: ignore[misc]
        gone = [np.empty(0, dtype=np.int64)] * len(groups)
        for (i, _), ids in zip(free, _within(graph, classes, chosen, macs), strict=True):
            gone[i] = ids
        return gone

    def error(gone: Sequence[Ids]) -> str | None:
        lost = [(group, len(ids)) for group, ids in zip(groups, gone, strict=True)]
        cuts = cuts_of(graph, classes, np.concatenate([np.empty(0, dtype=np.int64), *gone]))
        return trial.error(cuts, head_sizes(draft, lost, graph, classes)) if cuts else None

    while True:
        gone = choose()
        problem = error(gone)
        if problem is None:
            break
        culprits = _culprits(gone, error)
        if not culprits:
            raise RuntimeError(f"prune_channels: the smaller model is another one: {problem}")
        for i, why in culprits.items():
            groups[i] = replace(groups[i], reason=f"the model does not work without some: {why}")
    removed = np.concatenate([np.empty(0, dtype=np.int64), *gone])
    lost = [(group, len(ids)) for group, ids in zip(groups, gone, strict=True)]
    cut(model, cuts_of(graph, classes, removed), head_sizes(draft, lost, graph, classes))
    nothing = np.empty(0, dtype=np.int64)
    return ChannelReport(
        tuple(_row(group, chosen, n) for (group, n), chosen in zip(lost, specs, strict=True)),
        (graph.macs(nothing, classes), graph.macs(removed, classes)),
        (parameters, sum(p.numel() for p in model.parameters())),
    )


def _row(group: Group, spec: Channels | None, lost: int) -> Pruned:
    count, reason = len(group.channels), group.reason
    if reason is None and not lost:
        reason = _why_whole(spec)
    return Pruned(group.producers, group.consumers, count, count - lost, group.width, reason)


def _why_whole(spec: Channels | None) -> str:
    if spec is None:
        return "left alone by the spec"
    if spec.sparsity == 0:
        return "sparsity 0 in the spec"
    if spec.scope == "global":
        return "ranked with the other sets, too few of it are among the least"
    return "too few to remove some"


def check_float(caller: str, model: nn.Module) -> None:
    """ValueError for a model with masks, quantisers or integer layers."""
    for name, module in model.named_modules():
        prepared = hasattr(module, "sparseq_layer") or isinstance(module, SparseQuantLayer)
        if prepared or transform_of(module, Mask) or transform_of(module, FakeQuantize):
            where = name or "the model itself"
            raise ValueError(
                f"{caller}: model must be a float one, got {where} prepared: do this before prepare"
            )


def check_seen(caller: str, model: nn.Module, graph: ChannelGraph) -> None:
    """ValueError for a layer that the run did not reach: it may read what moves or goes."""
    seen = {name for axis in graph.axes for name in axis.names}
    for name, value in model.named_parameters(remove_duplicate=False):
        if value.dim() > 1 and name not in seen and max(value.shape) > 1:
            owner = layer_of(name) or name
            raise ValueError(
                f"{caller}: example must run every layer of the model, {owner} did not run in eval "
                "mode: give another example, or take that layer out (an auxiliary classifier?)"
            )


@torch.no_grad()
def _scores(model: nn.Module, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scores by the names that parameters have once attentions have projections of their own."""
    held = copy.deepcopy(model).double()
    tensors = dict(held.named_parameters(remove_duplicate=False))
    for tensor in tensors.values():
        tensor.fill_(torch.nan)  # where there is no score
    for name, score in scores.items():
        fits = isinstance(score, Tensor) and name in tensors and score.shape == tensors[name].shape
        if not fits:
            wanted = tuple(tensors[name].shape) if name in tensors else "a parameter's name"
            got = (
                f"shape {tuple(score.shape)}" if isinstance(score, Tensor) else type(score).__name__
            )
            raise ValueError(
                f"prune_channels: scores must hold tensors like the parameters: {name!r} must be "
                f"{wanted}, got {got}"
            )
        if not bool(score.isfinite().all()):
            raise ValueError(
                f"prune_channels: scores of {name!r} must be finite, got an infinity or NaN"
            )
        tensors[name].copy_(score)
    take_all_attentions(held)
    found = held.named_parameters(remove_duplicate=False)
    return {name: tensor.detach() for name, tensor in found if not tensor.isnan().any()}


def _specs(spec: Specs, groups: Sequence[Group]) -> list[Channels | None]:
    if isinstance(spec, Channels):
        return [spec] * len(groups)
    if not isinstance(spec, Mapping):
        raise TypeError(
            "prune_channels: spec must be a Channels, or a mapping of patterns to them, "
            f"got {type(spec).__name__}"
        )
    names = list(dict.fromkeys(name for group in groups for name in group.producers))
    chosen: dict[str, Channels | None] = {}
    for pattern, value in spec.items():
        if value is not None and not isinstance(value, Channels):
            raise TypeError(
                f"prune_channels: spec of {pattern!r} must be a Channels or None, "
                f"got {type(value).__name__}"
            )
        hits = fnmatch.filter(names, pattern)
        if not hits:
            raise ValueError(
                f"prune_channels: pattern {pattern!r} matches no layer that makes channels; they "
                f"are {', '.join(names)}"
            )
        chosen.update(dict.fromkeys(hits, value))
    result: list[Channels | None] = []
    for group in groups:
        found = [chosen.get(name) for name in group.producers]
        some = [value for value in found if value is not None]
        whole = bool(some) and len(some) == len(found)
        result.append(min(some, key=lambda value: value.sparsity) if whole else None)
    return result


def _within(
    graph: ChannelGraph,
    classes: Classes,
    groups: Sequence[tuple[Group, Channels, Worth]],
    share: float | None,
) -> list[Ids]:
    """What goes; with a share of multiplications, as little as brings them down to it."""
    if share is None:
        return select(groups)
    nothing = np.empty(0, dtype=np.int64)
    target = share * graph.macs(nothing, classes)
    highest = max([1.0, *(s.limit / s.sparsity for _, s, _ in groups if s.sparsity)])

    def left(factor: float) -> int:
        return graph.macs(np.concatenate([nothing, *select(groups, factor)]), classes)

    if left(highest) > target:
        least = left(highest) / graph.macs(nothing, classes)
        raise ValueError(
            f"prune_channels: macs must be at least {least:.3f}, what the limits leave, got {share}"
        )
    low, high = 0.0, highest
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (low, middle) if left(middle) <= target else (middle, high)
    # many sets change at once there, in steps of round_to: those go on whose loss is least
    less, more = select(groups, low), select(groups, high)

    def lost(i: int) -> float:
        group, _, values = groups[i]
        return float(values[np.isin(group.channels, np.setdiff1d(more[i], less[i]))].sum())

    for i in sorted(range(len(groups)), key=lost):
        if graph.macs(np.concatenate([nothing, *less]), classes) <= target:
            break
        less[i] = more[i]
    return less


def _culprits(gone: Sequence[Ids], error: Any) -> dict[int, str]:
    """Groups that cannot lose channels even when all others stay whole, with the error."""
    found: dict[int, str] = {}
    for i, ids in enumerate(gone):
        if len(ids):
            alone = [ids if j == i else ids[:0] for j in range(len(gone))]
            problem = error(alone)
            if problem is not None:
                found[i] = problem
    return found
