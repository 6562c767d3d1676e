"""When quantisation starts, and what freezes."""

import copy

import pytest
import torch
from torch import nn

import sparseq
from sparseq import Layer, Plan, Quant, testing
from sparseq.quant import FakeQuantize, Schedule, freeze_batch_norms, unfreeze_batch_norms

PLAN = Plan({"*": Layer(weight=Quant(axis=0), input=Quant(symmetric=False))})


def network():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))


def step(model):
    model.train()
    return model(torch.randn(4, 3, 8, 8)).sum().backward()


def test_frozen_batch_norms_use_and_keep_their_statistics():
    model = network()
    step(model)
    freeze_batch_norms(model)
    norm, other = model[1], copy.deepcopy(model)
    before = norm.running_mean.clone()
    x = torch.randn(4, 3, 8, 8)
    wanted = copy.deepcopy(model).eval()(x)
    for m in (model, other):  # the freeze survives a deep copy, and train()
        m.train()
        testing.assert_equal(m(x), wanted)
        testing.assert_equal(m[1].running_mean, before)
    assert model[0].training and norm.weight.requires_grad
    unfreeze_batch_norms(model)
    model(x)
    assert norm.training and not torch.equal(norm.running_mean, before)


def test_freezing_twice_is_freezing_once():
    model = network()
    freeze_batch_norms(model)
    freeze_batch_norms(model)
    assert len(model[1]._forward_pre_hooks) == 1


def test_the_schedule_starts_and_freezes_in_time():
    model = sparseq.prepare(network(), PLAN)
    schedule = Schedule(model, quantize=1, observers=2, batch_norms=3)
    quantizers = [m for m in model.modules() if isinstance(m, FakeQuantize)]
    seen = []
    for _ in range(4):
        schedule.step()
        step(model)
        enabled, frozen = ([getattr(m, a) for m in quantizers] for a in ("enabled", "frozen"))
        seen.append((all(enabled), any(frozen), model[1].training))
    assert seen == [
        (False, False, True),
        (True, False, True),
        (True, True, True),
        (True, True, False),
    ]
    assert [m.frozen for m in quantizers] == [not m.follow for m in quantizers]
    assert all(m.calibrated for m in quantizers)  # the observers looked from the first epoch on


def test_a_resumed_schedule_is_where_it_was():
    model = sparseq.prepare(network(), PLAN)
    schedule = Schedule(model, observers=1, batch_norms=1)
    for _ in range(2):
        schedule.step()
        step(model)
    again = sparseq.prepare(network(), PLAN)
    again.load_state_dict(copy.deepcopy(model.state_dict()))
    other = Schedule(again, observers=1, batch_norms=1)
    other.load_state_dict(schedule.state_dict())
    step(again)
    assert not again[1].training and again[3].input_quantizer.frozen
    assert other.state_dict() == {"count": 2}


def test_a_step_below_0_is_refused():
    with pytest.raises(ValueError, match="Schedule: observers must be at least 0, got -1"):
        Schedule(network(), observers=-1)
