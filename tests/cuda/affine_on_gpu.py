"""Affine ops on a simulated GPU: a tensor and its scheme, the launchers, and what to compare with.

affine_abi.cpp has the C functions, whose structures these are.
"""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor

from sparseq import reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
INF, NAN = math.inf, math.nan


class Scheme(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("outer", "channels", "inner")),
        ("scale", ctypes.c_void_p),
        ("zero_point", ctypes.c_void_p),
        ("kind", ctypes.c_int),
        ("quant_min", ctypes.c_float),
        ("quant_max", ctypes.c_float),
    ]


class Case:
    """One tensor and its scheme, on the host and on the simulated device."""

    def __init__(
        self,
        gpu,
        dtype: torch.dtype,
        shape: tuple[int, ...],
        axis: int | None = None,
        group: int | None = None,
        zero: str = "int32",
        limits: tuple[int, int] = (-128, 127),
        offset: int = 0,
        wild: bool = True,
        seed: int = 0,
    ) -> None:
        self.gpu, self.dtype, self.shape, self.axis, self.group = gpu, dtype, shape, axis, group
        self.limits, self.offset = limits, offset
        random = torch.Generator().manual_seed(seed)
        numel = math.prod(shape)
        if group is not None:
            layout = (1, numel // group, group)
        elif axis is None:
            layout = (1, 1, numel)
        else:
            layout = (math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :]))
        self.channels = layout[1]
        self.scale = torch.rand(self.channels, generator=random) * 0.1 + 0.01
        span = limits[1] - limits[0]
        spread = torch.randint(limits[0], limits[1] + 1, (self.channels,), generator=random)
        self.zero = {
            "none": None,
            "int32": spread.int(),
            # learned: off the grid, out of the range, not a number
            "float32": spread + torch.linspace(-1.5 * span, 1.5 * span, self.channels) / 3 + 0.5,
        }[zero]
        if zero == "float32" and self.channels > 2:
            self.zero[1] = NAN
        amplitude = span * 0.06
        self.x = (torch.randn(shape, generator=random) * amplitude).to(dtype)
        self.grad = torch.randn(shape, generator=random).to(dtype)
        if wild and numel >= 40:
            some = torch.tensor([NAN, INF, -INF, 0.0, -0.0, 1e-8, 3e38, -3e38, 65504.0, 1e-42])
            where = torch.randperm(numel, generator=random)[: len(some)]
            self.x.view(-1)[where] = some.to(dtype)
        # halves, to be rounded to even
        self.x.view(-1)[: numel // 3] = (
            torch.randint(-300, 300, (numel // 3,), generator=random).float() * 0.5 * self.scale[0]
        ).to(dtype)
        kind = {"none": 0, "int32": 1, "float32": 2}[zero]
        pointers = gpu.put(self.scale), gpu.put(self.zero) if self.zero is not None else None
        self.scheme = Scheme(*layout, pointers[0], pointers[1], kind, *map(float, limits))
        self.by = ctypes.byref(self.scheme)
        self.type = DTYPES.index(dtype)
        self.options = {"axis": axis, "group_size": group}

    def quantized(self) -> torch.dtype:
        return torch.int8 if self.limits[0] < 0 else torch.uint8

    def quantize(self) -> tuple[Tensor, Tensor]:
        q = self.gpu.room(self.shape, self.quantized(), self.offset)
        self.gpu.call("quantize", self.type, self.by, self.gpu.put(self.x, self.offset), q)
        want = reference.quantize(self.x, self.scale, self.zero, *self.limits, **self.options)
        return self.gpu.take(q, self.shape, self.quantized()), want

    def dequantize(self) -> tuple[Tensor, Tensor]:
        q = torch.arange(self.x.numel()).reshape(self.shape).mul(37).to(self.quantized())
        y = self.gpu.room(self.shape, self.dtype, self.offset)
        signed = int(self.limits[0] < 0)
        self.scheme.quant_min, self.scheme.quant_max = -INF, INF
        self.gpu.call("dequantize", self.type, signed, self.by, self.gpu.put(q, self.offset), y)
        self.scheme.quant_min, self.scheme.quant_max = map(float, self.limits)
        want = reference.dequantize(q, self.scale, self.zero, **self.options, dtype=self.dtype)
        return self.gpu.take(y, self.shape, self.dtype), want

    def fake_quantize(self) -> tuple[Tensor, Tensor]:
        y = self.gpu.room(self.shape, self.dtype, self.offset)
        self.gpu.call("fake_quantize", self.type, self.by, self.gpu.put(self.x, self.offset), y)
        want = reference.fake_quantize(self.x, self.scale, self.zero, *self.limits, **self.options)
        return self.gpu.take(y, self.shape, self.dtype), want

    def backward(self) -> tuple[Tensor, Tensor]:
        y = self.gpu.room(self.shape, self.dtype, self.offset)
        grad, x = self.gpu.put(self.grad, self.offset), self.gpu.put(self.x, self.offset)
        self.gpu.call("backward", self.type, self.by, grad, x, y)
        want = reference.fake_quantize_backward(
            self.grad, self.x, self.scale, self.zero, *self.limits, **self.options
        )
        return self.gpu.take(y, self.shape, self.dtype), want

    def scratch(self) -> ctypes.c_void_p:
        slots = self.gpu.library.slots(self.by)
        return self.gpu.room((2 * max(slots, 1),), torch.float32)

    def learned(self, factor: float = 0.25) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        room, one = self.gpu.room, (self.scale.numel(),)
        grad_x = room(self.shape, self.dtype, self.offset)
        grad_scale, grad_zero = room(one, torch.float32), room(one, torch.float32)
        self.gpu.call(
            "learned_backward",
            self.type,
            self.by,
            self.gpu.put(self.grad, self.offset),
            self.gpu.put(self.x, self.offset),
            grad_x,
            ctypes.c_double(factor),
            self.scratch(),
            ctypes.c_int64(self.scale.numel()),
            grad_scale,
            grad_zero,
        )
        want = reference.fake_quantize_learned_backward(
            self.grad,
            self.x,
            self.scale,
            self.zero,
            *self.limits,
            **self.options,
            grad_factor=factor,
        )
        got = [self.gpu.take(grad_x, self.shape, self.dtype)]
        got += [self.gpu.take(g, one, torch.float32) for g in (grad_scale, grad_zero)]
        return got, want

    def minmax(self) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        low, high = (self.gpu.room((self.channels,), torch.float32) for _ in range(2))
        x = self.gpu.put(self.x, self.offset)
        self.gpu.call("minmax", self.type, self.by, x, self.scratch(), low, high)
        got = [self.gpu.take(p, (self.channels,), torch.float32) for p in (low, high)]
        return got, reference.minmax(self.x, **self.options)

    def observed(self) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        y = self.gpu.room(self.shape, self.dtype, self.offset)
        low, high = (self.gpu.room((self.channels,), torch.float32) for _ in range(2))
        x = self.gpu.put(self.x, self.offset)
        self.gpu.call("observed", self.type, self.by, x, y, self.scratch(), low, high)
        got = [self.gpu.take(y, self.shape, self.dtype)]
        got += [self.gpu.take(p, (self.channels,), torch.float32) for p in (low, high)]
        return got, reference.fake_quantize_observed(
            self.x, self.scale, self.zero, *self.limits, **self.options
        )


def assert_same_bits(got: Tensor, want: Tensor) -> None:
    assert got.dtype == want.dtype
    want = want.reshape(got.shape)
    if not want.dtype.is_floating_point:
        assert torch.equal(got, want)
        return
    bits = {2: torch.int16, 4: torch.int32}[want.element_size()]
    same = (got.view(bits) == want.contiguous().view(bits)) | (got.isnan() & want.isnan())
    wrong = (~same).nonzero()
    assert same.all(), f"{len(wrong)} differ, first at {wrong[0].tolist()}"
