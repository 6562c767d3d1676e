import pytest
import torch
from torch import nn
from torch.nn import functional

from sparseq import Layer, Plan, Quant, ptq
from sparseq.flow.prepare import layers_of
from sparseq.ptq.graph import Graph
from sparseq.ptq.smooth import groups_of, smooth

BOTH = Layer(weight=Quant(axis=0), input=Quant())


class Block(nn.Module):
    """A pre-norm transformer encoder block with projections of its own."""

    def __init__(self, norm=nn.LayerNorm, width=16, heads=2):
        super().__init__()
        self.norm1, self.norm2, self.heads = norm(width), norm(width), heads
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def split(self, x):
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x):
        y = self.norm1(x)
        q, k, v = (self.split(layer(y)) for layer in (self.q, self.k, self.v))
        y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(y)
        return x + self.down(functional.relu(self.up(self.norm2(x))))


def outlying(model):
    """A few channels far beyond the others, as in language models."""
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, (nn.LayerNorm, nn.RMSNorm)):
                m.weight[3], m.weight[7] = 60.0, -40.0
                if getattr(m, "bias", None) is not None:
                    m.bias.normal_()
    return model.eval()


def matched(model):
    return Plan({"*": BOTH}).match(layers_of(model))


def smoothed(model, x, alpha=0.5):
    with torch.no_grad():
        before = model(x)
        skipped = smooth(Graph(model, x), model, matched(model), [x], alpha)
        return before, model(x), skipped


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_the_function_stays(norm, alpha):
    model = outlying(Block(norm)).double()
    weight = model.q.weight.detach().clone()
    before, after, skipped = smoothed(model, torch.randn(2, 5, 16).double(), alpha)
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(model.q.weight, weight)
    assert list(skipped) == ["out"] and "neither from a norm" in skipped["out"]


def test_the_groups():
    model = Block().eval()
    groups, _ = groups_of(Graph(model, torch.randn(2, 5, 16)), matched(model))
    assert {g.source.name: [r.name for r in g.readers.layers] for g in groups} == {
        "norm1": ["q", "k", "v"],
        "norm2": ["up"],
        "up": ["down"],
    }


def test_scales_are_those_of_the_paper():
    model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3)).double().eval()
    model[0].weight.data = torch.tensor([1.0, 9.0, 2.0, 0.5]).double()
    x = torch.randn(8, 4).double()
    activation = model[0](x).detach().abs().amax(0)
    weight = model[1].weight.detach().clone()
    smoothed(model, x, 0.7)
    scale = activation**0.7 / weight.abs().amax(0) ** 0.3
    torch.testing.assert_close(model[1].weight.detach(), weight * scale)
    torch.testing.assert_close(model[0](x).detach().abs().amax(0), activation / scale)


def test_outlying_channels_gain():
    torch.manual_seed(1)
    model = outlying(Block(width=32, heads=4))
    batches = [torch.randn(4, 8, 32) for _ in range(3)]
    report = ptq(model, Plan({"*": BOTH}), batches, smooth=0.5)
    assert [s.name for s in report.steps] == ["nearest", "smooth"]
    assert report.steps[1].gain > 3


def test_torchs_encoder_layer_is_seen_inside():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
    model = outlying(nn.Sequential(layer)).double()
    before, after, _ = smoothed(model, torch.randn(2, 5, 16).double())
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)
    groups, _ = groups_of(Graph(model, torch.randn(2, 5, 16).double()), matched(model))
    found = {g.source.name: [r.name for r in g.readers.layers] for g in groups}
    assert found["0.norm2"] == ["0.linear1"] and found["0.linear1"] == ["0.linear2"]


def test_a_residual_behind_the_norm_is_named():
    class PostNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 8)

        def forward(self, x):
            x = self.norm(x)
            return x + self.linear(x)

    model = PostNorm().eval()
    before, after, skipped = smoothed(model, torch.randn(3, 8))
    assert torch.equal(before, after)
    assert skipped == {
        "linear": "its input, of norm (LayerNorm), is also read by add, linear (Linear)"
    }


def test_a_norm_without_a_weight_is_named():
    model = nn.Sequential(nn.LayerNorm(8, elementwise_affine=False), nn.Linear(8, 8)).eval()
    before, after, skipped = smoothed(model, torch.randn(3, 8))
    assert torch.equal(before, after)
    assert skipped["1"] == "its input, of 0 (LayerNorm), has no weight of one dimension"


def test_a_layer_without_a_quantised_input_is_left():
    model = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)).eval()
    plan = Plan({"*": Layer(weight=Quant(axis=0))}).match(layers_of(model))
    groups, skipped = groups_of(Graph(model, torch.randn(3, 8)), plan)
    assert groups == [] and skipped == {}


def test_the_projections_of_torchs_attention_are_smoothed():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
    model = outlying(nn.Sequential(layer))
    batches = [torch.randn(4, 6, 16) for _ in range(2)]
    report = ptq(model, Plan({"*": BOTH}), batches, smooth=0.6)
    assert list(report.skipped["smooth"]) == ["0.self_attn.out_proj"]
    before, after = report.steps[0].layers, report.steps[1].layers
    for name in ("q_proj", "k_proj", "v_proj"):
        assert after[f"0.self_attn.{name}"] > before[f"0.self_attn.{name}"] + 3
