"""The weight-only products on a simulated GPU: operands in its memory, launchers called, results.

weight_only_abi.cpp has the C functions, whose structure this is.
"""

from __future__ import annotations

import ctypes

import torch
from simulated import Gpu
from torch import Tensor

from sparseq import reference

FLOATS = {torch.float32: 1, torch.bfloat16: 2, torch.float16: 5}  # core/epilogue.h's Element


class Rows(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int64),
        ("x", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("count", "depth", "outputs")),
        ("bias", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
    ]


def multiply(
    gpu: Gpu,
    name: str,
    x: Tensor,
    outputs: int,
    bias: Tensor | None,
    *weight: object,
    offset: int = 0,
) -> Tensor:
    """A product on the device; x lies `offset` elements past a boundary, y too."""
    shape = (x.shape[0], outputs)
    y = gpu.room(shape, x.dtype, offset)
    put = gpu.put(bias).value if bias is not None else None
    rows = Rows(FLOATS[x.dtype], gpu.put(x, offset).value, *x.shape, outputs, put, y.value)
    gpu.call(name, ctypes.byref(rows), *weight)
    return gpu.take(y, shape, x.dtype)


class Int4:
    """INT4 weights whose products with small integers are exact, unless `wild`."""

    def __init__(
        self, outputs: int, columns: int, groups: int, signed: bool, zero: bool, wild: bool = False
    ) -> None:
        random = torch.Generator().manual_seed(outputs + columns + groups)
        low = -8 if signed else 0
        q = torch.randint(low, low + 16, (outputs, columns), generator=random)
        self.packed = reference.pack_int4(q.to(torch.int8 if signed else torch.uint8))
        if columns % 2:
            self.packed[:, -1] |= 0xF0  # the last high nibble belongs to nobody
        shape = (outputs, groups)
        powers = torch.randint(-2, 2, shape, generator=random)
        self.scale = torch.rand(shape, generator=random) * 0.1 if wild else powers.exp2()
        points = torch.randint(low, low + 16, shape, generator=random, dtype=torch.int32)
        self.zero = points if zero else None
        self.bias = torch.randint(-9, 9, (outputs,), generator=random).float()
        self.signed = signed

    def on(self, gpu: Gpu, x: Tensor, packed_offset: int = 0, offset: int = 0) -> Tensor:
        zero = gpu.put(self.zero) if self.zero is not None else None
        weight = gpu.put(self.packed, packed_offset), gpu.put(self.scale), zero
        groups = ctypes.c_int64(self.scale.shape[1])
        rest = (*weight, groups, int(self.signed))
        return multiply(gpu, "int4_linear", x, len(self.packed), self.bias, *rest, offset=offset)

    def wanted(self, x: Tensor) -> Tensor:
        given = (self.packed, self.scale, self.zero, self.bias, self.signed)
        return reference.int4_linear(x, *given)


class Sparse:
    """2:4 weights whose products with small integers are exact, unless `wild`."""

    def __init__(
        self,
        outputs: int,
        columns: int,
        dtype: torch.dtype,
        wild: bool = False,
        any_byte: bool = False,
    ) -> None:
        random = torch.Generator().manual_seed(outputs + columns)
        groups = (columns + 3) // 4
        pairs = torch.tensor([a | b << 2 for a in range(4) for b in range(a + 1, 4)])
        nibbles = pairs[torch.randint(6, (outputs, groups + groups % 2), generator=random)]
        self.indices = (nibbles[:, ::2] | nibbles[:, 1::2] << 4).to(torch.uint8)
        if any_byte:
            size = self.indices.shape
            self.indices = torch.randint(256, size, generator=random, dtype=torch.uint8)
        values = torch.randint(-4, 5, (outputs, 2 * groups), generator=random).float()
        if wild:
            values = torch.randn(values.shape, generator=random)
        self.values = values.to(dtype)
        self.bias = None if wild else torch.randint(-9, 9, (outputs,), generator=random).float()

    def on(self, gpu: Gpu, x: Tensor, values_offset: int = 0, offset: int = 0) -> Tensor:
        put = gpu.put(self.values, values_offset), gpu.put(self.indices)
        weight = (FLOATS[self.values.dtype], *put)
        return multiply(gpu, "linear_24", x, len(self.values), self.bias, *weight, offset=offset)

    def wanted(self, x: Tensor) -> Tensor:
        return reference.linear_24(x, self.values, self.indices, self.bias)


def integers(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    random = torch.Generator().manual_seed(rows)
    return torch.randint(-4, 5, (rows, columns), generator=random).to(dtype)


def normal(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    return torch.randn((rows, columns), generator=torch.Generator().manual_seed(rows)).to(dtype)
