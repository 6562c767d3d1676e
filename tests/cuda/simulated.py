"""A simulated GPU: compiled host launchers, whose kernels run in the PTX interpreter."""

from __future__ import annotations

import ctypes
import math
import re
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from ptx import Device, Launch, Module, PtxError
from ptx.coverage import Coverage
from torch import Tensor

HERE = Path(__file__).parent
FLAGS = ("-std=c++20", "-O3", "--fmad=false", "-lineinfo", "-arch=compute_80")
LAUNCH = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.POINTER(ctypes.c_uint),
    ctypes.c_size_t,
    ctypes.c_size_t,
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.c_void_p,
)
MEMSET = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
FAILED = 700  # cudaErrorIllegalAddress


def compile_ptx(source: Path, folder: Path, flags: Sequence[str] = ()) -> Module:
    """What nvcc emits for the device code of a file."""
    out = folder / f"{source.stem}.ptx"
    subprocess.run(["nvcc", *FLAGS, *flags, "-ptx", source, "-o", out], check=True)
    return Module(out.read_text())


def _plain(name: str) -> str:
    """A kernel's mangled name without what nvcc makes of its file's content."""
    found = re.search(r"(\d+)_GLOBAL__N__[0-9a-f]{8}_\d+_", name)
    while found is not None:
        after = found.end(1) + int(found[1])  # the namespace's name is as long as it says
        file = re.match(r"\w+?_cu", name[found.end() : after])
        name = name[: found.start()] + (file[0] if file else "") + name[after:]
        found = re.search(r"(\d+)_GLOBAL__N__[0-9a-f]{8}_\d+_", name)
    return name


class Gpu:
    """Launchers in .cu files and C functions that call them in .cpp files, built to be simulated.

    Both are compiled by nvcc, as the package's build compiles them, and linked with
    cudart/cudart.c in cudart's place: grid, block, shared memory and the order of arguments are
    what the launchers say.
    """

    def __init__(self, folder: Path, sources: Sequence[Path], flags: Sequence[str] = ()) -> None:
        self.modules: dict[str, tuple[Module, str]] = {}  # by kernel: its file, its name there
        self.coverage: list[Coverage] = []
        objects = [folder / f"{s.stem}_{s.suffix[1:]}.o" for s in sources]

        def compile_object(source: Path, to: Path) -> None:
            options = ["-keep", "-keep-dir", folder, "-Xcompiler", "-fPIC", "-o", to]
            subprocess.run(["nvcc", *FLAGS, *flags, *options, "-c", source], check=True)

        with ThreadPoolExecutor(max_workers=2) as workers:
            list(workers.map(compile_object, sources, objects))
        for source in sources:
            if source.suffix == ".cu":
                module = Module((folder / f"{source.stem}.ptx").read_text())
                self.coverage.append(Coverage(module))
                self._take(module)
        # torch has loaded the real cudart for everyone; -Bsymbolic binds to the stand-in even so
        link = ["gcc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-Wl,-Bsymbolic,-z,defs"]
        library = folder / "launch.so"
        rest = [HERE / "cudart" / "cudart.c", *objects, "-lstdc++", "-lm"]
        subprocess.run([*link, "-o", library, *rest], check=True)
        self.library = ctypes.CDLL(str(library))
        # kept alive: C holds only the addresses
        self.callbacks = LAUNCH(self._launch), MEMSET(self._memset)
        self.library.simulated_callbacks(*self.callbacks)
        self.reset()

    def replace(self, source: Path) -> None:
        """Take the kernels of another version of a file, and leave the launchers as they are."""
        self._take(compile_ptx(source, source.parent))

    def _take(self, module: Module) -> None:
        self.modules |= {_plain(name): (module, name) for name in module.names}

    def reset(
        self, max_blocks: int | None = None, schedule: str = "lockstep", seed: int = 0
    ) -> None:
        """A fresh device; kernels loop over what max_blocks leaves of their grid."""
        self.device = Device(8)
        self.max_blocks, self.schedule, self.seed = max_blocks, schedule, seed
        self.error: BaseException | None = None
        self.launched: list[str] = []

    def attribute(self, number: int, value: int) -> None:
        """What cudaDeviceGetAttribute answers from now on."""
        self.library.simulated_attribute(number, value)

    def _launch(self, name, geometry, shared, dynamic_limit, arguments, stream):  # type: ignore[no-untyped-def]
        try:
            module, found = self.modules[_plain(name.decode())]
            kernel = module.kernel(found)
            values = [
                ctypes.string_at(arguments[k], size)
                for k, (_, _, size) in enumerate(kernel.parameters)
            ]
            grid = list(geometry[0:3])
            grid[0] = min(grid[0], self.max_blocks or grid[0])
            if shared > dynamic_limit:
                message = f"{shared} bytes of dynamic shared memory, {dynamic_limit} allowed"
                raise PtxError(f"{kernel.name}: {message}")
            done = Launch(
                self.device,
                module,
                kernel.name,
                grid,
                geometry[3:6],
                values,
                shared,
                # 48 KB, static and dynamic together, unless the kernel asked for more
                shared_limit=max(dynamic_limit, 48 << 10),
                schedule=self.schedule,
                seed=self.seed,
            )
            self.launched.append(kernel.name)
            done.run()
            for coverage in self.coverage:
                if coverage.module is module:
                    coverage.add(done)
        except BaseException as error:  # must not cross C: call() raises it again
            self.error = self.error or error  # what follows a failed launch may fail of it
            return FAILED
        return 0

    def _memset(self, to, value, size):  # type: ignore[no-untyped-def]
        try:
            self.device.fill(to or 0, np.full(size, value & 255, np.uint8))
        except BaseException as error:
            self.error = self.error or error
            return FAILED
        return 0

    def call(self, function: str, *arguments: object) -> int:
        """A C function's result; raises what went wrong in the simulation."""
        result = getattr(self.library, function)(*arguments)
        if self.error is not None:
            self.library.cudaGetLastError()
            raise self.error
        assert self.library.simulated_pending_error() == 0, "the launcher left a CUDA error"
        return result

    def put(self, x: Tensor, offset: int = 0) -> ctypes.c_void_p:
        """X in device memory, `offset` elements after a boundary."""
        address = self.room(tuple(x.shape), x.dtype, offset)
        if x.numel():
            raw = x.contiguous().view(torch.uint8).numpy().reshape(-1)
            self.device.fill(address.value, raw)
        return address

    def room(self, shape: tuple[int, ...], dtype: torch.dtype, offset: int = 0) -> ctypes.c_void_p:
        """Memory for a result, not yet written."""
        skip = offset * dtype.itemsize
        address = self.device.allocate(math.prod(shape) * dtype.itemsize + skip)
        self.device.remove(address, skip)
        return ctypes.c_void_p(address + skip)

    def take(self, address: ctypes.c_void_p, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A result; every byte of it must have been written."""
        size = math.prod(shape) * dtype.itemsize
        if size == 0:
            return torch.empty(shape, dtype=dtype)
        raw = self.device.download(address.value, np.uint8, (size,))
        return torch.from_numpy(raw).view(dtype).reshape(shape)
