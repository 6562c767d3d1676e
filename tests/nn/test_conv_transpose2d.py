"""SparseQuantConvTranspose2d against the sum in exact integers, over its whole geometry."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from sparseq import Quant, ops, sparse, testing
from sparseq.nn import SparseQuantConvTranspose2d
from sparseq.sparse import swap_channels

SCALE, ZERO = torch.tensor([0.03]), torch.tensor([5], dtype=torch.int32)
GRID = {"scale": SCALE, "zero_point": ZERO}


def scattered(x, weight, stride, padding, output_padding):
    """A transposed convolution by its definition, in int64: every input adds to its window.

    x `[N, in, H, W]`, weight `[out, in, kH, kW]` of one group.
    """
    (n, _, height, width), (outputs, _, *kernel) = x.shape, weight.shape
    sizes = [
        (size - 1) * s + k + extra
        for size, s, k, extra in zip((height, width), stride, kernel, output_padding, strict=True)
    ]
    y = torch.zeros(n, outputs, *sizes, dtype=torch.int64)
    for a in range(kernel[0]):
        for b in range(kernel[1]):
            part = torch.einsum("nihw,oi->nohw", x, weight[:, :, a, b])
            rows = slice(a, a + (height - 1) * stride[0] + 1, stride[0])
            columns = slice(b, b + (width - 1) * stride[1] + 1, stride[1])
            y[:, :, rows, columns] += part
    top, left = padding
    return y[:, :, top : sizes[0] - top, left : sizes[1] - left]


def oracle(layer, x, output_padding=None):
    arguments = layer.arguments
    groups = arguments["groups"]
    limits, zero = layer.input_limits, layer.input_zero_point
    q = ops.quantize(x, layer.input_scale, zero, *limits).long() - int(zero)
    w = layer.weight_values.long()
    if layer.weight_zero_point is not None:
        w = w - layer.weight_zero_point.long().view(-1, 1, 1, 1)
    more = output_padding or arguments["output_padding"]
    windows = (arguments["stride"], arguments["padding"], more)
    pairs = zip(q.chunk(groups, 1), w.chunk(groups), strict=True)
    total = torch.cat([scattered(a, b, *windows) for a, b in pairs], 1)
    y = total.float() * (layer.weight_scale * layer.input_scale).view(-1, 1, 1)
    return y if layer.bias is None else y + layer.bias.view(-1, 1, 1)


two = lambda low, high: st.tuples(st.integers(low, high), st.integers(low, high))  # noqa: E731


@given(
    channels=two(1, 3),
    groups=st.integers(1, 3),
    kernel=two(1, 6),
    stride=two(1, 4),
    padding=two(0, 4),
    output_padding=two(0, 3),
    sizes=two(1, 5),
    batch=st.integers(1, 2),
    bias=st.booleans(),
    symmetric=st.booleans(),
)
def test_geometry(
    channels, groups, kernel, stride, padding, output_padding, sizes, batch, bias, symmetric
):
    """Odd kernels, kernels smaller than the stride, padding beyond the kernel, on every ISA."""
    assume(all(o < s for o, s in zip(output_padding, stride, strict=True)))
    inputs, outputs = (groups * c for c in channels)
    geometry = (kernel, stride, padding, output_padding, groups)
    convolution = nn.ConvTranspose2d(inputs, outputs, *geometry, bias=bias)
    weight = Quant(axis=0, symmetric=symmetric)
    layer = SparseQuantConvTranspose2d.from_float(convolution, weight=weight, **GRID)
    assert layer.integer and not layer.phases[0].state_dict()
    x = torch.randn(batch, inputs, *sizes)
    size = layer.output_size(x)
    if min(size) < 0:
        for module in (convolution, layer):
            with pytest.raises(RuntimeError):
                module(x)
        return
    if min(size) == 0:  # torch's backends do not agree on it
        assert layer(x).shape == (batch, outputs, *size)
        return
    wanted = convolution(x)
    for name in testing.every_isa():
        layer.settle()
        got = layer(x)
        assert got.shape == wanted.shape
        testing.assert_equal(got.contiguous(), oracle(layer, x), message=name)
    float_weight = swap_channels(layer.packed().dequantize(), groups)
    rounded = ops.fake_quantize(x, SCALE, ZERO, -128, 127)
    same = functional.conv_transpose2d(
        rounded, float_weight, convolution.bias, stride, padding, output_padding, groups
    )
    torch.testing.assert_close(got, same, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("geometry", "blocks"),
    [
        ((2, 2), 1),
        ((4, 2, 1), 1),
        ((3, 2, 1, 1), 4),
        (((3, 4), 2), 2),
        ((1, 3), 4),
        ((3, 1, 1), 1),
    ],
)
def test_phases_of_equally_many_taps_are_one_convolution(geometry, blocks):
    layer = SparseQuantConvTranspose2d.from_float(nn.ConvTranspose2d(4, 6, *geometry), **GRID)
    assert len(layer.phases) == blocks
    taps = sum(p.weight.numel() for p in layer.phases if p.weight is not None)
    assert taps == layer.weight_values.numel()  # every tap is there once
    x = torch.randn(2, 4, 5, 3)
    testing.assert_equal(layer(x).contiguous(), oracle(layer, x))


def test_depthwise_runs_on_the_depthwise_kernel():
    module = nn.ConvTranspose2d(16, 16, 4, 2, 1, groups=16)
    layer, x = SparseQuantConvTranspose2d.from_float(module, **GRID), torch.randn(2, 16, 5, 7)
    layer.use("int8")
    assert layer.kernel == "int8 depthwise" and len(layer.phases) == 4
    testing.assert_equal(layer(x).contiguous(), oracle(layer, x))


@pytest.mark.parametrize("groups", [1, 2])
def test_2_4_runs_along_input_channels(groups):
    module = nn.ConvTranspose2d(16, 8, 3, 2, 1, 1, groups=groups)
    with torch.no_grad():
        weight = swap_channels(module.weight, groups)
        weight = weight * sparse.nm_mask(weight)
        module.weight.copy_(swap_channels(weight, groups))
    layer, x = SparseQuantConvTranspose2d.from_float(module, **GRID), torch.randn(2, 16, 4, 5)
    for kernel in ("int8 2:4", "int8"):
        for name in testing.every_isa():
            layer.use(kernel)
            assert layer.kernel == kernel
            kinds = {ops.tile_kind(p.tiles) for p in layer.phases}
            assert kinds == {"2:4" if kernel == "int8 2:4" else "dense"}
            testing.assert_equal(layer(x).contiguous(), oracle(layer, x), message=name)


@pytest.mark.parametrize("kernel", ["int8", "float32"])
def test_output_size(kernel):
    module = nn.ConvTranspose2d(4, 6, 3, 2, 1)
    layer, x = SparseQuantConvTranspose2d.from_float(module, **GRID), torch.randn(2, 4, 5, 6)
    layer.use(kernel)
    for size in ([9, 11], [10, 11], [10, 12]):
        wanted = oracle(layer, x, [size[0] - 9, size[1] - 11])
        for given_size in (size, (2, 6, *size)):
            got = layer(x, output_size=given_size)
            assert got.shape == module(x, output_size=size).shape
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    assert layer(x).shape == module(x).shape
    with pytest.raises(ValueError, match=r"output_size must be from \[9, 11\] to \[10, 12\]"):
        layer(x, output_size=[8, 11])


def test_too_small_for_its_padding():
    layer = SparseQuantConvTranspose2d.from_float(nn.ConvTranspose2d(4, 6, 2, padding=2), **GRID)
    with pytest.raises(RuntimeError, match=r"x must be large enough for its padding, got \(1, 4"):
        layer(torch.randn(1, 4, 2, 5))


def test_an_empty_batch_and_none():
    module = nn.ConvTranspose2d(4, 6, 3, 2, 1, groups=2)
    layer = SparseQuantConvTranspose2d.from_float(module, **GRID)
    assert layer(torch.randn(0, 4, 5, 6)).shape == module(torch.randn(0, 4, 5, 6)).shape
    x = torch.randn(4, 5, 6)
    assert layer(x).shape == module(x).shape
    testing.assert_equal(layer(x), layer(x[None])[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kernel", [2, 3])
def test_types_and_layouts(dtype, kernel):
    module = nn.ConvTranspose2d(8, 6, kernel, 2)
    layer, x = SparseQuantConvTranspose2d.from_float(module, **GRID), torch.randn(2, 8, 4, 5)
    half = layer(x.to(dtype))
    assert half.dtype == dtype
    testing.assert_equal(half, layer(x.to(dtype).float()).to(dtype))
    for name, same in testing.layouts(x):
        if name != "expanded":
            testing.assert_equal(layer(same), layer(x), message=name)
    with pytest.raises(TypeError, match="SparseQuantConvTranspose2d: x must be float32"):
        layer(x.long())


@pytest.mark.parametrize("signed", [True, False])
def test_unsigned_and_own_ranges(signed):
    module, x = nn.ConvTranspose2d(4, 6, 3, 2), torch.randn(2, 4, 5, 6)
    spec = Quant(signed=signed, symmetric=False)
    weight = Quant(axis=0, signed=signed, symmetric=False)
    layer = SparseQuantConvTranspose2d.from_float(module, weight=weight, input=spec)
    torch.testing.assert_close(layer(x), module(x), rtol=0.05, atol=0.05)
    limits = {"scale": SCALE, "zero_point": ZERO}
    layer = SparseQuantConvTranspose2d.from_float(module, weight=weight, input=spec, **limits)
    testing.assert_equal(layer(x).contiguous(), oracle(layer, x))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"weight": Quant(bits=4, group_size=9), **GRID}, "group scales have no integer kernel"),
        ({"input": None}, "no input quantiser in the plan"),
    ],
)
def test_weight_only(options, reason):
    module, x = nn.ConvTranspose2d(4, 6, 3, 2), torch.randn(2, 4, 5, 6)
    layer = SparseQuantConvTranspose2d.from_float(module, **options)
    assert not layer.integer and layer.choice.reason == reason and not len(layer.phases)
    rounded = x if layer.input_spec is None else ops.fake_quantize(x, SCALE, ZERO, -128, 127)
    weight = layer.packed().dequantize().transpose(0, 1)
    wanted = functional.conv_transpose2d(rounded, weight, module.bias, 2)
    torch.testing.assert_close(layer(x), wanted, rtol=1e-5, atol=1e-5)


def test_dilation_computes_in_float_and_says_so():
    module, x = nn.ConvTranspose2d(4, 6, 3, 2, dilation=2), torch.randn(2, 4, 5, 6)
    layer = SparseQuantConvTranspose2d.from_float(module, **GRID)
    assert not layer.integer and layer.kernel == "float32"
    assert layer.choice.reason == "dilation [2, 2] has no integer kernel"
    rounded = ops.fake_quantize(x, SCALE, ZERO, -128, 127)
    weight = layer.packed().dequantize().transpose(0, 1)
    wanted = functional.conv_transpose2d(rounded, weight, module.bias, 2, dilation=2)
    torch.testing.assert_close(layer(x), wanted, rtol=1e-5, atol=1e-5)


def test_scales_are_of_output_channels():
    module = nn.ConvTranspose2d(4, 6, 3, groups=2)
    with torch.no_grad():
        for channel in range(6):  # channel 4 is the second output of the second group
            module.weight[channel // 3 * 2 : channel // 3 * 2 + 2, channel % 3] = channel + 1.0
    layer = SparseQuantConvTranspose2d.from_float(module, **GRID)
    wanted = torch.arange(1, 7) / 127
    torch.testing.assert_close(layer.weight_scale, wanted)
    assert layer.weight_values.shape == (6, 2, 3, 3)


def test_copies_and_state():
    module = nn.ConvTranspose2d(8, 6, 3, 2)
    layer, x = SparseQuantConvTranspose2d.from_float(module, **GRID), torch.randn(2, 8, 4, 5)
    assert not any("phases" in key for key in layer.state_dict())
    testing.assert_equal(copy.deepcopy(layer)(x), layer(x))
    other = SparseQuantConvTranspose2d.from_float(nn.ConvTranspose2d(8, 6, 3, 2), **GRID)
    other.load_state_dict(layer.state_dict())
    testing.assert_equal(other(x), layer(x))


@pytest.mark.parametrize("groups", [1, 3])
def test_swap_channels_is_its_own_inverse(groups):
    weight = torch.randn(2 * groups, 5, 3, 2)
    swapped = swap_channels(weight, groups)
    assert swapped.shape == (5 * groups, 2, 3, 2)
    testing.assert_equal(swap_channels(swapped, groups).contiguous(), weight)
    assert str(sparse.SwapChannels(groups)) == f"SwapChannels(groups={groups})"
