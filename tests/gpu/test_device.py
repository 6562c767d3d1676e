"""Every op on a real device equals what it gives on the CPU: `pytest -m gpu`."""

import pytest
import torch

import sparseq
from sparseq import ops, reference, sparse, testing
from sparseq.nn import SparseQuantLayer, SparseQuantLinear

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
    limits = 2.0 ** torch.randint(-2, 3, (shape[1],))
    for bins in (2, 2048, 65536):
        same(ops.histogram, x, torch.tensor(4.0), bins)
        same(ops.histogram, x, limits, bins, 1)
    if x.numel():
        same(ops.minmax, x.nan_to_num())
        for scale, points, axis in grids:
            same(ops.fake_quantize_observed, x.nan_to_num(), scale, points, -128, 127, axis)
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


@pytest.mark.parametrize("dtype", FLOATS)
def test_int8_products_of_every_float(dtype):
    """x, residual and y."""
    x, weight = torch.randn(17, 100).to(dtype), weights(33, 100, two_of_four=False)
    scale, residual = torch.rand(33) * 0.01, torch.randn(17, 33).to(dtype)
    for grid in ({"x_scale": torch.tensor([0.03])}, {}):
        same(ops.int8_linear, x, weight, scale, bias=torch.randn(33), residual=residual, **grid)
    images, taps = torch.randn(2, 8, 9, 7).to(dtype), weights(12, 8, 3, 3, two_of_four=True)
    same(ops.int8_conv2d, images, taps, scale[:12], x_scale=torch.tensor([0.03]))


def close(op, *arguments):
    """Sums of rounded floats: the reference's in float64, within some of their last bits."""
    got = op(*map(on_device, arguments))
    assert got.device.type == DEVICE and got.dtype == arguments[0].dtype
    wanted = getattr(reference, op.__name__)(*arguments)
    rtol = 4 * torch.finfo(got.dtype).eps
    torch.testing.assert_close(got.cpu(), wanted, rtol=rtol, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("columns, groups", [(4096, 1), (4096, 128), (1032, 129), (77, 7)])
def test_int4_linear(rows, columns, groups, dtype):
    packed = ops.pack_int4(torch.randint(-8, 8, (70, columns), dtype=torch.int8))
    scale = torch.rand(70, groups) * 0.01
    zero = torch.randint(-8, 8, (70, groups), dtype=torch.int32)
    x = torch.randn(rows, columns).to(dtype)
    for points, bias in ((zero, torch.randn(70)), (None, None)):
        close(ops.int4_linear, x, packed, scale, points, bias)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("values_dtype", FLOATS)
@pytest.mark.parametrize("rows", [1, 3, 40, 200])
@pytest.mark.parametrize("columns", [4096, 1032, 77])
def test_linear_24(rows, columns, values_dtype, dtype):
    """Tiles made once give the bits of those made for the call."""
    weight = torch.randn(70, columns) * 0.1
    values, indices = ops.pack_24((weight * sparse_mask(weight)).to(values_dtype))
    x, bias = torch.randn(rows, columns).to(dtype), torch.randn(70)
    close(ops.linear_24, x, values, indices, bias)
    there = [t.to(DEVICE) for t in (x, values, indices, bias)]
    tiles = ops.tiles_24(*there[1:3], columns)
    kept = ops.linear_24(*there, tiles)
    rtol = 4 * torch.finfo(dtype).eps
    wanted = ops.linear_24(x, values, indices, bias)
    torch.testing.assert_close(kept.cpu(), wanted, rtol=rtol, atol=1e-4)
    if rows > 8:
        testing.assert_equal(kept.cpu(), ops.linear_24(*there).cpu())


def sparse_mask(weight):
    return sparse.nm_mask(torch.nn.functional.pad(weight, (0, -weight.shape[1] % 4)))[
        :, : weight.shape[1]
    ]


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
    there = fast.to(DEVICE)
    layers = [m for m in there.modules() if isinstance(m, SparseQuantLayer)]
    assert [layer.kernel for layer in layers] == ["int8 2:4", "int8 2:4"]
    assert all(layer.tiles.device.type == DEVICE for layer in layers)
    results = [there(given.to(DEVICE)).cpu() for given in (x, x.half())]
    for given, y in zip((x, x.half()), results, strict=True):
        testing.assert_equal(y, fast.cpu()(given))
    assert sparseq.explain(fast).rows


@pytest.mark.parametrize("dtype", FLOATS)
def test_int4_layers(dtype):
    from torch import nn

    from sparseq import Quant

    for spec in (Quant(bits=4, axis=0), Quant(bits=4, axis=0, symmetric=False, group_size=32)):
        layer = SparseQuantLinear.from_float(nn.Linear(256, 40), weight=spec, input=None)
        for rows in (3, 200):
            x = torch.randn(rows, 256).to(dtype)
            wanted = layer.cpu()(x)
            got = layer.to(DEVICE)(x.to(DEVICE))
            assert layer.kernel == "int4" and layer.tiles.device.type == DEVICE
            rtol = 4 * torch.finfo(dtype).eps
            torch.testing.assert_close(got.cpu(), wanted, rtol=rtol, atol=1e-4)
