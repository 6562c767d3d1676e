"""INT8 convolutions, dense, 2:4 and depthwise, and weights with zero points."""

from __future__ import annotations

import pytest
import torch
from gemm_cases import (
    CONVOLUTIONS,
    bytes_of,
    check_convolution,
    scales,
    weight_of,
    zero_of,
)
from gemm_on_gpu import DENSE, DEPTHWISE, SPARSE, Finish, How, Packed, Windows, multiply
from simulated import Gpu

from sparseq import reference


@pytest.mark.parametrize("kind", [DENSE, SPARSE])
@pytest.mark.parametrize("case", [case for case in CONVOLUTIONS if "deep" not in case])
def test_convolution(gpu: Gpu, case: str, kind: int) -> None:
    check_convolution(gpu, case, kind, signed=kind == DENSE)


@pytest.mark.parametrize("kind", [DENSE, SPARSE])
@pytest.mark.parametrize("case", ["dilated", "groups"])
def test_convolution_otherwise(gpu: Gpu, case: str, kind: int) -> None:
    check_convolution(gpu, case, kind, signed=kind == SPARSE, splits=3)
    check_convolution(gpu, case, kind, signed=kind == SPARSE, offset=1, pitch=5)
    gpu.reset(schedule="random", seed=4)
    check_convolution(gpu, case, kind, signed=kind == SPARSE)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("kind", [DENSE, SPARSE])
@pytest.mark.parametrize(
    "case, large", [("deep", False), ("deep", True), ("deep_words", False), ("deep_bytes", False)]
)
def test_deep_convolution(gpu: Gpu, case: str, kind: int, signed: bool, large: bool) -> None:
    check_convolution(gpu, case, kind, signed, large=large)
    check_convolution(gpu, case, kind, signed, large=large, splits=2)


# --- the direct kernel: depthwise, and any bytes and zero points ---

DEPTHWISES = {
    "depthwise": ((2, 7, 6, 20), (20, 1, 3, 3), 20, (1, 1), (1, 1), (1, 1)),
    "multiplied": ((1, 6, 9, 7), (21, 1, 5, 3), 7, (2, 1), (2, 0), (1, 2)),
}


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("case", DEPTHWISES)
def test_depthwise(gpu: Gpu, case: str, signed: bool) -> None:
    shape, weight_shape, groups, *moves = DEPTHWISES[case]
    x = bytes_of(shape, torch.int8 if signed else torch.uint8, 1)
    weight, scale = weight_of(weight_shape, False, 2), scales(weight_shape[0])
    zero = zero_of(-77 if signed else 201)
    finish = {"activation": "relu", "dtype": torch.bfloat16}
    packed = Packed(gpu, weight, DEPTHWISE, groups)
    how = How(call=("direct_product", None, 1, None))
    y = multiply(gpu, packed, x, Windows(*moves), zero, Finish(scale, **finish), how)
    x = x.movedim(-1, 1)
    want = reference.int8_conv2d(x, weight, scale, zero, None, None, *moves, groups, **finish)
    assert torch.equal(y, want.movedim(1, -1))


@pytest.mark.parametrize("w_signed", [True, False])
@pytest.mark.parametrize("x_signed", [True, False])
def test_weights_with_zero_points(gpu: Gpu, x_signed: bool, w_signed: bool) -> None:
    types = [torch.uint8, torch.int8]
    shape, weight_shape, groups, *moves = CONVOLUTIONS["odd_groups"]
    x = bytes_of(shape, types[x_signed], 1, True)
    weight = bytes_of(weight_shape, types[w_signed], 2, True)
    w_zero = bytes_of(weight_shape[:1], types[w_signed], 3).int()
    zero, scale = zero_of(-128 if x_signed else 255), scales(weight_shape[0])
    packed = Packed(gpu, weight.view(torch.int8), DEPTHWISE, groups)
    how = How(call=("direct_product", gpu.put(weight), int(w_signed), gpu.put(w_zero)))
    y = multiply(gpu, packed, x, Windows(*moves), zero, Finish(scale), how)
    x = x.movedim(-1, 1)
    want = reference.int8_conv2d(x, weight, scale, zero, w_zero, None, *moves, groups)
    assert torch.equal(y, want.movedim(1, -1))
