import re
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

from sparseq import ops, testing
from sparseq.sparse import from_torch_24, semi_structured, to_torch_24

DTYPES = (torch.int8, torch.float16, torch.bfloat16)
UNITS = {torch.int8: (16, 64), torch.float16: (32, 32), torch.bfloat16: (32, 32)}


def weight_24(rows, columns, dtype, generator=None, density=1.0):
    weight = torch.randint(-127, 128, (rows, columns), generator=generator).float()
    weight *= ops.mask_24(torch.rand(rows, columns, generator=generator))
    weight *= torch.rand(rows, columns, generator=generator) < density
    return (weight + 0.0).to(dtype)  # torch keeps the sign of a zero that it stores


@given(
    st.integers(1, 4),
    st.integers(1, 5),
    st.sampled_from(DTYPES),
    st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    st.integers(0, 2**31),
)
@settings(max_examples=150)
def test_equals_torch_both_ways(rows, columns, dtype, density, seed):
    unit = UNITS[dtype]
    generator = torch.Generator().manual_seed(seed)
    weight = weight_24(rows * unit[0], columns * unit[1], dtype, generator, density)
    values, indices = ops.pack_24(weight)
    packed, meta = to_torch_24(values, indices)
    for got, wanted in zip(
        (packed, meta), sparse_semi_structured_from_dense_cutlass(weight), strict=True
    ):
        testing.assert_equal(got, wanted)
        assert got.is_contiguous()
    testing.assert_equal(sparse_semi_structured_to_dense_cutlass(packed, meta), weight)
    for got, wanted in zip(from_torch_24(packed, meta), (values, indices), strict=True):
        testing.assert_equal(got, wanted)
        assert got.is_contiguous()


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_strides(dtype):
    weight = weight_24(64, 128, dtype)
    values, indices = ops.pack_24(weight)
    packed, meta = to_torch_24(values.T.contiguous().T, indices.T.contiguous().T)
    testing.assert_equal(sparse_semi_structured_to_dense_cutlass(packed, meta), weight)
    again = from_torch_24(packed.T.contiguous().T, meta.T.contiguous().T)
    testing.assert_equal(ops.unpack_24(*again, 128), weight)


@pytest.mark.parametrize("dtype", DTYPES)
def test_makes_the_tensor_of_torch(dtype):
    weight = weight_24(64, 256, dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The PyTorch API of SparseSemiStructuredTensor")
        tensor = semi_structured(*ops.pack_24(weight))
    assert isinstance(tensor, torch.sparse.SparseSemiStructuredTensorCUTLASS)
    assert tensor.shape == weight.shape and tensor.dtype == dtype
    testing.assert_equal(tensor.to_dense(), weight)


def byte(*shape):
    return torch.zeros(shape, dtype=torch.uint8)


def zeros(dtype, *shape):
    return torch.zeros(shape, dtype=dtype)


int8, half, int16, int32 = torch.int8, torch.float16, torch.int16, torch.int32
ERRORS = [
    (to_torch_24, (1, byte(16, 8)), TypeError, "values must be a tensor, got int"),
    (
        to_torch_24,
        (zeros(torch.float32, 32, 32), byte(32, 8)),
        TypeError,
        "values must be int8, float16 or bfloat16, got float32",
    ),
    (
        to_torch_24,
        (zeros(int8, 16, 32), zeros(int8, 16, 8)),
        TypeError,
        "indices must be uint8, got torch.int8",
    ),
    (to_torch_24, (zeros(int8, 16, 32), 3), TypeError, "indices must be uint8, got int"),
    (
        to_torch_24,
        (zeros(int8, 15, 32), byte(15, 8)),
        ValueError,
        "values must be [16 * n, 32 * k] for int8, got shape (15, 32)",
    ),
    (
        to_torch_24,
        (zeros(half, 32, 24), byte(32, 6)),
        ValueError,
        "values must be [32 * n, 16 * k] for float16, got shape (32, 24)",
    ),
    (to_torch_24, (zeros(int8, 16, 1, 1, 32), byte(16, 1, 1, 8)), ValueError, "got shape (16, 1"),
    (
        to_torch_24,
        (zeros(int8, 16, 32), byte(16, 7)),
        ValueError,
        "indices must have shape (16, 8), got (16, 7)",
    ),
    (
        from_torch_24,
        (zeros(int8, 16, 32), zeros(int16, 16, 4)),
        TypeError,
        "meta must be int32 for int8, got torch.int16",
    ),
    (
        from_torch_24,
        (zeros(half, 32, 16), zeros(int32, 32, 1)),
        TypeError,
        "meta must be int16 for float16, got torch.int32",
    ),
    (
        from_torch_24,
        (zeros(int8, 16, 32), zeros(int32, 16, 3)),
        ValueError,
        "meta must have shape (16, 2), got (16, 3)",
    ),
    (from_torch_24, (zeros(int8, 8, 32), zeros(int32, 8, 2)), ValueError, "got shape (8, 32)"),
    (
        semi_structured,
        (zeros(int8, 16, 32), byte(16, 8)),
        ValueError,
        "values must have a multiple of 64 columns and not be empty, got shape (16, 32)",
    ),
]


@pytest.mark.parametrize(("function", "arguments", "error", "text"), ERRORS)
def test_errors(function, arguments, error, text):
    with pytest.raises(error, match=rf"^{function.__name__}: .*{re.escape(text)}"):
        function(*arguments)
