"""prune_channels: how much goes, of what, and what it refuses."""

import copy

import pytest
import torch
from channel_cases import CASES, IMAGE, example, mlp, resnet20
from torch import nn

import sparseq
from sparseq import Channels, prune_channels


@pytest.mark.parametrize("scope", ["local", "global"])
def test_the_spec_is_kept(scope):
    model = resnet20()
    report = prune_channels(model, IMAGE, Channels(0.5, round_to=4, scope=scope))
    assert all(g.after % 4 == 0 and g.after >= 0.1 * g.before for g in report.pruned)
    before, after = (sum(getattr(g, k) for g in report.pruned) for k in ("before", "after"))
    if scope == "local":
        assert all(g.after == g.before // 2 for g in report.pruned)
    else:
        assert 0.5 <= after / before < 0.6 and len({g.after / g.before for g in report.pruned}) > 1
    assert model.fc.in_features == model.fc.weight.shape[1] == model.blocks[8].conv2.out_channels


def test_the_weakest_channels_go():
    model = mlp(6, 8, 3)
    with torch.no_grad():
        for row in (1, 4, 6):
            model[0].weight[row] *= 1e-3
            model[2].weight[:, row] *= 1e-3
    old = copy.deepcopy(model)
    for criterion in ("l1", "l2"):
        model = copy.deepcopy(old)
        prune_channels(model, torch.randn(2, 6), Channels(3 / 8, criterion, round_to=1))
        rest = [0, 2, 3, 5, 7]
        assert torch.equal(model[0].weight, old[0].weight[rest])
        assert torch.equal(model[0].bias, old[0].bias[rest])
        assert torch.equal(model[2].weight, old[2].weight[:, rest])
        assert torch.equal(model[2].bias, old[2].bias)


def test_batch_norms_scales_as_criterion():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.1, -3.0, 0.2, 2.0]))
        model[0].weight[0] *= 100
    kept = model[0].weight[[1, 3]].clone()
    prune_channels(model, torch.randn(1, 3, 2, 2), Channels(0.5, "batch_norm", round_to=1))
    assert torch.equal(model[0].weight, kept) and model[1].weight.tolist() == [-3.0, 2.0]


def test_scores_of_ones_own():
    model = mlp(6, 4, 3)
    kept = model[0].weight[[0, 2]].clone()
    scores = {"0.weight": torch.tensor([5.0, 1, 4, 2])[:, None].expand(4, 6)}
    prune_channels(model, torch.randn(2, 6), Channels(0.5, round_to=1), scores=scores)
    assert torch.equal(model[0].weight, kept)


def test_random_follows_the_seed():
    results = []
    for _ in range(2):
        model = mlp(6, 64, 3)
        torch.manual_seed(5)
        prune_channels(model, torch.randn(2, 6), Channels(0.5, "random"))
        results.append(model[0].weight)
    assert torch.equal(*results) and not torch.equal(results[0], mlp(6, 64, 3)[0].weight[:32])


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("share", [0.7, 0.5, 0.2])
def test_a_share_of_the_multiplications(scope, share):
    from torch.utils.flop_counter import FlopCounterMode

    model = resnet20()

    def counted():
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(IMAGE)
        return counter.get_total_flops() // 2

    before = counted()
    report = prune_channels(model, IMAGE, Channels(0.5, round_to=1, scope=scope), macs=share)
    assert report.macs == (before, counted())
    assert share - 0.06 < report.macs[1] / report.macs[0] <= share


def test_a_share_is_met_closely_in_coarse_steps():
    report = prune_channels(resnet20(), IMAGE, Channels(round_to=8), macs=0.5)
    assert 0.43 < report.macs[1] / report.macs[0] <= 0.5
    assert all(g.after % 8 == 0 for g in report.pruned)


@pytest.mark.parametrize("name", ["vit", "mobilenet_v2", "resnext50_32x4d", "convnext"])
def test_multiplications_are_counted_right(name):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model = CASES[name][0]()
    sparseq.structured.cut.take_all_attentions(model)
    with sdpa_kernel(SDPBackend.MATH):
        totals = []
        for step in range(2):
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                model(example(name))
            totals.append(counter.get_total_flops() // 2)
            if not step:
                report = prune_channels(model, example(name), Channels(0.5))
    assert report.macs == tuple(totals)


def test_patterns():
    model = resnet20()
    quarter = Channels(0.25, round_to=1)
    spec = {"*": Channels(0.5), "blocks.3.*": None, "blocks.1.conv1": quarter}
    report = prune_channels(model, IMAGE, spec)
    groups = {g.producers[0]: g for g in report.groups if g.producers}
    assert groups["blocks.3.conv1"].reason == "left alone by the spec"
    assert groups["blocks.3.conv2"].after == 32  # coupled to a layer that is left alone
    assert groups["blocks.1.conv1"].after == 12 and groups["blocks.0.conv1"].after == 8
    assert groups["fc"].reason == "the model's result"


def test_through_layer_norms():
    for name in ("convnext", "timm vit"):
        model = CASES[name][0]()
        report = prune_channels(model, example(name), Channels(0.5), through_norms=True)
        assert report.parameters[1] < 0.35 * report.parameters[0]
        assert all("normalised" not in (g.reason or "") for g in report.groups)
        assert model(example(name)).shape == (1, 10)


def test_torchs_transformer_layer_loses_heads():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.0)
    model = nn.Sequential(nn.TransformerEncoder(layer, 2), nn.Linear(16, 3)).eval()
    x = torch.randn(2, 5, 16)
    report = prune_channels(model, x, Channels(0.5, round_to=1))
    attention = model[0].layers[1].self_attn
    assert isinstance(attention, sparseq.nn.MultiheadAttention)
    assert attention.num_heads == 2 and attention.q_proj.out_features == 8
    assert model[0].layers[0].linear1.out_features == 16
    assert [g.width for g in report.pruned if "q_proj" in g.producers[0]] == [4, 4]
    model(x)
    model.train()(x).sum().backward()


def test_a_shared_weight_stays_shared():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 6)
            self.b2 = nn.Linear(8, 6)
            self.b2.weight = self.b.weight

        def forward(self, x):
            return self.b(self.a(x)) + self.b2(self.a(x).relu())

    model = Tied().eval()
    prune_channels(model, torch.randn(2, 6), Channels(0.5, round_to=1))
    assert model.b.weight is model.b2.weight and model.b.weight.shape == (6, 4)


def test_memory_format_and_frozen_parameters_stay():
    model = resnet20().to(memory_format=torch.channels_last)
    model.stem.weight.requires_grad_(False)
    prune_channels(model, IMAGE, Channels(0.5))
    assert not model.stem.weight.requires_grad and model.blocks[0].conv1.weight.requires_grad
    weight = model.blocks[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_the_mode_stays_and_statistics_too():
    model = resnet20().train()
    model.blocks[0].eval()
    prune_channels(model, IMAGE, Channels(0.5))
    assert model.training and model.blocks[1].bn1.training and not model.blocks[0].bn1.training
    assert torch.equal(model.bn.running_mean, torch.zeros(8))
    assert int(model.bn.num_batches_tracked) == 0


def test_pruned_again():
    model = resnet20(32)
    first = prune_channels(model, IMAGE, Channels(0.5))
    second = prune_channels(model, IMAGE, Channels(0.5))
    assert first.macs[1] == second.macs[0] and first.parameters[1] == second.parameters[0]
    assert model.stem.out_channels == 8


def test_spec():
    spec = Channels(0.25, "l1", 4, "global", 0.8)
    assert Channels.from_json(spec.to_json()) == spec
    for arguments, text in [
        ({"sparsity": 1.0}, "sparsity must be in"),
        ({"sparsity": True}, "sparsity must be in"),
        ({"criterion": "best"}, "criterion must be one of"),
        ({"round_to": 0}, "round_to must be at least 1"),
        ({"scope": "all"}, "scope must be one of"),
        ({"limit": 1}, "limit must be in"),
    ]:
        with pytest.raises(ValueError, match=f"Channels: {text}"):
            Channels(**arguments)
    for text in ("", "[]", '{"version": 2, "type": "Channels"}', '{"version": 1}'):
        with pytest.raises(ValueError, match="Channels: text must be JSON"):
            Channels.from_json(text)
    with pytest.raises(ValueError, match="unexpected keyword"):
        Channels.from_json('{"version": 1, "type": "Channels", "share": 1}')


def test_scores_of_torchs_attention_and_of_a_shared_weight():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval()
    scores = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    heads = torch.tensor([3.0, 1, 2, 4]).repeat_interleave(4).repeat(3)
    scores["self_attn.in_proj_weight"] += heads[:, None]
    kept = model.self_attn.in_proj_weight[[0, 1, 2, 3, 12, 13, 14, 15]].clone()
    spec = {"*q_proj": Channels(0.5, round_to=1)}
    spec.update({"*k_proj": spec["*q_proj"], "*v_proj": spec["*q_proj"]})
    prune_channels(model, torch.randn(1, 3, 16), spec, scores=scores)
    assert torch.equal(model.self_attn.q_proj.weight, kept)


def test_a_parametrised_layer_tells_its_size(tmp_path):
    class Bounded(nn.Module):
        def __init__(self):
            super().__init__()
            self.limit = nn.Parameter(torch.rand(8, 1))

        def forward(self, weight):
            return weight.clamp(-1, 1) * self.limit

    def network():
        model = mlp(6, 8, 3)
        nn.utils.parametrize.register_parametrization(model[0], "weight", Bounded())
        return model

    model, x = network(), torch.randn(2, 6)
    report = prune_channels(model, x, {"0": Channels(0.5, round_to=1)})
    assert report.groups[0].producers == ("0",)
    assert model[0].out_features == 4 and model[0].weight.shape == (4, 6)
    assert model[0].parametrizations.weight[0].limit.shape == (4, 1)
    sparseq.save(model, tmp_path / "m")
    again = sparseq.load(tmp_path / "m", network())
    assert torch.equal(again(x), model(x)) and again[0].out_features == 4


def test_norms_without_scales_tell_their_size():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8, affine=False), nn.Conv2d(8, 2, 1)
    ).eval()
    prune_channels(model, IMAGE, Channels(0.5, round_to=1))
    assert model[1].num_features == 4 and model[1].running_mean.shape == (4,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    class Cast(nn.Module):
        """Has a tensor of its own that is no float64."""

        def __init__(self):
            super().__init__()
            self.net = mlp(6, 8, 3)

        def forward(self, x):
            if x.dtype == torch.float64:
                raise RuntimeError("no float64 here")
            return self.net(x)

    for model in (mlp(6, 8, 3), Cast()):
        model, x = model.to(dtype), torch.randn(2, 6, dtype=dtype)
        report = prune_channels(model, x, Channels(0.5, round_to=1))
        assert len(report.pruned) == 1 and model(x).dtype == dtype
