"""permute_channels: the same function, more magnitude; and the search by itself."""

import copy
import itertools

import pytest
import torch
from channel_cases import CASES, example
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import sparseq
from sparseq import NM, Channels, Layer, Plan, Unstructured, permute_channels
from sparseq.run.models import ResNet
from sparseq.sparse import nm_mask
from sparseq.structured.search import kept, search_order

PLAN = Plan({"*": Layer(sparsity=NM(2, 4))})


def magnitude_of(model, names):
    """What nm_mask keeps of layers' weights, by name."""
    found = {}
    for name in names:
        weight = model.get_submodule(name).weight.detach()
        found[name] = float((weight.abs() * nm_mask(weight)).double().sum())
    return found


NETWORKS = [
    "resnet18",
    "mobilenet_v3_small",
    "densenet",
    "vgg",
    "vit",
    "convnext",
    "swin",
    "timm vit",
]


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_the_function_stays_and_more_is_kept(name, monkeypatch):
    monkeypatch.setattr("sparseq.structured.search.ROWS", 64)  # the less to search
    monkeypatch.setattr("sparseq.structured.search.SWEEPS", 1)
    model = CASES[name][0]().double()
    permuted, x = copy.deepcopy(model), example(name, 2).double()
    report = permute_channels(permuted, x, PLAN, escapes=0)
    wanted = model(x)
    assert torch.allclose(permuted(x), wanted, rtol=1e-8, atol=1e-9 * float(wanted.abs().max()))
    held = dict(permuted.named_modules())
    rows = [r for r in report.layers if r.name in held and r.total > r.before]
    before = magnitude_of(model, [r.name for r in rows])
    after = magnitude_of(permuted, [r.name for r in rows])
    for row in rows:
        assert row.before == pytest.approx(before[row.name], rel=1e-5)
        assert row.after == pytest.approx(after[row.name], rel=1e-5)
    assert sum(after.values()) > sum(before.values())
    moved = [r for r in rows if r.reason is None]
    assert len(moved) >= 2 and sum(r.after > r.before for r in moved) > 0.7 * len(moved)
    state, old = permuted.state_dict(), model.state_dict()
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in old.items()}
    for key, value in state.items():  # nothing but another order
        assert torch.equal(value.flatten().sort().values, old[key].flatten().sort().values), key


def resnet():
    torch.manual_seed(0)
    return ResNet(3, 10, width=16, depth=2, stages=2).eval()


X = torch.randn(1, 3, 8, 8)


def test_the_report_names_what_stayed():
    report = permute_channels(resnet(), X, PLAN)
    rows = {row.name: row for row in report.layers}
    assert rows["stem"].reason == "stays dense: 2:4 needs a multiple of 4 inputs, got 3"
    assert rows["blocks.0.conv1"].reason is None and rows["fc"].reason is None
    assert rows["fc"].after > rows["fc"].before
    assert str(report).splitlines()[-1].startswith("all: ")
    grouped = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1, groups=2)).eval()
    (row,) = permute_channels(grouped, X, Plan({"1": Layer(sparsity=NM(2, 4))})).layers
    assert row.reason == "its inputs are in groups"
    first = nn.Sequential(nn.Conv2d(4, 16, 1), nn.Conv2d(16, 2, 1)).eval()
    row, _ = permute_channels(first, torch.randn(1, 4, 3, 3), PLAN).layers
    assert row.reason == "0 reads a tensor of fixed size" and row.after == row.before


def test_group_norms_keep_their_channels_in_place():
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.GroupNorm(2, 16), nn.Conv2d(16, 8, 1)).eval()
    row = permute_channels(model, X, Plan({"2": Layer(sparsity=NM(2, 4))})).layers[0]
    assert row.reason == "in groups of their own in 1"


def test_parameters_stay_the_same_objects():
    model = resnet()
    before = {n: (p, p.data_ptr()) for n, p in model.named_parameters()}
    permute_channels(model, X, PLAN)
    for name, parameter in model.named_parameters():
        assert parameter is before[name][0] and parameter.data_ptr() == before[name][1]


def test_torchs_attention_is_permuted_in_place():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.0)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    embedded = nn.Sequential(nn.Linear(8, 16), model, nn.Linear(16, 3)).eval()
    x = torch.randn(2, 5, 8)
    wanted = embedded(x)
    report = permute_channels(embedded, x, PLAN)
    assert type(model.layers[0].self_attn) is nn.MultiheadAttention
    assert torch.allclose(embedded(x), wanted, atol=1e-5)
    rows = {r.name: r for r in report.layers}
    assert rows["1.layers.0.self_attn.q_proj"].after > rows["1.layers.0.self_attn.q_proj"].before


def test_then_prune_prepare_and_convert():
    model = resnet()
    sparseq.prune_channels(model, X, Channels(0.25, round_to=4))
    first = model(X)
    permute_channels(model, X, PLAN)
    assert torch.allclose(model(X), first, atol=1e-5)
    sparseq.prepare(model, PLAN)
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d) and layer.in_channels % 4 == 0:
            assert (layer.weight == 0).float().mean() >= 0.5, name
    assert sparseq.convert(model)(X).shape == (1, 10)


def test_refusals():
    model = resnet()
    with pytest.raises(TypeError, match=r"plan must be a sparseq\.Plan, got NM"):
        permute_channels(model, X, NM(2, 4))
    for sparsity in (Unstructured(0.5), NM(4, 8)):
        with pytest.raises(ValueError, match="plan must give a layer NM sparsity with m of at"):
            permute_channels(model, X, Plan({"*": Layer(sparsity=sparsity)}))
    sparseq.prepare(model, PLAN)
    with pytest.raises(ValueError, match="model must be a float one"):
        permute_channels(model, X, PLAN)
    single = sparseq.prepare(nn.Linear(8, 8), PLAN)
    with pytest.raises(ValueError, match="a float one, got the model itself prepared"):
        permute_channels(single, torch.randn(2, 8), PLAN)
    normed = nn.Sequential(nn.Linear(8, 8), nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)))
    with pytest.raises(ValueError, match="permute_channels: 1: weight must be one parameter"):
        permute_channels(normed, torch.randn(2, 8), PLAN)


def best_of_all(matrix, n, m):
    """The most that any order keeps."""
    columns = matrix.shape[1]
    found = 0.0
    for order in itertools.permutations(range(columns)):
        if all(list(order[i : i + m]) == sorted(order[i : i + m]) for i in range(0, columns, m)):
            found = max(found, float(kept(matrix[:, list(order)].abs(), n, m).sum()))
    return found


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 4), (1, 2), (1, 3)])
def test_two_stripes_are_searched_exhaustively(n, m):
    matrix = torch.randn(6, 2 * m, generator=torch.Generator().manual_seed(n))
    assert search_order(matrix, n, m).after == pytest.approx(best_of_all(matrix, n, m), rel=1e-6)


@given(st.integers(1, 20), st.integers(0, 9), st.integers(0, 2), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_an_order_is_a_permutation_and_never_worse(rows, stripes, escapes, seed):
    matrix = torch.randn(rows, 4 * stripes, generator=torch.Generator().manual_seed(seed))
    order = search_order(matrix, escapes=escapes, seed=seed)
    assert order.permutation.sort().values.tolist() == list(range(4 * stripes))
    assert order.before == pytest.approx(float(kept(matrix.abs(), 2, 4).sum()), rel=1e-5)
    if stripes:
        permuted = matrix[:, order.permutation]
        masked = float((permuted.abs() * nm_mask(permuted)).double().sum())
        assert order.after == pytest.approx(masked, rel=1e-5) and order.after >= order.before


def test_pairs_hidden_from_their_stripes_are_found():
    """Two large columns a row, all in one stripe: an order without any loss exists."""
    matrix = torch.zeros(8, 16)
    for row in range(8):
        matrix[row, row // 2 * 4 : row // 2 * 4 + 4] = 1.0
    order = search_order(matrix)
    assert order.before == 16.0 and order.after == 32.0


def test_published_matrix():
    """The matrix of apex's README: 35.5 % of what is to be gained, 36.6 % with three stripes."""
    import numpy as np

    matrix = torch.from_numpy(np.random.RandomState(1).rand(128, 64))
    rows = float(matrix.sort(dim=1).values[:, 32:].sum())
    order = search_order(matrix, escapes=20)
    assert rows == pytest.approx(3042.332, abs=1e-3)
    assert order.before == pytest.approx(2852.377, abs=2e-3)
    assert (order.after - order.before) / (rows - order.before) > 0.366


def test_many_rows_and_stripes_and_nan():
    matrix = torch.rand(1500, 96, generator=torch.Generator().manual_seed(0))
    order = search_order(matrix)
    assert order.after > order.before
    matrix[3, 5] = torch.nan
    assert search_order(matrix[:10]).after > 0
    for shape, n, m in (((4, 6), 2, 4), ((4,), 2, 4), ((4, 8), 4, 4), ((4, 10), 2, 5)):
        with pytest.raises(ValueError, match="search_order: matrix must be"):
            search_order(torch.ones(shape), n, m)


def test_parametrised_weights():
    class Bounded(nn.Module):
        def forward(self, weight):
            return weight.clamp(-0.2, 0.2)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8)).eval()
    nn.utils.parametrize.register_parametrization(model[2], "weight", Bounded())
    x, plan = torch.randn(2, 6), Plan({"2": Layer(sparsity=NM(2, 4))})
    before = model(x)
    row = permute_channels(model, x, plan).layers[0]
    assert row.reason is None and row.after > row.before
    assert torch.allclose(model(x), before, atol=1e-5)
    nn.utils.parametrizations.weight_norm(model[0])
    with pytest.raises(ValueError, match="permute_channels: 0: weight must be one parameter"):
        permute_channels(model, x, Plan({"0": Layer(sparsity=NM(1, 2))}))
