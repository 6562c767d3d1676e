"""The work that gpu.py times: each CUDA op, what it must equal, and its peers on a GPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch.nn import functional

from sparseq import ops, testing

# how many times the dense INT8 rate tensor cores have
KINDS = {"int8": 1.0, "int8 2:4": 2.0, "half": 0.5, "half 2:4": 1.0}
Device = torch.device


@dataclass(frozen=True)
class GpuRow:
    """One piece of work.

    Attributes:
        name: of the op and its shape.
        ours: the call.
        check: AssertionError where it gives other numbers than the CPU.
        moved: bytes read and written at least.
        kind: of KINDS, for products.
        products: multiplications of two numbers, those with zeros too.
        peers: other ways to do the work.
    """

    name: str
    ours: Callable[[], object]
    check: Callable[[], None]
    moved: int
    kind: str | None = None
    products: int = 0
    peers: dict[str, Callable[[], object]] = field(default_factory=dict)


def _same(op: Callable[..., torch.Tensor], *arguments: object, **options: object) -> None:
    """Compare an op with itself on the CPU."""

    def here(value: object) -> object:
        return value.cpu() if isinstance(value, torch.Tensor) else value

    got = op(*arguments, **options)
    wanted = op(*map(here, arguments), **{k: here(v) for k, v in options.items() if k != "tiles"})
    for a, b in zip(*(r if isinstance(r, tuple) else (r,) for r in (got, wanted)), strict=True):
        testing.assert_equal(a.cpu(), b)


def _bell(*shape: int, device: Device) -> torch.Tensor:
    """INT8 weights as trained ones are: bell-shaped, the greatest near 127."""
    return (torch.randn(shape, device=device) * 28).round().clamp(-127, 127).to(torch.int8)


def _linear(rows: int, depth: int, outputs: int, two_of_four: bool, device: Device) -> GpuRow:
    x = torch.randint(-128, 128, (rows, depth), dtype=torch.int8, device=device)
    weight = _bell(outputs, depth, device=device)
    if two_of_four:
        weight = weight * ops.mask_24(weight.float())
    scale = torch.rand(outputs, device=device) * 1e-3
    tiles = ops.int8_tiles(weight)
    given = partial(ops.int8_linear, x, weight, scale, tiles=tiles, dtype=torch.bfloat16)
    half_x, half_w = x.bfloat16(), weight.bfloat16()
    peers = {
        "cuBLASLt int8, int32 out": lambda: torch._int_mm(x, weight.t()),
        "torch bfloat16": lambda: functional.linear(half_x, half_w),
    }
    if two_of_four:
        peers |= {
            "torch semi-structured int8": _semi_structured(weight, x),
            "torch semi-structured bfloat16": _semi_structured(half_w, half_x),
        }
    return GpuRow(
        f"int8_linear {'2:4 ' * two_of_four}{rows}x{depth}->{outputs}",
        given,
        lambda: _same(ops.int8_linear, x, weight, scale, tiles=tiles, dtype=torch.bfloat16),
        moved=rows * depth + tiles.numel() + 2 * rows * outputs,
        kind="int8 2:4" if two_of_four else "int8",
        products=rows * depth * outputs,
        peers=peers,
    )


def _semi_structured(weight: torch.Tensor, x: torch.Tensor) -> Callable[[], object]:
    """torch's own 2:4 product, converted once, on the first call (untimed)."""
    held: list[torch.Tensor] = []

    def call() -> object:
        if not held:
            held.append(torch.sparse.to_sparse_semi_structured(weight))
        return torch.mm(held[0], x.t())

    return call


def _conv(batch: int, channels: int, size: int, two_of_four: bool, device: Device) -> GpuRow:
    x = torch.randint(-128, 128, (batch, channels, size, size), dtype=torch.int8, device=device)
    x = x.to(memory_format=torch.channels_last)
    weight = _bell(channels, channels, 3, 3, device=device)
    if two_of_four:
        weight = weight * ops.mask_24(weight.float())
    scale = torch.rand(channels, device=device) * 1e-3
    tiles = ops.int8_tiles(weight)
    rest = {"padding": (1, 1), "tiles": tiles, "dtype": torch.bfloat16}
    half_x, half_w = x.bfloat16(), weight.bfloat16().to(memory_format=torch.channels_last)
    return GpuRow(
        f"int8_conv2d {'2:4 ' * two_of_four}3x3 {channels}->{channels} at {size}, batch {batch}",
        partial(ops.int8_conv2d, x, weight, scale, **rest),
        lambda: _same(ops.int8_conv2d, x, weight, scale, **rest),
        moved=3 * x.numel() + tiles.numel(),
        kind="int8 2:4" if two_of_four else "int8",
        products=x.numel() * channels * 9,
        peers={"cuDNN bfloat16": lambda: functional.conv2d(half_x, half_w, padding=1)},
    )


def _close(op: Callable[..., torch.Tensor], *arguments: object, **options: object) -> None:
    """As `_same`, for sums of floats in another order."""
    got = op(*arguments, **options)
    here = [a.cpu() if isinstance(a, torch.Tensor) else a for a in arguments]
    torch.testing.assert_close(got.cpu(), op(*here), rtol=2e-2, atol=2e-2)


def _floats_24(rows: int, depth: int, outputs: int, device: Device) -> GpuRow:
    x = torch.randn(rows, depth, device=device).bfloat16()
    weight = (torch.randn(outputs, depth, device=device) / depth**0.5).bfloat16()
    weight = weight * ops.mask_24(weight)
    packed = ops.pack_24(weight)
    tiles = ops.tiles_24(*packed, depth)
    return GpuRow(
        f"linear_24 bfloat16 {rows}x{depth}->{outputs}",
        lambda: ops.linear_24(x, *packed, tiles=tiles),
        lambda: _close(ops.linear_24, x, *packed, tiles=tiles),
        moved=2 * rows * (depth + outputs) + tiles.numel(),
        kind="half 2:4",
        products=rows * depth * outputs,
        peers={
            "torch bfloat16": lambda: functional.linear(x, weight),
            "torch semi-structured": _semi_structured(weight, x),
        },
    )


def _int4(rows: int, depth: int, outputs: int, device: Device) -> GpuRow:
    x = torch.randn(rows, depth, device=device).bfloat16()
    q = torch.randint(-8, 8, (outputs, depth), dtype=torch.int8, device=device)
    scale = torch.rand(outputs, depth // 32, device=device) * 1e-3
    packed = ops.pack_int4(q)
    half = torch.randn(outputs, depth, device=device).bfloat16()
    held: list[torch.Tensor] = []

    def torchs() -> object:
        if not held:
            pairs = ((q[:, ::2] + 8).to(torch.uint8) << 4) | (q[:, 1::2] + 8).to(torch.uint8)
            held.append(torch._convert_weight_to_int4pack(pairs, 8))
            held.append(torch.stack([scale, torch.zeros_like(scale)], -1).transpose(0, 1))
            held[1] = held[1].contiguous().bfloat16()
        return torch._weight_int4pack_mm(x, held[0], 32, held[1])

    return GpuRow(
        f"int4_linear groups of 32 {rows}x{depth}->{outputs}",
        lambda: ops.int4_linear(x, packed, scale),
        lambda: _close(ops.int4_linear, x, packed, scale),
        moved=packed.numel() + 4 * scale.numel() + 2 * rows * (depth + outputs),
        peers={"torch int4": torchs, "torch bfloat16": lambda: functional.linear(x, half)},
    )


def _forward(size: int, per_channel: bool, device: Device) -> GpuRow:
    x = torch.randn(size, size, device=device)
    scale = (
        torch.rand(size, device=device) * 0.01 + 0.015
        if per_channel
        else torch.tensor(0.02, device=device)
    )
    zeros = torch.zeros(size, dtype=torch.int32, device=device)
    zero = torch.zeros((), dtype=torch.int32, device=device)
    grid = (scale, None, -128, 127, 0 if per_channel else None)

    def torchs() -> object:
        if per_channel:
            return torch.fake_quantize_per_channel_affine(x, scale, zeros, 0, -128, 127)
        return torch.fake_quantize_per_tensor_affine(x, scale, zero, -128, 127)

    return GpuRow(
        f"fake_quantize per {'channel' if per_channel else 'tensor'} {size}x{size}",
        lambda: ops.fake_quantize(x, *grid),
        lambda: _same(ops.fake_quantize, x, *grid),
        moved=8 * x.numel(),
        peers={"torch": torchs},
    )


def _training(size: int, learned: bool, device: Device) -> GpuRow:
    x = torch.randn(size, size, device=device, requires_grad=True)
    grad = torch.randn(size, size, device=device)
    scale = torch.tensor([0.02], device=device, requires_grad=learned)
    zero = torch.zeros(1, device=device)
    whole = zero.int()

    def backward(y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(y, [x, scale] if learned else [x], grad)

    def torchs() -> object:
        if learned:
            y = torch._fake_quantize_learnable_per_tensor_affine(x, scale, zero, -128, 127, 1.0)
        else:
            y = torch.fake_quantize_per_tensor_affine(x, scale, whole, -128, 127)
        return backward(y)

    def check() -> None:
        ours = backward(ops.fake_quantize(x, scale, None, -128, 127))[0]
        leaf = x.detach().cpu().requires_grad_()
        y = ops.fake_quantize(leaf, scale.detach().cpu(), None, -128, 127)
        testing.assert_equal(ours.cpu(), torch.autograd.grad(y, [leaf], grad.cpu())[0])

    return GpuRow(
        f"fake_quantize forward+backward{', learned scale' * learned} {size}x{size}",
        lambda: backward(ops.fake_quantize(x, scale, None, -128, 127)),
        check,
        moved=5 * 4 * x.numel(),
        peers={"torch": torchs},
    )


def _bytes(size: int, device: Device) -> GpuRow:
    x = torch.randn(size, size, device=device)
    scale = torch.tensor(0.02, device=device)
    zero = torch.zeros((), dtype=torch.int32, device=device)

    def torchs() -> object:
        with warnings.catch_warnings():  # a peer still, though deprecated; it warns once
            warnings.simplefilter("ignore")
            return torch.quantize_per_tensor(x, scale, zero, torch.qint8)

    return GpuRow(
        f"quantize per tensor {size}x{size}",
        lambda: ops.quantize(x, scale, None, -128, 127),
        lambda: _same(ops.quantize, x, scale, None, -128, 127),
        moved=5 * x.numel(),
        peers={"torch.quantize_per_tensor": torchs},
    )


def _range(size: int, device: Device) -> GpuRow:
    x = torch.randn(size, size, device=device)
    return GpuRow(
        f"minmax per channel {size}x{size}",
        lambda: ops.minmax(x, 0),
        lambda: _same(ops.minmax, x, 0),
        moved=4 * x.numel(),
        peers={"torch.aminmax": lambda: torch.aminmax(x, dim=1)},
    )


def _observed(size: int, device: Device) -> GpuRow:
    x = torch.randn(size, size, device=device)
    scale = torch.tensor(0.02, device=device)
    zero = torch.zeros((), dtype=torch.int32, device=device)
    grid = (scale, None, -128, 127)
    return GpuRow(
        f"fake_quantize_observed per tensor {size}x{size}",
        lambda: ops.fake_quantize_observed(x, *grid),
        lambda: _same(ops.fake_quantize_observed, x, *grid),
        moved=8 * x.numel(),
        peers={
            "fake_quantize and minmax": lambda: (ops.fake_quantize(x, *grid), ops.minmax(x)),
            "torch": lambda: (
                torch.fake_quantize_per_tensor_affine(x, scale, zero, -128, 127),
                torch.aminmax(x),
            ),
        },
    )


def _histogram(size: int, device: Device) -> GpuRow:
    x = torch.randn(size, size, device=device)
    limit = torch.tensor(8.0, device=device)
    return GpuRow(
        f"histogram of 2048 bins {size}x{size}",
        lambda: ops.histogram(x, limit, 2048),
        lambda: _same(ops.histogram, x, limit, 2048),
        moved=4 * x.numel(),
        peers={"torch.histc": lambda: torch.histc(x, 2048, -8, 8)},
    )


def _mask(size: int, device: Device) -> GpuRow:
    weight = torch.randn(size, size, device=device)

    def by_topk() -> object:
        groups = weight.unflatten(-1, (-1, 4)).abs()
        kept = groups.topk(2, dim=-1).indices
        return torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, kept, True)

    return GpuRow(
        f"mask_24 {size}x{size}",
        lambda: ops.mask_24(weight),
        lambda: _same(ops.mask_24, weight),
        moved=5 * weight.numel(),
        peers={"torch.topk and scatter": by_topk},
    )


def _pack(size: int, device: Device) -> GpuRow:
    weight = _bell(size, size, device=device)
    weight = weight * ops.mask_24(weight.float())
    return GpuRow(
        f"pack_24 int8 {size}x{size}",
        lambda: ops.pack_24(weight),
        lambda: _same(ops.pack_24, weight),
        moved=weight.numel() * 13 // 8,
        peers={"torch._cslt_compress": lambda: torch._cslt_compress(weight)},
    )


def rows(small: bool) -> Iterator[Callable[[Device], GpuRow]]:
    """Makers of the rows; `small` ones are for tests of the programs themselves."""
    linears = [(32, 64, 64)] if small else [(4096, 4096, 4096), (512, 768, 3072), (32, 4096, 4096)]
    convs = [(1, 8, 6)] if small else [(32, 64, 56), (32, 256, 14)]
    size = 64 if small else 4096
    for two_of_four in (False, True):
        for shape in linears:
            yield partial(_linear, *shape, two_of_four)
        for shape in convs:
            yield partial(_conv, *shape, two_of_four)
    yield partial(_floats_24, *linears[0])
    for count in (1, 16):
        yield partial(_int4, count, *linears[-1][1:])
    for flag in (False, True):
        yield partial(_forward, size, flag)
    for flag in (False, True):
        yield partial(_training, size, flag)
    for make in (_bytes, _range, _observed, _histogram, _mask, _pack):
        yield partial(make, size)
