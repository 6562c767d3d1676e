"""Batch norms measured anew on the network as it is now."""

import copy

import pytest
import torch
from torch import nn

import sparseq
from sparseq import Layer, Plan, Quant, Unstructured, testing
from sparseq.quant import FakeQuantize, freeze_batch_norms, is_frozen


def network():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))


def prepared():
    torch.manual_seed(0)
    layer = Layer(
        weight=Quant(bits=2, axis=0), input=Quant(symmetric=False), sparsity=Unstructured(0.5)
    )
    model = sparseq.prepare(network(), Plan({"*": layer}))
    return sparseq.calibrate(model, [torch.randn(32, 3, 10, 10)])


def test_statistics_are_the_mean_over_batches_of_the_quantised_network():
    model = prepared().train()
    batches = [torch.randn(16, 3, 10, 10) + i for i in range(3)]
    scales = [m.scale.clone() for m in model.modules() if isinstance(m, FakeQuantize)]
    assert sparseq.reestimate_batch_norms(model, batches) is model
    with torch.no_grad():
        seen = [copy.deepcopy(model[0]).eval()(x) for x in batches]
    mean = torch.stack([y.mean((0, 2, 3)) for y in seen]).mean(0)
    variance = torch.stack([y.var((0, 2, 3)) for y in seen]).mean(0)
    torch.testing.assert_close(model[1].running_mean, mean)
    torch.testing.assert_close(model[1].running_var, variance)
    assert model.training and model[1].training and model[1].momentum == 0.1
    after = [m.scale for m in model.modules() if isinstance(m, FakeQuantize)]
    for a, b in zip(scales, after, strict=True):  # no observer looked
        testing.assert_equal(a, b)


def test_frozen_ones_are_measured_and_stay_frozen():
    model = prepared().train()
    freeze_batch_norms(model)
    before = model[1].running_mean.clone()
    sparseq.reestimate_batch_norms(model, [torch.randn(8, 3, 10, 10)])
    assert is_frozen(model[1]) and not torch.equal(model[1].running_mean, before)
    kept = model[1].running_mean.clone()
    model.train()(torch.randn(8, 3, 10, 10))
    testing.assert_equal(model[1].running_mean, kept)


def test_it_gives_back_what_coarse_weights_took():
    """Two bits shift means: with the old statistics the output is farther from the float one."""
    torch.manual_seed(1)
    x = [torch.rand(64, 3, 10, 10) for _ in range(4)]
    model = network()
    sparseq.reestimate_batch_norms(model, x)
    with torch.no_grad():
        wanted = model.eval()(x[0])
        plan = Plan({"0": Layer(weight=Quant(bits=2, axis=0))})
        coarse = sparseq.prepare(copy.deepcopy(model), plan)
        old = (coarse(x[0]) - wanted).square().mean()
        new = (sparseq.reestimate_batch_norms(coarse, x)(x[0]) - wanted).square().mean()
    assert new < 0.8 * old


@pytest.mark.parametrize("batches", [[], [torch.randn(4, 3, 10, 10), 3]])
def test_after_an_error_everything_is_as_it_was(batches):
    model = prepared().train()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises((ValueError, TypeError), match=r"reestimate_batch_norms: .*batch"):
        sparseq.reestimate_batch_norms(model, batches)
    for name, value in model.state_dict().items():
        if isinstance(value, torch.Tensor):
            testing.assert_equal(value, before[name])
    assert model[1].momentum == 0.1 and model.training
