"""The INT8 and 2:4 products on a simulated GPU: operands in its memory, launchers called, results.

gemm_abi.cpp has the C functions, whose structures these are.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import Any

import torch
from simulated import Gpu
from torch import Tensor

from sparseq import reference

ACTIVATIONS = ["none", "relu", "relu6", "hardswish"]
ELEMENTS = [None, torch.float32, torch.bfloat16, torch.uint8, torch.int8, torch.float16]
FLOATS = [torch.float32, torch.bfloat16, torch.float16]
DENSE, SPARSE, DEPTHWISE = range(3)
FOLDER = "csrc/gemm/"
SOURCES = ("launch.cu", "launch_dense.cu", "launch_sparse.cu", "launch_float.cu")


class Weights(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_int32),
        ("element", ctypes.c_int32),
        *((n, ctypes.c_int64) for n in ("groups", "out_channels", "taps", "in_channels")),
        ("tiles", ctypes.c_void_p),
    ]


class Images(ctypes.Structure):
    _fields_ = [("sizes", ctypes.c_int64 * 13)]


def _fields(text: str) -> list[tuple[str, Any]]:
    kinds = {"*": ctypes.c_void_p, "=": ctypes.c_int64, "~": ctypes.c_float}
    return [(name[1:], kinds[name[0]]) for name in text.split()]


class Task(ctypes.Structure):
    _fields_ = [
        ("weights", Weights),
        *_fields("*x =x_signed =stride =count"),
        ("images", ctypes.POINTER(Images)),
        *_fields("*padding =large =splits *workspace *scale *x_scale *x_zero *row_scale *row_zero"),
        *_fields("*bias =activation =residual_type *residual =residual_stride *residual_scale"),
        *_fields("*residual_zero =output_type *output =output_stride *y_scale *y_zero"),
        *_fields("~output_low ~output_high"),
    ]


@dataclass
class Windows:
    """How a convolution moves."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    def output_size(self, image: torch.Size, kernel: torch.Size) -> list[int]:
        """Lines and columns, from those of the image and of the kernel."""
        reach = [d * (k - 1) + 1 for d, k in zip(self.dilation, kernel, strict=True)]
        room = [n + 2 * p for n, p in zip(image, self.padding, strict=True)]
        return [(n - r) // s + 1 for n, r, s in zip(room, reach, self.stride, strict=True)]


@dataclass
class Finish:
    """What happens to a sum: launch.h's Finish, and reference.gemm's names."""

    scale: Tensor | None = None
    x_scale: Tensor | None = None
    row_scale: Tensor | None = None
    row_zero: Tensor | None = None
    bias: Tensor | None = None
    activation: str = "none"
    residual: Tensor | None = None
    residual_scale: Tensor | None = None
    residual_zero: Tensor | None = None
    dtype: torch.dtype = torch.float32
    y_scale: Tensor | None = None
    y_zero: Tensor | None = None
    y_min: int = -128
    y_max: int = 127

    def of(self, acc: Tensor) -> Tensor:
        """The reference's result for exact sums [..., N] of centred operands, in float64."""
        scale = torch.ones(acc.shape[-1]) if self.scale is None else self.scale
        rows = None if self.row_scale is None else self.row_scale.reshape(*acc.shape[:-1], 1)
        residual = (self.residual, self.residual_scale, self.residual_zero)
        if self.residual is not None:
            if not self.residual.is_floating_point() and self.residual_scale is None:
                residual = (self.residual, torch.ones(1), self.residual_zero)
            residual = (residual[0].reshape(acc.shape), *residual[1:])
        after = (self.bias, self.activation, *residual)
        stored = (self.dtype, self.y_scale, self.y_zero, self.y_min, self.y_max)
        return reference.gemm._finish(acc, -1, scale, self.x_scale, rows, *after, *stored)


@dataclass
class How:
    """Which kernel, and where in memory things lie: nothing of it changes a result."""

    large: bool = False
    splits: int = 1
    offset: int = 0  # of x, in elements after a boundary
    pitch: int = 0  # elements between rows of x
    y_offset: int = 0  # of y and the residual
    y_pitch: int = 0
    call: tuple[Any, ...] = ("int8_product",)


class Packed:
    """A weight on the device, as tiles."""

    def __init__(
        self, gpu: Gpu, weight: Tensor, kind: int, groups: int = 1, canonical: bool = False
    ) -> None:
        self.gpu, self.weight, self.kind, self.groups = gpu, weight, kind, groups
        taps = math.prod(weight.shape[2:])
        sizes = groups, weight.shape[0] // groups, taps, weight.shape[1]
        self.structure = Weights(kind, weight.element_size(), *sizes, None)
        by = ctypes.byref(self.structure)
        size = gpu.library.tiles_size(by)
        self.structure.tiles = gpu.room((size,), torch.uint8, 0).value
        if canonical:
            values, indices = reference.pack_24(weight)
            gpu.call("pack_tiles_24", by, gpu.put(values), gpu.put(indices))
        else:
            gpu.call("pack_tiles", by, gpu.put(weight))


class Rows:
    """Memory of rows with gaps between them, which are not there."""

    def __init__(
        self, gpu: Gpu, count: int, width: int, pitch: int, dtype: torch.dtype, offset: int
    ) -> None:
        self.gpu, self.count, self.width, self.dtype = gpu, count, width, dtype
        self.stride = width + pitch
        total = max(0, count * self.stride - pitch)
        self.address = gpu.room((total,), dtype, offset).value or 0
        if pitch:
            for row in range(count - 1):
                gpu.device.remove(self.row(row) + width * dtype.itemsize, pitch * dtype.itemsize)

    def row(self, row: int) -> int:
        return self.address + row * self.stride * self.dtype.itemsize

    def fill(self, x: Tensor) -> None:
        raw = x.contiguous().view(torch.uint8).numpy().reshape(self.count, -1)
        for row in range(self.count if raw.size else 0):
            self.gpu.device.fill(self.row(row), raw[row])

    def take(self) -> Tensor:
        """What was written, every byte of it."""
        if self.stride == self.width:
            address = ctypes.c_void_p(self.address)
            return self.gpu.take(address, (self.count, self.width), self.dtype)
        rows = [ctypes.c_void_p(self.row(row)) for row in range(self.count)]
        return torch.stack([self.gpu.take(row, (self.width,), self.dtype) for row in rows])


def multiply(
    gpu: Gpu,
    packed: Packed,
    x: Tensor,
    windows: Windows | None = None,
    x_zero: Tensor | None = None,
    finish: Finish | None = None,
    how: How | None = None,
) -> Tensor:
    """The product on the device; x [M, K] or NHWC, y alike."""
    finish, how = finish or Finish(), how or How()
    outputs, channels = packed.weight.shape[0], x.shape[-1]
    shape, images = (*x.shape[:-1], outputs), None
    if windows is not None:
        size = windows.output_size(x.shape[1:3], packed.weight.shape[2:])
        shape = (x.shape[0], *size, outputs)
        numbers = [*x.shape[:3], *size, *packed.weight.shape[2:]]
        numbers += [*windows.stride, *windows.padding, *windows.dilation]
        images = ctypes.pointer(Images((ctypes.c_int64 * 13)(*numbers)))
    count = math.prod(shape[:-1])
    given = Rows(gpu, math.prod(x.shape[:-1]), channels, how.pitch, x.dtype, how.offset)
    given.fill(x)
    y = Rows(gpu, count, outputs, how.y_pitch, finish.dtype, how.y_offset)
    residual = None
    if finish.residual is not None:
        kind = finish.residual.dtype
        residual = Rows(gpu, count, outputs, how.y_pitch, kind, how.y_offset)
        residual.fill(finish.residual)
    names = "scale x_scale row_scale row_zero bias residual_scale residual_zero y_scale y_zero"
    pointers = {
        name: None if (value := getattr(finish, name)) is None else gpu.put(value).value
        for name in names.split()
    }
    zero = None if x_zero is None else gpu.put(x_zero).value
    integers = not finish.dtype.is_floating_point
    task = Task(
        weights=packed.structure,
        x=given.address,
        x_signed=x.dtype == torch.int8,
        stride=given.stride * x.element_size(),
        count=count,
        images=images,
        padding=zero,
        x_zero=zero,
        large=how.large,
        splits=how.splits,
        activation=ACTIVATIONS.index(finish.activation),
        residual_type=ELEMENTS.index(residual and residual.dtype),
        residual=residual and residual.address,
        residual_stride=outputs + how.y_pitch,
        output_type=ELEMENTS.index(finish.dtype),
        output=y.address,
        output_stride=outputs + how.y_pitch,
        output_low=finish.y_min if integers else 0,
        output_high=finish.y_max if integers else 0,
        **pointers,
    )
    by = ctypes.byref(task)
    workspace = gpu.library.workspace_size(by)
    task.workspace = gpu.room((max(workspace, 1),), torch.uint8).value
    name, *arguments = how.call
    gpu.call(name, by, *arguments)
    return y.take().reshape(shape)
