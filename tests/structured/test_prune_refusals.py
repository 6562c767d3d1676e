"""prune_channels: what it refuses or keeps, and the reasons it gives."""

import copy

import pytest
import torch
from channel_cases import CASES, IMAGE, example, mlp, resnet20
from torch import nn

import sparseq
from sparseq import NM, Channels, Layer, Plan, prune_channels


def test_what_cannot_be_pruned_is_found_out():
    report = prune_channels(model := CASES["swin"][0](), example("swin"), Channels(0.5))
    heads = [g for g in report.kept if g.producers and g.producers[0].endswith("qkv")]
    assert len(heads) == 4 and all("does not work without some" in g.reason for g in heads)
    assert any("normalised together in features.0.2" in g.reason for g in report.kept)
    assert len(report.pruned) == 4 and "kept: " in str(report)
    model(example("swin"))


def unchanged(model, before):
    return all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_refusals():
    model = resnet20()
    before = copy.deepcopy(model.state_dict())
    for arguments, error, text in [
        (({"*": 0.5},), TypeError, "spec of '\\*' must be a Channels or None, got float"),
        ((0.5,), TypeError, "spec must be a Channels, or a mapping"),
        (({"none": Channels()},), ValueError, "pattern 'none' matches no layer"),
    ]:
        with pytest.raises(error, match=text):
            prune_channels(model, IMAGE, *arguments)
    with pytest.raises(ValueError, match=r"macs must be in \(0, 1\), got 1.5"):
        prune_channels(model, IMAGE, Channels(), macs=1.5)
    with pytest.raises(ValueError, match=r"macs must be at least 0\.2"):
        prune_channels(model, IMAGE, Channels(limit=0.5), macs=0.1)
    with pytest.raises(ValueError, match=r"scores must hold tensors like the parameters: 'fc\.w"):
        prune_channels(model, IMAGE, Channels(), scores={"fc.weight": torch.ones(3)})
    assert unchanged(model, before)
    sparseq.prepare(model, Plan({"*": Layer(sparsity=NM(1, 2))}))
    with pytest.raises(ValueError, match=r"model must be a float one, got .* prepared"):
        prune_channels(model, IMAGE, Channels())


def test_layers_that_do_not_run_are_refused():
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.aux = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 2)

        def forward(self, x):
            x = self.a(x)
            return (self.b(x), self.aux(x)) if self.training else self.b(x)

    model = Auxiliary()
    with pytest.raises(ValueError, match="example must run every layer of the model, aux did not"):
        prune_channels(model, torch.randn(2, 6), Channels(0.5))


def test_a_model_that_goes_by_values_is_refused_unchanged():
    class Fickle(nn.Module):
        """What it computes depends on the sizes of its layers."""

        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 16)
            self.c = nn.Linear(16, 3)

        def forward(self, x):
            y = self.c(self.b(self.a(x)))
            return y * (1 + int(len(self.a.bias) + len(self.b.bias) < 32))

    model = Fickle()
    before = copy.deepcopy(model.state_dict())
    report = prune_channels(model, torch.randn(2, 6), Channels(0.5))
    assert not report.pruned and unchanged(model, before)
    assert sum("its result is off by" in (g.reason or "") for g in report.groups) == 2


def test_scores_that_tell_nothing():
    model = mlp(6, 8, 8, 3)
    before = copy.deepcopy(model.state_dict())
    x, spec = torch.randn(2, 6), Channels(0.5, round_to=1)
    for bad in (float("nan"), float("inf")):
        scores = {"0.weight": torch.full((8, 6), bad)}
        with pytest.raises(ValueError, match=r"scores of '0\.weight' must be finite, got an inf"):
            prune_channels(model, x, spec, scores=scores)
    with pytest.raises(ValueError, match=r"'0\.weight' must be \(8, 6\), got list"):
        prune_channels(model, x, spec, scores={"0.weight": [1.0]})
    assert not prune_channels(model, x, spec, scores={}).pruned
    assert unchanged(model, before)
    report = prune_channels(model, x, spec, scores={"0.weight": torch.rand(8, 6)})
    assert [g.producers for g in report.pruned] == [("0",)]
    (other,) = [g for g in report.groups if g.producers == ("2",)]
    assert other.reason == "nothing tells what they are worth"


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (Channels(0.0), "sparsity 0 in the spec"),
        (Channels(0.1, round_to=1), "too few to remove some"),
        (Channels(0.1, round_to=8, scope="global"), "ranked with the other sets"),
    ],
)
def test_why_a_set_lost_nothing(spec, reason):
    report = prune_channels(mlp(6, 8, 3), torch.randn(2, 6), spec)
    assert report.groups[0].reason.startswith(reason)
