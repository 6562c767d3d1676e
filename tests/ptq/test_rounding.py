"""AdaRound and bias correction."""

import copy

import pytest
import torch
from torch import nn

from sparseq import (
    NM,
    AdaRound,
    Layer,
    Plan,
    Quant,
    convert,
    load,
    prepare,
    ptq,
    save,
    testing,
)
from sparseq.flow.prepare import layers_of, original_weight, transform_of
from sparseq.ptq.capture import layer_results
from sparseq.ptq.moments import moments_of
from sparseq.quant import FakeQuantize

QUICK = AdaRound(iterations=150)
SCHEMES = {
    "channel": Quant(bits=4, axis=0),
    "tensor": Quant(bits=4),
    "groups": Quant(bits=4, group_size=9),
    "asymmetric": Quant(bits=4, axis=0, symmetric=False),
    "unsigned groups": Quant(bits=3, group_size=9, symmetric=False, signed=False),
    "learned": Quant(bits=4, axis=0, learned=True),
    "8 bits": Quant(axis=0),
}


def network(bias=True):
    return nn.Sequential(
        nn.Conv2d(3, 9, 3, padding=1, bias=bias),
        nn.BatchNorm2d(9),
        nn.ReLU(),
        nn.Conv2d(9, 9, 3, stride=2, groups=9, bias=bias),
        nn.ReLU(inplace=True),
        nn.Conv2d(9, 6, 3, dilation=2, padding="same", padding_mode="reflect", bias=bias),
        nn.Flatten(),
        nn.Linear(54, 7, bias=bias),
    ).eval()


def data(count=3):
    # neighbours that go together, as pixels do
    return [torch.randn(8, 3, 7, 7).cumsum(-1).cumsum(-2) / 4 for _ in range(count)]


def plan_of(weight, input=None, **others):
    return Plan({"*": Layer(weight=weight, input=input, **others)})


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_reconstruction_is_better_than_nearest(scheme):
    model, batches = network(), data()
    report = ptq(model, plan_of(scheme), batches, adaround=QUICK)
    assert list(report.rounding) == ["0", "3", "5", "7"]
    for errors in report.rounding.values():
        assert errors.adaround <= errors.nearest
    total = sum(e.adaround / e.nearest for e in report.rounding.values())
    assert total < 0.9 * len(report.rounding)
    assert report.steps[1].gain > 0


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_the_choice_survives_convert_save_and_load(scheme, tmp_path):
    model, batches = network(), data()
    before = copy.deepcopy(model)
    ptq(model, plan_of(scheme), batches, adaround=QUICK)
    moved = 0
    for name, layer in layers_of(model).items():
        quantizer = transform_of(layer, FakeQuantize)
        assert quantizer.frozen
        weight, scale = original_weight(layer).detach(), quantizer.grid()[0]
        torch.testing.assert_close(layer.weight.detach(), weight, rtol=1e-6, atol=1e-7)
        steps = (weight - before.get_submodule(name).weight).abs().amax() / scale.max()
        assert steps < 1.001  # to one neighbour or the other, by less than a step
        moved += bool(steps > 0.5)
    assert moved == 4
    x = batches[0]
    with torch.no_grad():
        wanted = model(x)
        fast = convert(model)
        torch.testing.assert_close(fast(x), wanted, rtol=1e-4, atol=1e-4)
        for layer, stored in ((model[0], None), (model[5], fast[5]), (model[7], fast[7])):
            if stored is not None and hasattr(stored, "weight_values"):
                values = transform_of(layer, FakeQuantize).quantized(original_weight(layer))[0]
                testing.assert_equal(stored.weight_values, values)
        save(fast, tmp_path / "fast")
        testing.assert_equal(load(tmp_path / "fast", network())(x), fast(x))
        save(model, tmp_path / "model")
        again = load(tmp_path / "model", network()).eval()
        testing.assert_equal(again(x), wanted)
        testing.assert_equal(convert(again)(x), fast(x))


def test_quantised_inputs_and_8_bits_through_integers():
    model, batches = network(), data()
    report = ptq(model, plan_of(Quant(axis=0), Quant(symmetric=False)), batches, adaround=QUICK)
    assert report.sqnr > 30
    with torch.no_grad():
        wanted = model(batches[0])
        step = (wanted.max() - wanted.min()) / 255
        testing.assert_within_lsb(convert(model)(batches[0]), wanted, step, lsb=1.0)


def test_masks_and_zeros_stay():
    model, batches = network(), data()
    with torch.no_grad():
        model[7].weight[:, ::3] = 0
        unmasked = model[7].weight.clone()
    plan = Plan(
        {
            "*": Layer(weight=Quant(bits=4, axis=0)),
            "5": Layer(weight=Quant(bits=4, axis=0), sparsity=NM(1, 3)),
        }
    )
    ptq(model, plan, batches, adaround=QUICK)
    assert (model[5].weight.unflatten(1, (-1, 3)) != 0).sum(2).max() == 1
    assert ((model[7].weight == 0) | (unmasked != 0)).all()
    fast = convert(model)
    assert (fast[7].weight_values[:, ::3] == 0).all()


def test_a_masked_float_model_is_taken():
    model, batches = network(), data()
    prepare(model, Plan({"5": Layer(sparsity=NM(1, 3))}))
    kept = model[5].weight != 0
    ptq(model, plan_of(Quant(bits=4, axis=0)), batches, adaround=QUICK, equalize=True)
    assert not (model[5].weight[~kept] != 0).any()


def test_training_goes_on_once_unfrozen():
    model, batches = network(), data()
    ptq(model, plan_of(Quant(axis=0), Quant()), batches, adaround=QUICK)
    for m in model.modules():
        if isinstance(m, FakeQuantize):
            m.frozen = False
    model.train()
    model(batches[0]).square().sum().backward()
    assert all(original_weight(m).grad is not None for m in layers_of(model).values())


def test_moments_are_the_layers_error():
    """The quadratic form against the layer itself, run with another weight."""
    reference, batches = network(), data(2)
    model = copy.deepcopy(reference)
    for name in ("0", "3", "5", "7"):
        layer = model.get_submodule(name)
        weight = layer.weight.detach().clone()
        moments = moments_of(reference, model, name, 1, batches, weight, 10**9)
        error = 0.1 * torch.randn_like(weight)
        with torch.no_grad():
            layer.weight += error
        wanted = 0
        for batch in batches:
            (y,), (given,) = (layer_results(m, batch, name, 1) for m in (reference, model))
            channels = (y - given).movedim(1, 0).flatten(1) if y.dim() == 4 else (y - given).T
            wanted = wanted + channels.square().mean(1) / len(batches)
        torch.testing.assert_close(
            moments.errors(error).float(), wanted, rtol=1e-3, atol=1e-6, msg=name
        )
        slope = torch.autograd.functional.jacobian(
            lambda d, m=moments: m.errors(d).sum(), error.double()
        )
        torch.testing.assert_close(moments.gradient(error), slope.float(), rtol=1e-3, atol=1e-4)


def test_conv1d_has_moments_too():
    reference = nn.Sequential(nn.Conv1d(4, 6, 3, padding=1, groups=2), nn.ReLU()).eval()
    model, x = copy.deepcopy(reference), torch.randn(5, 4, 11)
    weight = model[0].weight.detach().clone()
    moments = moments_of(reference, model, "0", 1, [x], weight, 10**9)
    error = torch.randn_like(weight)
    with torch.no_grad():
        model[0].weight += error
        wanted = (model[0](x) - reference[0](x)).square().mean((0, 2))
    torch.testing.assert_close(moments.errors(error).float(), wanted, rtol=1e-4, atol=1e-6)


def test_too_wide_a_layer_keeps_nearest_and_is_named():
    model = nn.Sequential(nn.Linear(400, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    options = AdaRound(iterations=20, memory_mb=1)
    report = ptq(model, plan_of(Quant(axis=0)), [torch.randn(9, 400)], adaround=options)
    assert list(report.rounding) == ["2"]
    reason = "its 400 inputs need a matrix of 1 MB, memory_mb allows 1"
    assert report.skipped["adaround"] == {"0": reason}
    assert f"adaround left 0: {reason}" in str(report)


@pytest.mark.parametrize("name", ["iterations", "rate", "strength", "rows", "memory_mb"])
@pytest.mark.parametrize("value", [0, -1, True, "1", None])
def test_bad_options_are_named(name, value):
    with pytest.raises(ValueError, match=f"AdaRound: {name} must be a positive"):
        AdaRound(**{name: value})


def mean_errors(reference, model, batches, names):
    found = {}
    for name in names:
        errors = [
            layer_results(model, b, name, 1)[0] - layer_results(reference, b, name, 1)[0]
            for b in batches
        ]
        total = torch.cat(errors).double()
        dims = (0,) if total.dim() == 2 else (0, 2, 3)
        found[name] = total.mean(dims).abs().max()
    return found


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_the_mean_error_goes(bias):
    reference, batches = network(bias), data()
    biased = [b + 1 for b in batches]
    plan = plan_of(Quant(bits=3, axis=0), Quant(bits=6, symmetric=False))
    plain, model = copy.deepcopy(reference), copy.deepcopy(reference)
    ptq(plain, plan, biased)
    report = ptq(model, plan, biased, bias_correction=True)
    # behind the batch norm where the layer before it has no bias: there the mean takes it
    names = ["0", "3", "5", "7"] if bias else ["1", "3", "5", "7"]
    before, after = (mean_errors(reference, m, biased, names) for m in (plain, model))
    for name in names:
        assert after[name] < 1e-5 < 1e-3 < before[name], name
    assert report.steps[1].name == "bias correction" and report.steps[1].gain > 0
    assert (model[0].bias is None) == (not bias) and model[3].bias is not None


def test_created_biases_survive(tmp_path):
    model, batches = network(False), data()
    plan = plan_of(Quant(bits=4, axis=0), Quant(symmetric=False))
    ptq(model, plan, batches, bias_correction=True)
    with torch.no_grad():
        wanted = model(batches[0])
        step = (wanted.max() - wanted.min()) / 255
        fast = convert(model)
        testing.assert_within_lsb(fast(batches[0]), wanted, step, lsb=1.0)
        for saved in (model, fast):
            save(saved, tmp_path / "file")
            again = load(tmp_path / "file", network(False)).eval()
            testing.assert_equal(again(batches[0]), saved(batches[0]))
