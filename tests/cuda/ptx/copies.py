"""cp.async: copies from global to shared memory that land when their thread waits for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .chunk import Chunk
from .data import refuse_in_flight, watch
from .errors import PtxError
from .forms import Action, instruction
from .memory import GARBAGE, IN_FLIGHT
from .operation import Operation
from .types import Array
from .warps import Threads


@dataclass
class Flight:
    """Copies of one instruction: a row of bytes for each lane."""

    lanes: Array
    offsets: Array
    data: Array
    group: Array


class Copies:
    """What a chunk has in flight."""

    def __init__(self, chunk: Chunk) -> None:
        self.chunk = chunk
        self.pending: list[Flight] = []
        self.groups = np.zeros(chunk.lanes, np.int32)  # committed so far, by lane

    def land(self, lanes: Array, allowed: int) -> None:
        """Completes all but the `allowed` latest groups; what is not committed stays."""
        self._land(lanes, self.groups - allowed)

    def land_all(self, lanes: Array) -> None:
        self._land(lanes, self.groups + 1)

    def _land(self, lanes: Array, limit: Array) -> None:
        waits = np.zeros(self.chunk.lanes, bool)
        waits[lanes] = True
        shared, races = self.chunk.spaces["shared"], self.chunk.shared_races
        left = []
        for flight in self.pending:
            done = waits[flight.lanes] & (flight.group < limit[flight.lanes])
            if done.any():
                shared.store(flight.offsets[done], flight.data[done])
                if races is not None:
                    # the waiting thread sees it; others after a barrier
                    threads = Threads.of(self.chunk, flight.lanes[done])
                    races.rewrite(
                        threads,
                        flight.offsets[done],
                        flight.data.dtype.itemsize * flight.data.shape[1],
                    )
            if not done.all():
                rest = ~done
                parts = (flight.lanes, flight.offsets, flight.data, flight.group)
                left.append(Flight(*(part[rest] for part in parts)))
        self.pending = left


def copies_of(threads: Threads) -> Copies:
    if threads.chunk.copies is None:
        threads.chunk.copies = Copies(threads.chunk)
    return threads.chunk.copies


def fetch(threads: Threads, source: Array, size: Array, most: int) -> Array:
    """Rows of `most` bytes, zeros after the first `size` of each."""
    data = np.zeros((threads.count, most), np.uint8)
    for wanted in np.unique(size):
        if not wanted:
            continue
        some = size == wanted
        part = threads if some.all() else Threads.of(threads.chunk, threads.lanes[some])
        space = threads.chunk.spaces["global"]
        begin = space.where(part, source[some], most) if wanted == most else source[some]
        if wanted == most:
            data[some] = space.load(part, begin, 1, most)
            watch(part, space, begin, most, "read")
            continue
        if (begin % most).any():
            part.fail("misaligned cp.async source", begin % most != 0)
        granule = threads.chunk.program.access["global"]
        for k in range(int(wanted)):
            at = space.where(part, begin + k, 1)
            data[some, k] = space.load(part, at, 1, 1)[:, 0]
            if k % granule == 0:
                watch(part, space, at, granule, "read")
    return data


SOURCE = ".<to:shared|shared::cta>.global[.L2::<policy:cache_hint>][.L2::<fetch:64B|128B|256B>]"


@instruction(f"cp.async.<cache:ca|cg>{SOURCE}")
def copy(op: Operation) -> Action:
    rest = len(op.operands) - bool(op.get("policy"))
    if rest not in (3, 4):
        raise PtxError(f"{len(op.operands)} operands")
    most = op.constant(2)
    if most not in ((16,) if op.get("cache") == "cg" else (4, 8, 16)):
        raise PtxError(f"cp.async.{op.get('cache')} of {most} bytes")
    target, source = op.address(0), op.address(1)
    size = op.read(3, "u32") if rest == 4 else None

    def act(threads: Threads) -> None:
        copies = copies_of(threads)
        shared = threads.chunk.spaces["shared"]
        offsets = shared.where(threads, target(threads), most)
        wanted = threads.spread(np.uint32(most) if size is None else size(threads))  # type: ignore[arg-type]
        if (wanted > most).any():
            threads.fail("cp.async with a source size above its size", wanted > most)
        data = fetch(threads, threads.spread(source(threads)), wanted, most)
        refuse_in_flight(threads, shared, offsets, most)
        watch(threads, shared, offsets, most, "write")
        word = min(most, 8)
        shared.store(offsets, np.full((threads.count, most), GARBAGE, np.uint8))
        shared.state.reshape(-1, most)[offsets // most] = IN_FLIGHT
        rows = data.view(f"u{word}")
        group = copies.groups[threads.lanes].copy()
        copies.pending.append(Flight(threads.lanes, offsets, rows, group))

    return act


@instruction("cp.async.commit_group")
def commit(op: Operation) -> Action:
    op.expect(0)

    def act(threads: Threads) -> None:
        copies_of(threads).groups[threads.lanes] += 1

    return act


@instruction("cp.async.wait_group")
def wait_group(op: Operation) -> Action:
    op.expect(1)
    allowed = op.constant(0)
    return lambda threads: copies_of(threads).land(threads.lanes, allowed)


@instruction("cp.async.wait_all")
def wait_all(op: Operation) -> Action:
    op.expect(0)
    return lambda threads: copies_of(threads).land_all(threads.lanes)
