"""Some blocks of a grid, simulated together: their threads' state and the order in which they run.

Of the threads that can run, those at the lowest instruction go first, which brings diverged threads
together again. In lockstep all warps advance at once; the random schedule picks warps by a seed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import numpy as np

from .errors import PtxError
from .memory import GlobalSpace, Space, private_space
from .races import Clocks, SharedRaces
from .types import Array
from .warps import Registers, Threads

if TYPE_CHECKING:
    from .copies import Copies
    from .launch import Launch
    from .program import Step

RUNNING, WAITING, EXITED = range(3)
LONGEST_TURN = 24  # instructions before the random schedule may pick other warps


class Chunk:
    """Blocks `blocks` of a launch's grid; lanes are padded to whole warps."""

    def __init__(self, launch: Launch, blocks: Array) -> None:
        self.launch, self.program = launch, launch.program
        warps = -(-launch.threads // 32)
        self.grid_block = blocks
        self.lanes = blocks.size * warps * 32
        lane = np.arange(self.lanes)
        self.tid = lane % (32 * warps)
        self.block = lane // (32 * warps)
        self.registers = Registers(self.lanes, self.program.widths)
        self.registers.values.update(self._special())
        self.real = self.tid < launch.threads
        self.status = np.where(self.real, RUNNING, EXITED).astype(np.int8)
        self.pc = np.zeros(self.lanes, np.int32)
        self.barrier = np.zeros(self.lanes, np.int8)  # which one a waiting thread waits at
        self.barrier_count = np.zeros(self.lanes, np.int32)
        self.clocks = Clocks(blocks.size, warps)
        shared = private_space("shared", blocks.size, launch.shared_bytes)
        self.spaces: dict[str, Space] = {
            "global": GlobalSpace(launch.device),
            "shared": shared,
            "local": private_space("local", self.lanes, self.program.local_bytes),
        }
        self.shared_races = None
        if launch.races and launch.shared_bytes:
            granule = self.program.access["shared"]
            self.shared_races = SharedRaces(self.clocks, shared.bytes.size, granule)
        self.copies: Copies | None = None
        self.step: Step | None = None

    def _special(self) -> dict[str, Array]:
        """Special registers; a scalar where all threads agree."""
        launch, tid = self.launch, self.tid
        block, grid = launch.block, launch.grid
        where = self.grid_block[self.block]
        values = {
            "%tid.x": tid % block[0],
            "%tid.y": tid // block[0] % block[1],
            "%tid.z": tid // (block[0] * block[1]),
            "%ctaid.x": where % grid[0],
            "%ctaid.y": where // grid[0] % grid[1],
            "%ctaid.z": where // (grid[0] * grid[1]),
            "%laneid": tid % 32,
            "%warpid": tid // 32,
        }
        lane = (tid % 32).astype(np.uint64)
        one = np.uint64(1)
        values["%lanemask_eq"] = one << lane
        values["%lanemask_lt"] = (one << lane) - one
        values["%lanemask_le"] = (one << lane + one) - one
        values["%lanemask_gt"] = np.uint64(0xFFFFFFFF) & ~values["%lanemask_le"]
        values["%lanemask_ge"] = np.uint64(0xFFFFFFFF) & ~values["%lanemask_lt"]
        for axis, b, g in zip("xyz", block, grid, strict=True):
            values[f"%ntid.{axis}"] = np.array(b)
            values[f"%nctaid.{axis}"] = np.array(g)
        special = {}
        for name, v in values.items():
            same = v.ndim == 0 or (v == v[0]).all()
            special[name] = np.uint32(v if v.ndim == 0 else v[0]) if same else v.astype(np.uint32)
        return special

    # --- running ---

    def run(self) -> None:
        """Runs every thread to its end."""
        rng = self.launch.rng if self.launch.schedule == "random" else None
        while True:
            running = self.status == RUNNING
            if not running.any():
                if not self._release():
                    break
                continue
            budget = 1 << 62
            if rng is not None:
                running &= self._picked(rng, running)
                budget = int(rng.integers(1, LONGEST_TURN))
            self._turn(running, budget)
            if rng is not None:
                self._release()
        if self.copies is not None and self.copies.pending:
            self.step = None
            self.fail("it ended with cp.async copies that no thread waited for", np.arange(0))

    def _picked(self, rng: np.random.Generator, running: Array) -> Array:
        """A warp by chance, and some of those that are where it is."""
        warps = running.reshape(-1, 32)
        at = np.where(warps, self.pc.reshape(-1, 32), 1 << 30).min(1)
        leader = rng.choice(np.flatnonzero(warps.any(1)))
        chosen = (at == at[leader]) & (rng.random(at.size) < rng.choice((0.0, 0.5)))
        chosen[leader] = True
        return np.repeat(chosen, 32)

    def _turn(self, running: Array, budget: int) -> None:
        """Runs the threads at the lowest instruction until others could join, or must take over."""
        at = self.pc if running.all() else self.pc[running]
        p = int(at.min())
        if p == at.max():
            lanes, join = np.flatnonzero(running), len(self.program.steps) + 1
        else:
            lanes, join = np.flatnonzero(running & (self.pc == p)), int(at[at > p].min())
        threads = Threads(self, lanes)
        steps, covered, live = self.program.steps, self.launch.covered, self.program.live
        last = len(steps)
        while p != join and budget > 0:
            if p >= last:
                self.status[lanes] = EXITED
                return
            step = steps[p]
            self.step = step
            covered[p] = True
            self.launch.count_step()
            budget -= 1
            active = threads
            if step.predicate is not None:
                mask = threads.read(step.predicate)
                if step.negated:
                    mask = ~mask
                if not mask.any():
                    p += 1
                    continue
                if not mask.all():
                    active = threads.where(mask)
            if not step.kind:
                step.action(active)
                p += 1
            elif step.kind == "bra":
                if active is threads and step.target < join:
                    p = step.target
                    continue
                threads.commit(live[p + 1] | live[step.target])
                self.pc[lanes] = p + 1
                self.pc[active.lanes] = step.target
                return
            elif step.kind == "ret":
                threads.commit(live[p + 1])
                self.pc[lanes] = p + 1
                self.status[active.lanes] = EXITED
                return
            else:
                threads.commit(live[p + 1])
                step.action(active)
                self.pc[lanes] = p + 1
                self.status[active.lanes] = WAITING
                return
        threads.commit(live[p])
        self.pc[lanes] = p

    # --- barriers ---

    def arrive(self, threads: Threads, number: int, count: Array | None) -> None:
        """Threads reach a barrier; whole warps of them, as .aligned demands."""
        warps = np.unique(threads.warps)
        real = self.real.reshape(-1, 32)[warps]
        here = np.zeros(self.lanes, bool)
        here[threads.lanes] = True
        missing = real & ~here.reshape(-1, 32)[warps]
        if missing.any():
            gone = self.status.reshape(-1, 32)[warps][missing] == EXITED
            why = "after some of its threads exited" if gone.all() else "by part of a warp only"
            threads.fail(f"divergent barrier: reached {why}")
        if count is not None and ((count % 32 != 0) | (count == 0)).any():
            threads.fail("a barrier's thread count must be a multiple of 32")
        self.barrier[threads.lanes] = number
        self.barrier_count[threads.lanes] = 0 if count is None else count

    def _release(self) -> bool:
        """Lets go on the threads whose barrier is complete; an error where none ever will be."""
        waiting = self.status == WAITING
        if not waiting.any():
            return False
        key = self.block[waiting] * 16 + self.barrier[waiting]
        arrived = np.bincount(key, minlength=16 * self.grid_block.size)
        most = np.zeros(arrived.size, np.int64)
        np.maximum.at(most, key, self.barrier_count[waiting])
        least = np.full(arrived.size, 1 << 30)
        np.minimum.at(least, key, self.barrier_count[waiting])
        used = arrived > 0
        if (most[used] != least[used]).any():
            self.fail("threads wait at one barrier with different counts", np.flatnonzero(waiting))
        need = np.where(most > 0, -(-most // 32) * 32, self.launch.threads)
        if (arrived > need).any():
            self.fail("more threads at a barrier than its count", np.flatnonzero(waiting))
        done = used & (arrived == need)
        if not done.any():
            if (self.status != RUNNING).all():
                self._deadlock(waiting)
            return False
        full = done & (need == self.launch.threads)
        blocks = np.flatnonzero(full.reshape(-1, 16).any(1))
        if blocks.size:
            self.clocks.barrier_of_all(blocks)
        warps = self.clocks.warps
        everyone = np.zeros(self.lanes, bool)
        everyone[waiting] = done[key]
        for k in np.flatnonzero(done & ~full):
            mine = everyone & (self.block == k // 16) & (self.barrier == k % 16)
            self.clocks.barrier(k // 16, np.unique(np.flatnonzero(mine) // 32 % warps))
        self.status[everyone] = RUNNING
        return True

    def _deadlock(self, waiting: Array) -> NoReturn:
        gone = (self.status == EXITED) & self.real
        why = "threads that have exited" if gone.any() else "threads that wait at another one"
        self.fail(f"a barrier waits for {why}", np.flatnonzero(waiting))

    def fail(self, message: str, lanes: Array) -> NoReturn:
        """An error of the current instruction in some lanes."""
        who = ""
        if np.size(lanes):
            first = int(np.ravel(lanes)[0])
            tid, block, launch = int(self.tid[first]), int(self.block[first]), self.launch
            place = np.unravel_index(self.grid_block[block], launch.grid[::-1])[::-1]
            thread = np.unravel_index(tid, launch.block[::-1])[::-1]
            words = (",".join(str(int(x)) for x in v) for v in (thread, place))
            who = "; thread ({}) of block ({})".format(*words)
            who += f", {np.size(lanes)} in all" if np.size(lanes) > 1 else ""
        where = f" at {self.step.instruction}" if self.step else ""
        raise PtxError(f"{self.program.kernel.name}: {message}{who}{where}")
