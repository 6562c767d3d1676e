import copy
import math

import pytest
import torch
from torch import nn

from sparseq.run import data, models
from sparseq.run.recipe import Training
from sparseq.run.train import _rate, accuracy, cross_entropy, train


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def small() -> nn.Module:
    torch.manual_seed(0)
    return models.ResNet(1, 10, width=16, depth=1, stages=2)


def test_learns_digits(digits):
    model = small()
    history = train(model, digits, Training(epochs=4))
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
        train(m, digits, Training(epochs=1), seed=s)
        for m, s in ((first, 1), (again, 1), (other, 2))
    ]
    assert histories[0] == histories[1] != histories[2]
    for one, two in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)


def test_callbacks(digits):
    model, calls, losses = small(), [], []

    def before_epoch(epoch: int) -> None:
        assert model.training
        calls.append((epoch, len(losses)))

    recipe = Training(epochs=2, batch=256)
    history = train(model, digits, recipe, before_epoch=before_epoch, on_step=losses.append)
    assert calls == [(0, 0), (1, 5)] and len(losses) == 10 == 2 * digits.steps(256)
    assert history == [pytest.approx(sum(losses[:5]) / 5), pytest.approx(sum(losses[5:]) / 5)]


def test_criterion_gets_logits_labels_inputs(digits):
    def criterion(logits, labels, inputs):
        assert logits.shape == (256, 10) and labels.shape == (256,)
        assert inputs.shape == (256, 1, 8, 8)
        return 0 * cross_entropy(logits, labels, inputs)

    assert train(small(), digits, Training(epochs=1, batch=256), criterion=criterion) == [0.0]


def test_amp_trains(digits):
    kinds = set()

    def criterion(logits, labels, inputs):
        kinds.add(logits.dtype)
        return cross_entropy(logits.float(), labels, inputs)

    assert math.isfinite(
        train(small(), digits, Training(epochs=1), amp=True, criterion=criterion)[0]
    )
    assert kinds == {torch.bfloat16}


def test_divergence_is_told(digits):
    def criterion(logits, labels, inputs):
        return cross_entropy(logits, labels, inputs) * math.nan

    with pytest.raises(ArithmeticError, match="loss became nan in epoch 1"):
        train(small(), digits, Training(epochs=1), criterion=criterion)


def test_rates_by_hand():
    cosine = _rate("cosine", 10)
    assert cosine(0) == 1 and cosine(5) == pytest.approx(0.5)
    assert cosine(10) == pytest.approx(0, abs=1e-12)
    cycle = _rate("one_cycle", 8)
    assert cycle(0) == 0.04 and cycle(1) == pytest.approx(0.52) and cycle(2) == 1
    assert cycle(5) == pytest.approx(0.5) and cycle(8) == pytest.approx(0, abs=1e-12)
    assert _rate("one_cycle", 1)(0) == 1  # a run of one step learns


def test_the_state_after_an_epoch_goes_on_to_the_same_weights(digits):
    training, states = Training(epochs=3, batch=256), []
    whole = small()
    half = copy.deepcopy(whole)

    def keep(state):
        assert not half.training
        states.append((copy.deepcopy(state), copy.deepcopy(half.state_dict())))

    history = train(whole, digits, training)
    assert train(half, digits, training, after_epoch=keep) == history
    other = small()
    other.load_state_dict(states[0][1])
    assert train(other, digits, training, state=states[0][0]) == history
    for one, two in zip(whole.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(one, two)


def test_accuracy_by_hand(digits):
    class Always(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.arange(10.0))

        def forward(self, x):
            return self.bias.expand(len(x), 10)

    nines = int((digits.y_test == 9).sum())
    assert accuracy(Always(), digits) == pytest.approx(100 * nines / 500)
