"""What the threads of a warp do together: votes, shuffles, reductions, __syncwarp."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .chunk import EXITED
from .forms import Action, instruction
from .operation import Operation
from .types import UNSIGNED, Array
from .warps import Threads


def members(threads: Threads, mask: Array, what: str) -> Array:
    """The member mask of each thread; an error unless those it names are here or have exited."""
    mask = threads.spread(mask)
    alive = threads.chunk.status.reshape(-1, 32)[threads.warps] != EXITED
    powers = np.uint32(1) << np.arange(32, dtype=np.uint32)
    living = (alive * powers).sum(1).astype(np.uint32)
    absent = mask & living & ~threads.present[threads.warps]
    if absent.any():
        threads.fail(f"{what} diverged: threads in its mask are elsewhere", absent != 0)
    outside = mask & threads.bit == 0
    if outside.any():
        threads.fail(f"{what} by a thread that is not in its mask", outside)
    return mask


def over_members(
    threads: Threads, mask: Array, values: Array, function: np.ufunc, neutral: Array
) -> Array:
    """For each thread, its mask's values brought together."""
    chunk = threads.chunk
    table = np.full(chunk.lanes, neutral, values.dtype)
    table[threads.lanes] = values
    lanes = table.reshape(-1, 32)[threads.warps]
    chosen = mask[:, None] >> np.arange(32, dtype=np.uint32) & np.uint32(1) != 0
    return function.reduce(np.where(chosen, lanes, neutral), 1)


@instruction("shfl.sync.<mode:up|down|bfly|idx>.b32")
def shuffle(op: Operation) -> Action:
    op.expect(5)
    mode = op.get("mode")
    write, write_found = op.write_pair(0, "b32", "pred")
    value, lane_b, packed_c, mask = (op.read(k, "b32") for k in (1, 2, 3, 4))

    def act(threads: Threads) -> None:
        group = members(threads, mask(threads), "shfl.sync")
        c = threads.spread(packed_c(threads)).astype(np.int64)
        b = threads.spread(lane_b(threads)).astype(np.int64) & 31
        lane = threads.lanes & 31
        clamp, segment = c & 31, c >> 8 & 31
        most, least = lane & segment | clamp & ~segment, lane & segment
        if mode == "up":
            source = lane - b
            found = source >= most
        else:
            source = {"down": lane + b, "bfly": lane ^ b, "idx": least | b & ~segment}[mode]
            found = source <= most
        source = np.where(found, source, lane)
        inactive = group >> source.astype(np.uint32) & np.uint32(1) == 0
        inactive |= threads.present[threads.warps] >> source.astype(np.uint32) & np.uint32(1) == 0
        if inactive.any():
            threads.fail("shfl.sync reads from a thread that does not take part", inactive)
        table = np.zeros(threads.chunk.lanes, np.uint32)
        table[threads.lanes] = value(threads)
        write(threads, table[(threads.lanes & ~31) + source])
        if write_found is not None:
            write_found(threads, found)

    return act


@instruction("vote.sync.<mode:all|any|uni>.pred", "vote.sync.<mode:ballot>.b32")
def vote(op: Operation) -> Action:
    op.expect(3)
    mode = op.get("mode")
    write = op.write(0, "b32" if mode == "ballot" else "pred")
    holds, mask = op.read(1, "pred"), op.read(2, "b32")

    def act(threads: Threads) -> None:
        group = members(threads, mask(threads), "vote.sync")
        ballot = np.where(threads.spread(holds(threads)), threads.bit, np.uint32(0))
        ballot = over_members(threads, group, ballot, np.bitwise_or, np.uint32(0))  # type: ignore[arg-type]
        # threads that have exited do not vote
        voters = group & threads.present[threads.warps]
        answers = {
            "ballot": lambda: ballot,
            "any": lambda: ballot != 0,
            "all": lambda: ballot == voters,
            "uni": lambda: (ballot == 0) | (ballot == voters),
        }
        write(threads, answers[mode]())

    return act


@instruction("match.any.sync.<type:b32|b64>", "match.all.sync.<type:b32|b64>")
def match(op: Operation) -> Action:
    op.expect(3)
    kind, every = op.get("type"), op.has("all")
    write, write_all = op.write_pair(0, "b32", "pred")
    value, mask = op.read(1, kind), op.read(2, "b32")

    def act(threads: Threads) -> None:
        group = members(threads, mask(threads), "match.sync")
        own = threads.spread(value(threads))
        table = np.zeros(threads.chunk.lanes, own.dtype)
        table[threads.lanes] = own
        same = table.reshape(-1, 32)[threads.warps] == own[:, None]
        powers = np.uint32(1) << np.arange(32, dtype=np.uint32)
        voters = group & threads.present[threads.warps]
        equal = (same * powers).sum(1).astype(np.uint32) & voters
        if every:
            write(threads, np.where(equal == voters, voters, np.uint32(0)))
            if write_all is not None:
                write_all(threads, equal == voters)
        else:
            write(threads, equal)

    return act


@instruction("activemask.b32")
def activemask(op: Operation) -> Action:
    write = op.write(0, "b32")
    return lambda threads: write(threads, threads.present[threads.warps])


REDUCTIONS: dict[str, tuple[np.ufunc, Callable[[str], int]]] = {
    "add": (np.add, lambda kind: 0),
    "min": (np.minimum, lambda kind: 2**31 - 1 if kind == "s32" else 2**32 - 1),
    "max": (np.maximum, lambda kind: -(2**31) if kind == "s32" else 0),
    "and": (np.bitwise_and, lambda kind: 2**32 - 1),
    "or": (np.bitwise_or, lambda kind: 0),
    "xor": (np.bitwise_xor, lambda kind: 0),
}


@instruction("redux.sync.<op:add|min|max>.<type:u32|s32>", "redux.sync.<op:and|or|xor>.<type:b32>")
def redux(op: Operation) -> Action:
    op.expect(3)
    kind = op.get("type")
    function, neutral_of = REDUCTIONS[op.get("op")]
    write, value, mask = op.write(0, kind), op.read(1, kind), op.read(2, "b32")

    def act(threads: Threads) -> None:
        group = members(threads, mask(threads), "redux.sync")
        values = threads.spread(value(threads))
        neutral = values.dtype.type(neutral_of(kind))
        total = over_members(threads, group, values, function, neutral)
        write(threads, total.astype(values.dtype))

    return act


@instruction("bar.warp.sync")
def warp_sync(op: Operation) -> Action:
    """__syncwarp: what the warp did before is ordered with what it does after."""
    op.expect(1)
    mask = op.read(0, "b32")

    def act(threads: Threads) -> None:
        group = members(threads, mask(threads), "bar.warp.sync")
        alive = threads.chunk.status.reshape(-1, 32)[threads.warps] != EXITED
        powers = np.uint32(1) << np.arange(32, dtype=np.uint32)
        everyone = (alive * powers).sum(1).astype(UNSIGNED[32])
        if (everyone & ~group).any():
            threads.fail("bar.warp.sync of part of a warp is not modelled")
        threads.chunk.clocks.warp_sync(np.unique(threads.warps))

    return act
