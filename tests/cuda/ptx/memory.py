"""Simulated memory: which bytes exist, which were written, and every access checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .errors import PtxError
from .types import UNSIGNED, Array
from .warps import Threads

GLOBAL, SHARED, LOCAL = 0x7_0000_0000, 0x6_0000_0000, 0x5_0000_0000  # windows of generic addresses
GARBAGE = 0xCB  # what memory holds before it is written
ABSENT, FRESH, VALID, IN_FLIGHT = range(4)  # the state of a byte
GAP = 256  # between allocations: what runs over one end does not land in the next


def rows(memory: Array, size: int, count: int) -> Array:
    """Bytes as rows of `count` unsigned integers of `size` bytes."""
    return memory.view(UNSIGNED[8 * size]).reshape(-1, count)


def valid_word(size: int) -> Any:
    return UNSIGNED[8 * size](int.from_bytes(bytes([VALID]) * size, "little"))


class Device:
    """Global memory."""

    def __init__(self, megabytes: int = 64) -> None:
        self.bytes: Array = np.zeros(megabytes << 20, np.uint8)
        self.state: Array = np.zeros(megabytes << 20, np.uint8)
        self.top = 2 * GAP
        self.allocations: list[tuple[int, int, str]] = []

    def allocate(self, size: int, name: str = "") -> int:
        """The address of new memory, not yet written."""
        begin = self.top
        self.top = -(-(begin + size + GAP) // GAP) * GAP
        if self.top > self.bytes.size:
            raise PtxError("the simulated device is out of memory")
        self.state[begin : begin + size] = FRESH
        self.bytes[begin : begin + size] = GARBAGE
        self.allocations.append((begin, size, name))
        return GLOBAL + begin

    def upload(self, array: Array, name: str = "") -> int:
        """The address of a copy of an array."""
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        address = self.allocate(raw.size, name)
        self.fill(address, raw)
        return address

    def remove(self, address: int, size: int) -> None:
        """Makes the first bytes of an allocation out of bounds."""
        begin = address - GLOBAL
        self.state[begin : begin + size] = ABSENT

    def fill(self, address: int, raw: Array) -> None:
        """Writes bytes, as a copy from the host does."""
        begin = address - GLOBAL
        if (self.state[begin : begin + raw.size] == ABSENT).any():
            raise PtxError("a copy to the device outside of its allocations")
        self.bytes[begin : begin + raw.size] = raw
        self.state[begin : begin + raw.size] = VALID

    def download(self, address: int, dtype: Any, shape: Sequence[int]) -> Array:
        """A copy of what lies there; an error unless all of it was written."""
        size, begin = int(np.prod(shape)) * np.dtype(dtype).itemsize, address - GLOBAL
        missing = np.flatnonzero(self.state[begin : begin + size] != VALID)
        if missing.size:
            message = f"{missing.size} of {size} bytes, the first at byte {missing[0]}"
            raise PtxError(f"output never written: {message}")
        return self.bytes[begin : begin + size].copy().view(dtype).reshape(shape)

    def near(self, offset: int) -> str:
        """Which allocation a stray offset belongs to."""
        for begin, size, name in reversed(self.allocations):
            if begin - GAP <= offset <= begin + size + 16 * GAP:
                label = f" '{name}'" if name else ""
                return f"; byte {offset - begin} of an allocation{label} of {size} bytes"
        return ""


class Space:
    """One state space of a chunk: global, shared or local."""

    def __init__(self, name: str, memory: Array, state: Array, size: int, stride: int) -> None:
        self.name, self.bytes, self.state = name, memory, state
        self.size, self.stride = size, stride  # of what one block, or thread, sees

    def where(self, threads: Threads, address: Array, size: int) -> Array:
        """Offsets into the bytes, after the checks of alignment and bounds."""
        address = threads.spread(np.asarray(address))
        wrong = address & (size - 1) != 0
        if wrong.any():
            first = int(address[wrong][0])
            threads.fail(f"misaligned {size}-byte {self.name} access at {first:#x}", wrong)
        wrong = (address < 0) | (address > self.size - size)
        if wrong.any():
            first = int(address[wrong][0])
            message = f"out-of-bounds {self.name} access of {size} bytes at {first} of {self.size}"
            threads.fail(message, wrong)
        owner = threads.blocks if self.name == "shared" else threads.lanes
        return address + owner * self.stride

    def load(self, threads: Threads, offsets: Array, size: int, count: int) -> Array:
        """Rows of `count` integers of `size` bytes; an error where one was never written."""
        index, word = offsets // (size * count), min(size * count, 8)
        state = rows(self.state, word, size * count // word)[index]
        fine = state == valid_word(word)
        if not fine.all():
            wrong = ~fine.all(1)
            flying = (rows(self.state, 1, size * count)[index[wrong]] == IN_FLIGHT).any()
            what = "memory that a cp.async has in flight" if flying else "uninitialised memory"
            threads.fail(f"read of {what} ({self.name})", wrong)
        return rows(self.bytes, size, count)[index]

    def store(self, offsets: Array, values: Array) -> None:
        """Writes rows of integers."""
        size, count = values.dtype.itemsize, values.shape[1]
        index = offsets // (size * count)
        rows(self.bytes, size, count)[index] = values
        word = min(size * count, 8)
        rows(self.state, word, size * count // word)[index] = valid_word(word)


class GlobalSpace(Space):
    """Global memory, which has holes between its allocations."""

    def __init__(self, device: Device) -> None:
        super().__init__("global", device.bytes, device.state, device.top, 0)
        self.device = device

    def where(self, threads: Threads, address: Array, size: int) -> Array:
        offsets = threads.spread(np.asarray(address)) - GLOBAL
        wrong = offsets & (size - 1) != 0
        if wrong.any():
            threads.fail(f"misaligned {size}-byte global access", wrong)
        wrong = (offsets < 0) | (offsets > self.size - size)
        if not wrong.any():
            # allocations are further apart than any access is long
            wrong = (self.state[offsets] == ABSENT) | (self.state[offsets + (size - 1)] == ABSENT)
        if wrong.any():
            near = self.device.near(int(offsets[wrong][0]))
            threads.fail(f"out-of-bounds global access of {size} bytes{near}", wrong)
        return offsets


def private_space(name: str, owners: int, size: int) -> Space:
    """Shared memory of every block, or local memory of every thread."""
    stride = max(-(-size // 16) * 16, 16)
    memory = np.full(owners * stride, GARBAGE, np.uint8)
    return Space(name, memory, np.full(owners * stride, FRESH, np.uint8), size, stride)
