"""The lottery's rounds, on real digits with a tiny network."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparseq import NM, Layer, Plan, Unstructured, prepare, testing
from sparseq.run import data
from sparseq.sparse import PruningSchedule, lottery, masks_of
from sparseq.sparse.lottery import _reinitialise

STEPS, REWIND = 120, 6


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def prepared(sparsity=0.9):
    return prepare(network(), Plan({"*": Layer(sparsity=Unstructured(sparsity))}))


def batches(digits):
    found = []
    for epoch in range(6):
        found += digits.train_batches(64, torch.Generator().manual_seed(epoch))
    return found


class Trainer:
    """Trains the steps of one fixed order, and notes what it was asked."""

    def __init__(self, digits):
        self.batches, self.calls = batches(digits), []

    def __call__(self, model, first, last):
        masks = [mask.mask.clone() for mask, _ in masks_of(model)]
        weights = [weight.detach().clone() for _, weight in masks_of(model)]
        self.calls.append((first, last, masks, weights))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
        for images, labels in self.batches[first:last]:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()


def accuracy(digits):
    images, labels = next(iter(digits.test_batches(500)))

    def evaluate(model):
        with torch.no_grad():
            return 100 * float((model(images).argmax(1) == labels).float().mean())

    return evaluate


def test_rounds_rewind_and_the_control_starts_anew(digits, tmp_path):
    model, train, told = prepared(), Trainer(digits), []
    result = lottery(
        model, train, accuracy(digits), steps=STEPS, rounds=3, rewind=REWIND, progress=told.append
    )
    assert [row.round for row in result.rows] == [0, 1, 2, 3] and list(result.rows) == told
    left = [1 - row.sparsity for row in result.rows]
    assert all(abs(x - 0.1 ** (i / 3)) < 1e-3 for i, x in enumerate(left))
    assert result.rows[0].control is None and result.rows[0].accuracy > 85
    assert result.rows[1].accuracy > 80 and all(r.control is not None for r in result.rows[1:])
    spans = [(first, last) for first, last, *_ in train.calls]
    assert spans == [(0, REWIND)] + [(REWIND, STEPS)] + [(REWIND, STEPS), (0, STEPS)] * 3
    rewound = train.calls[1][3]  # the weights of step k, which every ticket starts from
    for number in (2, 4, 6):
        _, _, masks, weights = train.calls[number]
        _, _, same, other = train.calls[number + 1]
        for a, b, c, m, n in zip(rewound, weights, other, masks, same, strict=True):
            testing.assert_equal(a, b)
            testing.assert_equal(m, n)
            assert not torch.equal(b, c)
    assert abs(sum(int(m.mask.sum()) for m, _ in masks_of(model)) / 2368 - 0.1) < 1e-3
    text = str(result)
    assert text.startswith(f"rewound to step {REWIND} of {STEPS}") and "90.0%" in text
    assert json.loads(json.dumps(result.to_dict()))["rows"][3]["round"] == 3
    result.plot(tmp_path / "lottery.png")
    assert (tmp_path / "lottery.png").read_bytes()[:4] == b"\x89PNG"


def test_masks_come_from_the_trained_weights(digits):
    """Round one by hand: train, mask what is least, rewind."""
    torch.manual_seed(4)
    model = prepared(0.5)
    torch.manual_seed(4)
    other = prepared(0.5)
    lottery(model, Trainer(digits), accuracy(digits), steps=20, rounds=1, control=False)
    schedule = PruningSchedule(other, 1)
    start = {k: v.clone() for k, v in other.state_dict().items() if not k.endswith("mask")}
    Trainer(digits)(other, 0, 20)
    schedule.step()
    other.load_state_dict(start, strict=False)
    Trainer(digits)(other, 0, 20)
    for key, value in other.state_dict().items():
        testing.assert_equal(model.state_dict()[key], value)


def test_new_weights_are_drawn_as_the_layers_draw_theirs():
    model = nn.Sequential(nn.Linear(400, 300), nn.BatchNorm1d(300), nn.ConvTranspose2d(8, 4, 3))
    prepare(model, Plan({"*": Layer(sparsity=Unstructured(0.5))}))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    _reinitialise(model, None)
    for key, value in model.state_dict().items():
        if "mask" in key or key.startswith("1."):
            testing.assert_equal(value, before[key])
        else:
            assert not torch.equal(value, before[key]) and bool((value != 7).all())
    weight = model[0].parametrizations.weight.original.detach()
    assert abs(float(weight.std()) - 1 / 400**0.5 / 3**0.5) < 1e-3


def test_new_weights_of_the_users_own_network():
    model = prepared()
    given = network()
    _reinitialise(model, lambda: given)
    testing.assert_equal(model[1].parametrizations.weight.original.detach(), given[1].weight)
    testing.assert_equal(model[3].bias.detach(), given[3].bias)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"rounds": 0}, "lottery: rounds must be at least 1, got 0"),
        ({"rewind": 10}, r"lottery: rewind must be in \[0, steps = 10\), got 10"),
        ({"rewind": -1}, r"rewind must be in .* got -1"),
    ],
)
def test_bad_arguments(arguments, text):
    with pytest.raises(ValueError, match=text):
        lottery(prepared(), print, print, steps=10, **arguments)
    two_of_four = prepare(network(), Plan({"*": Layer(sparsity=NM(2, 4))}))
    with pytest.raises(ValueError, match="model must be prepared with Unstructured"):
        lottery(two_of_four, print, print, steps=10)
