import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from sparseq import Layer, Plan, Quant, ptq
from sparseq.flow.prepare import layers_of
from sparseq.ptq.equalize import equalize, pairs_of
from sparseq.ptq.graph import Graph

WEIGHT = Layer(weight=Quant())


def settle(model):
    for m in model.modules():
        if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)):
            m.running_mean.normal_()
            m.running_var.uniform_(0.3, 3)
            m.weight.data.uniform_(-2, 2)
            m.bias.data.normal_()
    return model.eval()


def badly_scaled(layer):
    """Rows over five orders of two, as depthwise networks have them."""
    with torch.no_grad():
        rows = (
            2.0 ** torch.linspace(-5, 5, layer.weight.shape[0])[torch.randperm(len(layer.weight))]
        )
        layer.weight *= rows.reshape([-1] + [1] * (layer.weight.dim() - 1))
        if layer.bias is not None:
            layer.bias *= rows


class Net(nn.Module):
    """Depthwise chain, residual, branches, pooling, flatten."""

    def __init__(self, activation=nn.ReLU, norm=True):
        super().__init__()
        normed = nn.BatchNorm2d if norm else nn.Identity
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=not norm)
        self.bn = normed(8)
        self.act = activation()
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.bn2 = normed(8)
        self.point = nn.Conv2d(8, 12, 1)
        self.grouped = nn.Conv2d(12, 12, 3, groups=3)
        self.left, self.right = nn.Conv2d(12, 8, 1), nn.Conv2d(12, 8, 3, padding=1)
        self.inside = nn.Conv2d(8, 8, 1)
        self.hidden, self.head = nn.Linear(8 * 4, 16), nn.Linear(16, 5)

    def forward(self, x):
        x = self.act(self.bn(self.stem(x)))
        x = functional.leaky_relu(self.bn2(self.depthwise(x)), 0.2)
        x = functional.relu(self.grouped(self.point(x)), inplace=True)
        x = self.left(x) + self.right(x)
        x = x + self.inside(x)
        x = functional.adaptive_avg_pool2d(self.inside(x).relu(), 2)
        return self.head(functional.relu(self.hidden(x.flatten(1))))


def matched(model, layer=WEIGHT):
    return Plan({"*": layer}).match(layers_of(model))


def equalised(model, x, layer=WEIGHT):
    with torch.no_grad():
        before = model(x)
        skipped = equalize(Graph(model, x), matched(model, layer))
        return before, model(x), skipped


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Identity])
def test_the_function_stays(activation, norm):
    model = settle(Net(activation, norm)).double()
    badly_scaled(model.stem)
    badly_scaled(model.depthwise)
    old = copy.deepcopy(model.state_dict())
    before, after, _ = equalised(model, torch.randn(2, 3, 8, 8).double())
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)
    for name in ("depthwise.weight", "point.weight", "grouped.weight", "left.weight"):
        assert not torch.allclose(model.state_dict()[name], old[name]), name


def test_who_is_paired_with_whom_and_why_not():
    model = settle(Net()).double()
    x = torch.randn(2, 3, 8, 8).double()
    pairs, skipped = pairs_of(Graph(model, x), matched(model))
    found = {p.first.name: [r.name for r in p.readers.layers] for p in pairs}
    assert found == {
        "stem": ["depthwise"],
        "depthwise": ["point"],
        "point": ["grouped"],
        "grouped": ["left", "right"],
        "hidden": ["head"],
    }
    assert skipped == {
        "left": "read by add",
        "right": "read by add",
        "inside": "called 2 times",
        "head": "read by the model's result",
    }


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (nn.ReLU6(), "read by ReLU6, which does not pass scales on"),
        (nn.Hardswish(), "read by Hardswish, which does not pass scales on"),
        (nn.GELU(), "read by GELU, which does not pass scales on"),
    ],
)
def test_activations_that_are_not_homogeneous_are_named(between, reason):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), between, nn.Conv2d(4, 4, 1)).eval()
    before, after, skipped = equalised(model, torch.randn(1, 3, 4, 4))
    assert skipped == {"0": reason, "2": "read by the model's result"}
    assert torch.equal(before, after)


def test_ranges_meet():
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4)).double()
    badly_scaled(model[0])
    model[0].bias.data.zero_()
    equalised(model, torch.randn(3, 6).double())
    rows, columns = model[0].weight.abs().amax(1), model[2].weight.abs().amax(0)
    torch.testing.assert_close(rows, columns, rtol=1e-2, atol=0)


def test_a_dead_channel_does_not_blow_up_its_bias():
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4)).double()
    model[0].weight.data[3] *= 1e-12
    greatest = model[0].bias.detach().abs().max()
    before, after, _ = equalised(model, torch.randn(3, 6).double())
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)
    assert model[0].bias.abs().max() <= greatest * 1.001


def test_rows_before_a_batch_norm_are_levelled():
    model = settle(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))).double()
    badly_scaled(model[0])
    before, after, _ = equalised(model, torch.randn(2, 3, 8, 8).double())
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)
    rows = model[0].weight.flatten(1).abs().amax(1)
    torch.testing.assert_close(rows, rows.max().expand(8), rtol=1e-9, atol=0)
    # scaled rows give scaled statistics, so that training on sees the same normalised values
    x = torch.randn(64, 3, 8, 8).double()
    spread = model[0](x).var((0, 2, 3)) / model[1].running_var
    assert (spread > 0).all()


def test_per_channel_grids_need_no_level_rows():
    model = settle(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
    weight = model[0].weight.detach().clone()
    equalised(model, torch.randn(2, 3, 8, 8), Layer(weight=Quant(axis=0)))
    assert torch.equal(model[0].weight, weight)


def test_shared_parameters_and_direct_reads_are_left():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight

        def forward(self, x):
            x = self.c(functional.relu(self.b(functional.relu(self.a(x)))))
            return functional.linear(x, self.c.weight)

    model = Tied().double()
    before, after, skipped = equalised(model, torch.randn(3, 4).double())
    assert torch.equal(before, after)
    assert skipped["a"] == "its parameters are used elsewhere too"
    assert skipped["b"].startswith("its parameters") and skipped["c"].startswith("its parameters")


def test_badly_scaled_channels_gain():
    model = settle(Net()).eval()
    for layer in (model.stem, model.depthwise, model.grouped):
        badly_scaled(layer)
    batches = [torch.randn(4, 3, 8, 8) for _ in range(2)]
    report = ptq(model, Plan({"*": Layer(weight=Quant(), input=Quant())}), batches, equalize=True)
    assert report.steps[1].name == "equalize" and report.steps[1].gain > 3
