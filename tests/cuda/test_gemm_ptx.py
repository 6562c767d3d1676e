"""The INT8 and 2:4 products without a GPU.

As in test_affine_ptx.py: compiled launchers, kernels executed from nvcc's PTX, results compared
with sparseq.reference bit for bit.
"""

from __future__ import annotations

import ctypes
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparseq import reference

INF, NAN = math.inf, math.nan
ACTIVATIONS = ["none", "relu", "relu6", "hardswish"]
ELEMENTS = [None, torch.float32, torch.bfloat16, torch.uint8, torch.int8, torch.float16]
DENSE, SPARSE, DEPTHWISE = range(3)
ROOT = Path(__file__).parents[2]
KERNELS = "csrc/gemm/"
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


@pytest.fixture(scope="session")
def gemm_machine(build_gpu):
    sources = [KERNELS + source for source in SOURCES]
    gpu = build_gpu(*sources, "tests/cuda/gemm_abi.cpp")
    gpu.library.tiles_size.restype = gpu.library.workspace_size.restype = ctypes.c_int64
    return gpu


@pytest.fixture
def gpu(gemm_machine):
    gemm_machine.reset()
    return gemm_machine


def bytes_of(shape: tuple[int, ...], dtype: torch.dtype, seed: int, extreme: bool) -> Tensor:
    low = -128 if dtype == torch.int8 else 0
    random = torch.Generator().manual_seed(seed)
    x = torch.randint(low, low + 256, shape, generator=random)
    if extreme:
        x = torch.where(x % 2 == 0, low, low + 255)
    return x.to(dtype)


def weight_of(shape: tuple[int, ...], sparse: bool, seed: int, extreme: bool = False) -> Tensor:
    weight = bytes_of(shape, torch.int8, seed, extreme)
    if sparse:
        noise = torch.rand(shape, generator=torch.Generator().manual_seed(seed + 1))
        weight = weight * reference.mask_24(noise)
    return weight


class Packed:
    """A weight on the device, as tiles."""

    def __init__(self, gpu, weight: Tensor, kind: int, groups: int = 1, canonical: bool = False):
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


def multiply(
    gpu,
    packed: Packed,
    x: Tensor,
    conv: dict[str, Any] | None = None,
    *,
    large: bool = False,
    splits: int = 1,
    offset: int = 0,
    pitch: int = 0,
    y_offset: int = 0,
    call: tuple[Any, ...] = ("int8_product",),
    scale: Tensor | None = None,
    x_scale: Tensor | None = None,
    x_zero: Tensor | None = None,
    row_scale: Tensor | None = None,
    row_zero: Tensor | None = None,
    bias: Tensor | None = None,
    activation: str = "none",
    residual: Tensor | None = None,
    residual_scale: Tensor | None = None,
    residual_zero: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    y_scale: Tensor | None = None,
    y_zero: Tensor | None = None,
    y_min: int = -128,
    y_max: int = 127,
) -> Tensor:
    """The product on the device; x [M, K] or NHWC, y alike."""
    put = lambda t: gpu.put(t).value if t is not None else None  # noqa: E731
    outputs, channels = packed.weight.shape[0], x.shape[-1]
    rows, shape, images = x.reshape(-1, channels), (*x.shape[:-1], outputs), None
    if conv is not None:
        size = [
            (
                x.shape[d + 1]
                + 2 * conv["padding"][d]
                - conv["dilation"][d] * (packed.weight.shape[d + 2] - 1)
                - 1
            )
            // conv["stride"][d]
            + 1
            for d in range(2)
        ]
        shape = (x.shape[0], *size, outputs)
        numbers = [*x.shape[:3], *size, *packed.weight.shape[2:]]
        numbers += [*conv["stride"], *conv["padding"], *conv["dilation"]]
        images = ctypes.pointer(Images((ctypes.c_int64 * 13)(*numbers)))
    count = math.prod(shape[:-1])
    stored = torch.zeros(rows.shape[0], channels + pitch, dtype=x.dtype)
    stored[:, :channels] = rows
    # what lies between the rows, and after the last one's end, is not there
    flat = stored.reshape(-1)[: max(0, stored.numel() - pitch)]
    y = gpu.room((count, outputs), dtype, y_offset)
    low, high = (y_min, y_max) if not dtype.is_floating_point else (0, 0)
    task = Task(
        weights=packed.structure,
        x=gpu.put(flat, offset).value,
        x_signed=x.dtype == torch.int8,
        stride=(channels + pitch) * x.element_size(),
        count=count,
        images=images,
        padding=put(x_zero),
        large=large,
        splits=splits,
        scale=put(scale),
        x_scale=put(x_scale),
        x_zero=put(x_zero),
        row_scale=put(row_scale),
        row_zero=put(row_zero),
        bias=put(bias),
        activation=ACTIVATIONS.index(activation),
        residual_type=ELEMENTS.index(residual.dtype if residual is not None else None),
        residual=gpu.put(residual, y_offset).value if residual is not None else None,
        residual_stride=outputs,
        residual_scale=put(residual_scale),
        residual_zero=put(residual_zero),
        output_type=ELEMENTS.index(dtype),
        output=y.value,
        output_stride=outputs,
        y_scale=put(y_scale),
        y_zero=put(y_zero),
        output_low=low,
        output_high=high,
    )
    by = ctypes.byref(task)
    workspace = gpu.library.workspace_size(by)
    task.workspace = gpu.room((max(workspace, 1),), torch.uint8).value
    name, *arguments = call
    gpu.call(name, by, *arguments)
    return gpu.take(y, shape, dtype)


def scales(outputs: int, seed: int = 5) -> Tensor:
    return torch.rand(outputs, generator=torch.Generator().manual_seed(seed)) * 0.01 + 1e-4


def zero_of(value: int) -> Tensor:
    return torch.tensor([value], dtype=torch.int32)


def check_linear(
    gpu,
    rows: int,
    outputs: int,
    depth: int,
    kind: int,
    signed: bool = True,
    extreme: bool = False,
    canonical: bool = False,
    **how,
) -> None:
    x = bytes_of((rows, depth), torch.int8 if signed else torch.uint8, rows + depth, extreme)
    weight = weight_of((outputs, depth), kind == SPARSE, outputs, extreme)
    packed = Packed(gpu, weight, kind, canonical=canonical)
    given = {"scale": scales(outputs), "x_zero": zero_of(-128 if signed else 255)}
    y = multiply(gpu, packed, x, **given, **how)
    want = reference.int8_linear(x, weight, given["scale"], given["x_zero"], None, None)
    assert torch.equal(y, want)


# rows, outputs, depth: edge tiles, one to five steps, everything odd
SHAPES = [(1, 1, 1), (5, 7, 16), (33, 65, 64), (37, 130, 208), (70, 64, 400)]


@pytest.mark.parametrize("kind", [DENSE, SPARSE])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("rows, outputs, depth", SHAPES)
def test_linear(gpu, rows: int, outputs: int, depth: int, kind: int, signed: bool) -> None:
    check_linear(gpu, rows, outputs, depth, kind, signed)


@pytest.mark.parametrize("kind", [DENSE, SPARSE])
@pytest.mark.parametrize("rows, outputs, depth", [(129, 70, 336), (64, 200, 80), (257, 128, 256)])
def test_large_tiles(gpu, rows: int, outputs: int, depth: int, kind: int) -> None:
    check_linear(gpu, rows, outputs, depth, kind, rows % 2 == 0, large=True)


@pytest.mark.parametrize("kind", [DENSE, SPARSE])
@pytest.mark.parametrize("signed", [True, False])
def test_extremes_are_exact(gpu, kind: int, signed: bool) -> None:
    check_linear(gpu, 40, 72, 2112, kind, signed, extreme=True)


@pytest.mark.parametrize("kind", [DENSE, SPARSE])
@pytest.mark.parametrize("depth", [30, 33, 37, 132, 150, 259])
@pytest.mark.parametrize("offset, pitch", [(0, 0), (4, 8), (1, 3)])
def test_any_alignment(gpu, kind: int, depth: int, offset: int, pitch: int) -> None:
    """Copies of 16 and 4 bytes, and bytes; y on any boundary, too."""
    check_linear(gpu, 9, 21, depth, kind, offset=offset, pitch=pitch, y_offset=offset)


@pytest.mark.parametrize("kind", [DENSE, SPARSE])
@pytest.mark.parametrize("depth, pitch", [(40, 8), (90, 6), (200, 24)])
def test_rows_end_within_a_chunk(gpu, kind: int, depth: int, pitch: int) -> None:
    """Rows at multiples of 16 bytes: 16 are copied at a time, and at the end fewer."""
    check_linear(gpu, 35, 66, depth, kind, signed=False, pitch=pitch)


@pytest.mark.parametrize("kind", [DENSE, SPARSE])
@pytest.mark.parametrize("rows, outputs, depth", [(3, 70, 1040), (40, 64, 640), (2, 9, 333)])
@pytest.mark.parametrize("splits", [2, 5])
def test_sum_in_parts(gpu, kind: int, rows: int, outputs: int, depth: int, splits: int) -> None:
    check_linear(gpu, rows, outputs, depth, kind, rows % 2 == 0, splits=splits)
    kernels = gpu.launched[-2:]
    assert "product" in kernels[0] and "finish_parts" in kernels[1]


@pytest.mark.parametrize("rows, outputs, depth", [(21, 70, 52), (9, 130, 300)])
def test_tiles_from_the_canonical_form(gpu, rows: int, outputs: int, depth: int) -> None:
    check_linear(gpu, rows, outputs, depth, SPARSE, canonical=True)


@pytest.mark.parametrize("schedule_seed", [1, 2, 3])
@pytest.mark.parametrize("kind", [DENSE, SPARSE])
def test_order_of_threads_changes_no_bit(gpu, kind: int, schedule_seed: int) -> None:
    """Warps run ahead of each other; five and more steps of the pipeline."""
    depth = 64 * (5 + schedule_seed) * (1 + kind)
    gpu.reset(schedule="random", seed=schedule_seed)
    check_linear(gpu, 20, 70, depth, kind)
    check_linear(gpu, 130, 100, depth, kind, large=True)
    check_linear(gpu, 20, 33, depth, kind, splits=2)
    check_linear(gpu, 3, 20, depth - 3, kind)


def test_the_cut(gpu) -> None:
    """Few rows of a deep layer are cut until every multiprocessor has two blocks."""
    splits = ctypes.c_int64()

    def cut(rows: int, outputs: int, depth: int, kind: int = DENSE) -> tuple[int, int]:
        weights = Weights(kind, 1, 1, outputs, 1, depth, None)
        large = gpu.library.chosen(
            ctypes.byref(weights), ctypes.c_int64(rows), 108, ctypes.byref(splits)
        )
        return large, splits.value

    assert cut(4096, 4096, 4096) == (1, 1)
    assert cut(4096, 4096, 4096, SPARSE) == (1, 1)
    assert cut(64, 256, 256) == (0, 1)
    large, parts = cut(1, 1024, 4096)
    assert not large and 2 <= parts <= 8
    assert cut(1, 65536, 4096) == (0, 1)
    assert cut(256, 16, 128) == (0, 1)


# --- what happens to the sum ---

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
WILD = torch.tensor([NAN, INF, -INF, 3e38, -3e38, -0.0, 1e-42, 65519.0])


def wild(n: int, seed: int, amplitude: float) -> Tensor:
    x = torch.randn(n, generator=torch.Generator().manual_seed(seed)) * amplitude
    x[: len(WILD)] = WILD[: min(n, len(WILD))]
    return x[torch.randperm(n, generator=torch.Generator().manual_seed(seed + 1))]


def assert_same(got: Tensor, want: Tensor) -> None:
    assert got.dtype == want.dtype
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(got.nan_to_num(0.5), want.nan_to_num(0.5))


def finished(
    gpu, kind: int, rows: int, outputs: int, splits: int = 1, y_offset: int = 0, **options
) -> tuple[Tensor, Tensor]:
    """One product of several steps with the given options, and the reference's."""
    x = bytes_of((rows, 200), torch.uint8, 3, False)
    weight = weight_of((outputs, 200), kind == SPARSE, 4)
    arguments = {"scale": wild(outputs, 7, 0.001), "bias": wild(outputs, 8, 3.0), **options}
    y = multiply(
        gpu,
        Packed(gpu, weight, kind),
        x,
        x_zero=zero_of(131),
        splits=splits,
        y_offset=y_offset,
        **arguments,
    )
    ranges = {k: arguments.pop(k) for k in ("y_min", "y_max") if k in arguments}
    scale, bias = arguments.pop("scale"), arguments.pop("bias")
    dtype = arguments.pop("dtype", torch.float32)
    want = reference.int8_linear(
        x, weight, scale, zero_of(131), None, bias, dtype=dtype, **arguments, **ranges
    )
    return y, want


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("splits, y_offset, outputs", [(1, 0, 72), (2, 0, 72), (1, 1, 37)])
def test_float_outputs(
    gpu, activation: str, dtype: torch.dtype, splits: int, y_offset: int, outputs: int
) -> None:
    residual = wild(7 * outputs, 9, 2.0).reshape(7, outputs).to(dtype)
    options = {"dtype": dtype, "activation": activation, "residual": residual}
    options["x_scale"] = torch.tensor([0.37])
    assert_same(*finished(gpu, SPARSE, 7, outputs, splits, y_offset, **options))


GRIDS = [(torch.int8, -128, 127, -9), (torch.int8, -127, 127, 0), (torch.uint8, 0, 255, 250)]


@pytest.mark.parametrize("activation", ["none", "hardswish"])
@pytest.mark.parametrize("dtype, low, high, zero", [*GRIDS, (torch.uint8, 3, 40, 7)])
@pytest.mark.parametrize("splits, y_offset, outputs", [(1, 0, 72), (3, 0, 72), (1, 1, 37)])
def test_byte_outputs(
    gpu,
    activation: str,
    dtype: torch.dtype,
    low: int,
    high: int,
    zero: int,
    splits: int,
    y_offset: int,
    outputs: int,
) -> None:
    residual = bytes_of((7, outputs), dtype, 2, False)
    options = {"dtype": dtype, "activation": activation, "residual": residual}
    options |= {"residual_scale": torch.tensor([0.043]), "residual_zero": zero_of(zero)}
    options |= {"y_scale": torch.tensor([0.021]), "y_zero": zero_of(zero)}
    options |= {"y_min": low, "y_max": high}
    y, want = finished(gpu, DENSE, 7, outputs, splits, y_offset, **options)
    assert torch.equal(y, want)


@pytest.mark.parametrize("scale", [1e-30, 1e30, INF, NAN])
def test_a_step_of_any_size(gpu, scale: float) -> None:
    options = {"dtype": torch.int8, "y_scale": torch.tensor([scale]), "y_zero": zero_of(5)}
    y, want = finished(gpu, DENSE, 5, 16, **options)
    assert torch.equal(y, want)


# --- convolutions ---

# input NHWC, weight OIHW, groups, stride, padding, dilation
CONVOLUTIONS = {
    "3x3": ((2, 7, 9, 32), (40, 32, 3, 3), 1, (1, 1), (1, 1), (1, 1)),
    "strided": ((1, 9, 8, 48), (20, 48, 3, 3), 1, (2, 2), (1, 1), (1, 1)),
    "dilated": ((1, 9, 11, 16), (70, 16, 3, 2), 1, (1, 2), (2, 0), (2, 3)),
    "1x1": ((2, 5, 4, 64), (33, 64, 1, 1), 1, (1, 1), (0, 0), (1, 1)),
    "1x1_strided": ((2, 5, 5, 32), (16, 32, 1, 1), 1, (2, 2), (0, 0), (1, 1)),
    "1x1_padded": ((1, 3, 3, 32), (16, 32, 1, 1), 1, (1, 1), (1, 1), (1, 1)),
    "wide_padding": ((1, 3, 3, 32), (12, 32, 5, 5), 1, (1, 1), (4, 4), (1, 1)),
    "groups": ((1, 6, 5, 64), (24, 32, 3, 3), 2, (1, 1), (1, 1), (1, 1)),
    "odd_groups": ((1, 5, 5, 36), (21, 12, 3, 3), 3, (1, 1), (1, 1), (1, 1)),
    "stem": ((2, 11, 10, 3), (24, 3, 7, 7), 1, (2, 2), (3, 3), (1, 1)),
    "channels_20": ((1, 6, 6, 20), (17, 20, 3, 3), 1, (1, 1), (1, 1), (1, 1)),
    "channels_5": ((1, 6, 6, 5), (9, 5, 3, 3), 1, (1, 1), (1, 1), (1, 1)),
}


def check_convolution(gpu, case: str, kind: int, signed: bool, **how) -> None:
    shape, weight_shape, groups, stride, padding, dilation = CONVOLUTIONS[case]
    x = bytes_of(shape, torch.int8 if signed else torch.uint8, 1, False)
    weight = weight_of(weight_shape, kind == SPARSE, 2)
    zero, scale = zero_of(-77 if signed else 201), scales(weight_shape[0])
    conv = {"stride": stride, "padding": padding, "dilation": dilation}
    y = multiply(gpu, Packed(gpu, weight, kind, groups), x, conv, scale=scale, x_zero=zero, **how)
    want = reference.int8_conv2d(
        x.movedim(-1, 1), weight, scale, zero, None, None, *conv.values(), groups
    )
    assert torch.equal(y, want.movedim(1, -1))


@pytest.mark.parametrize("kind", [DENSE, SPARSE])
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution(gpu, case: str, kind: int) -> None:
    check_convolution(gpu, case, kind, signed=kind == DENSE)


@pytest.mark.parametrize("kind", [DENSE, SPARSE])
@pytest.mark.parametrize("case", ["3x3", "dilated", "groups"])
def test_convolution_otherwise(gpu, case: str, kind: int) -> None:
    check_convolution(gpu, case, kind, signed=kind == SPARSE, large=True)
    check_convolution(gpu, case, kind, signed=kind == SPARSE, splits=3)
    check_convolution(gpu, case, kind, signed=kind == SPARSE, offset=1, pitch=5)
    gpu.reset(schedule="random", seed=4)
    check_convolution(gpu, case, kind, signed=kind == SPARSE)


# --- the direct kernel: depthwise, and any bytes and zero points ---

DEPTHWISES = {
    "depthwise": ((2, 7, 6, 20), (20, 1, 3, 3), 20, (1, 1), (1, 1), (1, 1)),
    "multiplied": ((1, 6, 9, 7), (21, 1, 5, 3), 7, (2, 1), (2, 0), (1, 2)),
}


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("case", DEPTHWISES)
def test_depthwise(gpu, case: str, signed: bool) -> None:
    shape, weight_shape, groups, stride, padding, dilation = DEPTHWISES[case]
    x = bytes_of(shape, torch.int8 if signed else torch.uint8, 1, False)
    weight = weight_of(weight_shape, False, 2)
    packed = Packed(gpu, weight, DEPTHWISE, groups)
    given = {"scale": scales(weight_shape[0]), "x_zero": zero_of(-77 if signed else 201)}
    finish = {"activation": "relu", "dtype": torch.bfloat16}
    conv = {"stride": stride, "padding": padding, "dilation": dilation}
    call = ("direct_product", None, 1, None)
    y = multiply(gpu, packed, x, conv, call=call, **given, **finish)
    want = reference.int8_conv2d(
        x.movedim(-1, 1),
        weight,
        given["scale"],
        given["x_zero"],
        None,
        None,
        *conv.values(),
        groups,
        **finish,
    )
    assert torch.equal(y, want.movedim(1, -1))


@pytest.mark.parametrize("w_signed", [True, False])
@pytest.mark.parametrize("x_signed", [True, False])
def test_weights_with_zero_points(gpu, x_signed: bool, w_signed: bool) -> None:
    types = [torch.uint8, torch.int8]
    shape, weight_shape, groups, *windows = CONVOLUTIONS["odd_groups"]
    x = bytes_of(shape, types[x_signed], 1, True)
    weight = bytes_of(weight_shape, types[w_signed], 2, True)
    w_zero = bytes_of(weight_shape[:1], types[w_signed], 3, False).int()
    zero = zero_of(-128 if x_signed else 255)
    packed = Packed(gpu, weight.view(torch.int8), DEPTHWISE, groups)
    call = ("direct_product", gpu.put(weight), int(w_signed), gpu.put(w_zero))
    conv = dict(zip(("stride", "padding", "dilation"), windows, strict=True))
    scale = scales(weight_shape[0])
    y = multiply(gpu, packed, x, conv, call=call, scale=scale, x_zero=zero)
    x = x.movedim(-1, 1)
    want = reference.int8_conv2d(x, weight, scale, zero, w_zero, None, *windows, groups)
    assert torch.equal(y, want.movedim(1, -1))


# --- rows on their own grids ---


def quantized_rows(x: Tensor, low: int, high: int) -> tuple[Tensor, Tensor, Tensor]:
    """The reference's row_grid, and the integers on it."""
    scale, zero = reference.row_grid(x, low, high)
    steps = torch.where(x.isnan(), 0.0, x.float() / scale).round()
    least = -high if low < 0 else low
    return scale, zero, torch.minimum(torch.maximum(steps, least - zero), high - zero) + zero


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("low, high", [(-128, 127), (-100, 100), (0, 255), (3, 17)])
@pytest.mark.parametrize("rows, columns, pad", [(9, 24, 0), (3, 33, 2), (2, 1088, 0), (2, 1091, 1)])
def test_rows_on_their_own_grids(
    gpu, dtype: torch.dtype, low: int, high: int, rows: int, columns: int, pad: int
) -> None:
    x = torch.randn((rows, columns), generator=torch.Generator().manual_seed(columns)) * 3
    x[0, :8] = torch.tensor([NAN, 0.0, NAN, 1e-8, -2.0, 5.5, -0.0, NAN])
    x[1, :3] = torch.tensor([INF, -INF, NAN]) if columns % 2 else 1.0
    x[-1] = 0.0 if columns == 24 else x[-1].abs()
    x = x.to(dtype)
    q = gpu.room((rows, columns + pad), torch.uint8)
    scale, zero = gpu.room((rows,), torch.float32), gpu.room((rows,), torch.int32)
    sizes = [ctypes.c_int64(n) for n in (rows, columns, columns)]
    with_zero = zero if low >= 0 else None
    pitch = ctypes.c_int64(columns + pad)
    kind = ELEMENTS.index(dtype)
    gpu.call("quantize_rows", kind, gpu.put(x), *sizes, low, high, q, pitch, scale, with_zero)
    want_scale, want_zero, want = quantized_rows(x, low, high)
    assert torch.equal(gpu.take(scale, (rows, 1), torch.float32), want_scale)
    if low >= 0:
        assert torch.equal(gpu.take(zero, (rows, 1), torch.int32).float(), want_zero.float())
    got = gpu.take(q, (rows, columns + pad), torch.uint8)
    assert not got[:, columns:].any()
    assert torch.equal(got[:, :columns], want.to(torch.int16).to(torch.uint8))


@pytest.mark.parametrize("kind, splits", [(DENSE, 1), (SPARSE, 2)])
@pytest.mark.parametrize("low, high", [(-128, 127), (0, 255)])
def test_products_of_such_rows(gpu, kind: int, splits: int, low: int, high: int) -> None:
    x = torch.randn((11, 144), generator=torch.Generator().manual_seed(1))
    weight = weight_of((19, 144), kind == SPARSE, 2)
    row_scale, row_zero, integers = quantized_rows(x, low, high)
    q = integers.to(torch.int8 if low < 0 else torch.uint8)
    given = {"scale": scales(19), "bias": wild(19, 3, 1.0)}
    zero = {} if low < 0 else {"row_zero": row_zero.reshape(-1).int()}
    rows = {"row_scale": row_scale.reshape(-1), **zero}
    y = multiply(gpu, Packed(gpu, weight, kind), q, splits=splits, **given, **rows)
    want = reference.int8_linear(
        x, weight, given["scale"], None, None, given["bias"], x_min=low, x_max=high
    )
    assert_same(y, want)


# --- 2:4 in 16 bits ---


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "rows, outputs, depth, how",
    [
        (5, 9, 16, {}),
        (33, 70, 200, {"activation": "relu"}),
        (70, 130, 264, {"large": True}),
        (9, 66, 520, {"splits": 3}),
        (7, 21, 83, {"offset": 1, "pitch": 3}),
        (7, 21, 86, {"y_offset": 1}),
    ],
)
def test_floats(gpu, rows: int, outputs: int, depth: int, how: dict, dtype: torch.dtype) -> None:
    """Small integers: their sums are exact, whatever the order."""
    random = torch.Generator().manual_seed(depth)
    x = torch.randint(-4, 5, (rows, depth), generator=random).to(dtype)
    weight = torch.randint(-4, 5, (outputs, depth), generator=random).to(dtype)
    weight = weight * reference.mask_24(torch.rand(weight.shape, generator=random))
    bias = torch.randint(-9, 9, (outputs,), generator=random).float()
    call = ("float_product", ELEMENTS.index(dtype))
    packed = Packed(gpu, weight, SPARSE, canonical=True)
    y = multiply(gpu, packed, x, call=call, bias=bias, dtype=dtype, **how)
    want = reference.linear_24(x, *reference.pack_24(weight), bias)
    assert torch.equal(y, want.relu() if how.get("activation") else want)


# --- what the interpreter and these tests would notice ---

BREAKS = {
    "a dropped barrier": (
        "product.cuh",
        "await_copies<Tile::kStages - 2>();\n      __syncthreads();",
        "await_copies<Tile::kStages - 2>();",
    ),
    "copies not waited for": ("product.cuh", "<Tile::kStages - 2>()", "<Tile::kStages - 1>()"),
    "metadata of the other step": ("mma.cuh", "words + kStep;", "words + (1 - kStep);"),
    "the wrong chunk": ("product.cuh", "kHalf * 2 * kChunk", "kHalf * kChunk"),
    "a row too many": ("product.cuh", "row >= task.window.count", "row > task.window.count"),
    "an output too many": ("product.cuh", "left < 8 ? left : 8)", "left < 8 ? left + 1 : 8)"),
    "padding of zeros": ("loader.cuh", "store_16(at, zero_)", "store_16(at, 0)"),
}


def broken_product(gpu, name: str) -> None:
    kind = SPARSE if "metadata" in name else DENSE
    check_linear(gpu, 37, 70, 460 if kind == SPARSE else 272, kind)
    check_convolution(gpu, "3x3", kind, signed=False)


@pytest.mark.parametrize("name", BREAKS)
def test_a_planted_bug_is_found(gpu, tmp_path: Path, name: str) -> None:
    file, right, wrong = BREAKS[name]
    copy = tmp_path / "csrc"
    shutil.copytree(ROOT / "csrc", copy)
    source = (copy / "gemm" / file).read_text()
    assert right in source, "the kernels have changed: plant the bug anew"
    (copy / "gemm" / file).write_text(source.replace(right, wrong))
    broken_product(gpu, name)
    gpu.reset()
    kernels = gpu.modules.copy()
    try:
        gpu.replace(copy / "gemm" / f"launch_{'sparse' if 'metadata' in name else 'dense'}.cu")
        with pytest.raises(Exception, match=r"assert|race|flight|bounds|metadata"):
            broken_product(gpu, name)
    finally:
        gpu.modules = kernels
