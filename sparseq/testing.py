"""Helpers for tests that use sparseq: choosing the ISA, exact comparison, awkward memory layouts.

def test_my_layer():
    for name in testing.every_isa():
        testing.assert_equal(my_layer(x), expected, message=name)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

import sparseq._C as core

__all__ = [
    "assert_equal",
    "assert_within_lsb",
    "edge_values",
    "every_isa",
    "isa",
    "layouts",
    "threads",
]

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@contextmanager
def isa(name: str) -> Iterator[str]:
    """Run the kernels of one instruction set inside the block, and those of before after it.

    Args:
        name: one of `sparseq._C.supported_isas()`, "scalar" among them everywhere.

    Raises:
        ValueError: a name that is unknown, or that this machine cannot run.
    """
    before = core.isa()
    core.set_isa(name)
    try:
        yield name
    finally:
        core.set_isa(before)


def every_isa() -> Iterator[str]:
    """Run a for loop's body once on each supported ISA, the lowest first."""
    for name in core.supported_isas():
        with isa(name):
            yield name


@contextmanager
def threads(count: int) -> Iterator[int]:
    """Run torch on `count` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield count
    finally:
        torch.set_num_threads(before)


def _bits(x: Tensor) -> Tensor:
    x = x.detach().resolve_conj().resolve_neg().contiguous()
    if x.is_floating_point():
        x = torch.where(x.isnan(), torch.full_like(x, float("nan")), x)
    if x.is_complex() or x.dtype == torch.bool:
        return x
    return x.view(_BITS[x.element_size()])


def assert_equal(
    actual: Tensor, expected: Tensor, *, strides: bool = False, message: str = ""
) -> None:
    """Assert that two tensors are the same: shape, dtype, and every value bit for bit.

    NaN equals NaN, whatever its payload; +0 and -0 differ.

    Args:
        actual: what came.
        expected: what should have come.
        strides: compare strides too, leaving out dimensions of at most one element.
        message: put in front of the error, to say which case it was.

    Raises:
        AssertionError: they differ; says where first, and how many values do.
    """
    where = f"{message}: " if message else ""
    if actual.shape != expected.shape:
        raise AssertionError(
            f"{where}shape must be {tuple(expected.shape)}, got {tuple(actual.shape)}"
        )
    if actual.dtype != expected.dtype:
        raise AssertionError(f"{where}dtype must be {expected.dtype}, got {actual.dtype}")
    if strides and actual.numel():
        pairs = zip(actual.shape, actual.stride(), expected.stride(), strict=True)
        if any(size > 1 and a != e for size, a, e in pairs):
            raise AssertionError(
                f"{where}strides must be {expected.stride()}, got {actual.stride()}"
            )
    differ = (_bits(actual) != _bits(expected).to(actual.device)).flatten()
    if bool(differ.any()):
        first = int(differ.nonzero()[0])
        got, wanted = actual.detach().flatten()[first], expected.detach().flatten()[first]
        raise AssertionError(
            f"{where}{int(differ.sum())} of {differ.numel()} values differ, the first at flat "
            f"index {first}: must be {wanted.item()!r}, got {got.item()!r}"
        )


def assert_within_lsb(
    actual: Tensor, expected: Tensor, scale: Tensor | float, *, lsb: float = 1.0
) -> None:
    """Assert `|actual - expected| <= lsb * scale` for every value, with room for float32 rounding.

    Args:
        actual: what came.
        expected: what should have come, of the same shape.
        scale: one quantisation step; broadcasts against actual.
        lsb: steps allowed.

    Raises:
        AssertionError: a value is further off, or not finite.
    """
    if actual.shape != expected.shape:
        raise AssertionError(f"shape must be {tuple(expected.shape)}, got {tuple(actual.shape)}")
    steps = (actual.detach().double() - expected.detach().double()).abs() / torch.as_tensor(
        scale, dtype=torch.float64
    )
    worst = float(steps.max()) if steps.numel() else 0.0
    if not worst <= lsb * (1 + 1e-5) + 1e-5:
        raise AssertionError(
            f"must agree within {lsb:g} steps, got a difference of {worst:.4g} steps"
        )


def edge_values(dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    """Values that kernels get wrong: NaN, infinities, the largest, -0, denormals, halfway cases.

    Args:
        dtype: a floating point type.
        scale: halfway cases are multiples of scale / 2.

    Returns:
        One dimension.
    """
    info = torch.finfo(dtype)
    special = [float("nan"), float("inf"), float("-inf"), info.max, info.min, 0.0, -0.0]
    special += [
        info.tiny,
        -info.tiny,
        info.smallest_normal / 2,
        -info.smallest_normal / 2,
        info.eps,
    ]
    halves = [
        scale * (n + 0.5) for n in (-129, -128, -127, -9, -8, -2, -1, 0, 1, 7, 126, 127, 254, 255)
    ]
    values = torch.tensor([*special, *halves], dtype=torch.float64)
    finite = values.clamp(info.min, info.max)
    return torch.where(values.isfinite(), finite, values).to(dtype)


def layouts(x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The same values in every memory layout that a kernel may meet.

    Args:
        x: any tensor.

    Yields:
        (name, tensor): "contiguous", "misaligned" (starts one element into its storage), "sliced"
        (every second element of a larger one), "transposed" (dimensions reversed in memory),
        "channels_last" where x has four dimensions, and "expanded", which alone has other values:
        x's first row, repeated with stride 0.
    """
    yield "contiguous", x.contiguous()
    yield "misaligned", x.new_empty(x.numel() + 1)[1:].view(x.shape).copy_(x)
    if x.dim() == 0:
        return
    wide = x.new_zeros((*x.shape[:-1], 2 * x.shape[-1]))
    wide[..., ::2] = x
    yield "sliced", wide[..., ::2]
    order = tuple(reversed(range(x.dim())))
    yield "transposed", x.permute(order).contiguous().permute(order)
    if x.dim() == 4:
        yield "channels_last", x.contiguous(memory_format=torch.channels_last)
    if x.shape[0]:
        yield "expanded", x[:1].expand_as(x)
