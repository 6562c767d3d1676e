"""Every op on a real device equals what it gives on the CPU: `pytest -m gpu`."""

import pytest
import torch

import sparseq
from sparseq import ops, sparse, testing

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def on_device(value):
    return value.to(DEVICE) if isinstance(value, torch.Tensor) else value


def same(op, *arguments, **options):
    """The op's results here and on the device, bit for bit; returns those of the CPU."""
    wanted = op(*arguments, **options)
    got = op(*map(on_device, arguments), **{k: on_device(v) for k, v in options.items()})
    pairs = zip(wanted, got, strict=True) if isinstance(wanted, tuple) else [(wanted, got)]
    for here, there in pairs:
        assert there.device.type == DEVICE
        testing.assert_equal(there.cpu(), here)
    return wanted


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(7, 33), (4, 12, 5, 6), (0, 8), (130, 257)])
def test_affine(dtype, shape):
    x = (torch.randn(shape) * 3).to(dtype)
    if x.numel() > 3:
        x.view(-1)[:3] = torch.tensor([float("nan"), float("inf"), -float("inf")], dtype=dtype)
    each = torch.rand(shape[1]) * 0.1 + 0.01
    zero = torch.randint(-8, 8, (shape[1],), dtype=torch.int32)
    grids = [(torch.tensor(0.05), None, None), (each, zero, 1)]
    for scale, points, axis in grids:
        q = same(ops.quantize, x, scale, points, -128, 127, axis)
        same(ops.dequantize, q, scale, points, axis=axis)
        same(ops.fake_quantize, x, scale, points, -128, 127, axis)
    if x.numel():
        same(ops.minmax, x.nan_to_num())
    same(
        ops.unpack_int4,
        same(ops.pack_int4, torch.randint(-8, 8, shape, dtype=torch.int8)),
        shape[-1],
    )


def test_gradients():
    x, scale = torch.randn(64, 48), torch.rand(64) * 0.05 + 0.01
    grads = []
    for device in ("cpu", DEVICE):
        leaves = [t.detach().to(device).requires_grad_() for t in (x, scale)]
        ops.fake_quantize(*leaves, None, -127, 127, 0).square().sum().backward()
        grads.append([leaf.grad.cpu() for leaf in leaves])
    testing.assert_equal(grads[1][0], grads[0][0])
    torch.testing.assert_close(grads[1][1], grads[0][1])  # sums of rounded floats


def weights(*shape, two_of_four):
    weight = torch.randint(-128, 128, shape, dtype=torch.int8)
    return weight * sparse.nm_mask(weight.float()) if two_of_four else weight


@pytest.mark.parametrize("two_of_four", [False, True])
@pytest.mark.parametrize("rows, depth, outputs", [(1, 64, 8), (17, 100, 33), (300, 768, 130)])
@pytest.mark.parametrize("activation", ["none", "relu", "hardswish"])
def test_int8_linear(rows, depth, outputs, two_of_four, activation):
    weight = weights(outputs, depth, two_of_four=two_of_four)
    rest = {"bias": torch.randn(outputs), "activation": activation}
    scale, zero = torch.rand(outputs) * 0.01, torch.tensor([3], dtype=torch.int32)
    for x in (torch.randint(-128, 128, (rows, depth), dtype=torch.int8), torch.randn(rows, depth)):
        fixed = {} if x.dtype == torch.int8 else {"x_scale": torch.tensor([0.03])}
        same(ops.int8_linear, x, weight, scale, zero, **rest, **fixed)
        there = ops.int8_linear(
            *map(on_device, (x, weight, scale, zero)),
            tiles=ops.int8_tiles(weight.to(DEVICE)),
            **{k: on_device(v) for k, v in (rest | fixed).items()},
        )
        testing.assert_equal(there.cpu(), ops.int8_linear(x, weight, scale, zero, **rest, **fixed))
    same(ops.int8_linear, torch.randn(rows, depth), weight, scale, **rest)  # row by row


@pytest.mark.parametrize("groups, two_of_four", [(1, False), (1, True), (4, False), (16, False)])
def test_int8_conv2d(groups, two_of_four):
    weight = weights(16, 16 // groups, 3, 3, two_of_four=two_of_four)
    x = torch.randint(0, 256, (2, 16, 13, 11), dtype=torch.uint8)
    scale, zero = torch.rand(16) * 0.01, torch.tensor([131], dtype=torch.int32)
    window = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": groups}
    same(ops.int8_conv2d, x, weight, scale, zero, None, torch.randn(16), **window)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int8])
@pytest.mark.parametrize("shape", [(33, 64), (8, 13), (12, 20, 3, 3)])
def test_two_of_four(dtype, shape):
    weight = torch.randint(-20, 20, shape).to(dtype)
    mask = ops.mask_24(weight.float())
    if dtype.is_floating_point:
        same(ops.mask_24, weight)
    packed = same(ops.pack_24, weight * mask)
    same(ops.unpack_24, *packed, shape[1])


def test_a_converted_network():
    from torch import nn

    from sparseq import NM, Layer, Plan, Quant, calibrate, convert, prepare

    plan = Plan({"*": Layer(weight=Quant(axis=0), input=Quant(), sparsity=NM(2, 4))})
    model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 10))
    x = torch.randn(4, 8, 8, 8)
    fast = convert(calibrate(prepare(model, plan), [x]) or model, x)
    testing.assert_equal(fast.to(DEVICE)(x.to(DEVICE)).cpu(), fast.cpu()(x))
    assert sparseq.explain(fast).rows
