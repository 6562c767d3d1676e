"""Which batch norms `convert` folds, and what becomes of the layer before them."""

import pytest
import torch
from convert_cases import BOTH, IMAGES, agree, conv_net, integer, prepared, settle
from torch import nn
from torch.nn import functional

from sparseq import (
    NM,
    Layer,
    Plan,
    Quant,
    Unstructured,
    convert,
    explain,
    prepare,
    testing,
)
from sparseq.nn import SparseQuantConv2d, SparseQuantLinear


def test_a_batch_norm_without_factors():
    x = torch.randn(IMAGES)
    agree(prepared(conv_net(affine=False), x), x)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [None, 8])
def test_zero_gamma_gives_the_shift_exactly(symmetric, group_size):
    model = nn.Sequential(nn.Linear(16, 4), nn.BatchNorm1d(4))
    x = torch.randn(8, 16)
    spec = Quant(axis=0, symmetric=symmetric, group_size=group_size)
    model = prepared(model, x, Layer(weight=spec, input=Quant()))
    with torch.no_grad():
        model[1].weight.zero_()
        y = convert(model)(x)
    testing.assert_equal(y, model[1].bias.detach().expand(8, 4).contiguous())


@pytest.mark.parametrize("symmetric", [True, False])
def test_negative_gamma_only_mirrors_integers(symmetric):
    """No rounding is added: what comes out is the trained weight times the factor, bit for bit."""
    model = nn.Sequential(nn.Linear(16, 4), nn.BatchNorm1d(4))
    x = torch.randn(8, 16)
    model = prepared(model, x, Layer(weight=Quant(axis=0, symmetric=symmetric), input=Quant()))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([-2.0, 1.0, -0.3, 0.7]))
        unfolded = convert(model[0])
        assert isinstance(unfolded, SparseQuantLinear)
        fast = convert(model)[0]
    factor = model[1].weight.detach() / (model[1].running_var + model[1].eps).sqrt()
    wanted = unfolded.packed().dequantize() * factor[:, None]
    torch.testing.assert_close(fast.packed().dequantize(), wanted, rtol=1e-6, atol=0)
    info = fast.weight_spec
    assert int(fast.weight_values.min()) >= info.quant_min
    assert int(fast.weight_values.max()) <= info.quant_max


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("sparsity", [NM(2, 4), Unstructured(0.6)])
def test_zeros_stay_zeros_through_mask_fold_and_rounding(symmetric, sparsity):
    spec = Quant(axis=0, symmetric=symmetric)
    plan = Layer(weight=spec, input=Quant(symmetric=False), sparsity=sparsity)
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 4))
    x = torch.randn(4, 8, 4, 4)
    model = prepared(model, x, plan)
    fast = agree(model, x)
    for index in (0, 3):
        dropped = ~model[index].parametrizations.weight[0].mask
        assert int(dropped.sum()) > 0
        weight = fast[index].packed().dequantize()
        assert bool((weight[dropped] == 0).all())
        row = explain(fast).rows[0 if index == 0 else 1]
        assert row.sparsity >= float(dropped.float().mean()) - 1e-9


def test_layers_outside_of_the_plan_stay_and_their_batch_norms_fold():
    x = torch.randn(IMAGES)
    plan = Plan({"*": BOTH, "0": None, "11": None})
    fast = agree(prepared(conv_net(), x, plan), x)
    assert list(integer(fast)) == ["3", "6", "8"]
    assert isinstance(fast[1], nn.Identity) and type(fast[0]) is nn.Conv2d


class Wired(nn.Module):
    """Batch norms where folding would be wrong: not adjacent, read twice, called twice, shared."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.first = nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.other = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x):
        if self.kind == "relu between":
            return self.norm(functional.relu(self.first(x)))
        if self.kind == "read twice":
            y = self.first(x)
            return self.norm(y) + y
        if self.kind == "two norms":
            y = self.first(x)
            return self.norm(y) + self.other(y)
        if self.kind == "layer called twice":
            return self.norm(self.first(self.first(x)))
        if self.kind == "norm called twice":
            return self.norm(self.norm(self.first(x)))
        if self.kind == "norm before":
            return self.first(self.norm(x))
        if self.kind == "chain":
            return self.other(self.norm(self.first(x)))
        return self.norm(self.first(x) * 2)


@pytest.mark.parametrize(
    ("kind", "folded"),
    [
        ("relu between", 0),
        ("read twice", 0),
        ("two norms", 0),
        ("layer called twice", 0),
        ("norm called twice", 0),
        ("norm before", 0),
        ("chain", 1),
        ("arithmetic between", 0),
    ],
)
def test_only_adjacent_batch_norms_fold(kind, folded):
    x = torch.randn(3, 4, 6, 6)
    fast = agree(prepared(Wired(kind), x), x)
    assert sum(isinstance(m, nn.Identity) for m in fast.modules()) == folded


@pytest.mark.parametrize("features", [9, 6])
def test_a_batch_norm_over_positions_is_not_one_over_features(features):
    """After a Linear on [N, L, F] BatchNorm1d normalises L."""
    x = torch.randn(5, 6, 4)
    model = nn.Sequential(nn.Linear(4, features), nn.BatchNorm1d(6))
    fast = agree(prepared(model, x), x)
    assert isinstance(fast[1], nn.BatchNorm1d)


class Aliased(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(6, 6)
        self.again = self.stem
        self.norm = nn.BatchNorm1d(6)
        self.blocks = nn.ModuleList([nn.Linear(6, 6)] * 3)

    def forward(self, x):
        x = self.again(torch.relu(self.stem(x)))
        for block in self.blocks:
            x = torch.relu(block(x))
        return self.norm(x)


def test_a_module_under_several_names_is_swapped_under_each():
    x = torch.randn(16, 6)
    fast = agree(prepared(Aliased(), x), x)
    assert fast.stem is fast.again and isinstance(fast.again, SparseQuantLinear)
    assert fast.blocks[0] is fast.blocks[2] and isinstance(fast.blocks[2], SparseQuantLinear)


class AliasedPair(nn.Module):
    """One convolution and one norm, each under two names, called once."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.body = nn.Sequential(self.conv, self.norm)

    def forward(self, x):
        return self.body(x)


def test_a_folded_pair_under_several_names():
    x = torch.randn(2, 3, 6, 6)
    fast = agree(prepared(AliasedPair(), x), x)
    assert isinstance(fast.conv, SparseQuantConv2d) and fast.body[0] is fast.conv
    assert isinstance(fast.body[1], nn.Identity)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        if x.mean() > 100:
            return x
        return self.norm(self.conv(x))


def test_an_untraceable_model_keeps_its_batch_norms():
    x = torch.randn(2, 3, 6, 6)
    fast = agree(prepared(Branching(), x), x)
    assert isinstance(fast.conv, SparseQuantConv2d) and isinstance(fast.norm, nn.BatchNorm2d)


def test_a_float_model_converts_to_itself_with_folded_norms():
    x, model = torch.randn(IMAGES), settle(conv_net())
    with torch.no_grad():
        torch.testing.assert_close(convert(model)(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sparsity", [None, Unstructured(0.5), NM(2, 4)], ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_float_layers_keep_their_memory_format(sparsity, transposed):
    """Otherwise torch copies the weight in each call of a channels-last network."""
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    for layout in (torch.channels_last, torch.contiguous_format):
        model = nn.Sequential(kind(8, 12, 3), nn.BatchNorm2d(12)).eval().to(memory_format=layout)
        before = model[0].weight.stride()
        fast = convert(prepare(model, Plan({"*": Layer(sparsity=sparsity)})))
        assert type(fast[1]) is nn.Identity
        assert fast[0].weight.stride() == before, layout
