"""The multiple-choice knapsack: one option a layer, costs and losses that add up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LIMIT = 4096  # plans kept; beyond, the best of as many equal steps of the cost


@dataclass(frozen=True)
class Point:
    """A plan that no other beats in both: cost, loss, and the option of each layer."""

    cost: float
    loss: float
    options: tuple[int, ...]


def frontier(
    costs: Sequence[Sequence[float]], losses: Sequence[Sequence[float]], limit: int = LIMIT
) -> list[Point]:
    """All plans that are best for some budget, cheapest first, by dynamic programming.

    Layer by layer: the plans so far, times the layer's options, less what another plan beats in
    cost and loss. Exact while at most `limit` plans are left after a layer; then the best plan of
    each of `limit` equal steps of the cost stays. Among equals the earlier option wins.

    Args:
        costs: by layer, by option.
        losses: likewise.
        limit: how many plans are kept.

    Returns:
        Costs ascend, losses descend.

    Reference:
        Nemhauser and Ullmann 1969; Kellerer, Pferschy, Pisinger 2004, Knapsack Problems, chapter
        11.
    """
    cost, loss = np.zeros(1), np.zeros(1)
    options: np.ndarray[Any, Any] = np.zeros((1, 0), dtype=np.int16)
    for layer_costs, layer_losses in zip(costs, losses, strict=True):
        width = len(layer_costs)
        cost = (cost[:, None] + np.asarray(layer_costs, dtype=float)).ravel()
        loss = (loss[:, None] + np.asarray(layer_losses, dtype=float)).ravel()
        choice = np.tile(np.arange(width, dtype=np.int16), len(options))
        options = np.column_stack([np.repeat(options, width, axis=0), choice])
        order = np.lexsort((loss, cost))  # stable: the earlier option first among equals
        least = np.minimum.accumulate(loss[order])
        better = np.ones(len(order), dtype=bool)
        better[1:] = loss[order][1:] < least[:-1]
        kept = _thinned(order[better], cost, limit)
        cost, loss, options = cost[kept], loss[kept], options[kept]
    return [
        Point(float(c), float(n), tuple(map(int, row)))
        for c, n, row in zip(cost, loss, options, strict=True)
    ]


def _thinned(kept: Any, cost: Any, limit: int) -> Any:
    """Of plans by ascending cost the last, so the best, of each step; and the cheapest."""
    if len(kept) <= limit:
        return kept
    held = cost[kept]
    steps = ((held - held[0]) / (held[-1] - held[0]) * (limit - 1)).astype(int)
    last = np.append(steps[1:] != steps[:-1], True)
    last[0] = True
    return kept[last]
