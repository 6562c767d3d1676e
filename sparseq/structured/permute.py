"""`permute_channels`: the same function, with more magnitude left under N:M sparsity."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparseq.flow.prepare import check_single, layers_of, sparsity_refusal
from sparseq.nn import outputs_first, projections
from sparseq.spec import NM, Plan
from sparseq.structured.check import Trial
from sparseq.structured.classes import Classes, Ids
from sparseq.structured.cut import named_tensors, take_all_attentions
from sparseq.structured.graph import ChannelGraph, Group
from sparseq.structured.prune import check_float, check_seen
from sparseq.structured.search import kept, search_order

Moves = dict[tuple[str, ...], dict[int, Tensor]]  # by a tensor's names and dimension, the new order


@dataclass(frozen=True)
class Permuted:
    """One layer that the plan gives N:M sparsity.

    Attributes:
        name: of the layer.
        before: the magnitude that N:M keeps in the old order of channels.
        after: in the new one.
        total: the magnitude of all its weights.
        reason: why its channels stayed where they were, or None.
    """

    name: str
    before: float
    after: float
    total: float
    reason: str | None


@dataclass(frozen=True)
class PermutationReport:
    """Layers and what N:M keeps of each. It prints itself."""

    layers: tuple[Permuted, ...]

    def __str__(self) -> str:
        """A line a layer, then the sum."""
        lines = []
        for row in self.layers:
            share = [100 * v / max(row.total, 1e-30) for v in (row.before, row.after)]
            tail = f" ({row.reason})" if row.reason else ""
            lines.append(f"{row.name}: {share[0]:.2f} % -> {share[1]:.2f} % kept{tail}")
        sums = [sum(getattr(r, k) for r in self.layers) for k in ("before", "after", "total")]
        before, after = (100 * v / max(sums[2], 1e-30) for v in sums[:2])
        return "\n".join([*lines, f"all: {before:.2f} % -> {after:.2f} % of the magnitude kept"])


def permute_channels(
    model: nn.Module, example: Any, plan: Plan, *, escapes: int = 10
) -> PermutationReport:
    """Put channels in an order in which N:M sparsity keeps more magnitude, in place.

    The input channels of each layer that the plan gives NM sparsity are permuted, and with them the
    outputs of whatever makes them, norms, and everything else that reads them, so that the model
    computes the same function to rounding; that is checked on the example first. Layers that read
    the same channels (behind a residual sum, say) are searched for together. Parameters stay the
    same objects with other content. Do it before `prepare`.

    Args:
        model: float, not prepared.
        example: a tensor, an (input, ...) tuple, or a dict of arguments; one sample will do.
        plan: which layers get NM sparsity, of m up to 4; the rest of it does not matter here.
        escapes: random changes tried, in each part of the search, after it has converged: more
            time for a little more magnitude.

    Returns:
        The magnitude kept before and after, by layer, and why a layer's inputs stayed in place.

    Raises:
        TypeError: plan is not a Plan.
        ValueError: a prepared or converted model, a plan without such layers.
        RuntimeError: the permuted model computes something else, for whatever cause; the model is
            unchanged.

    Reference:
        Pool and Yu 2021, Channel Permutations for N:M Sparsity.
    """
    if not isinstance(plan, Plan):
        raise TypeError(f"permute_channels: plan must be a sparseq.Plan, got {type(plan).__name__}")
    check_float("permute_channels", model)
    draft = copy.deepcopy(model)
    take_all_attentions(draft)
    layers = layers_of(draft)
    wanted: dict[str, NM] = {}
    for name, chosen in plan.match(layers).items():
        spec = chosen.sparsity
        if isinstance(spec, NM) and spec.m <= 4 and not isinstance(layers[name], nn.Embedding):
            check_single("permute_channels", name, layers[name])
            wanted[name] = spec
    if not wanted:
        raise ValueError(
            "permute_channels: plan must give a layer NM sparsity with m of at most 4, got none"
        )
    graph = ChannelGraph(draft, example, "permute_channels")
    check_seen("permute_channels", draft, graph)
    classes = graph.moving_classes()
    targets = _Targets(draft, graph, classes, wanted)
    sets = [
        moves
        for group in graph.groups(classes)
        if group.reason is None and (moves := targets.best(group, escapes))
    ]
    trial = Trial(draft, example)
    original = trial.outputs(trial.original())

    def error(some: Sequence[Moves]) -> str | None:
        moved = trial.original()
        for moves in some:
            _move(moved, moves)
        return trial.difference(trial.outputs(moved), original)

    if sets and error(sets) is not None:
        sets = [moves for moves in sets if error([moves]) is None]
        problem = error(sets)
        if problem is not None:
            raise RuntimeError(f"permute_channels: the permuted model is another one: {problem}")
    before = {name: _magnitudes(layers[name]) for name in wanted}
    for moves in sets:
        _move(draft, moves)
        _move(model, moves)
    rows = [_row(name, layers[name], before[name], spec) for name, spec in wanted.items()]
    return PermutationReport(tuple(targets.explained(row, sets) for row in rows))


def _magnitudes(layer: nn.Module) -> Tensor:
    """A layer's weight as `[outputs * taps, inputs]`."""
    weight = outputs_first(layer, layer.weight.detach())  # type: ignore[operator]
    return weight.abs().float().cpu().movedim(1, -1).flatten(0, -2).clone()


def _row(name: str, layer: nn.Module, before: Tensor, spec: NM) -> Permuted:
    total = float(before.double().sum())
    refusal = sparsity_refusal(layer, spec)
    if refusal is not None:
        return Permuted(name, total, total, total, f"stays dense: {refusal}")
    sums = [float(kept(x, spec.n, spec.m).sum()) for x in (before, _magnitudes(layer))]
    return Permuted(name, sums[0], sums[1], total, None)


class _Targets:
    """The layers to permute the inputs of, and which channels these are."""

    def __init__(
        self, model: nn.Module, graph: ChannelGraph, classes: Classes, wanted: dict[str, NM]
    ) -> None:
        self._graph, self._classes, self._wanted = graph, classes, wanted
        self._layers = layers_of(model)
        self._locked = classes.locked()
        self._axes: dict[int, str] = {}
        for index, axis in enumerate(graph.axes):
            for name in axis.names:
                owner, _, short = name.rpartition(".")
                if owner in wanted and short == "weight" and index in graph.read():
                    self._axes[index] = owner

    def best(self, group: Group, escapes: int) -> Moves | None:
        """The moves of a group's channels that keep most, or None where none keeps more."""
        orders: dict[tuple[int, ...], list[tuple[Tensor, NM]]] = defaultdict(list)
        for index, count in group.axes.items():
            if index not in self._axes or count != 1:
                continue
            name = self._axes[index]
            spec = self._wanted[name]
            places = self._graph.places(index, self._classes)
            at = np.flatnonzero(np.isin(places, group.channels))
            whole = len(at) % spec.m == 0 and len(places) % spec.m == 0
            if not whole or np.ptp(at.reshape(-1, spec.m) // spec.m, axis=1).any():
                continue  # a stripe of it holds other channels, too
            if (at.reshape(-1, spec.m)[:, 0] % spec.m).any():
                continue
            matrix = _magnitudes(self._layers[name])[:, torch.from_numpy(at)]
            orders[tuple(places[at].tolist())].append((matrix, spec))
        if not orders:
            return None
        # layers that see the channels in the same order are searched together; most weights win
        sequence = max(orders, key=lambda key: sum(m.numel() for m, _ in orders[key]))
        members = orders[sequence]
        spec = members[0][1]
        matrix = torch.cat([m for m, other in members if other == spec])
        found = search_order(matrix, spec.n, spec.m, escapes=escapes)
        if not found.after > found.before:
            return None
        return self._moves(group, np.array(sequence), found.permutation.numpy())

    def _moves(self, group: Group, sequence: Ids, permutation: Ids) -> Moves:
        moves: Moves = defaultdict(dict)
        for index, count in group.axes.items():
            axis = self._graph.axes[index]
            places = self._graph.places(index, self._classes)
            at = np.flatnonzero(np.isin(places, group.channels))
            ordered = at[np.argsort(places[at], kind="stable")].reshape(-1, count)
            rows = ordered[np.searchsorted(np.sort(sequence), sequence)]
            order = np.arange(len(places))
            order[rows.reshape(-1)] = rows[permutation].reshape(-1)
            moves[axis.names][axis.dim] = torch.from_numpy(order)
        return dict(moves)

    def explained(self, row: Permuted, sets: Sequence[Moves]) -> Permuted:
        """The row with the reason why its inputs stayed, if they did."""
        key = f"{row.name}.weight"
        dims = {self._graph.axes[i].dim for i, name in self._axes.items() if name == row.name}
        moved = any(
            key in names and dims & set(moves) for each in sets for names, moves in each.items()
        )
        if row.reason is not None or moved:
            return row
        reason = "nothing better was found"
        if not dims:
            reason = "its inputs are in groups" if self._grouped(row.name) else "it was not read"
        for index, name in self._axes.items():
            if name == row.name:
                roots = self._graph.places(index, self._classes)
                reason = next(
                    (self._locked[int(r)] for r in roots if int(r) in self._locked), reason
                )
                if len(np.unique(roots)) < len(roots):
                    reason = "several of its inputs belong to one channel"
        return Permuted(row.name, row.before, row.after, row.total, reason)

    def _grouped(self, name: str) -> bool:
        return getattr(self._layers[name], "groups", 1) != 1


@torch.no_grad()
def _move(model: nn.Module, moves: Moves) -> None:
    """Permute tensors' content, in place."""
    tensors = named_tensors(model)
    for name, module in model.named_modules():
        if type(module) is nn.MultiheadAttention:  # its projections are views of its parameters
            for key, layer in projections(module).items():
                for short, value in layer.named_parameters():
                    tensors.setdefault(f"{name}.{key}.{short}".lstrip("."), value)
    for names, dims in moves.items():
        held = tensors[names[0]]
        moved: Tensor = held.detach()
        for dim, order in dims.items():
            moved = moved.index_select(dim, order.to(held.device))
        held.copy_(moved)
