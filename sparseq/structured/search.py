"""An order of columns that keeps more magnitude under N:M sparsity.

Pool and Yu optimise two stripes (groups of m columns) at a time by trying every way to share out
their columns, always where that gains most, until no two stripes gain; then they leave the local
optimum by a random change that may lose. Here the pairs' gains are computed for all rows at once,
and a change is two columns of different stripes exchanged and only their stripes' pairs tried anew.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

ROWS = 1024  # more are sampled for the search; the result is judged on all
BLOCK = 16  # stripes that are searched at a time: work grows with the square of their number
SWEEPS = 3  # over all blocks, each with other blocks


def kept(columns: Tensor, n: int, m: int) -> Tensor:
    """The magnitude that N:M keeps, for each stripe.

    Args:
        columns: magnitudes, `[rows, stripes * m]`.
        n: how many of m are kept.
        m: columns of a stripe.

    Returns:
        float64 `[stripes]`.
    """
    stripes = columns.unflatten(1, (-1, m))
    return stripes.topk(n, dim=-1).values.sum(-1).double().sum(0)


@dataclass(frozen=True)
class Order:
    """An order of columns, and the magnitude kept before and after."""

    permutation: Tensor
    before: float
    after: float


class _Stripes:
    """Columns in stripes, what each keeps, and what each pair of stripes would gain."""

    def __init__(self, matrix: Tensor, n: int, m: int) -> None:
        self.n, self.m = n, m
        self.values = matrix.t().contiguous()  # a row for each column
        self.count = len(self.values) // m
        self.order = torch.arange(len(self.values)).view(self.count, m)
        # ways to share out 2m columns over two stripes, the first column in the first
        ways = [(0, *rest) for rest in itertools.combinations(range(1, 2 * m), m - 1)]
        self.ways = torch.tensor([[*w, *(c for c in range(2 * m) if c not in w)] for w in ways])
        self.kept = torch.stack([self._kept(stripe[None])[0] for stripe in self.order])
        self.gain = torch.full((self.count, self.count), -torch.inf, dtype=torch.float64)
        self.best = torch.zeros((self.count, self.count), dtype=torch.int64)
        for first in range(self.count - 1):
            self._try(first, torch.arange(first + 1, self.count))

    def _kept(self, columns: Tensor) -> Tensor:
        """What stripes of these columns `[many, m]` keep."""
        x = self.values[columns]  # [many, m, rows]
        if (self.n, self.m) == (2, 4):
            a, b, c, d = x.unbind(1)
            high, low = torch.maximum(a, b), torch.minimum(a, b)
            other, least = torch.maximum(c, d), torch.minimum(c, d)
            two = torch.minimum(high, other)  # the second is this, or beside the first
            second = torch.maximum(two, torch.where(high >= other, low, least))
            return (torch.maximum(high, other) + second).sum(-1).double()
        return x.topk(self.n, dim=1).values.sum(1).sum(-1).double()

    def _try(self, first: int, others: Tensor) -> None:
        """Gains of a stripe with others."""
        step = max(1, (1 << 22) // (len(self.ways) * 2 * self.m * self.values.shape[1]))
        for part in others.split(step):
            columns = torch.cat([self.order[first].expand(len(part), -1), self.order[part]], 1)
            shared = columns[:, self.ways]  # [pairs, ways, 2m]
            halves = shared.reshape(-1, self.m)
            total = self._kept(halves).view(len(part), len(self.ways), 2).sum(-1)
            most, way = total.max(1)
            gain = most - self.kept[first] - self.kept[part]
            low, high = torch.clamp(part, max=first), torch.clamp(part, min=first)
            self.gain[low, high] = gain
            flipped = part < first
            self.best[low, high] = torch.where(flipped, way + len(self.ways), way)

    def apply(self, first: int, second: int) -> None:
        """Share out two stripes' columns in the best way."""
        way = int(self.best[first, second])
        a, b = (first, second) if way < len(self.ways) else (second, first)
        columns = torch.cat([self.order[a], self.order[b]])[self.ways[way % len(self.ways)]]
        self.put(a, b, columns)

    def put(self, a: int, b: int, columns: Tensor) -> None:
        """Give two stripes these columns and try them with all others."""
        self.order[a], self.order[b] = columns[: self.m], columns[self.m :]
        self.kept[[a, b]] = self._kept(self.order[[a, b]])
        everything = torch.arange(self.count)
        self._try(a, everything[everything != a])
        self._try(b, everything[(everything != a) & (everything != b)])

    def climb(self) -> None:
        """Apply the greatest gain until there is none."""
        while self.count > 1:
            at = int(self.gain.argmax())
            first, second = divmod(at, self.count)
            if not float(self.gain[first, second]) > 1e-9 * max(1.0, float(self.kept.sum())):
                return
            self.apply(first, second)

    def state(self) -> tuple[Tensor, ...]:
        """All of it, to go back to."""
        return tuple(t.clone() for t in (self.order, self.kept, self.gain, self.best))

    def restore(self, state: tuple[Tensor, ...]) -> None:
        """Back to a state."""
        self.order, self.kept, self.gain, self.best = (t.clone() for t in state)


def search_order(
    matrix: Tensor, n: int = 2, m: int = 4, *, escapes: int = 0, seed: int = 0
) -> Order:
    """Look for an order of columns that keeps more magnitude when n of every m are kept.

    Args:
        matrix: `[rows, columns]`, magnitudes or weights; columns a multiple of m.
        n: how many are kept.
        m: neighbours of a group, at most 4.
        escapes: random changes to try after no pair of stripes gains; each is kept if what
            follows from it is no worse.
        seed: of those.

    Returns:
        The order; never worse than the given one.

    Raises:
        ValueError: a shape, or n and m out of range.

    Reference:
        Pool and Yu 2021, Channel Permutations for N:M Sparsity, section 4.
    """
    if matrix.dim() != 2 or not 0 < n < m <= 4 or matrix.shape[1] % m:
        raise ValueError(
            "search_order: matrix must be [rows, columns], columns a multiple of m, and n < m <= 4,"
            f" got shape {tuple(matrix.shape)}, n = {n}, m = {m}"
        )
    magnitudes = torch.nan_to_num(matrix.detach().abs().float(), nan=0.0).cpu()
    before = float(kept(magnitudes, n, m).sum())
    identity = torch.arange(matrix.shape[1])
    if matrix.shape[1] <= m or not matrix.shape[0]:
        return Order(identity, before, before)
    generator = torch.Generator().manual_seed(seed)
    sample = magnitudes
    if len(magnitudes) > ROWS:
        sample = magnitudes[torch.randperm(len(magnitudes), generator=generator)[:ROWS]]
    order = identity.view(-1, m)
    if len(order) <= BLOCK:
        order = _block(sample, n, m, escapes, generator)
    else:
        for _ in range(SWEEPS):
            shuffled = order[torch.randperm(len(order), generator=generator)]
            parts = shuffled.chunk(-(-len(order) // BLOCK))
            order = torch.cat(
                [
                    part.flatten()[_block(sample[:, part.flatten()], n, m, escapes, generator)]
                    for part in parts
                ]
            )
    permutation = order.sort(dim=1).values.flatten()
    after = float(kept(magnitudes[:, permutation], n, m).sum())
    return Order(permutation, before, after) if after > before else Order(identity, before, before)


def _block(matrix: Tensor, n: int, m: int, escapes: int, generator: torch.Generator) -> Tensor:
    """A better order of some stripes' columns, `[stripes, m]`."""
    stripes = _Stripes(matrix, n, m)
    stripes.climb()
    for _ in range(escapes if stripes.count > 1 else 0):
        state, value = stripes.state(), float(stripes.kept.sum())
        a, b = torch.randperm(stripes.count, generator=generator)[:2].tolist()
        i, j = torch.randint(m, (2,), generator=generator).tolist()
        columns = torch.cat([stripes.order[a], stripes.order[b]])
        columns[[i, m + j]] = columns[[m + j, i]]
        stripes.put(a, b, columns)
        _forbid_undo(stripes, a, b)
        stripes.climb()
        if float(stripes.kept.sum()) < value:
            stripes.restore(state)
    return stripes.order


def _forbid_undo(stripes: _Stripes, a: int, b: int) -> None:
    """Take the best other pair of the two first: the pair itself would undo the change."""
    gains = stripes.gain.clone()
    gains[min(a, b), max(a, b)] = -torch.inf
    touched = torch.zeros_like(gains, dtype=torch.bool)
    touched[[a, b], :] = True
    touched[:, [a, b]] = True
    gains[~touched] = -torch.inf
    first, second = divmod(int(gains.argmax()), stripes.count)
    if first != second and torch.isfinite(gains[first, second]):
        stripes.apply(first, second)
