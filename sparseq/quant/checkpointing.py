"""Gradient checkpointing: the pass that the backward pass repeats must see the first one's grid."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

Grid = tuple[Tensor, Tensor | None]

SAMPLES = 256  # values of an input that tell it from others
PASSES = 64  # that may wait for one backward pass


def repeated() -> bool:
    """Whether this is gradient checkpointing's second pass: one inside of a backward pass."""
    if torch.compiler.is_compiling():
        return False
    inside: bool = torch._C._current_graph_task_id() != -1
    return inside


def _will_be_repeated() -> bool:
    """Whether a checkpoint may be around this pass: it hooks what is saved, or saves nothing."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return hooks is not None or not torch.is_grad_enabled()


@torch.no_grad()
def _sample(x: Tensor) -> Tensor:
    """Some of the values of x, spread over it."""
    step = max(1, x.numel() // SAMPLES)
    return x.reshape(-1)[::step][: 2 * SAMPLES].clone()


class Passes:
    """The grids of a quantiser's last passes, by what passed.

    A layer may run several times before one backward pass (a shared one, or several forward passes
    of the model): then the input tells which pass is being repeated.
    """

    def __init__(self) -> None:
        self.last: Grid | None = None
        self.kept: deque[tuple[Tensor, Grid]] = deque(maxlen=PASSES)

    def note(self, x: Tensor, grid: Grid) -> None:
        """A first pass: x on this grid."""
        self.last = grid
        if _will_be_repeated():
            self.kept.append((_sample(x), grid))
        else:
            self.kept.clear()

    def find(self, x: Tensor) -> Grid | None:
        """The grid of the pass that is repeated; None if there was none."""
        if len(self.kept) > 1:
            sample = _sample(x)
            for seen, grid in reversed(self.kept):
                if torch.equal(seen, sample):
                    return grid
        return self.last
