"""Launches: a kernel over a grid, checked as the driver checks them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .chunk import Chunk
from .errors import PtxError
from .memory import Device
from .parse import Module
from .program import Program
from .races import GlobalRaces
from .types import FLOAT

MOST_LANES = 1 << 17  # simulated at once: enough to amortise NumPy's calls
MOST_SHARED = 64 << 20  # bytes of the shared memory of those blocks
MOST_STEPS = 20_000_000
STATIC_SHARED, OPT_IN_SHARED = 48 << 10, 163 << 10  # a block's shared memory on sm_80
PROGRAMS: dict[tuple[int, str], tuple[Module, Program]] = {}


def program_of(module: Module, name: str) -> Program:
    """The kernel bound, once."""
    key = id(module), name
    if key not in PROGRAMS or PROGRAMS[key][0] is not module:
        PROGRAMS[key] = module, Program(module, module.kernel(name))
    return PROGRAMS[key][1]


class Launch:
    """One launch; after run(), `covered` says which instructions were reached."""

    def __init__(
        self,
        device: Device,
        module: Module,
        name: str,
        grid: Sequence[int],
        block: Sequence[int],
        arguments: Sequence[object],
        dynamic_shared: int = 0,
        *,
        shared_limit: int = STATIC_SHARED,
        races: bool = True,
        schedule: str = "lockstep",
        seed: int = 0,
    ) -> None:
        if schedule not in ("lockstep", "random"):
            raise ValueError(f"schedule must be lockstep or random, got {schedule!r}")
        self.device, self.program = device, program_of(module, name)
        self.grid = (*grid, *(1,) * (3 - len(grid)))
        self.block = (*block, *(1,) * (3 - len(block)))
        self.races, self.schedule, self.rng = races, schedule, np.random.default_rng(seed)
        self.threads = int(np.prod(self.block))
        self.shared_bytes = self.program.static_shared + dynamic_shared
        self._check(shared_limit)
        self.parameters = self._pack(arguments)
        self.covered = np.zeros(len(self.program.steps), bool)
        self.steps = 0
        granule = self.program.access["global"]
        self.global_races = GlobalRaces(-(-device.top // 16) * 16, granule) if races else None

    def _check(self, shared_limit: int) -> None:
        kernel = self.program.kernel
        most = min(kernel.max_threads or 1024, 1024)
        if not 1 <= self.threads <= most or self.block[2] > 64:
            raise PtxError(f"{kernel.name}: blocks of {self.block} threads, at most {most}")
        sizes = zip(self.grid, (2**31 - 1, 65535, 65535), strict=True)
        if not all(1 <= size <= limit for size, limit in sizes):
            raise PtxError(f"{kernel.name}: a grid of {self.grid}")
        if self.shared_bytes > shared_limit:
            message = f"{self.shared_bytes} bytes of shared memory, at most {shared_limit}"
            raise PtxError(f"{kernel.name}: {message}")

    def _pack(self, arguments: Sequence[object]) -> bytes:
        kernel = self.program.kernel
        if len(arguments) != len(kernel.parameters):
            counts = f"{len(arguments)} arguments for {len(kernel.parameters)} parameters"
            raise PtxError(f"{kernel.name}: {counts}")
        packed = bytearray(kernel.parameter_bytes)
        for (_, offset, size), value in zip(kernel.parameters, arguments, strict=True):
            if isinstance(value, bytes):
                raw = value
            elif isinstance(value, (float, np.floating)):
                raw = np.array(value, FLOAT[8 * size]).tobytes()
            else:
                number = int(value)  # type: ignore[call-overload]
                raw = (number & ((1 << 8 * size) - 1)).to_bytes(size, "little")
            if len(raw) != size:
                raise PtxError(f"{kernel.name}: {len(raw)} bytes for a parameter of {size}")
            packed[offset : offset + size] = raw
        return bytes(packed)

    def count_step(self) -> None:
        self.steps += 1
        if self.steps > MOST_STEPS:
            raise PtxError(f"{self.program.kernel.name}: {MOST_STEPS} steps: an endless loop?")

    def run(self) -> Launch:
        """Runs the whole grid, some blocks at a time."""
        blocks = int(np.prod(self.grid))
        each = MOST_LANES // (-(-self.threads // 32) * 32)
        each = max(1, min(each, MOST_SHARED // max(self.shared_bytes, 1)))
        with np.errstate(all="ignore"):
            for begin in range(0, blocks, each):
                Chunk(self, np.arange(begin, min(begin + each, blocks))).run()
        return self
