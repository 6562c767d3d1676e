"""Branches, barriers and fences. Where threads go next is the chunk's business."""

from __future__ import annotations

import numpy as np

from .errors import PtxError
from .forms import Action, instruction
from .operation import Operation
from .syntax import Symbol
from .warps import Threads


@instruction("bra[.uni]")
def bra(op: Operation) -> Action:
    op.expect(1)
    label = op.operands[0]
    if not isinstance(label, Symbol) or label.name not in op.kernel.labels:
        raise PtxError("no such label")
    return lambda threads: None


@instruction("ret[.uni]", "exit")
def leave(op: Operation) -> Action:
    op.expect(0)
    return lambda threads: None


@instruction("bar[.cta].sync", "barrier[.cta].sync.aligned")
def barrier(op: Operation) -> Action:
    """All threads of the block, or a count of them, at one of sixteen barriers."""
    op.expect(1, 2)
    number = op.read(0, "u32")
    count = op.read(1, "u32") if len(op.operands) == 2 else None

    def arrive(threads: Threads) -> None:
        which = np.unique(number(threads))
        if which.size > 1 or which[0] > 15:
            threads.fail("a barrier must be one of 0 to 15, the same for all threads here")
        need = None if count is None else threads.spread(count(threads)).astype(np.int32)
        threads.chunk.arrive(threads, int(which[0]), need)

    return arrive


@instruction("membar.<scope:cta|gl|sys>", "fence[.<order:sc|acq_rel>].<scope:cta|gpu|sys>")
def fence(op: Operation) -> Action:
    """Orders nothing for the race checker: blocks that wait for each other are not modelled."""
    op.expect(0)
    return lambda threads: None


@instruction("trap")
def trap(op: Operation) -> Action:
    return lambda threads: threads.fail("trap")
