"""The channels of a model: which slices of which parameters are one, and which sets are alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from sparseq.structured.classes import Classes, Ids
from sparseq.structured.record import Axis, record


@dataclass(frozen=True)
class Group:
    """A coupled set: channels that the same dimensions of the same parameters hold.

    Args:
        channels: one number a channel.
        axes: indices of the dimensions, into the graph's axes, with how many of their indices
            belong to one channel (the pixels behind a flatten, the features of a head).
        producers: names of the layers that make these channels.
        consumers: names of the layers that read them.
        reason: why they all stay, or None.
        width: how many indices of a layer's dimension a channel is at least: a head's features,
            or one.
    """

    channels: Ids
    axes: Mapping[int, int]
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    reason: str | None = None
    width: int = 1

    @property
    def label(self) -> str:
        """For people: who makes these channels."""
        names = self.producers or self.consumers
        shown = ", ".join(names[:3])
        return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")


class ChannelGraph:
    """The dependency graph of a model's channels, from one run.

    Two indices of parameter dimensions are one channel where the run combines what they make: a
    sum element by element, the sum of a product, a depthwise convolution, a norm's scale. An
    attention head, and a group of a grouped convolution, is one unit. What the graph does not know
    stays, with the reason.

    Args:
        model: run once, in eval mode; not changed.
        example: a tensor, an (input, ...) tuple, or a dict of arguments; one sample will do.
        caller: named in errors.

    Reference:
        Fang et al. 2023, DepGraph: Towards Any Structural Pruning (which works on a graph of
        layers; this one is a graph of indices).
    """

    def __init__(self, model: nn.Module, example: Any, caller: str = "ChannelGraph") -> None:
        self._notes = record(caller, model, example)
        self.axes: list[Axis] = self._notes.axes
        self._sizes = [len(axis.ids) for axis in self.axes]
        self._ids = [axis.ids.numpy() for axis in self.axes]
        self._heads = [np.unique(h.numpy()) for h in self._notes.heads]

    def pruning_classes(self, through_norms: bool) -> Classes:
        """Which numbers go together.

        Args:
            through_norms: whether features of a layer norm may go one by one: it then normalises
                over those that are left, which is another function.
        """
        notes, classes = self._notes, self._notes.classes.copy()
        for rows, _ in notes.groups:
            classes.unite(rows, rows[:, :1])
        if not through_norms:
            for ids, _ in notes.norms:
                classes.unite(ids, ids[:1])
        for _ in range(2):  # a grid's channels may be tied by another grid
            for grid in notes.grids:
                _settle_grid(classes, grid)
        return classes

    def moving_classes(self) -> Classes:
        """Which numbers move together when channels are put in another order."""
        notes, classes = self._notes, self._notes.classes.copy()
        for rows, where in notes.groups:
            classes.lock(rows.reshape(-1), f"in groups of their own in {where}")
        return classes

    def groups(self, classes: Classes) -> list[Group]:
        """The coupled sets, in the order of the run; those that stay have a reason."""
        locked = classes.locked()
        axes_of: dict[int, dict[int, int]] = defaultdict(dict)
        for index, ids in enumerate(self._ids):
            for root, count in zip(*np.unique(classes.roots(ids), return_counts=True), strict=True):
                axes_of[int(root)][index] = int(count)
        alike: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for root, axes in axes_of.items():
            alike[(tuple(sorted(axes.items())), locked.get(root))].append(root)
        norms = self._norm_places(classes)
        found = []
        for (pairs, reason), roots in alike.items():
            axes = dict(pairs)
            out = [i for i in axes if i in self._notes.outputs]
            read = [i for i in axes if i in self._notes.inputs]
            if not out and not read:
                continue  # the taps of a kernel, say
            if reason is None and not out:
                reason = "no layer makes them"
            if reason is None and len(roots) == 1:
                place = norms.get(roots[0])
                reason = "all of them are one unit"
                reason += f": normalised together in {place}" if place else ""
            width = min(axes[i] for i in [*out, *read])
            found.append(
                Group(
                    np.array(sorted(roots), dtype=np.int64),
                    axes,
                    _layers(self.axes, out),
                    _layers(self.axes, read),
                    reason,
                    width,
                )
            )
        return sorted(found, key=lambda group: min(group.axes))

    def _norm_places(self, classes: Classes) -> dict[int, str]:
        found: dict[int, str] = {}
        for ids, place in self._notes.norms:
            for root in np.unique(classes.roots(ids)):
                found.setdefault(int(root), place)
        return found

    def places(self, axis: int, classes: Classes) -> Ids:
        """The channel of each index of an axis."""
        return classes.roots(self._ids[axis])

    def made(self) -> set[int]:
        """Axes whose indices are channels that a layer makes."""
        return self._notes.outputs

    def read(self) -> set[int]:
        """Axes whose indices are channels that a layer reads."""
        return self._notes.inputs

    def is_heads(self, group: Group, classes: Classes) -> bool:
        """Whether the channels of a group are attention heads."""
        return any(np.isin(classes.roots(h), group.channels).any() for h in self._heads)

    def macs(self, removed: Ids, classes: Classes) -> int:
        """Multiplications of a run without some channels.

        Args:
            removed: channels of the groups of these classes.
            classes: as given to `groups`.
        """
        gone = np.zeros(classes.size, dtype=bool)
        gone[removed] = True
        total = 0.0
        for product in self._notes.products:
            share = 1.0
            for label in product.labels:
                share *= 1.0 - float(gone[classes.roots(label)].mean())
            total += product.macs * share
        return round(total)


def _layers(axes: list[Axis], indices: Iterable[int]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(axes[i].layer or axes[i].names[0] for i in indices))


def _settle_grid(classes: Classes, grid: Any) -> None:
    """Channels along several dimensions can go only along one of them: that, or the last."""
    roots = classes.roots(grid)
    for d in range(roots.ndim):
        others = tuple(a for a in range(roots.ndim) if a != d)
        if (roots == roots.min(axis=others, keepdims=True)).all():
            return
    first = grid
    for d in range(grid.dim() - 1):
        first = first.narrow(d, 0, 1)
    classes.unite(grid, first)
