import copy

import pytest
import torch
from convert_cases import BOTH, IMAGES, agree, conv_net, integer, prepared
from torch import nn
from torch.nn import functional

from sparseq import (
    NM,
    Layer,
    Plan,
    Quant,
    Unstructured,
    calibrate,
    convert,
    ops,
    prepare,
    testing,
)
from sparseq.flow.fold import batch_norms
from sparseq.nn import SparseQuantConv2d, SparseQuantLinear

SCHEMES = {
    "per channel": BOTH,
    "per tensor": Layer(weight=Quant(), input=Quant()),
    "asymmetric weight": Layer(weight=Quant(axis=0, symmetric=False), input=Quant(symmetric=False)),
    "asymmetric tensor": Layer(weight=Quant(symmetric=False), input=Quant()),
    "unsigned weight": Layer(weight=Quant(axis=0, signed=False, symmetric=False), input=Quant()),
    "unsigned symmetric weight": Layer(weight=Quant(axis=0, signed=False), input=Quant()),
    "unsigned input": Layer(weight=Quant(axis=0), input=Quant(signed=False, symmetric=False)),
    "4 bits": Layer(weight=Quant(bits=4, axis=0), input=Quant(bits=6, symmetric=False)),
    "2 bits": Layer(weight=Quant(bits=2, axis=0, symmetric=False), input=Quant()),
    "weight only": Layer(weight=Quant(axis=0)),
    "learned": Layer(
        weight=Quant(axis=0, learned=True), input=Quant(symmetric=False, learned=True)
    ),
    "sparse": Layer(weight=Quant(axis=0), input=Quant(), sparsity=NM(2, 4)),
    "pruned": Layer(
        weight=Quant(axis=0, symmetric=False), input=Quant(), sparsity=Unstructured(0.7)
    ),
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("bias", [True, False])
def test_schemes_agree(scheme, bias):
    x = torch.randn(IMAGES)
    fast = agree(prepared(conv_net(bias), x, SCHEMES[scheme]), x)
    layers = integer(fast)
    assert list(layers) == ["0", "3", "6", "8", "11"]
    assert all(m.integer == (scheme != "weight only") for m in layers.values())
    assert not any(isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) for m in fast.modules())


@pytest.mark.parametrize("symmetric", [True, False])
def test_group_scales_agree(symmetric):
    x = torch.randn(8, 24)
    model = nn.Sequential(
        nn.Linear(24, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8), nn.BatchNorm1d(8)
    )
    plan = Layer(
        weight=Quant(bits=4, group_size=8, symmetric=symmetric), input=Quant(symmetric=False)
    )
    fast = agree(prepared(model, x, plan), x)
    assert not any(layer.integer for layer in integer(fast).values())
    assert not any(isinstance(m, nn.BatchNorm1d) for m in fast.modules())


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(4, 6, (3, 1), padding=(1, 0)),
        nn.Conv2d(4, 6, 3, stride=(2, 1), padding=2, dilation=2),
        nn.Conv2d(4, 6, 3, padding="same"),
        nn.Conv2d(4, 6, 3, padding="valid", groups=2),
        nn.Conv2d(4, 4, 5, padding=2, groups=4),
    ],
)
def test_arguments_of_convolutions(convolution):
    x = torch.randn(3, 4, 9, 8)
    fast = agree(prepared(nn.Sequential(convolution), x), x)
    assert isinstance(fast[0], SparseQuantConv2d) and fast[0].integer


def test_reflected_padding_stays_float_and_agrees():
    x = torch.randn(3, 4, 9, 8)
    model = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(6))
    fast = agree(prepared(model, x), x)
    assert not integer(fast) and isinstance(fast[1], nn.Identity)


def test_preparing_a_deep_copy_leaves_the_original_alone():
    """torch keeps parametrisations in a class that deep copies share."""
    x = torch.randn(4, 6)
    model = prepared(nn.Sequential(nn.Linear(6, 3)), x)
    wanted = model(x)
    other = prepare(copy.deepcopy(model), Plan({"*": Layer(weight=Quant(bits=2, axis=0))}))
    testing.assert_equal(model(x), wanted)
    assert not torch.equal(other(x), wanted)


def test_three_dimensional_input():
    x = torch.randn(2, 7, 8)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    agree(prepared(model, x), x)


def test_attention_converts_with_the_rest_where_the_plan_reaches_it():
    x = torch.randn(3, 5, 16)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
            self.first, self.last = nn.Linear(16, 24), nn.Linear(24, 16)

        def forward(self, x):
            x = x + self.attention(x, x, x, need_weights=False)[0]
            return x + self.last(torch.relu(self.first(x)))

    projections = [f"attention.{n}_proj" for n in ("q", "k", "v", "out")]
    fast = agree(prepared(Block(), x), x)
    assert sorted(integer(fast)) == sorted([*projections, "first", "last"])
    left = Plan({"*": BOTH, "attention.*": None})
    fast = agree(prepared(Block(), x, left), x)
    assert list(integer(fast)) == ["first", "last"]
    assert type(fast.attention) is nn.MultiheadAttention


def test_torchs_transformer_layer():
    """Its fused path would read float weights."""
    x = torch.randn(3, 5, 16)
    encoder = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
    model = prepared(nn.TransformerEncoder(encoder, 2, enable_nested_tensor=False), x)
    fast = agree(model, x)
    assert len(integer(fast)) == 12


def test_a_single_layer():
    x = torch.randn(4, 6)
    layer = calibrate(prepare(nn.Linear(6, 3).eval(), Plan({"*": BOTH})), [x])
    with torch.no_grad():
        fast = convert(layer)
        assert isinstance(fast, SparseQuantLinear)
        torch.testing.assert_close(fast(x), layer(x), rtol=1e-5, atol=1e-6)


def test_after_training_convert_uses_the_weights_as_they_are_now():
    x, y = torch.randn(32, 3, 10, 10), torch.randint(5, (32,))
    model = prepare(conv_net(), Plan({"*": BOTH})).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    agree(model.eval(), x)


def test_the_mode_of_the_original_stays():
    x = torch.randn(IMAGES)
    model = prepared(conv_net(), x).train()
    assert not convert(model).training and model.training


def test_an_uncalibrated_input_is_named():
    model = prepare(nn.Sequential(nn.Linear(4, 4)), Plan({"*": BOTH}))
    with pytest.raises(
        ValueError, match=r"convert: the input of 0 has no range yet: run calibrate"
    ):
        convert(model)


def test_an_example_is_run():
    x = torch.randn(4, 6)
    model = calibrate(prepare(nn.Sequential(nn.Linear(6, 3)), Plan({"*": BOTH})), [x])
    convert(model, x)
    with pytest.raises(RuntimeError, match="int8_linear: x must be"):
        convert(model, torch.randn(4, 7))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_activations(dtype):
    x = torch.randn(4, 6)
    model = calibrate(prepare(nn.Sequential(nn.Linear(6, 3)), Plan({"*": BOTH})), [x])
    fast = convert(model)
    y = fast(x.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y, fast(x.to(dtype).float()).to(dtype))


def test_converted_models_compile_and_export():
    x = torch.randn(IMAGES)
    fast = convert(prepared(conv_net(), x))
    wanted = fast(x)
    with torch.no_grad():
        compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
        testing.assert_equal(compiled(x), wanted)
        testing.assert_equal(torch.export.export(fast, (x,)).module()(x), wanted)


@pytest.mark.parametrize(
    ("layer", "arguments", "error", "text"),
    [
        (nn.Conv2d(2, 2, 1), {}, TypeError, "layer must be nn.Linear, got Conv2d"),
        (nn.Linear(2, 2), {"weight": Quant(axis=1)}, ValueError, "weight must have axis 0 or None"),
    ],
)
def test_from_float_refuses(layer, arguments, error, text):
    with pytest.raises(error, match=f"SparseQuantLinear.from_float: {text}"):
        SparseQuantLinear.from_float(layer, **arguments)


@pytest.mark.parametrize("shape", [(5, 12), (2, 3, 12), (12,)])
def test_from_float_linear(shape):
    linear, x = nn.Linear(12, 7), torch.randn(shape)
    layer = SparseQuantLinear.from_float(
        linear, scale=torch.tensor(0.03), zero_point=torch.tensor(5, dtype=torch.int32)
    )
    weight = ops.fake_quantize(
        linear.weight.detach(), linear.weight.detach().abs().amax(1) / 127, None, -127, 127, 0
    )
    wanted = functional.linear(
        ops.fake_quantize(x, 0.03, 5, -128, 127), weight, linear.bias.detach()
    )
    torch.testing.assert_close(layer(x), wanted, rtol=1e-5, atol=1e-5)
    dynamic = SparseQuantLinear.from_float(linear)(x)
    span = (x.amax(-1, True).clamp(min=0) - x.amin(-1, True).clamp(max=0)) / 255
    bound = span / 2 * linear.weight.detach().abs().sum(1).max() + 0.05
    assert bool(((dynamic - linear(x)).abs() <= bound).all())


INPUT_SCHEMES = [
    Quant(),
    Quant(symmetric=False),
    Quant(signed=False),
    Quant(signed=False, symmetric=False),
    Quant(bits=5, symmetric=False),
    Quant(bits=4),
]


@pytest.mark.parametrize("spec", INPUT_SCHEMES, ids=str)
@pytest.mark.parametrize("shape", [(9, 12), (2, 3, 12), (12,), (0, 12)])
def test_dynamic_linear_takes_each_rows_own_range(spec, shape):
    """What the integer op does inside is what quantize_input says, and so does the float path."""
    linear, x = nn.Linear(12, 7), torch.randn(shape)
    layer = SparseQuantLinear.from_float(linear, input=spec)
    y = layer(x)
    q, scale, zero_point = layer.quantize_input(x)
    assert scale.shape == (*shape[:-1], 1)
    assert layer.input_limits is not None
    if q.numel():
        assert layer.input_limits[0] <= int(q.min()) and int(q.max()) <= layer.input_limits[1]
    acc = (q.double() - zero_point) @ layer.weight_values.double().T
    wanted = (acc + 0.0).float() * layer.weight_scale * scale + layer.bias
    testing.assert_equal(y, wanted)
    rows = x.reshape(-1, 12)
    for row, result in zip(rows, y.reshape(-1, 7), strict=True):
        testing.assert_equal(layer(row), result)
    grouped = SparseQuantLinear.from_float(linear, Quant(group_size=4), spec)
    assert not grouped.integer
    rounded = (q.float() - zero_point) * scale
    wanted = functional.linear(rounded, grouped.packed().dequantize(), linear.bias.detach())
    torch.testing.assert_close(grouped(x), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("static", [True, False])
def test_a_layer_is_one_op(dtype, static):
    """The result is that of quantize, the product and a cast, bit for bit."""
    grid = {"scale": torch.tensor(0.03), "zero_point": torch.tensor(5, dtype=torch.int32)}
    conv, x = nn.Conv2d(6, 8, 3, padding=1), torch.randn(2, 6, 7, 5).to(dtype)
    layer = SparseQuantConv2d.from_float(conv, **(grid if static else {}))
    q, scale, zero_point = layer.quantize_input(x)
    y = ops.int8_conv2d(
        q, layer.weight_values, layer.weight_scale * scale, zero_point.reshape(1), None,
        layer.bias, padding=(1, 1),
    )  # fmt: skip
    testing.assert_equal(layer(x), y.to(dtype))
    if static:
        linear, rows = nn.Linear(6, 4), x[0, :, :, 0].T
        fixed = SparseQuantLinear.from_float(linear, **grid)
        q, scale, zero_point = fixed.quantize_input(rows)
        scale = fixed.weight_scale * scale
        y = ops.int8_linear(q, fixed.weight_values, scale, zero_point, None, fixed.bias)
        testing.assert_equal(fixed(rows), y.to(dtype))


def test_integers_are_no_input():
    layer = SparseQuantLinear.from_float(nn.Linear(12, 7))
    with pytest.raises(TypeError, match=r"SparseQuantLinear: x must be float32, .* got uint8"):
        layer(torch.ones(3, 12, dtype=torch.uint8))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_torchvision_models_convert_and_agree(name):
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(1)
    model = getattr(models, name)(num_classes=10)
    x = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        model.train()(torch.randn(16, 3, 64, 64))  # statistics that fit the weights
    model = calibrate(prepare(model.eval(), Plan({"*": BOTH})), [x])
    fast = convert(model)
    assert not any(isinstance(m, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)) for m in fast.modules())
    layers = integer(fast)
    assert all(layer.integer for layer in layers.values())
    norms, _ = batch_norms(model)
    assert len(norms) == len(layers) - 1  # all but the classifier's
    seen, given, handles = {}, {}, []
    for name in layers:
        layer, last = model.get_submodule(name), model.get_submodule(norms.get(name, name))
        keep = lambda _, args, name=name: given.__setitem__(name, args[0].clone())  # noqa: E731
        handles.append(layer.register_forward_pre_hook(keep, prepend=True))
        keep = lambda _, args, y, name=name: seen.__setitem__(name, y.clone())  # noqa: E731
        handles.append(last.register_forward_hook(keep))
    with torch.no_grad():
        wanted = model(x)
        for name, layer in layers.items():  # each layer on what the fake-quantised model gave it
            step = (seen[name].max() - seen[name].min()) / 255
            testing.assert_within_lsb(layer(given[name]), seen[name], step, lsb=0.01)
        # end to end a value on the edge between two integers may fall to either side, and with
        # untrained weights that grows from layer to layer
        step = (wanted.max() - wanted.min()) / 255
        testing.assert_within_lsb(fast(x), wanted, step, lsb=12)
