"""What the weight-only products refuse, and in which words."""

import pytest
import torch

from sparseq import ops

raw = torch.ops.sparseq
x = torch.randn(2, 10)
packed, scale = torch.zeros(3, 5, dtype=torch.uint8), torch.ones(3, 2)
values, indices = torch.ones(3, 6), torch.zeros(3, 2, dtype=torch.uint8)
zero = torch.zeros(3, 2, dtype=torch.int32)

INT4_ERRORS = [
    (([1.0], packed, scale), TypeError, "x must be a tensor, got list"),
    ((x.double(), packed, scale), TypeError, "x must be float32, float16 or bfloat16, got float64"),
    ((x[0, 0], packed, scale), ValueError, "x must have at least one dimension, got a scalar"),
    ((x, None, scale), TypeError, "packed must be a tensor, got NoneType"),
    ((x, packed.char(), scale), TypeError, "packed must be uint8, got int8"),
    ((x, packed[0], scale), ValueError, r"packed must have two dimensions, got shape \(5,\)"),
    ((x, packed[:, :4], scale), ValueError, r"packed must have shape \(3, 5\), got .*\(3, 4\)"),
    ((x[:, :8], packed, scale), ValueError, r"packed must have shape \(3, 4\), got .*\(3, 5\)"),
    ((x, packed, 0.1), TypeError, "scale must be a tensor, got float"),
    ((x, packed, scale.double()), TypeError, "scale must be float32, got float64"),
    ((x, packed, scale[:, 0]), ValueError, r"scale must be \[N, G\] .* K = 10, got shape \(3,\)"),
    ((x, packed, torch.ones(3, 3)), ValueError, r"scale must .* K = 10, got shape \(3, 3\)"),
    ((x, packed, torch.ones(3, 0)), ValueError, r"scale must .* K = 10, got shape \(3, 0\)"),
    ((x, packed, scale[:2]), ValueError, r"scale must have shape \(3, 2\), got shape \(2, 2\)"),
    ((x, packed, scale, 1), TypeError, "zero_point must be a tensor, got int"),
    ((x, packed, scale, zero.long()), TypeError, "zero_point must be int32, got int64"),
    ((x, packed, scale, zero[:, :1]), ValueError, r"zero_point must have shape \(3, 2\), got"),
    ((x, packed, scale, None, scale), ValueError, r"bias must have shape \(3,\), got .*\(3, 2\)"),
    ((x, packed, scale, None, zero[:, 0]), TypeError, "bias must be float32, got int32"),
]
SPARSE_ERRORS = [
    ((x.long(), values, indices), TypeError, "x must be float32, float16 or bfloat16, got int64"),
    ((x[0, 0], values, indices), ValueError, "x must have at least one dimension, got a scalar"),
    ((x, values.double(), indices), TypeError, "values must be float32, .* got float64"),
    ((x, values[0], indices), ValueError, r"values must have two dimensions, got shape \(6,\)"),
    ((x, values[:, :4], indices), ValueError, r"values must have shape \(3, 6\), got .*\(3, 4\)"),
    ((x[:, :8], values, indices), ValueError, r"values must have shape \(3, 4\), got .*\(3, 6\)"),
    ((x, values, indices.int()), TypeError, "indices must be uint8, got int32"),
    ((x, values, indices[:2]), ValueError, r"indices must have shape \(3, 2\), got .*\(2, 2\)"),
    ((x, values, indices[:, :1]), ValueError, r"indices must have shape \(3, 2\), got .*\(3, 1\)"),
    ((x, values, None), TypeError, "indices must be a tensor, got NoneType"),
    ((x, values, indices, values[:, 0].double()), TypeError, "bias must be float32, got float64"),
    ((x, values, indices, values[:2, 0]), ValueError, r"bias must have shape \(3,\), got"),
    ((x, values, indices, None, 3), TypeError, "tiles must be a tensor, got int"),
]
TILES_ERRORS = [
    ((None, indices, 10), TypeError, "values must be a tensor, got NoneType"),
    ((values.char(), indices, 10), TypeError, "values must be float32, float16 or .*, got int8"),
    ((values[0], indices, 10), ValueError, r"values must have two dimensions, got shape \(6,\)"),
    ((values, indices, -1), ValueError, "columns must be at least 0, got -1"),
    ((values, indices, 13), ValueError, r"values must have shape \(3, 8\), got shape \(3, 6\)"),
    ((values, indices.char(), 10), TypeError, "indices must be uint8, got int8"),
    ((values, indices[:, :1], 10), ValueError, r"indices must have shape \(3, 2\), got"),
]


@pytest.mark.parametrize(
    ("op", "arguments", "error", "text"),
    [("int4_linear", *row) for row in INT4_ERRORS]
    + [("linear_24", *row) for row in SPARSE_ERRORS]
    + [("tiles_24", *row) for row in TILES_ERRORS],
)
def test_errors(op, arguments, error, text):
    with pytest.raises(error, match=f"^{op}: {text}"):
        getattr(ops, op)(*arguments)
    numbers = (int,) if op == "tiles_24" else ()
    if not all(a is None or isinstance(a, (torch.Tensor, *numbers)) for a in arguments):
        return
    if any(a is None for a in arguments[:3]):
        return
    needed = {"int4_linear": 5, "linear_24": 4, "tiles_24": 3}[op]
    filled = (*arguments, *[None] * (needed - len(arguments)))
    with pytest.raises(RuntimeError, match=f"{op}: "):
        getattr(raw, op)(*filled)
