"""What happens to the sums of the products, on every path through every kernel."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from gemm_cases import INF, NAN, assert_same, bytes_of, weight_of, wild, zero_of
from gemm_on_gpu import (
    ACTIVATIONS,
    DENSE,
    DEPTHWISE,
    ELEMENTS,
    FLOATS,
    SPARSE,
    Finish,
    How,
    Packed,
    Windows,
    multiply,
)
from simulated import Gpu
from torch import Tensor

from sparseq import reference


def finished(
    gpu: Gpu, kind: int, rows: int, finish: Finish, splits: int = 1, y_offset: int = 0
) -> tuple[Tensor, Tensor]:
    """One product of several steps, finished, and the reference's."""
    outputs = finish.scale.numel()
    x, zero = bytes_of((rows, 200), torch.uint8, 3), zero_of(131)
    weight = weight_of((outputs, 200), kind == SPARSE, 4)
    how = How(splits=splits, y_offset=y_offset)
    y = multiply(gpu, Packed(gpu, weight, kind), x, None, zero, finish, how)
    given = {k: v for k, v in vars(finish).items() if k not in ("row_scale", "row_zero")}
    scale, bias = given.pop("scale"), given.pop("bias")
    return y, reference.int8_linear(x, weight, scale, zero, None, bias, **given)


def constants(outputs: int) -> dict[str, Tensor]:
    return {"scale": wild(outputs, 7, 0.001), "bias": wild(outputs, 8, 3.0)}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("splits, y_offset, outputs", [(1, 0, 72), (2, 0, 72), (1, 1, 37)])
def test_float_outputs(
    gpu: Gpu, activation: str, dtype: torch.dtype, splits: int, y_offset: int, outputs: int
) -> None:
    residual = wild(7 * outputs, 9, 2.0).reshape(7, outputs).to(dtype)
    finish = Finish(**constants(outputs), dtype=dtype, activation=activation, residual=residual)
    finish.x_scale = torch.tensor([0.37])
    assert_same(*finished(gpu, SPARSE, 7, finish, splits, y_offset))


GRIDS = [(torch.int8, -128, 127, -9), (torch.int8, -127, 127, 0), (torch.uint8, 0, 255, 250)]


@pytest.mark.parametrize("activation", ["none", "hardswish"])
@pytest.mark.parametrize("dtype, low, high, zero", [*GRIDS, (torch.uint8, 3, 40, 7)])
@pytest.mark.parametrize("splits, y_offset, outputs", [(1, 0, 72), (3, 0, 72), (1, 1, 37)])
def test_byte_outputs(
    gpu: Gpu,
    activation: str,
    dtype: torch.dtype,
    low: int,
    high: int,
    zero: int,
    splits: int,
    y_offset: int,
    outputs: int,
) -> None:
    finish = Finish(**constants(outputs), dtype=dtype, activation=activation)
    finish.residual = bytes_of((7, outputs), dtype, 2)
    finish.residual_scale, finish.residual_zero = torch.tensor([0.043]), zero_of(zero)
    finish.y_scale, finish.y_zero = torch.tensor([0.021]), zero_of(zero)
    finish.y_min, finish.y_max = low, high
    y, want = finished(gpu, DENSE, 7, finish, splits, y_offset)
    assert torch.equal(y, want)


@pytest.mark.parametrize("scale", [1e-30, 1e30, INF, NAN])
def test_a_step_of_any_size(gpu: Gpu, scale: float) -> None:
    finish = Finish(**constants(16), dtype=torch.int8, y_scale=torch.tensor([scale]))
    finish.y_zero = zero_of(5)
    y, want = finished(gpu, DENSE, 5, finish)
    assert torch.equal(y, want)


# --- every way to finish, in every kernel ---

# layouts of y and the residual: runs of 8 outputs in wide accesses, the last one cut short; any
# boundary, one at a time
LAYOUTS = [{"y_pitch": 1}, {"y_offset": 1, "y_pitch": 2}]
TYPES = ELEMENTS[1:]
PLANS = [(n, layout) for layout in range(len(LAYOUTS)) for n in range(len(TYPES))]
PLANS.append((len(TYPES), 0))  # no residual


def plan(number: int, layout: int, rows: int, outputs: int) -> Finish:
    """Options that take all values for each type of output and of residual over PLANS."""
    kind, residual = (TYPES[n % len(TYPES)] for n in (number, number + layout))
    finish = Finish(wild(outputs, 7, 0.001), dtype=kind)
    finish.activation = ACTIVATIONS[(number + layout) % 4]
    finish.residual = (
        wild(rows * outputs, 9, 2.0).reshape(rows, outputs).to(residual)
        if residual.is_floating_point
        else bytes_of((rows, outputs), residual, 2)
    )
    if layout == 0:
        finish.bias = wild(outputs, 8, 3.0)
        finish.residual_scale, finish.residual_zero = torch.tensor([0.043]), zero_of(9)
    else:
        finish.x_scale = torch.tensor([0.37])
    if not kind.is_floating_point:
        finish.y_scale = torch.tensor([0.021])
        finish.y_zero = zero_of(7) if layout == 0 else None
        finish.y_min, finish.y_max = (-127, 127) if kind == torch.int8 else (0, 255)
    if number % 2:
        random = torch.Generator().manual_seed(rows)
        finish.row_scale = torch.rand(rows, generator=random) + 0.1
        if layout == 1:
            finish.row_zero = torch.randint(-128, 256, (rows,), generator=random).int()
    if number == len(TYPES):
        finish.residual = None
    return finish


# name: x, weight, windows; `rows` and `windows` are copied 16 bytes at a time, `any` less
SOURCES = {
    "rows": ((5, 144), (71, 144), None),
    "windows": ((1, 2, 3, 16), (71, 16, 3, 3), Windows(padding=(1, 1))),
    "any": ((1, 2, 3, 5), (71, 5, 3, 3), Windows(padding=(1, 1))),
}
TILES = [(source, large) for source in SOURCES for large in (False, True) if source != "any"]
TILES.append(("any", False))


def exact(x: Tensor, weight: Tensor, windows: Windows | None) -> Tensor:
    """Sums [..., outputs] in float64."""
    if windows is None:
        return x.double() @ weight.double().T
    moves = (windows.stride, windows.padding, windows.dilation)
    x = x.double().movedim(-1, 1)
    return torch.nn.functional.conv2d(x, weight.double(), None, *moves).movedim(1, -1)


def check_plan(
    gpu: Gpu, number: int, layout: int, source: str, x: Tensor, packed: Packed, **how: Any
) -> None:
    """X of rows or images, on one grid, or each row on its own by an odd number."""
    _, _, windows = SOURCES[source]
    finish = plan(number, layout, math.prod(x.shape[:-1]), packed.weight.shape[0])
    x_zero = zero_of(100) if layout == 0 and finish.row_scale is None else None
    y = multiply(gpu, packed, x, windows, x_zero, finish, How(**LAYOUTS[layout], **how))
    if x.is_floating_point():  # products of floats have none of these, and heed none
        finish.scale = finish.x_scale = finish.row_scale = None
        sums = exact(x, packed.weight, windows)
    else:
        sums = exact(x.double() - (0 if x_zero is None else x_zero), packed.weight, windows)
        if finish.row_zero is not None:
            of_weight = packed.weight.double().flatten(1).sum(1)
            sums = sums - finish.row_zero.double().reshape(*sums.shape[:-1], 1) * of_weight
    assert_same(y, finish.of(sums))


@pytest.mark.parametrize("source, large", TILES)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("kind", [DENSE, SPARSE])
def test_every_finish_of_int8(gpu: Gpu, kind: int, signed: bool, source: str, large: bool) -> None:
    x_shape, weight_shape, _ = SOURCES[source]
    x = bytes_of(x_shape, torch.int8 if signed else torch.uint8, 1)
    weight = weight_of(weight_shape, kind == SPARSE, 2)
    for number, layout in PLANS:
        gpu.reset()
        packed = Packed(gpu, weight, kind)
        check_plan(gpu, number, layout, source, x, packed, large=large)


@pytest.mark.parametrize("kind", [DENSE, SPARSE])
def test_every_finish_of_parts(gpu: Gpu, kind: int) -> None:
    x, weight = bytes_of((5, 300), torch.uint8, 1), weight_of((71, 300), kind == SPARSE, 2)
    for number, layout in PLANS:
        gpu.reset()
        check_plan(gpu, number, layout, "rows", x, Packed(gpu, weight, kind), splits=2)


@pytest.mark.parametrize("how", [{}, {"large": True}, {"offset": 1}, {"splits": 2}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_finish_of_floats(gpu: Gpu, dtype: torch.dtype, how: dict[str, Any]) -> None:
    random = torch.Generator().manual_seed(3)
    x = torch.randint(-4, 5, (5, 144), generator=random).to(dtype)
    weight = torch.randint(-4, 5, (71, 144), generator=random).to(dtype)
    weight = weight * reference.mask_24(torch.rand(weight.shape, generator=random))
    for number, layout in PLANS:
        gpu.reset()
        packed = Packed(gpu, weight, SPARSE, canonical=True)
        call = ("float_product", ELEMENTS.index(dtype))
        check_plan(gpu, number, layout, "rows", x, packed, call=call, **how)


def test_every_finish_without_tensor_cores(gpu: Gpu) -> None:
    x, weight = bytes_of((5, 47), torch.int8, 1), weight_of((71, 47), False, 2)
    for number, layout in PLANS:
        gpu.reset()
        packed = Packed(gpu, weight, DEPTHWISE)
        call = ("direct_product", gpu.put(weight), 1, None)
        check_plan(gpu, number, layout, "rows", x, packed, call=call)
