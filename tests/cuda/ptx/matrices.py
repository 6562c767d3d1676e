"""ldmatrix: 8x8 matrices of 16-bit elements from shared memory into a warp's registers."""

from __future__ import annotations

import numpy as np

from .forms import Action, instruction
from .operation import Operation
from .warps import Threads


@instruction("ldmatrix.sync.aligned.m8n8.<count:x1|x2|x4>[.trans].<space:shared|shared::cta>.b16")
def ldmatrix(op: Operation) -> Action:
    """Lane 8m + r names row r of matrix m; lane 4r + c gets elements 2c and 2c + 1 of row r."""
    op.expect(2)
    count, transposed = int(op.get("count")[1]), op.has("trans")
    writers = [op.write(item, "b32") for item in op.items(0, count)]
    address = op.address(1)

    def act(threads: Threads) -> None:
        warps = threads.whole_warps("ldmatrix")
        rows_of = threads.lanes.reshape(warps, 32)[:, : 8 * count].reshape(-1)
        where = threads.spread(address(threads)).reshape(warps, 32)[:, : 8 * count].reshape(-1)
        rows = Threads.of(threads.chunk, rows_of)
        space = threads.chunk.spaces["shared"]
        offsets = space.where(rows, where, 16)
        elements = space.load(rows, offsets, 2, 8).reshape(warps, count, 8, 8)
        if threads.chunk.shared_races is not None:
            threads.chunk.shared_races.access(rows, offsets, 16, "read", for_warp=True)
        if transposed:
            elements = elements.transpose(0, 1, 3, 2)
        words = np.ascontiguousarray(elements).view(np.uint32).reshape(warps, count, 32)
        for k, write in enumerate(writers):
            write(threads, words[:, k].reshape(-1))

    return act
