"""SparseQuantEmbedding: rows looked up, then dequantised."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparseq import Quant, testing
from sparseq.nn import SparseQuantEmbedding

SCHEMES = {
    "per row": Quant(axis=0),
    "per tensor": Quant(),
    "asymmetric": Quant(axis=0, symmetric=False),
    "unsigned": Quant(axis=0, symmetric=False, signed=False),
    "4 bits": Quant(bits=4, axis=0),
    "groups": Quant(bits=4, group_size=4),
    "asymmetric groups": Quant(bits=4, group_size=4, symmetric=False),
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", [torch.int64, torch.int32])
def test_it_gives_the_rows_of_the_dequantised_weight(scheme, kind):
    embedding = nn.Embedding(11, 12)
    layer = SparseQuantEmbedding.from_float(embedding, SCHEMES[scheme])
    whole = layer.packed().dequantize()
    for shape in ((), (5,), (2, 3), (0,), (2, 0, 3)):
        x = torch.randint(11, shape, dtype=kind)
        got = layer(x)
        assert got.shape == embedding(x).shape
        testing.assert_equal(got, whole[x.long()])
    step = layer.weight_scale.max() / 2 * (1 + 1e-5)
    assert float((whole - embedding.weight.detach()).abs().max()) <= float(step)
    assert layer.kernel == ("int4 rows" if SCHEMES[scheme].bits == 4 else "int8 rows")


def test_an_input_scheme_is_of_no_use_to_indices():
    layer = SparseQuantEmbedding.from_float(nn.Embedding(5, 4), input=Quant())
    assert layer.input_spec is None and not layer.integer


def test_padding_stays_zero():
    embedding = nn.Embedding(5, 4, padding_idx=2)
    for symmetric in (True, False):
        layer = SparseQuantEmbedding.from_float(embedding, Quant(axis=0, symmetric=symmetric))
        testing.assert_equal(layer(torch.tensor([2])), torch.zeros(1, 4))
        assert "padding_idx=2" in str(layer)


@pytest.mark.parametrize("index", [-1, 5])
def test_out_of_range_is_torchs_error(index):
    embedding = nn.Embedding(5, 4)
    layer, x = SparseQuantEmbedding.from_float(embedding), torch.tensor([0, index])
    for module in (embedding, layer):
        with pytest.raises(IndexError, match="index out of range"):
            module(x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_dtype_follows_the_model(dtype):
    embedding, x = nn.Embedding(5, 4), torch.tensor([[0, 3]])
    layer = SparseQuantEmbedding.from_float(embedding)
    wanted = layer(x)
    assert wanted.dtype == torch.float32
    layer.to(dtype)
    assert layer.weight_scale.dtype == torch.float32
    testing.assert_equal(layer(x), wanted.to(dtype))
    of_half = SparseQuantEmbedding.from_float(embedding.to(dtype))
    assert of_half(x).dtype == dtype
    assert layer.float()(x).dtype == torch.float32


@pytest.mark.parametrize(
    ("embedding", "text"),
    [
        (nn.Embedding(5, 4, max_norm=1.0), "max_norm rescales the weight in place, got 1.0"),
        (nn.Embedding(5, 4, sparse=True), "sparse=True: a quantised weight has no sparse gradient"),
    ],
)
def test_what_it_refuses(embedding, text):
    with pytest.raises(ValueError, match=text):
        SparseQuantEmbedding.from_float(embedding)


def test_there_is_one_kernel():
    layer = SparseQuantEmbedding.from_float(nn.Embedding(5, 4))
    with pytest.raises(ValueError, match="kernel must be one that this layer has, got 'int8'"):
        layer.use("int8")
    layer.settle(3)
    assert layer.kernel == "int8 rows"
