"""A simulated GPU for the tests of CUDA kernels: see Gpu."""

from __future__ import annotations

import ctypes
import importlib.util
import math
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]
TOOLS = ROOT.parent / "shared" / "tools" / "ptx"
AFFINE = ("csrc/affine/launch.cu", "tests/cuda/affine_abi.cpp")
FLAGS = ("-std=c++20", "-O3", "--fmad=false", "-lineinfo", "-arch=compute_80")


def _plain(name: str) -> str:
    """A kernel's mangled name without what nvcc makes of its file's content."""
    return re.sub(r"\d+_GLOBAL__N__[0-9a-f]{8}_\d+_(\w+?_cu)_[0-9a-f]{8}", r"\1", name)


class Gpu:
    """The launchers, linked against a stand-in for cudart whose launches run in the interpreter."""

    def __init__(self, folder: Path, sources: Sequence[str]) -> None:
        spec = importlib.util.spec_from_file_location("ptxsim", TOOLS / "ptxsim.py")
        self.sim = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.sim)
        library = folder / "launch.so"
        objects = []
        for path in (ROOT / source for source in sources):
            objects.append(folder / f"{path.stem}.o")
            options = ["-keep", "-keep-dir", folder, "-Xcompiler", "-fPIC", "-o", objects[-1]]
            subprocess.run(["nvcc", *FLAGS, *options, "-c", path], check=True)
        # torch has loaded the real cudart for everyone; -Bsymbolic binds to the stand-in even so
        link = ["gcc", "-shared", "-fPIC", "-Wl,-Bsymbolic", "-o", library, TOOLS / "fakert.c"]
        subprocess.run([*link, *objects, "-lstdc++"], check=True)
        self.modules: dict[str, tuple] = {}  # by kernel: its module, and its name there
        for source in sources:
            if source.endswith(".cu"):
                self._take(folder / f"{Path(source).stem}.ptx")
        self.library = ctypes.CDLL(str(library))
        signature = ctypes.CFUNCTYPE(
            ctypes.c_int,
            ctypes.c_char_p,
            ctypes.POINTER(ctypes.c_uint),
            ctypes.c_size_t,
            ctypes.POINTER(ctypes.c_void_p),
            ctypes.c_void_p,
        )
        self.callback = signature(self._launch)  # kept alive: C holds only the address
        self.library.fakert_set_callback(self.callback)
        self.coverage: dict[str, np.ndarray] = {}
        self.reset()

    def replace(self, source: Path) -> None:
        """Take the kernels of another version of a file, and leave the launchers as they are."""
        out = source.with_suffix(".ptx")
        subprocess.run(["nvcc", *FLAGS, "-ptx", source, "-o", out], check=True)
        self._take(out)

    def _take(self, ptx: Path) -> None:
        module = self.sim.Module(ptx.read_text())
        self.modules |= {_plain(name): (module, name) for name in module.kernels}

    def reset(
        self, max_blocks: int | None = None, schedule: str = "lockstep", seed: int = 0
    ) -> None:
        """A fresh device; kernels loop over what max_blocks leaves of their grid."""
        self.device = self.sim.Device(8)
        self.max_blocks, self.schedule, self.seed = max_blocks, schedule, seed
        self.error: BaseException | None = None
        self.launched: list[str] = []

    def _launch(self, name, geometry, shared, arguments, stream):  # type: ignore[no-untyped-def]
        try:
            module, found = self.modules[_plain(name.decode())]
            kernel = module.kernels[found]
            values = [
                int.from_bytes(ctypes.string_at(arguments[i], size), "little")
                for i, (_, _, size) in enumerate(kernel.params)
            ]
            grid = list(geometry[0:3])
            grid[0] = min(grid[0], self.max_blocks or grid[0])
            done = self.sim.launch(
                self.device,
                module,
                kernel.name,
                tuple(grid),
                tuple(geometry[3:6]),
                values,
                dyn_smem=shared,
                schedule=self.schedule,
                seed=self.seed,
            )
            self.launched.append(kernel.name)
            seen = self.coverage.setdefault(kernel.name, np.zeros_like(done.covered))
            seen |= done.covered
        except BaseException as error:  # must not cross C: call() raises it again
            self.error = self.error or error  # what follows a failed launch may fail of it
            return 700
        return 0

    def call(self, function: str, *arguments: object) -> None:
        getattr(self.library, function)(*arguments)
        if self.error is not None:
            raise self.error

    def put(self, x: Tensor, offset: int = 0) -> ctypes.c_void_p:
        """X in device memory, `offset` elements after a boundary."""
        raw = x.contiguous().view(torch.uint8 if x.numel() else x.dtype).numpy().reshape(-1)
        return self._place(raw, x, offset)

    def _place(self, raw: np.ndarray, x: Tensor, offset: int) -> ctypes.c_void_p:
        size, skip = x.numel() * x.element_size(), offset * x.element_size()
        address = self.device.alloc(size + skip) + skip
        begin = address - self.sim.G_BASE
        self.device.state[begin - skip : begin] = 0  # before x: out of bounds
        if size:
            self.device.mem[begin : begin + size] = raw
            self.device.state[begin : begin + size] = 2
        return ctypes.c_void_p(address)

    def room(self, shape: tuple[int, ...], dtype: torch.dtype, offset: int = 0) -> ctypes.c_void_p:
        x = torch.empty(shape, dtype=dtype)
        address = self.put(x, offset)
        begin = address.value - self.sim.G_BASE
        self.device.state[begin : begin + x.numel() * x.element_size()] = 1  # not yet written
        return address

    def take(self, address: ctypes.c_void_p, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A result; every byte of it must have been written."""
        size = math.prod(shape) * dtype.itemsize
        if size == 0:
            return torch.empty(shape, dtype=dtype)
        raw = self.device.get(address.value, np.uint8, (size,))
        return torch.from_numpy(raw).view(dtype).reshape(shape)


def build(folder: Path, sources: Sequence[str]) -> Gpu:
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc on PATH to compile the kernels with")
    if not (TOOLS / "ptxsim.py").is_file():
        pytest.skip(f"no PTX interpreter at {TOOLS}")
    return Gpu(folder, sources)


@pytest.fixture(scope="session")
def build_gpu(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Gpu]:
    """Makes a GPU for the launchers in the given files of the project, which nvcc compiles."""
    return lambda *sources: build(tmp_path_factory.mktemp(Path(sources[0]).stem), sources)


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Gpu:
    gpu = build(tmp_path_factory.mktemp("affine"), AFFINE)
    gpu.library.slots.restype = ctypes.c_int64
    return gpu


@pytest.fixture
def gpu(machine: Gpu) -> Gpu:
    machine.reset()
    return machine
