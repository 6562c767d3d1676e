"""Threads that execute together, and their registers.

A chunk of the grid is simulated at once: thread k of it is lane k of every array. A register holds
an array over all lanes, or a scalar while all have the same value. Threads that are at one
instruction form a Threads object; what they compute is kept in its window until it is committed, so
that a straight run of instructions gathers and scatters each register at most once.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from .types import UNSIGNED, Array

if TYPE_CHECKING:
    from .chunk import Chunk

AXES = [f"%{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"]
LANE_MASKS = ["%lanemask_lt", "%lanemask_le", "%lanemask_eq", "%lanemask_ge", "%lanemask_gt"]
SPECIAL = {*AXES, *LANE_MASKS, "%laneid", "%warpid"}
POISON = 0xDEAD_BEEF_DEAD_BEEF  # what a register holds before it is written


class Registers:
    """The registers of a chunk: name to array or scalar."""

    def __init__(self, count: int, widths: dict[str, int]) -> None:
        self.count, self.widths = count, widths
        self.values: dict[str, Array] = {}
        # arrays that nothing else refers to, which a commit may change in place
        self.owned: dict[str, Array] = {}

    def poison(self, name: str) -> Array:
        width = self.widths[name]
        return UNSIGNED[width](0 if width == 1 else POISON & ((1 << width) - 1))  # type: ignore[return-value]

    def scatter(self, name: str, lanes: Array, value: Array) -> None:
        """Sets the register in some lanes."""
        array = self.values.get(name)
        if array is None or array is not self.owned.get(name):
            old = self.poison(name) if array is None else array
            array = np.full(self.count, old) if old.ndim == 0 else old.copy()
            self.values[name] = self.owned[name] = array
        array[lanes] = value


class Threads:
    """Some lanes of a chunk at one instruction."""

    def __init__(self, chunk: Chunk, lanes: Array) -> None:
        self.chunk, self.lanes = chunk, lanes
        self.full = lanes.size == chunk.lanes
        # all lanes: the window is the registers themselves, whose arrays may now be shared
        self.window = chunk.registers.values if self.full else {}
        self.fetched: dict[str, Array] = {}
        if self.full:
            chunk.registers.owned.clear()

    @classmethod
    def of(cls, chunk: Chunk, lanes: Array) -> Threads:
        """Lanes for a memory access only: they read and write no registers."""
        threads = cls.__new__(cls)
        threads.chunk, threads.lanes, threads.full = chunk, lanes, False
        return threads

    def read(self, name: str) -> Array:
        """The bits of a register."""
        value = self.window.get(name)
        if value is None:
            registers = self.chunk.registers
            value = registers.values.get(name)
            if value is None:
                return registers.poison(name)
            if value.ndim:
                value = value.take(self.lanes)
            self.window[name] = self.fetched[name] = value
        return value

    def write(self, name: str, value: Array) -> None:
        """The bits of a register, an array over these threads or a scalar."""
        self.window[name] = value

    def commit(self, live: set[str] | frozenset[str]) -> None:
        """Hands what was computed to the chunk, unless nobody will read it."""
        if self.full:
            return
        registers, fetched = self.chunk.registers, self.fetched
        for name, value in self.window.items():
            if name in live and fetched.get(name) is not value:
                registers.scatter(name, self.lanes, value)

    def where(self, mask: Array) -> Threads:
        """Those of the threads for which mask holds."""
        return Selected(self, np.flatnonzero(mask))

    # --- who they are ---

    @property
    def count(self) -> int:
        return self.lanes.size

    @cached_property
    def blocks(self) -> Array:
        """The block of each, counted within the chunk."""
        return self.chunk.block if self.full else self.chunk.block[self.lanes]

    @cached_property
    def warps(self) -> Array:
        """The warp of each, counted within the chunk."""
        return self.lanes >> 5

    @cached_property
    def bit(self) -> Array:
        """1 << lane id, as uint32."""
        return np.uint32(1) << (self.lanes & 31).astype(np.uint32)

    @cached_property
    def present(self) -> Array:
        """For each warp of the chunk, which of its lanes are here."""
        masks = np.zeros(self.chunk.lanes // 32, np.uint32)
        np.bitwise_or.at(masks, self.warps, self.bit)
        return masks

    def whole_warps(self, what: str) -> int:
        """How many warps these are; an error unless each is complete."""
        n, rest = divmod(self.count, 32)
        if rest or (not self.full and (self.lanes[31::32] - self.lanes[::32] != 31).any()):
            self.fail(f"{what} needs all 32 threads of the warp to be there")
        return n

    def spread(self, value: Array) -> Array:
        """The value as an array over these threads."""
        return np.full(self.count, value) if value.ndim == 0 else value

    def fail(self, message: str, wrong: Array | None = None) -> NoReturn:
        """An error in the threads for which `wrong` holds."""
        self.chunk.fail(message, self.lanes if wrong is None else self.lanes[wrong])


class Selected(Threads):
    """Threads for which a predicate holds; what they write is merged into the others' window."""

    def __init__(self, parent: Threads, chosen: Array) -> None:
        self.chunk, self.parent, self.chosen = parent.chunk, parent, chosen
        self.lanes = parent.lanes[chosen]
        self.full = False

    def read(self, name: str) -> Array:
        value = self.parent.read(name)
        return value.take(self.chosen) if value.ndim else value

    def write(self, name: str, value: Array) -> None:
        merged = self.parent.spread(self.parent.read(name)).copy()
        merged[self.chosen] = value
        self.parent.write(name, merged)
