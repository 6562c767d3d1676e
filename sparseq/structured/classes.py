"""Which indices are one channel: a union-find over index numbers, and labels made of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Ids = npt.NDArray[np.int64]

FIXED = 0  # the number of all places that cannot go: constants, the model's input


class Classes:
    """Numbers, each of one index of one parameter's dimension, and which of them are one channel.

    Numbers that are united go together. Those that are locked stay, for a reason.
    """

    def __init__(self) -> None:
        self._parent = np.zeros(1, dtype=np.int64)
        self._locks: list[tuple[Ids, str]] = [(np.zeros(1, dtype=np.int64), "of fixed size")]

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return len(self._parent)

    def new(self, count: int) -> Tensor:
        """So many fresh numbers."""
        start = len(self._parent)
        fresh = np.arange(start, start + count, dtype=np.int64)
        self._parent = np.concatenate([self._parent, fresh])
        return torch.from_numpy(fresh.copy())

    def roots(self, ids: Ids | Tensor) -> Ids:
        """One number for each class, the same for all its members."""
        found = ids.numpy() if isinstance(ids, Tensor) else ids
        while True:
            parents = self._parent[found]
            if np.array_equal(parents, found):
                return found
            found = parents

    def unite(self, first: Tensor, second: Tensor) -> None:
        """Make one class of each two numbers at the same place, after broadcasting."""
        a, b = torch.broadcast_tensors(first, second)
        pairs = np.stack([self.roots(a.reshape(-1)), self.roots(b.reshape(-1))], axis=1)
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        if not len(pairs):
            return
        for x, y in np.unique(pairs, axis=0):
            low, high = sorted((self._root(int(x)), self._root(int(y))))
            self._parent[high] = low
        self._parent = self.roots(self._parent)

    def _root(self, one: int) -> int:
        while self._parent[one] != one:
            one = int(self._parent[one])
        return one

    def lock(self, ids: Tensor, reason: str) -> None:
        """Keep what belongs to these numbers."""
        self._locks.append((np.unique(ids.numpy()), reason))

    def locked(self) -> dict[int, str]:
        """Of each class that stays the first reason that is not just its size."""
        found: dict[int, str] = {}
        for ids, reason in (*self._locks[1:], self._locks[0]):
            for root in np.unique(self.roots(ids)):
                found.setdefault(int(root), reason)
        return found

    def copy(self) -> Classes:
        """An independent one."""
        other = Classes()
        other._parent, other._locks = self._parent.copy(), list(self._locks)
        return other


def varying(label: Tensor) -> frozenset[int]:
    """The dimensions along which a label tells places apart."""
    return frozenset(d for d, size in enumerate(label.shape) if size > 1)


def padded(label: Tensor, dims: int) -> Tensor:
    """A label of a tensor with leading dimensions of one added."""
    return label.reshape([1] * (dims - label.dim()) + list(label.shape))


def compress(full: Tensor) -> Tensor:
    """A label with dimensions along which it is the same cut to one place."""
    for d, size in enumerate(full.shape):
        if size > 1 and bool((full == full.narrow(d, 0, 1)).all()):
            full = full.narrow(d, 0, 1)
    return full.contiguous()


def disjoint(classes: Classes, labels: Sequence[Tensor]) -> list[Tensor]:
    """Labels that share no dimension: those that do are united into one."""
    result: list[Tensor] = []
    for label in labels:
        merged, rest = label, []
        for other in result:
            if varying(other) & varying(merged):
                classes.unite(other, merged)
                merged = torch.broadcast_tensors(other, merged)[0].contiguous()
            else:
                rest.append(other)
        result = [*rest, merged]
    return [label for label in result if label.numel() > 1]
