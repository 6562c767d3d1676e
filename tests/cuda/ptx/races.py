"""Finds pairs of accesses that nothing orders, of which one at least writes.

Shared memory: each warp has a clock, which its barriers and __syncwarp advance, and knows up to
which time it has seen each other warp (a vector clock). An access that another thread's warp made
at a time not yet seen is a race; so is one of another thread of the own warp since its last
__syncwarp. Global memory: threads of different blocks are never ordered, those of a block by a
barrier of all of it. Atomics race with other accesses, not with each other. Memory is watched in
granules: the width of the kernel's narrowest access.
"""

from __future__ import annotations

import numpy as np

from .types import Array
from .warps import Threads

SEVERAL = 32  # in place of a lane: several lanes of the warp
MANY_THREADS, MANY_BLOCKS = 1024, -2  # in place of a thread: several of the block, of the grid


class Clocks:
    """What each warp knows of the others in its block."""

    def __init__(self, blocks: int, warps: int) -> None:
        self.blocks, self.warps = blocks, warps
        self.own = np.zeros((blocks, warps), np.int32)
        self.seen = np.zeros((blocks, warps, warps), np.int32)  # [block, who, of whom]
        self.epoch = np.zeros(blocks, np.int64)  # barriers of whole blocks

    def barrier(self, block: int, members: Array) -> None:
        """Orders what some warps of a block did before with what they do after."""
        joined = self.seen[block, members].max(0)
        self.own[block, members] += 1
        joined[members] = self.own[block, members]
        self.seen[block, members] = joined

    def barrier_of_all(self, blocks: Array) -> None:
        self.own[blocks] += 1
        self.seen[blocks] = self.own[blocks][:, None, :]
        self.epoch[blocks] += 1

    def warp_sync(self, warps: Array) -> None:
        """The threads of a warp are ordered; warps are counted within the chunk."""
        block, warp = warps // self.warps, warps % self.warps
        self.own[block, warp] += 1
        self.seen[block, warp, warp] = self.own[block, warp]


class SharedRaces:
    """Watches the shared memory of a chunk."""

    def __init__(self, clocks: Clocks, size: int, granule: int) -> None:
        self.clocks, self.granule = clocks, granule
        n = size // granule
        self.written = np.full(n, -1, np.int32)  # clock << 10 | thread
        self.seen_by = {
            "read": np.zeros((n, clocks.warps), np.int32),  # 0, or (clock + 1) << 6 | lane
            "atomic": np.zeros((0, clocks.warps), np.int32),
        }

    def access(
        self, threads: Threads, offsets: Array, size: int, kind: str, for_warp: bool = False
    ) -> None:
        """Checks and notes an access: read, write, atomic; `for_warp`: what is read goes to all."""
        clocks, per = self.clocks, size // self.granule
        warps = clocks.warps
        cells = offsets // self.granule
        thread = threads.lanes % (32 * warps)
        warp, block = thread >> 5, threads.blocks
        seen, own = clocks.seen[block, warp], clocks.own[block, warp]
        if per > 1:
            cells = (cells[:, None] + np.arange(per)).reshape(-1)
            thread, warp, own, block = (np.repeat(a, per) for a in (thread, warp, own, block))
            seen = np.repeat(seen, per, 0)
        before = self.written[cells]
        other = before & 1023
        race = (before >= 0) & ((other != thread) | for_warp)
        if race.any():
            race &= before >> 10 >= np.take_along_axis(seen, (other >> 5)[:, None], 1)[:, 0]
            if race.any():
                self._fail(threads, race, per, kind, "written", cells, other)
        for what in ("read", "atomic") if kind == "write" else ("atomic", "read"):
            marks = self.seen_by[what]
            if what == kind or not marks.size or (kind == "read" and what == "read"):
                continue
            stamps = marks[cells]
            race = (stamps != 0) & ((stamps >> 6) - 1 >= seen)
            mine = race[np.arange(cells.size), warp]
            if mine.any():
                lane = stamps[np.arange(cells.size), warp] & 63
                race[np.arange(cells.size), warp] = mine & (lane != thread & 31)
            if race.any():
                whom = 32 * race.argmax(1)
                verb = "read" if what == "read" else "changed atomically"
                self._fail(threads, race.any(1), per, kind, verb, cells, whom)
        if kind == "write":
            stamp = own << 10 | thread.astype(np.int32)
            self.written[cells] = stamp
            race = self.written[cells] != stamp
            if race.any():
                other = self.written[cells] & 1023
                self._fail(threads, race, per, kind, "written in one instruction", cells, other)
        else:
            lane = np.int32(SEVERAL) if for_warp else (thread & 31).astype(np.int32)
            self._mark(kind, cells, warp, own + 1 << 6 | lane)

    def rewrite(self, threads: Threads, offsets: Array, size: int) -> None:
        """A write noted before, by the same threads, takes effect now."""
        clocks, per = self.clocks, size // self.granule
        thread = (threads.lanes % (32 * clocks.warps)).astype(np.int32)
        stamp = clocks.own[threads.blocks, thread >> 5] << 10 | thread
        self.written.reshape(-1, per)[offsets // size] = stamp[:, None]

    def _mark(self, kind: str, cells: Array, warp: Array, stamp: Array) -> None:
        if not self.seen_by[kind].size:
            self.seen_by[kind] = np.zeros((self.written.size, self.clocks.warps), np.int32)
        marks = self.seen_by[kind]
        before = marks[cells, warp]
        several = (before >> 6 == stamp >> 6) & (before != stamp)
        marks[cells, warp] = np.where(several, stamp & ~63 | SEVERAL, stamp)
        lost = ~several & (marks[cells, warp] != stamp)
        if lost.any():
            marks[cells[lost], warp[lost]] = stamp[lost] & ~63 | SEVERAL

    def _fail(
        self,
        threads: Threads,
        race: Array,
        per: int,
        kind: str,
        verb: str,
        cells: Array,
        whom: Array,
    ) -> None:
        first = int(np.flatnonzero(race)[0])
        stride = self.written.size // self.clocks.blocks
        byte = int(cells[first]) % stride * self.granule
        did = f"{kind} of byte {byte} also {verb} by thread {int(whom[first])}"
        if verb != "written":
            did += " or another of its warp"
        wrong = race.reshape(-1, per).any(1)
        threads.fail(f"shared-memory race: {did} with no barrier between", wrong)


class GlobalRaces:
    """Watches global memory over one launch; lives as long as the launch."""

    def __init__(self, size: int, granule: int) -> None:
        self.granule = granule
        self.written = np.full(size // granule, -1, np.int64)  # block << 31 | thread << 20 | epoch
        self.read = np.full(size // granule, -1, np.int64)
        self.atomic = np.zeros(size // granule, bool)
        self.constant = np.zeros(size // granule, bool)  # read through ld.global.nc
        self.any_atomic = False

    def access(
        self, threads: Threads, offsets: Array, size: int, kind: str, constant: bool = False
    ) -> None:
        """Checks and notes an access: read, write or atomic."""
        per = max(size // self.granule, 1)
        index = offsets // (self.granule * per)
        chunk = threads.chunk
        epoch = chunk.clocks.epoch[threads.blocks]
        tid = threads.lanes % (32 * chunk.clocks.warps)
        stamp = ((chunk.grid_block[threads.blocks] << 31) | (tid << 20) | epoch)[:, None]
        written, read = self.written.reshape(-1, per), self.read.reshape(-1, per)
        atomic = self.atomic.reshape(-1, per)
        race = self._unordered(written[index], stamp)
        if race is not None and kind == "atomic":
            race &= ~atomic[index]
        if race is not None and race.any():
            self._fail(threads, race, kind, "written")
        if kind == "read":
            if constant:
                if (written[index] >= 0).any():
                    threads.fail("ld.global.nc of memory that this launch writes")
                self.constant.reshape(-1, per)[index] = True
            else:
                self._note_read(read, index, np.broadcast_to(stamp, (index.size, per)))
            return
        if self.constant.reshape(-1, per)[index].any():
            threads.fail("write to memory that this launch reads through ld.global.nc")
        before = read[index]
        race = self._unordered(before, stamp)
        if (before == MANY_BLOCKS).any():
            race = (before == MANY_BLOCKS) if race is None else race | (before == MANY_BLOCKS)
        if race is not None and race.any():
            self._fail(threads, race, kind, "read")
        written[index] = stamp
        if kind == "atomic":
            self.any_atomic = True
            atomic[index] = True
        else:
            race = written[index] != stamp
            if race.any():
                self._fail(threads, race, kind, "written in one instruction")
            if self.any_atomic:
                atomic[index] = False

    def _unordered(self, before: Array, stamp: Array) -> Array | None:
        """Where a stamp is of another thread, no barrier since; None: nowhere."""
        other = (before >= 0) & (before >> 20 != stamp >> 20)
        if not other.any():
            return None
        same_block = before >> 31 == stamp >> 31
        return other & ~(same_block & ((before & 0xFFFFF) < (stamp & 0xFFFFF)))

    def _note_read(self, read: Array, index: Array, stamp: Array) -> None:
        before = read[index]
        now = stamp
        other = (before != -1) & (before >> 20 != stamp >> 20)
        if other.any():
            now = np.where(other, self._merged(before, stamp), stamp)
        read[index] = now
        after = read[index]
        lost = after != now
        if lost.any():
            row, column = np.nonzero(lost)
            read[index[row], column] = self._merged(after[lost], now[lost])

    def _merged(self, a: Array, b: Array) -> Array:
        """One stamp that stands for reads by two threads."""
        several = (b & ~(2047 << 20)) | (MANY_THREADS << 20)
        return np.where((a != MANY_BLOCKS) & (a >> 31 == b >> 31), several, MANY_BLOCKS)

    def _fail(self, threads: Threads, race: Array, kind: str, verb: str) -> None:
        wrong = race.any(1)
        threads.fail(
            f"global-memory race: {kind} of what another thread has {verb}, no barrier between",
            wrong,
        )
