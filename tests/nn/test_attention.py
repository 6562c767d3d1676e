"""Our attention against torch's: the same results, with projections that are layers."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

from sparseq.nn import MultiheadAttention, projections, take_over

KINDS = {
    "plain": {},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False, "batch_first": True},
    "other key and value": {"kdim": 6, "vdim": 10},
    "other key and value, no bias": {"kdim": 6, "vdim": 10, "bias": False, "batch_first": True},
    "learned pair": {"add_bias_kv": True},
    "zero pair": {"add_zero_attn": True, "batch_first": True},
    "both pairs": {"add_bias_kv": True, "add_zero_attn": True, "batch_first": True},
}
N, L, S, E, HEADS = 3, 5, 7, 12, 3


def torchs(**options):
    module = nn.MultiheadAttention(E, HEADS, **options)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.4)
    return module.eval()


def inputs(module, batched=True, keys=S):
    shapes = [(L, module.embed_dim), (keys, module.kdim), (keys, module.vdim)]
    made = [torch.randn(N, *shape) if batched else torch.randn(shape) for shape in shapes]
    return [x.transpose(0, 1) for x in made] if batched and not module.batch_first else made


def masks(kind):
    floating, which = kind.startswith("float"), kind.split()[-1]
    padding = torch.arange(S) >= torch.tensor([[S], [4], [2]])
    pairs = torch.rand(L, S) < 0.3
    apart = torch.rand(N * HEADS, L, S) < 0.3
    pairs[:, 0] = apart[:, :, 0] = False  # something is left to attend to
    found = {
        "none": {},
        "padding": {"key_padding_mask": padding},
        "pairs": {"attn_mask": pairs},
        "apart": {"attn_mask": apart},
        "both": {"attn_mask": pairs, "key_padding_mask": padding},
    }[which]
    if floating:
        return {name: torch.where(mask, -2.5, 0.3) for name, mask in found.items()}
    return found


MASKS = ["none", "bool padding", "bool pairs", "bool apart", "bool both"]
MASKS += ["float padding", "float pairs", "float apart", "float both"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mask", MASKS)
def test_results_are_torchs(kind, mask):
    wanted = torchs(**KINDS[kind])
    ours = take_over(copy.deepcopy(wanted))
    assert isinstance(ours, MultiheadAttention)
    x = inputs(wanted)
    for needed, averaged in ((False, True), (True, True), (True, False)):
        options = {"need_weights": needed, "average_attn_weights": averaged, **masks(mask)}
        y, weights = wanted(*x, **options)
        got, got_weights = ours(*x, **options)
        torch.testing.assert_close(got, y, rtol=1e-5, atol=1e-5)
        if needed:
            torch.testing.assert_close(got_weights, weights, rtol=1e-5, atol=1e-6)
        else:
            assert weights is None and got_weights is None


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_batch(kind):
    wanted = torchs(**KINDS[kind])
    ours, x = take_over(copy.deepcopy(wanted)), inputs(wanted, batched=False)
    padding = torch.arange(S) >= 5
    for needed in (False, True):
        y, weights = wanted(*x, need_weights=needed, key_padding_mask=padding)
        got, got_weights = ours(*x, need_weights=needed, key_padding_mask=padding)
        torch.testing.assert_close(got, y, rtol=1e-5, atol=1e-5)
        if needed:
            torch.testing.assert_close(got_weights, weights, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("needed", [False, True])
def test_the_causal_hint(batch_first, needed):
    wanted = torchs(batch_first=batch_first)
    ours, x = take_over(copy.deepcopy(wanted)), inputs(wanted)[0]
    mask = nn.Transformer.generate_square_subsequent_mask(L)
    options = {"attn_mask": mask, "is_causal": True, "need_weights": needed}
    y = wanted(x, x, x, **options)[0]
    torch.testing.assert_close(ours(x, x, x, **options)[0], y, rtol=1e-5, atol=1e-5)
    padding = torch.arange(L) >= torch.tensor([[L], [4], [2]])
    y = wanted(x, x, x, key_padding_mask=torch.where(padding, -torch.inf, 0.0), **options)[0]
    got = ours(x, x, x, key_padding_mask=padding, **options)[0]
    torch.testing.assert_close(got, y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("needed", [False, True])
def test_dropout_in_training_only(needed):
    ours = take_over(torchs(dropout=0.5, batch_first=True))
    x = inputs(ours)
    torch.testing.assert_close(ours(*x, need_weights=needed)[0], ours(*x)[0], rtol=1e-5, atol=1e-5)
    ours.train()
    y, weights = ours(*x, need_weights=needed)
    assert not torch.allclose(y, ours(*x, need_weights=needed)[0])
    if needed:
        ours.dropout = 1.0
        weights = ours(*x)[1]
        assert not weights.any()


def test_gradients_are_torchs():
    wanted = torchs(batch_first=True).train()
    ours, x = take_over(copy.deepcopy(wanted)), inputs(wanted)
    wanted(*x, need_weights=False)[0].square().sum().backward()
    ours(*x, need_weights=False)[0].square().sum().backward()
    packed = [*wanted.in_proj_weight.grad.chunk(3), wanted.out_proj.weight.grad]
    biases = [*wanted.in_proj_bias.grad.chunk(3), wanted.out_proj.bias.grad]
    layers = (ours.q_proj, ours.k_proj, ours.v_proj, ours.out_proj)
    for layer, weight, bias in zip(layers, packed, biases, strict=True):
        torch.testing.assert_close(layer.weight.grad, weight, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(layer.bias.grad, bias, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_taking_over_keeps_the_object_its_settings_and_hooks(kind):
    module, seen = torchs(**KINDS[kind]), []
    handle = module.register_forward_hook(lambda *_: seen.append(1))
    for parameter in module.parameters():
        parameter.requires_grad = False
    out, count = module.out_proj.weight, sum(p.numel() for p in module.parameters())
    state = {key: getattr(module, key) for key in ("dropout", "batch_first", "kdim", "vdim")}
    ours = take_over(module)
    assert ours is module and not ours.training and not ours.q_proj.training
    assert {key: getattr(ours, key) for key in state} == state
    assert ours.out_proj.weight is out and type(ours.out_proj) is nn.Linear
    assert sum(p.numel() for p in ours.parameters()) == count
    assert not any(p.requires_grad for p in ours.parameters())
    ours(*inputs(ours))
    handle.remove()
    ours(*inputs(ours))
    assert seen == [1]
    copied = copy.deepcopy(ours)
    copied.load_state_dict(ours.state_dict())
    assert list(ours.state_dict()) == list(MultiheadAttention(E, HEADS, **KINDS[kind]).state_dict())


def test_projections_show_the_parameters_themselves():
    module = torchs()
    shown = projections(module)
    assert list(shown) == ["q_proj", "k_proj", "v_proj", "out_proj"]
    with torch.no_grad():
        shown["k_proj"].weight.fill_(3)
    assert bool((module.in_proj_weight[E : 2 * E] == 3).all())
    assert not bool((module.in_proj_weight[:E] == 3).any())


def test_made_by_its_own_name():
    ours = MultiheadAttention(E, HEADS, dropout=0.1, batch_first=True, kdim=6)
    assert ours.k_proj.weight.shape == (E, 6) and ours.training and ours.dropout == 0.1
    y, weights = ours(*inputs(ours))
    assert y.shape == (N, L, E) and weights.shape == (N, L, S)
    assert "embed_dim=12, num_heads=3" in str(ours)


def test_an_empty_batch():
    ours = take_over(torchs(batch_first=True))
    x = torch.randn(0, L, E)
    mask = torch.zeros(0, L, L, dtype=torch.bool)
    for needed in (False, True):
        y = ours(x, x, x, need_weights=needed, attn_mask=mask)[0]
        assert y.shape == (0, L, E)


def case(**changes):
    return changes


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        (case(query=torch.randn(1, 2, 3, E)), ValueError, "query, key and value must have 3"),
        (case(value=torch.randn(N, S - 1, E)), ValueError, "key and value the same length"),
        (
            case(attn_mask=torch.zeros(L, S - 1)),
            ValueError,
            r"attn_mask must have shape \(5, 7\) or \(9, 5, 7\), got \(5, 6\)",
        ),
        (
            case(key_padding_mask=torch.zeros(N, S + 1)),
            ValueError,
            r"key_padding_mask must have shape \(3, 7\), got \(3, 8\)",
        ),
        (
            case(attn_mask=torch.zeros(L, S, dtype=torch.int64)),
            TypeError,
            "attn_mask must be bool or floating, got int64",
        ),
        (case(is_causal=True), RuntimeError, "is_causal must come with its attn_mask"),
    ],
)
def test_bad_arguments(changes, error, text):
    ours = take_over(torchs(batch_first=True))
    given = dict(zip(("query", "key", "value"), inputs(ours), strict=True))
    with pytest.raises(error, match=text):
        ours(**{**given, **changes})


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.parametrize(
    ("norm_first", "batch_first"), list(itertools.product((False, True), (False, True)))
)
def test_torchs_encoder_and_decoder_go_on(norm_first, batch_first):
    """In training and not, with and without gradients: their fused kernels stay out of it."""
    options = {"dim_feedforward": 24, "dropout": 0.0, "norm_first": norm_first}
    options["batch_first"] = batch_first
    wanted = nn.Transformer(E, 2, 2, 2, **options)
    ours = copy.deepcopy(wanted)
    for module in list(ours.modules()):
        if type(module) is nn.MultiheadAttention:
            take_over(module)
    source, target = torch.randn(N, S, E), torch.randn(N, L, E)
    padding = torch.zeros(N, S, dtype=torch.bool)
    causal = nn.Transformer.generate_square_subsequent_mask(L, dtype=torch.float32)
    if not batch_first:
        source, target = source.transpose(0, 1), target.transpose(0, 1)
    for training in (True, False):
        wanted.train(training), ours.train(training)
        for gradients in (True, False):
            with torch.set_grad_enabled(gradients):
                for options in ({}, {"tgt_mask": causal, "tgt_is_causal": True}):
                    y = wanted(source, target, **options)
                    got = ours(source, target, **options)
                    torch.testing.assert_close(got, y, rtol=1e-4, atol=1e-5)
    y = wanted(source, target, memory_key_padding_mask=padding)
    got = ours(source, target, memory_key_padding_mask=padding)
    torch.testing.assert_close(got, y, rtol=1e-4, atol=1e-5)
