"""Conv1d, ConvTranspose2d, Embedding and attention on the one mechanism, from prepare to load."""

from __future__ import annotations

import copy

import pytest
import torch
from convert_cases import BOTH, settle
from torch import nn
from torch.nn import functional

from sparseq import (
    NM,
    Layer,
    Plan,
    Quant,
    Unstructured,
    calibrate,
    convert,
    explain,
    load,
    ops,
    prepare,
    save,
    sparse,
    testing,
)
from sparseq.flow.fold import batch_norms
from sparseq.flow.prepare import layers_of, original_weight, transform_of, weight_transforms
from sparseq.nn import (
    MultiheadAttention,
    SparseQuantConv1d,
    SparseQuantConvTranspose2d,
    SparseQuantEmbedding,
    SparseQuantLayer,
    SparseQuantLinear,
    outputs_first,
)
from sparseq.quant import FakeQuantize
from sparseq.sparse import Mask, PruningSchedule, SwapChannels, masks_of


def audio():
    return nn.Sequential(
        nn.Conv1d(3, 8, 5, stride=2, padding=2, bias=False),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Conv1d(8, 8, 3, padding=1, groups=8),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Conv1d(8, 12, 3, dilation=2),
        nn.Flatten(),
        nn.Linear(12 * 6, 5),
    )


def decoder(groups=1):
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 12, 3, stride=2, padding=1, output_padding=1, groups=groups),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.ConvTranspose2d(12, 12, 4, stride=2, padding=1, groups=12, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.ConvTranspose2d(12, 4, 2, stride=2),
    )


class Text(nn.Module):
    """Embeddings, two of torch's encoder layers, a head."""

    def __init__(self, **options):
        super().__init__()
        self.tokens = nn.Embedding(40, 16, padding_idx=0)
        self.places = nn.Embedding(12, 16)
        layer = nn.TransformerEncoderLayer(
            16, 4, 24, dropout=0.0, batch_first=True, norm_first=False, **options
        )
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(16, 3)

    def forward(self, x, padding=None):
        x = self.tokens(x) + self.places(torch.arange(x.shape[1], device=x.device))
        return self.head(self.encoder(x, src_key_padding_mask=padding).mean(1))


def sequences(count=6):
    return torch.randint(1, 40, (count, 9))


def signals(count=6):
    return torch.randn(count, 3, 20)


def images(count=3):
    return torch.randn(count, 4, 5, 6)


CASES = {"audio": (audio, signals), "decoder": (decoder, images), "text": (Text, sequences)}
CASES["decoder in groups"] = (lambda: decoder(2), images)
SCHEMES = {
    "per channel": BOTH,
    "per tensor": Layer(weight=Quant(), input=Quant()),
    "asymmetric": Layer(weight=Quant(axis=0, symmetric=False), input=Quant(symmetric=False)),
    "unsigned": Layer(
        weight=Quant(axis=0, signed=False, symmetric=False),
        input=Quant(signed=False, symmetric=False),
    ),
    "4 bits": Layer(weight=Quant(bits=4, axis=0), input=Quant(bits=6, symmetric=False)),
    "weight only": Layer(weight=Quant(axis=0)),
    "dynamic": Layer(weight=Quant(axis=0), input=Quant(symmetric=False, dynamic=True)),
    "learned": Layer(weight=Quant(axis=0, learned=True), input=Quant(learned=True)),
    "sparse": Layer(weight=Quant(axis=0), input=Quant(), sparsity=NM(2, 4)),
    "pruned": Layer(weight=Quant(axis=0), input=Quant(), sparsity=Unstructured(0.6)),
}


def prepared(model, x, plan=BOTH):
    plan = plan if isinstance(plan, Plan) else Plan({"*": plan})
    return calibrate(prepare(settle(model), plan), [x])


def agree(model, x, lsb=1.0):
    """The converted model, after comparing it with the fake-quantised one."""
    with torch.no_grad():
        wanted, fast = model(x), convert(model)
        step = (wanted.max() - wanted.min()) / 255
        for _ in testing.every_isa():
            testing.assert_within_lsb(fast(x), wanted, step, lsb=lsb)
    return fast


def integer(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, SparseQuantLayer)}


def rows(model):
    return {row.name: row for row in explain(model).rows}


# --- prepared and converted models agree, and come back from a file bit for bit ---


FEWER = {
    "text": ("per channel", "4 bits", "weight only", "dynamic", "pruned"),
    "decoder in groups": ("per channel", "asymmetric", "sparse"),
}


@pytest.mark.parametrize(("case", "scheme"), [(c, s) for c in CASES for s in FEWER.get(c, SCHEMES)])
def test_schemes_agree_and_are_saved(case, scheme, tmp_path):
    make, data = CASES[case]
    x, start = data(), make()
    model = prepared(copy.deepcopy(start), x, SCHEMES[scheme])
    fast = agree(model, x)
    layers = integer(fast)
    assert len(layers) == len(layers_of(model)) == {"audio": 4, "text": 15}.get(case, 4)
    assert not any(isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) for m in fast.modules())
    products = {n: m for n, m in layers.items() if not isinstance(m, SparseQuantEmbedding)}
    assert all(m.integer == (scheme != "weight only") for m in products.values())
    for state, name in ((model, "prepared"), (fast, "converted")):
        save(state, tmp_path / name)
        again = load(tmp_path / name, copy.deepcopy(start).eval())
        testing.assert_equal(again(x), state(x), message=name)
        assert list(again.state_dict()) == list(state.state_dict())
        assert str(explain(again)) == str(explain(state))


@pytest.mark.parametrize("case", ["audio", "decoder", "decoder in groups"])
def test_group_scales(case, tmp_path):
    make, data = CASES[case]
    x, start, size = data(), make(), {"audio": 3, "decoder in groups": 4, "decoder": 4}[case]
    model = copy.deepcopy(start)
    weights = [outputs_first(m, m.weight)[0].numel() for m in layers_of(model).values()]
    plan = Layer(weight=Quant(bits=4, group_size=size, symmetric=False), input=Quant())
    assert all(count % size == 0 for count in weights)
    fast = agree(prepared(model, x, plan), x)
    assert not any(layer.integer for layer in integer(fast).values())
    save(fast, tmp_path / "m")
    testing.assert_equal(load(tmp_path / "m", start)(x), fast(x))


@pytest.mark.parametrize("case", CASES)
def test_training(case):
    """Every weight gets a gradient and moves; the trained model converts as it is now."""
    make, data = CASES[case]
    model, x = prepare(make(), Plan({"*": BOTH})).train(), data(8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    wanted = torch.randn_like(model(x).detach())
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = functional.mse_loss(model(x), wanted)
        loss.backward()
        losses.append(loss.item())
        for name, layer in layers_of(model).items():
            assert original_weight(layer).grad.any(), name
        optimizer.step()
    assert losses[-1] < losses[0]
    agree(model.eval(), x)


@pytest.mark.parametrize("case", CASES)
def test_an_example_chooses_kernels_for_its_rows(case):
    make, data = CASES[case]
    fast = convert(prepared(make(), data()), data(2))
    for name, layer in integer(fast).items():
        if isinstance(layer, (SparseQuantConv1d, SparseQuantConvTranspose2d, SparseQuantLinear)):
            assert layer.rows is not None, name
    if case == "decoder":
        assert [m.rows for m in integer(fast).values()] == [60, 240, 960, 3840]
        assert integer(fast)["2"].work(240).rows == 60


def test_deep_copies_share_nothing():
    model = prepared(Text(), sequences())
    other, x = copy.deepcopy(model), sequences()
    wanted = model(x)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    testing.assert_equal(model(x), wanted)
    fast = convert(model)
    testing.assert_equal(copy.deepcopy(fast)(x), fast(x))


# --- folding ---


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_norms_behind_transposed_convolutions_fold_without_a_rounding(groups):
    model = nn.Sequential(nn.ConvTranspose2d(4, 8, 3, 2, groups=groups), nn.BatchNorm2d(8))
    model = prepared(model, images())
    unfolded = convert(nn.Sequential(model[0]))[0]
    fast = convert(model)
    norm = model[1]
    factor = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
    wanted = unfolded.packed().dequantize() * factor.view(-1, 1, 1, 1)
    torch.testing.assert_close(fast[0].packed().dequantize(), wanted, rtol=1e-6, atol=0)
    assert isinstance(fast[1], nn.Identity)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_float_layers_fold_too(groups, bias):
    model = nn.Sequential(
        nn.ConvTranspose2d(4, 6, 3, groups=groups, bias=bias),
        nn.BatchNorm2d(6),
        nn.Flatten(2),
        nn.Conv1d(6, 4, 3, bias=bias),
        nn.BatchNorm1d(4),
    )
    x = images()
    with torch.no_grad():
        fast = convert(settle(model))
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)
    assert isinstance(fast[1], nn.Identity) and isinstance(fast[4], nn.Identity)


def test_float_layers_that_got_a_bias_load(tmp_path):
    def make():
        return nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6))

    fast, x = convert(settle(make())), images()
    save(fast, tmp_path / "m")
    again = load(tmp_path / "m", make()).eval()
    testing.assert_equal(again(x), fast(x))


def test_batch_norm_1d_folds_where_it_normalises_the_channels():
    """Behind a Conv1d on `[C, L]` it normalises L, where that is as long as its features."""
    model = nn.Sequential(nn.Conv1d(4, 6, 3, padding=1), nn.BatchNorm1d(6)).eval()
    assert batch_norms(model)[0] == {"0": "1"}
    model = prepared(model, torch.randn(4, 6))
    assert batch_norms(model)[0] == {}
    agree(model, torch.randn(4, 6))
    model(torch.randn(2, 4, 6))
    assert batch_norms(model)[0] == {"0": "1"}


def test_attention_does_not_keep_the_rest_from_folding():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv1d(4, 8, 3, padding=1), nn.BatchNorm1d(8)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            x = torch.relu(self.norm(self.conv(x))).transpose(1, 2)
            return self.attention(x, x, x, need_weights=False)[0]

    x = torch.randn(3, 4, 7)
    fast = agree(prepared(Mixed(), x), x)
    assert isinstance(fast.norm, nn.Identity) and not explain(fast).notes


# --- transposed convolutions: outputs first, whatever torch's order ---


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_axis_0_is_the_output_channel_and_nm_runs_along_inputs(groups):
    layer = nn.ConvTranspose2d(16, 8, 3, groups=groups)
    plan = Layer(weight=Quant(axis=0), sparsity=NM(2, 4))
    prepare(layer, Plan({"*": plan}))
    kinds = [type(t) for t in weight_transforms(layer)]
    assert kinds == [SwapChannels, Mask, FakeQuantize, SwapChannels]
    weight = outputs_first(layer, original_weight(layer)).detach()
    assert weight.shape == (8, 16 // groups, 3, 3)
    kept = torch.where(sparse.nm_mask(weight), weight, 0.0)
    scale = kept.abs().amax((1, 2, 3)) / 127
    wanted = ops.fake_quantize(kept, scale, None, -127, 127, 0)
    testing.assert_equal(outputs_first(layer, layer.weight.detach()).contiguous(), wanted)
    assert layer.weight.shape == (16, 8 // groups, 3, 3)
    assert transform_of(layer, FakeQuantize).scale.shape == (8,)


def test_preparing_again_keeps_the_order_of_transforms():
    layer = nn.ConvTranspose2d(8, 6, 3)
    prepare(layer, Plan({"*": Layer(input=Quant())}))
    assert weight_transforms(layer) == []
    prepare(layer, Plan({"*": Layer(weight=Quant(axis=0))}))
    prepare(layer, Plan({"*": Layer(sparsity=Unstructured(0.5))}))
    kinds = [type(t) for t in weight_transforms(layer)]
    assert kinds == [SwapChannels, Mask, FakeQuantize, SwapChannels]
    assert float((layer.weight == 0).float().mean()) >= 0.5


@pytest.mark.parametrize("groups", [1, 2])
def test_pruning_schedules_rank_transposed_convolutions(groups):
    model = nn.Sequential(nn.ConvTranspose2d(8, 6, 3, groups=groups), nn.Conv2d(6, 4, 3))
    prepare(model, Plan({"*": Layer(sparsity=Unstructured(0.5))}))
    schedule = PruningSchedule(model, steps=2)
    with torch.no_grad():
        original_weight(model[0]).normal_()  # trained on since
    while not schedule.done:
        schedule.step()
    (mask, weight), _ = masks_of(model)
    assert weight is original_weight(model[0])
    weight = mask.ordered(weight.detach())
    assert mask.mask.shape == weight.shape
    dropped, kept = weight[~mask.mask].abs().max(), weight[mask.mask].abs().min()
    assert float(dropped) <= float(kept)
    assert schedule.sparsity == pytest.approx(0.5, abs=0.01)


def test_zeros_stay_zeros_through_mask_fold_and_rounding():
    model = nn.Sequential(nn.ConvTranspose2d(8, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU())
    plan = Layer(weight=Quant(axis=0), input=Quant(), sparsity=NM(2, 4))
    x = torch.randn(2, 8, 4, 4)
    model = prepared(model, x, plan)
    fast = agree(model, x)
    dropped = ~transform_of(model[0], Mask).mask
    assert bool((fast[0].packed().dequantize()[dropped] == 0).all())
    fast[0].use("int8 2:4")
    assert rows(fast)["0"].kernel.startswith("int8 2:4") and rows(fast)["0"].sparsity >= 0.5


def test_2_4_of_one_dimension_is_saved_as_such(tmp_path):
    plan = Layer(weight=Quant(axis=0), input=Quant(), sparsity=NM(2, 4))
    x, start = torch.randn(2, 16, 9), nn.Sequential(nn.Conv1d(16, 32, 3))
    fast = convert(prepared(copy.deepcopy(start), x, plan))
    save(fast, tmp_path / "m")
    assert (tmp_path / "m").stat().st_size < 32 * 16 * 3 * 0.7 + 4000
    again = load(tmp_path / "m", start)
    testing.assert_equal(again[0].weight_values, fast[0].weight_values)


# --- embeddings ---


def test_embeddings_follow_the_plan_without_their_input():
    model = prepared(Text(), sequences())
    assert not hasattr(model.tokens, "input_quantizer")
    assert "its input are indices: not quantised" in rows(model)["tokens"].note
    fast = convert(model)
    assert isinstance(fast.tokens, SparseQuantEmbedding) and fast.tokens.input_spec is None
    row = rows(fast)["tokens"]
    assert row.kernel == "int8 rows" and row.kind == "SparseQuantEmbedding"
    assert row.note == "weight s8; only the rows asked for are dequantised"


def test_the_padding_row_stays_zero_and_gets_no_gradient():
    model = prepare(Text(), Plan({"*": BOTH})).train()
    model(torch.zeros(2, 9, dtype=torch.int64)).sum().backward()
    assert not original_weight(model.tokens).grad[0].any()
    fast = convert(model.eval())
    testing.assert_equal(fast.tokens(torch.tensor([0])), torch.zeros(1, 16))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"max_norm": 1.0}, "float: max_norm rescales the weight in place, got 1.0"),
        ({"sparse": True}, "float: sparse=True: a quantised weight has no sparse gradient"),
    ],
)
def test_embeddings_that_cannot_be_served_say_why(options, reason):
    model = nn.Sequential(nn.Embedding(9, 8, **options), nn.Linear(8, 4)).eval()
    x = torch.randint(9, (5,))
    calibrate(prepare(model, Plan({"*": BOTH})), [x])
    assert weight_transforms(model[0]) == []
    assert rows(model)["0"].note == reason
    fast = agree(model, x)
    assert type(fast[0]) is nn.Embedding and rows(fast)["0"].note == reason
    assert isinstance(fast[1], SparseQuantLinear)


def test_tables_are_no_products_for_nm():
    model = prepare(
        nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 4)),
        Plan({"*": Layer(weight=Quant(axis=0), sparsity=NM(2, 4))}),
    )
    assert "dense: 2:4 is for products, and this is a table" in rows(model)["0"].note
    assert [type(t) for t in weight_transforms(model[0])] == [FakeQuantize]
    assert [type(t) for t in weight_transforms(model[1])] == [Mask, FakeQuantize]


def test_weights_that_are_tied_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.head = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
            self.head.weight = self.tokens.weight

        def forward(self, x):
            return self.head(torch.tanh(self.tokens(x)))

    x = torch.randint(20, (4, 5))
    model = prepared(Tied(), x)
    assert original_weight(model.tokens) is original_weight(model.head)
    agree(model, x)


# --- attention ---

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "out_proj"]


def test_projections_are_listed_alike_before_and_after():
    model = Text()
    names = list(layers_of(model))
    wanted = [f"encoder.layers.{i}.self_attn.{p}" for i in (0, 1) for p in PROJECTIONS]
    assert [name for name in names if "self_attn" in name] == wanted
    before = rows(model)
    assert before[wanted[0]].note == "float: not in the plan"
    assert before[wanted[0]].kind == before[wanted[3]].kind == "Linear"
    prepare(model, Plan({"*": BOTH}))
    assert list(layers_of(model)) == names == list(rows(model))
    assert list(rows(convert(calibrate(model, [sequences()])))) == names


@pytest.mark.parametrize(
    ("pattern", "count"),
    [("*.out_proj", 2), ("*.1.self_attn.q_proj", 1), ("*self_attn*", 8), ("*", 15)],
)
def test_patterns_name_projections(pattern, count):
    x = sequences()
    model = prepared(Text(), x, Plan({pattern: BOTH}))
    assert len(integer(agree(model, x))) == count
    kinds = [type(layer.self_attn) for layer in model.encoder.layers]
    if pattern.startswith("*.1."):
        assert kinds == [nn.MultiheadAttention, MultiheadAttention]
    else:
        assert kinds == [MultiheadAttention] * 2


def test_attention_that_the_plan_does_not_reach_stays_torchs():
    model = prepared(Text(), sequences(), Plan({"*": BOTH, "*self_attn*": None}))
    kinds = {type(layer.self_attn) for layer in model.encoder.layers}
    assert kinds == {nn.MultiheadAttention}
    fast = agree(model, sequences())
    assert rows(fast)["encoder.layers.0.self_attn.q_proj"].note == "float: not in the plan"
    with pytest.raises(
        ValueError, match=r"self_attn\.in_proj' matches no layer.*self_attn\.q_proj"
    ):
        prepare(Text(), Plan({"*self_attn.in_proj": BOTH}))


def test_a_refused_plan_leaves_attention_alone():
    model = Text()
    with pytest.raises(ValueError, match=r"q_proj: group_size must divide the 16 inputs"):
        prepare(model, Plan({"*self_attn*": Layer(weight=Quant(group_size=5))}))
    assert type(model.encoder.layers[0].self_attn) is nn.MultiheadAttention


def test_a_single_attention_is_a_model_too():
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    batch = dict.fromkeys(("query", "key", "value"), torch.randn(2, 3, 8))
    calibrate(prepare(attention, Plan({"*": BOTH})), [batch])
    assert isinstance(attention, MultiheadAttention)
    assert list(layers_of(attention)) == PROJECTIONS
    fast = convert(attention)
    y, weights = fast(**batch)
    torch.testing.assert_close(y, attention(**batch)[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weights, attention(**batch)[1], rtol=1e-4, atol=1e-5)


def test_a_subclass_of_attention_is_left_alone():
    class Own(nn.MultiheadAttention):
        def forward(self, *args, **options):
            return super().forward(*args, **options)

    model = nn.ModuleDict({"attention": Own(8, 2), "fc": nn.Linear(8, 4)})
    assert list(layers_of(model)) == ["fc"]
    prepare(model, Plan({"*": BOTH}))
    assert type(model["attention"]) is Own


@pytest.mark.parametrize("scheme", [BOTH, Layer(weight=Quant(axis=0))], ids=["both", "weight"])
@pytest.mark.parametrize("attention", [True, False])
def test_padding_masks_in_eval(scheme, attention):
    """torch's encoder would make nested tensors of them, which no layer of ours takes."""
    model, x = Text(), sequences()
    plan = {"*": scheme} if attention else {"*": scheme, "*self_attn*": None}
    padding = torch.arange(9) >= torch.tensor([[9], [4], [2], [7], [9], [1]])
    model = calibrate(prepare(model.eval(), Plan(plan)), [{"x": x, "padding": padding}])
    assert not model.encoder.use_nested_tensor
    with torch.no_grad():
        wanted, got = model(x, padding), convert(model)(x, padding)
        testing.assert_within_lsb(got, wanted, (wanted.max() - wanted.min()) / 255)
    gradients = model.train()(x, padding).sum()
    gradients.backward()


def test_a_decoder():
    class Seq2Seq(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerDecoderLayer(16, 2, 24, dropout=0.0)
            self.decoder = nn.TransformerDecoder(layer, 2)

        def forward(self, x):
            causal = nn.Transformer.generate_square_subsequent_mask(len(x))
            memory = x.flip(0)
            return self.decoder(x, memory, tgt_mask=causal, tgt_is_causal=True)

    x = torch.randn(5, 3, 16)
    fast = agree(prepared(Seq2Seq(), x), x)
    assert len(integer(fast)) == 2 * (4 + 4 + 2)


def test_a_file_for_another_model_is_refused(tmp_path):
    fast = convert(prepared(Text(), sequences()))
    save(fast, tmp_path / "m")
    other = Text()
    other.encoder.layers[0].self_attn = nn.Identity()
    with pytest.raises(ValueError, match="does not fit this model"):
        load(tmp_path / "m", other)
    fast = convert(prepared(nn.Sequential(nn.Embedding(8, 8)), torch.arange(8)))
    save(fast, tmp_path / "m")
    with pytest.raises(ValueError, match=r"0 must be an nn\.Embedding, got Linear"):
        load(tmp_path / "m", nn.Sequential(nn.Linear(8, 8, bias=False)))


def test_files_of_before_load(tmp_path, monkeypatch):
    """They know no attentions and no kinds."""
    from sparseq.flow import storage

    structure = storage._structure

    def old(model):
        header = structure(model)
        del header["attentions"]
        for entry in header["integer"].values():
            del entry["kind"]
        return header

    x, start = torch.randn(2, 6), nn.Sequential(nn.Linear(6, 4))
    fast = convert(prepared(copy.deepcopy(start), x))
    monkeypatch.setattr(storage, "_structure", old)
    save(fast, tmp_path / "old")
    testing.assert_equal(load(tmp_path / "old", start)(x), fast(x))
