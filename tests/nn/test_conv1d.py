"""SparseQuantConv1d against the sum in int64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from sparseq import Quant, ops, sparse, testing
from sparseq.nn import SparseQuantConv1d

SCALE, ZERO = torch.tensor([0.03]), torch.tensor([5], dtype=torch.int32)
GRID = {"scale": SCALE, "zero_point": ZERO}


def oracle(layer, x, padding):
    """`float32(sum) * (weight scale * input scale) + bias`, the sum over integers in int64."""
    arguments = layer.arguments
    stride, dilation, groups = arguments["stride"][0], arguments["dilation"][0], arguments["groups"]
    zero, scale = int(layer.input_zero_point), layer.input_scale
    q = ops.quantize(x, scale, layer.input_zero_point, -128, 127).long() - zero
    q = functional.pad(q, (padding, padding))
    w = layer.weight_values.long()
    if layer.weight_zero_point is not None:
        w = w - layer.weight_zero_point.long().view(-1, 1, 1)
    reach = dilation * (w.shape[2] - 1) + 1
    windows = q.unfold(2, reach, stride)[..., ::dilation]  # [N, C, L', K]
    windows = windows.unflatten(1, (groups, -1))
    total = torch.einsum("ngclk,gock->ngol", windows, w.unflatten(0, (groups, -1))).flatten(1, 2)
    y = total.float() * (layer.weight_scale * scale).view(-1, 1)
    return y if layer.bias is None else y + layer.bias.view(-1, 1)


@given(
    st.tuples(*[st.integers(1, 5)] * 2),
    st.integers(1, 3),
    st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(0, 4), st.integers(1, 3)),
    st.tuples(st.integers(0, 3), st.integers(0, 9)),
    st.booleans(),
    st.booleans(),
)
def test_geometry(channels, groups, windows, sizes, bias, symmetric):
    inputs, outputs = (groups * c for c in channels)
    kernel, stride, padding, dilation = windows
    convolution = nn.Conv1d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=bias)
    weight = Quant(axis=0, symmetric=symmetric)
    layer = SparseQuantConv1d.from_float(convolution, weight=weight, **GRID)
    length = sizes[1] + dilation * (kernel - 1) + 1 - 2 * padding
    if length < 1:
        return
    x = torch.randn(sizes[0], inputs, length)
    for name in testing.every_isa():
        got = layer(x)
        assert got.shape == convolution(x).shape
        testing.assert_equal(got.contiguous(), oracle(layer, x, padding), message=name)


@pytest.mark.parametrize("kernel", ["int8", "float32"])
def test_without_a_batch(kernel):
    convolution, x = nn.Conv1d(4, 6, 3, padding="same"), torch.randn(4, 9)
    layer = SparseQuantConv1d.from_float(convolution, **GRID)
    layer.use(kernel)
    assert layer(x).shape == convolution(x).shape
    testing.assert_equal(layer(x), layer(x[None])[0])
    torch.testing.assert_close(layer(x), convolution(x), rtol=0.1, atol=0.1)


def test_too_short_is_torchs_error():
    convolution, x = nn.Conv1d(4, 6, 5), torch.randn(2, 4, 3)
    with pytest.raises(RuntimeError, match=r"[Kk]ernel"):
        convolution(x)
    with pytest.raises(RuntimeError, match="x must be at least as large as the kernel"):
        SparseQuantConv1d.from_float(convolution, **GRID)(x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_types_and_layouts(dtype):
    layer = SparseQuantConv1d.from_float(nn.Conv1d(8, 6, 3), **GRID)
    x = torch.randn(2, 8, 11)
    assert layer(x.to(dtype)).dtype == dtype
    for name, same in testing.layouts(x):
        if name != "expanded":
            testing.assert_equal(layer(same), layer(x), message=name)
    with pytest.raises(TypeError, match="SparseQuantConv1d: x must be float32"):
        layer(x.long())


def test_2_4_runs_on_its_kernel_and_gives_the_same():
    convolution = nn.Conv1d(16, 8, 3, padding=1)
    with torch.no_grad():
        convolution.weight.mul_(sparse.nm_mask(convolution.weight))
    layer, x = SparseQuantConv1d.from_float(convolution, **GRID), torch.randn(2, 16, 20)
    layer.use("int8 2:4")
    assert layer.kernel == "int8 2:4"
    for name in testing.every_isa():
        layer.use("int8 2:4")
        testing.assert_equal(layer(x).contiguous(), oracle(layer, x, 1), message=name)


def test_depthwise_has_its_kernel():
    layer = SparseQuantConv1d.from_float(nn.Conv1d(16, 16, 3, padding=1, groups=16), **GRID)
    x = torch.randn(2, 16, 20)
    assert layer.kernel == "int8 depthwise"
    testing.assert_equal(layer(x).contiguous(), oracle(layer, x, 1))


def test_an_input_of_its_own_range():
    convolution, x = nn.Conv1d(4, 6, 3), torch.randn(2, 4, 9)
    layer = SparseQuantConv1d.from_float(convolution)
    torch.testing.assert_close(layer(x), convolution(x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("options", [{"group_size": 6, "bits": 4}, {"axis": 0}])
def test_weight_only(options):
    convolution, x = nn.Conv1d(4, 6, 3, stride=2), torch.randn(2, 4, 9)
    layer = SparseQuantConv1d.from_float(convolution, weight=Quant(**options), input=None)
    wanted = functional.conv1d(x, layer.packed().dequantize(), convolution.bias, stride=2)
    testing.assert_equal(layer(x), wanted.detach())


@pytest.mark.parametrize(
    ("convolution", "text"),
    [
        (nn.Conv1d(4, 4, 3, padding=1, padding_mode="circular"), "padding_mode must be 'zeros'"),
        (nn.Conv1d(4, 4, 4, padding="same"), "padding must be equal on both sides, got 'same'"),
    ],
)
def test_what_it_refuses(convolution, text):
    with pytest.raises(ValueError, match=text):
        SparseQuantConv1d.from_float(convolution)
    with pytest.raises(TypeError, match=r"layer must be nn\.Conv1d, got Linear"):
        SparseQuantConv1d.from_float(nn.Linear(4, 4))


def test_more_products_than_an_int32_sum_takes_run_in_float():
    layer = SparseQuantConv1d.from_float(nn.Conv1d(1, 1, 33026), **GRID)
    assert not layer.integer and layer.kernel == "float32"
    assert "33026 products may overflow" in layer.choice.reason
    assert layer(torch.randn(1, 1, 33026)).shape == (1, 1, 1)
