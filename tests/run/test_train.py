import copy
import math

import pytest
import torch
from torch import nn

from sparseq.run import data, models
from sparseq.run.train import Recipe, _rate, cross_entropy, train


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def small() -> nn.Module:
    torch.manual_seed(0)
    return models.ResNet(1, 10, width=16, depth=1, stages=2)


def test_learns_digits(digits):
    model = small()
    history = train(model, digits, Recipe(epochs=4))
    assert len(history) == 4 and history[-1] < history[0] / 2
    assert not model.training
    images, labels = digits.normalise(digits.x_test), digits.y_test
    with torch.no_grad():
        assert (model(images).argmax(1) == labels).float().mean() > 0.85


def test_the_seed_decides_the_result(digits):
    first = small()
    again, other = copy.deepcopy(first), copy.deepcopy(first)
    torch.rand(3)  # the global generator has no say
    histories = [
        train(m, digits, Recipe(1), seed=s) for m, s in ((first, 1), (again, 1), (other, 2))
    ]
    assert histories[0] == histories[1] != histories[2]
    for one, two in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)


def test_callbacks(digits):
    model, calls, losses = small(), [], []

    def before_epoch(epoch: int) -> None:
        assert model.training
        calls.append((epoch, len(losses)))

    recipe = Recipe(2, batch=256)
    history = train(model, digits, recipe, before_epoch=before_epoch, on_step=losses.append)
    assert calls == [(0, 0), (1, 5)] and len(losses) == 10 == 2 * digits.steps(256)
    assert history == [pytest.approx(sum(losses[:5]) / 5), pytest.approx(sum(losses[5:]) / 5)]


def test_criterion_gets_logits_labels_inputs(digits):
    def criterion(logits, labels, inputs):
        assert logits.shape == (256, 10) and labels.shape == (256,)
        assert inputs.shape == (256, 1, 8, 8)
        return 0 * cross_entropy(logits, labels, inputs)

    assert train(small(), digits, Recipe(1, batch=256), criterion=criterion) == [0.0]


def test_amp_trains(digits):
    kinds = set()

    def criterion(logits, labels, inputs):
        kinds.add(logits.dtype)
        return cross_entropy(logits.float(), labels, inputs)

    assert math.isfinite(train(small(), digits, Recipe(1, amp=True), criterion=criterion)[0])
    assert kinds == {torch.bfloat16}


def test_divergence_is_told(digits):
    def criterion(logits, labels, inputs):
        return cross_entropy(logits, labels, inputs) * math.nan

    with pytest.raises(ArithmeticError, match="loss became nan in epoch 1"):
        train(small(), digits, Recipe(1), criterion=criterion)


def test_rates_by_hand():
    cosine = _rate("cosine", 10)
    assert cosine(0) == 1 and cosine(5) == pytest.approx(0.5)
    assert cosine(10) == pytest.approx(0, abs=1e-12)
    cycle = _rate("one_cycle", 8)
    assert cycle(0) == 0.04 and cycle(1) == pytest.approx(0.52) and cycle(2) == 1
    assert cycle(5) == pytest.approx(0.5) and cycle(8) == pytest.approx(0, abs=1e-12)
    assert _rate("one_cycle", 1)(0) == 1  # a run of one step learns


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epochs": 0}, "epochs must be > 0, got 0"),
        ({"rate": math.nan}, "rate must be > 0, got nan"),
        ({"batch": -1}, "batch must be > 0, got -1"),
        ({"schedule": "step"}, "schedule must be 'one_cycle' or 'cosine', got 'step'"),
    ],
)
def test_recipe_checks_its_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**{"epochs": 1, **fields})
