"""Attention as a step of programs: how its heads may be cut and joined, and what stays in torch."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from sparseq import explain
from sparseq.lower import layerwise
from tests.lower.lowering import Chain, assert_all_in_programs, lowered, ops_of, relative

WIDTH, HEADS = 24, 3
DEPTH = WIDTH // HEADS
sdpa = functional.scaled_dot_product_attention


def linear(inputs=WIDTH, outputs=WIDTH):
    return nn.Linear(inputs, outputs)


def chain(forward, **more):
    return Chain(forward, q=linear(), k=linear(), v=linear(), out=linear(), **more)


def fused(forward):
    return Chain(forward, qkv=linear(outputs=3 * WIDTH), out=linear())


def cut(x):
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def joined(y):
    return y.transpose(1, 2).flatten(2)


def plain(m, x, **more):
    return m.out(joined(sdpa(cut(m.q(x)), cut(m.k(x)), cut(m.v(x)), **more)))


def hugging(m, x):
    shape = x.shape[:-1]
    q, k, v = (part(x).view((*shape, -1, DEPTH)).transpose(1, 2) for part in (m.q, m.k, m.v))
    return m.out(sdpa(q, k, v).transpose(1, 2).reshape(*shape, -1).contiguous())


def spelled_out(m, x):
    n, length, _ = x.shape
    q, k, v = (
        part(x).reshape(n, length, HEADS, DEPTH).permute(0, 2, 1, 3) for part in (m.q, m.k, m.v)
    )
    weights = functional.dropout((q @ k.transpose(-2, -1) / 2).softmax(-1), 0.1, False)
    return m.out((weights @ v).transpose(1, 2).contiguous().view(n, length, WIDTH))


def scaled_before(m, x):
    q, k, v = (cut(part(x)) for part in (m.q, m.k, m.v))
    weights = torch.softmax(torch.matmul(q * DEPTH**-0.5, k.transpose(2, 3)), dim=-1)
    return m.out(joined(torch.matmul(weights, v)))


def timms(m, x):
    n, length, c = x.shape
    qkv = m.qkv(x).reshape(n, length, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    return m.out(sdpa(q, k, v, dropout_p=0.0).transpose(1, 2).reshape(n, length, c))


def chunked(m, x):
    q, k, v = m.qkv(x).chunk(3, dim=-1)
    return m.out(joined(sdpa(cut(q), cut(k), cut(v), scale=0.3)))


def split(m, x):
    q, k, v = m.qkv(x).split(WIDTH, 2)
    return m.out(joined(sdpa(cut(v), cut(q), cut(k), is_causal=True)))


def one_head(m, x):
    return m.out(sdpa(m.q(x), m.k(x), m.v(x)))


def one_head_spelled_out(m, x):
    return m.out(torch.bmm(torch.bmm(m.q(x), m.k(x).transpose(1, 2)).softmax(dim=2), m.v(x)))


def its_own_values(m, x):
    """What attention reads is float32, though a layer wants it on its grid."""
    v = m.v(x)
    return m.out(joined(sdpa(cut(m.q(x)), cut(m.k(x)), cut(v)))) + m.v2(v)


TAKEN = {
    "cut and joined": chain(plain),
    "causal": chain(lambda m, x: plain(m, x, is_causal=True)),
    "Hugging Face's": chain(hugging),
    "spelled out": chain(spelled_out),
    "scaled before": chain(scaled_before),
    "timm's": fused(timms),
    "chunks": fused(chunked),
    "splits": fused(split),
    "one head": chain(one_head),
    "one head, spelled out": chain(one_head_spelled_out),
    "values of a layer": chain(its_own_values, v2=linear()),
}


@pytest.mark.parametrize("name", TAKEN)
def test_heads_however_they_are_cut(name):
    x = torch.randn(2, 7, WIDTH)
    fast = lowered(TAKEN[name], x)
    assert_all_in_programs(fast)
    assert len(fast.assembled.programs) == 1 and ops_of(fast).count("attention") == 1
    by_layers = layerwise(fast)
    with torch.inference_mode():
        assert relative(fast(x), by_layers(x)) < 2e-3  # a value on the edge of a step may differ
        for shape in ((1, 7), (3, 7), (2, 11), (1, 1)):
            other = torch.randn(*shape, WIDTH)
            assert relative(fast(other), by_layers(other)) < 0.02, shape


class Cross(nn.Module):
    """Queries of few pixels, keys of many."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (linear() for _ in range(4))

    def forward(self, x):
        few = self.q(x[:, :3])
        return self.out(joined(sdpa(cut(few), cut(self.k(x)), cut(self.v(x)))))


def test_queries_and_keys_of_several_lengths():
    x = torch.randn(2, 9, WIDTH)
    fast = lowered(Cross(), x)
    assert ops_of(fast).count("attention") == 1
    with torch.inference_mode():
        assert relative(fast(x), layerwise(fast)(x)) < 2e-3


def test_torchs_module_in_the_networks_that_have_it():
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 32, batch_first=True, activation="gelu")
    fast = lowered(layer, torch.randn(2, 5, WIDTH))
    assert ops_of(fast).count("attention") == 1 and len(fast.assembled.programs) == 1


MASK = torch.zeros(7, 7).index_fill_(1, torch.tensor(3), -torch.inf)
LEFT = {
    "it has a mask": lambda m, x: plain(m, x, attn_mask=MASK),
    "it drops weights": lambda m, x: plain(m, x, dropout_p=0.5),
    "its scores are no product of queries and keys alone": lambda m, x: m.out(
        joined((cut(m.q(x)) @ cut(m.k(x)).mT + 1).softmax(-1) @ cut(m.v(x)))
    ),
    "its heads are not joined as rows": lambda m, x: m.out(
        sdpa(cut(m.q(x)), cut(m.k(x)), cut(m.v(x))).flatten(2).view(2, 7, WIDTH)
    ),
    "its heads are cut for one batch size": lambda m, x: m.out(
        joined(sdpa(m.q(x).view(2, 7, HEADS, DEPTH).transpose(1, 2), cut(m.k(x)), cut(m.v(x))))
    ),
    "its heads are no channels side by side": lambda m, x: m.out(
        joined(sdpa(*(p(x).unflatten(2, (-1, 3)).permute(0, 3, 1, 2) for p in (m.q, m.k, m.v))))
    ),
    "its softmax is over other than the keys": lambda m, x: m.out(
        joined((cut(m.q(x)) @ cut(m.k(x)).mT).softmax(-2) @ cut(m.v(x)))
    ),
    "a program has no such instruction": lambda m, x: m.out(
        joined((cut(m.q(x)) @ cut(m.k(x)).mT) @ cut(m.v(x)))
    ),
}  # fmt: skip


@pytest.mark.parametrize("reason", LEFT)
def test_what_stays_in_torch_says_why(reason):
    x = torch.randn(2, 7, WIDTH)
    fast = lowered(chain(LEFT[reason]), x)
    assert "attention" not in ops_of(fast) and reason in str(explain(fast))
    if reason != "it drops weights":
        with torch.inference_mode():
            assert torch.equal(fast(x), layerwise(fast)(x))


def test_weights_that_are_dropped_stay_in_torch():
    def forward(m, x):
        weights = (cut(m.q(x)) @ cut(m.k(x)).mT).softmax(-1)
        weights = functional.dropout(weights, training=True, p=0.5, inplace=False)
        return m.out(joined(weights @ cut(m.v(x))))

    assert "attention" not in ops_of(lowered(chain(forward), torch.randn(2, 7, WIDTH)))
