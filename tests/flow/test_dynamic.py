"""Modes that need no data: dynamic inputs and weight-only layers."""

import pytest
import torch
from torch import nn

from sparseq import Layer, Plan, Quant, calibrate, convert, explain, load, prepare, save, testing
from sparseq.flow.prepare import input_quantizers
from sparseq.quant import DynamicQuantize

SCHEMES = {
    "symmetric": Quant(dynamic=True),
    "asymmetric": Quant(symmetric=False, dynamic=True),
    "unsigned": Quant(signed=False, symmetric=False, dynamic=True),
    "unsigned symmetric": Quant(signed=False, dynamic=True),
    "6 bits": Quant(bits=6, symmetric=False, dynamic=True),
}


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3),
        nn.Flatten(),
        nn.Linear(48, 33),
        nn.ReLU(),
        nn.Linear(33, 7),
    ).eval()


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_prepared_and_converted_agree_without_data(scheme, tmp_path):
    model = prepare(network(), Plan({"*": Layer(weight=Quant(axis=0), input=scheme)}))
    x = torch.randn(4, 3, 6, 6) * torch.tensor([0.1, 1.0, 5.0, 0.0]).reshape(4, 1, 1, 1)
    with torch.no_grad():
        wanted = model(x)
        fast = convert(model)
        step = (wanted.max() - wanted.min()) / 255
        testing.assert_within_lsb(fast(x), wanted, step, lsb=1.0)
    save(fast, tmp_path / "fast")
    testing.assert_equal(load(tmp_path / "fast", network())(x), fast(x))
    save(model, tmp_path / "prepared")
    testing.assert_equal(load(tmp_path / "prepared", network()).eval()(x), wanted)


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize("shape", [(5, 16), (2, 3, 16), (16,)], ids=str)
def test_rows_are_rounded_as_the_integer_layer_does(scheme, shape):
    layer = prepare(nn.Linear(16, 4), Plan({"*": Layer(weight=Quant(axis=0), input=scheme)}))
    layer = nn.Sequential(layer)
    x = 3 * torch.randn(shape)
    x.view(-1)[:2] = torch.tensor([0.0, -7.0])
    fast = convert(layer)[0]
    testing.assert_equal(layer[0].input_quantizer(x), fast._rounded_input(x))


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_a_convolutions_batch_is_rounded_as_the_integer_layer_does(scheme):
    plan = Plan({"*": Layer(weight=Quant(axis=0), input=scheme)})
    layer = prepare(nn.Sequential(nn.Conv2d(3, 4, 1)), plan)
    x = 3 * torch.randn(2, 3, 4, 4)
    testing.assert_equal(layer[0].input_quantizer(x), convert(layer)[0]._rounded_input(x))


def test_a_rows_result_does_not_depend_on_the_others():
    plan = Plan({"*": Layer(input=Quant(dynamic=True))})
    layer = prepare(nn.Linear(16, 4, bias=False), plan)
    x = torch.randn(4, 16)
    x[3] *= 1000
    testing.assert_equal(layer(x)[:3], layer(x[:3]))


def test_the_gradient_is_straight_through_and_there_is_no_state():
    quantizer = DynamicQuantize(Quant(dynamic=True), by_rows=True)
    x = torch.randn(3, 8, requires_grad=True)
    quantizer(x).sum().backward()
    testing.assert_equal(x.grad, torch.ones(3, 8))
    assert not [v for v in quantizer.state_dict().values() if isinstance(v, torch.Tensor)]
    quantizer.freeze()
    x2 = 100 * x.detach()
    assert (quantizer(x2) - x2).abs().max() <= x2.abs().max() / 127
    assert quantizer(torch.zeros(0, 8)).shape == (0, 8)


def test_calibrate_sees_float_values_behind_a_dynamic_layer():
    plan = Plan({"0": Layer(input=Quant(bits=2, dynamic=True)), "1": Layer(input=Quant())})
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    x = torch.randn(8, 4)
    with torch.no_grad():
        wanted = model[0](x).abs().max() / 127
    calibrate(prepare(model, plan), [x])
    torch.testing.assert_close(model[1].input_quantizer.scale, wanted, rtol=1e-6, atol=0)
    assert [m.spec.dynamic for m in input_quantizers(model).values()] == [True, False]


def test_it_trains():
    layer = Layer(weight=Quant(axis=0), input=Quant(symmetric=False, dynamic=True))
    model = prepare(network(), Plan({"*": layer})).train()
    model(torch.randn(2, 3, 6, 6)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model[3].parameters())


def test_explain_names_the_mode():
    model = prepare(network(), Plan({"*": Layer(weight=Quant(axis=0), input=Quant(dynamic=True))}))
    assert "input s8 dynamic" in str(explain(model))
    assert "own range" in str(explain(convert(model)))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("group", [None, 3])
def test_weight_only_needs_no_data(bits, group):
    plan = Plan({"*": Layer(weight=Quant(bits=bits, axis=0, group_size=group))})
    model = prepare(network(), plan)
    x = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(convert(model)(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: Quant(dynamic=1), "Quant: dynamic must be True or False, got 1"),
        (lambda: Quant(dynamic=True, learned=True), "learned must be False with dynamic=True"),
        (lambda: Quant(dynamic=True, learned="pact"), "learned must be False with dynamic=True"),
        (
            lambda: Quant(dynamic=True, observer="moving_average"),
            'observer must be "minmax" with dynamic=True',
        ),
        (lambda: Layer(weight=Quant(dynamic=True)), "Layer: weight must be without dynamic=True"),
    ],
)
def test_what_does_not_go_together(build, text):
    with pytest.raises(ValueError, match=text):
        build()
