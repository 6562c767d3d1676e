import re

import pytest
import torch

from sparseq import ops, reference, sparse, testing

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
DTYPES = (torch.int8, *FLOATS)
SHAPES = [
    (3, 8),
    (5, 7),
    (1, 1),
    (4, 64),
    (3, 333),
    (40, 2050),
    (2, 5, 3, 3),
    (4, 16, 1, 1),
    (2, 8, 9, 9),
    (0, 4),
    (3, 0),
    (2, 0, 3, 3),
    (2, 4, 0, 3),
]
nan, inf = float("nan"), float("inf")
raw = torch.ops.sparseq


def dense(shape, dtype):
    """Many zeros of both signs, many equals, and what is not finite."""
    weight = torch.randn(shape) * 3
    if dtype == torch.int8:
        return weight.to(dtype)
    flat = weight.view(-1)
    for start, step, value in ((0, 3, 0.0), (1, 4, -1.0), (2, 5, -0.0), (3, 7, inf), (4, 9, nan)):
        flat[start::step] = value
    return weight.to(dtype)


def sparse_24(shape, dtype):
    weight = dense(shape, dtype)
    return torch.where(reference.mask_24(weight), weight, torch.zeros_like(weight))


def unsigned_zeros(x):
    return torch.where(x == 0, torch.zeros_like(x), x)


@pytest.mark.parametrize("shape", [*SHAPES, (3, 9, 5), (2, 8, 2, 3, 2)])
@pytest.mark.parametrize("dtype", FLOATS)
def test_mask_equals_reference(shape, dtype):
    for name, weight in testing.layouts(dense(shape, dtype)):
        mask = ops.mask_24(weight)
        testing.assert_equal(mask, reference.mask_24(weight), message=name)
        assert mask.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float64, *FLOATS])
def test_nm_mask_is_the_same_whoever_makes_it(dtype):
    weight = dense((6, 24, 3, 3), torch.float32).to(dtype)
    testing.assert_equal(sparse.nm_mask(weight), reference.mask_24(weight))
    testing.assert_equal(
        sparse.nm_mask(torch.tensor([[nan, -1.0, nan, nan, nan, -0.0]], dtype=dtype), 1, 3),
        torch.tensor([[False, True, False, False, False, True]]),
    )


def test_what_the_mask_keeps():
    weight = torch.tensor([[1, -3, 3, 3, nan, 0, -0.0, 2, nan, nan, nan]])
    kept = [0, 1, 1, 0, 0, 1, 0, 1, 1, 1, 0]
    assert ops.mask_24(weight)[0].int().tolist() == kept


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_pack_equals_reference_and_unpack_inverts_it(shape, dtype):
    for name, weight in testing.layouts(sparse_24(shape, dtype)):
        values, indices = ops.pack_24(weight)
        for got, wanted in zip((values, indices), reference.pack_24(weight), strict=True):
            testing.assert_equal(got, wanted, message=name)
            assert got.is_contiguous()
        again = ops.unpack_24(values, indices, shape[1])
        testing.assert_equal(again, unsigned_zeros(weight), message=name)
        assert again.is_contiguous()
        testing.assert_equal(reference.unpack_24(values, indices, shape[1]), again)


@pytest.mark.parametrize("dtype", DTYPES)
def test_buffers_in_any_layout(dtype):
    weight = sparse_24((4, 12, 3, 2), dtype)
    values, indices = ops.pack_24(weight)
    for (name, v), (_, i) in zip(testing.layouts(values), testing.layouts(indices), strict=True):
        if name != "expanded":
            testing.assert_equal(ops.unpack_24(v, i, 12), unsigned_zeros(weight), message=name)


def test_every_pair_of_positions():
    """All groups of at most two non-zeros: (first, second) as torch's own layout has them."""
    pairs = {
        (0, 0, 0, 0): (2, 3),
        (5, 0, 0, 0): (0, 2),
        (0, 5, 0, 0): (1, 2),
        (0, 0, 5, 0): (2, 3),
        (0, 0, 0, 5): (2, 3),
        (5, 6, 0, 0): (0, 1),
        (5, 0, 6, 0): (0, 2),
        (5, 0, 0, 6): (0, 3),
        (0, 5, 6, 0): (1, 2),
        (0, 5, 0, 6): (1, 3),
        (0, 0, 5, 6): (2, 3),
    }
    for group, (first, second) in pairs.items():
        values, indices = ops.pack_24(torch.tensor([group], dtype=torch.int8))
        assert indices.tolist() == [[first | second << 2]]
        assert values.tolist() == [[group[first], group[second]]]


def test_nan_is_a_value_and_minus_zero_is_none():
    weight = torch.tensor([[nan, -0.0, -0.0, inf, -0.0, 1.0, -0.0, 2.0]])
    values, indices = ops.pack_24(weight)
    testing.assert_equal(values, torch.tensor([[nan, inf, 1.0, 2.0]]))
    testing.assert_equal(ops.unpack_24(values, indices, 8), unsigned_zeros(weight))
    with pytest.raises(ValueError, match="more than 2 non-zeros"):
        ops.pack_24(torch.tensor([[nan, 1.0, nan, 0.0]]))


@pytest.mark.parametrize("threads", [1, 2])
def test_the_first_offender_is_named(threads):
    with testing.threads(threads):
        weight = torch.zeros(5000, 1026)
        weight[4999, :] = weight[2001, 800:] = weight[4000, 4:8] = 1
        with pytest.raises(ValueError) as error:
            ops.pack_24(weight)
        assert str(error.value) == (
            "pack_24: weight must be 2:4, got group 200 of row 2001, "
            "which has more than 2 non-zeros"
        )
    taps = torch.zeros(3, 8, 2, 2, dtype=torch.int8)
    taps[1, 4:, 1, 0] = 1
    with pytest.raises(ValueError, match="got group 1 of row 1 of tap 2, which has more than 2"):
        ops.pack_24(taps)


def buffers(columns=6):
    weight = torch.tensor([[1, 0, 2, 0, 3, 0, 0, 0][:columns]] * 3, dtype=torch.int8)
    return ops.pack_24(weight)


BAD = {
    "equal positions": (lambda v, i: i[1].fill_(0x85), "group 0 of row 1, .* does not ascend"),
    "descending": (lambda v, i: i[2].fill_(0x82), "group 0 of row 2, .* does not ascend"),
    "a value past the end": (
        lambda v, i: v[0, 3].fill_(1),
        "group 1 of row 0, which has a value or an index past the last column",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_buffers_are_refused(name):
    change, text = BAD[name]
    values, indices = buffers()
    change(values, indices)
    with pytest.raises(ValueError, match=f"unpack_24: values and indices must be 2:4, got {text}"):
        ops.unpack_24(values, indices, 6)


def test_unused_bits_must_be_zero():
    values, indices = buffers(4)
    indices[0] |= 0x40
    with pytest.raises(ValueError, match="an index past the last column"):
        ops.unpack_24(values, indices, 4)


@pytest.mark.parametrize("columns", [-1, 0, 4, 9, 2**40, 2**63 - 1, 2**80])
def test_other_columns_are_refused(columns):
    values, indices = buffers()
    with pytest.raises(ValueError, match="unpack_24: values and indices must be"):
        ops.unpack_24(values, indices, columns)
    if columns < 2**63:
        with pytest.raises(RuntimeError, match="unpack_24: values and indices must be"):
            raw.unpack_24(values, indices, columns)


def test_other_shapes_are_refused():
    values, indices = buffers()
    for v, i in [
        (values[:-1], indices),
        (values[:, :-1], indices),
        (values[0], indices[0]),
        (values, indices[:, :0]),
        (values[None], indices[None]),
        (values[None, None], indices),
        (values.flatten(), indices.flatten()),
    ]:
        with pytest.raises(ValueError, match="unpack_24: values and indices must be"):
            ops.unpack_24(v, i, 6)
        with pytest.raises(RuntimeError, match="unpack_24: values and indices must be"):
            raw.unpack_24(v, i, 6)


@pytest.mark.parametrize(
    ("name", "arguments", "error", "text"),
    [
        ("mask_24", (3,), TypeError, "weight must be a tensor, got int"),
        (
            "mask_24",
            (torch.ones(4, 4, dtype=torch.int8),),
            TypeError,
            "weight must be float32, float16 or bfloat16, got int8",
        ),
        ("mask_24", (torch.ones(4, 4, dtype=torch.float64),), TypeError, "got float64"),
        ("mask_24", (torch.ones(4),), ValueError, "at least two dimensions, got shape (4,)"),
        ("pack_24", (None,), TypeError, "weight must be a tensor, got NoneType"),
        (
            "pack_24",
            (torch.ones(4, 4, dtype=torch.uint8),),
            TypeError,
            "weight must be int8, float32, float16 or bfloat16, got uint8",
        ),
        ("pack_24", (torch.ones(4),), ValueError, "weight must be [N, K] or [O, I, kH, kW], got"),
        ("pack_24", (torch.ones(4, 4, 4),), ValueError, "got shape (4, 4, 4)"),
        (
            "unpack_24",
            (torch.ones(4, 2, dtype=torch.uint8), torch.ones(4, 1, dtype=torch.uint8), 4),
            TypeError,
            "values must be int8, float32, float16 or bfloat16, got uint8",
        ),
        (
            "unpack_24",
            (torch.ones(4, 2), torch.ones(4, 1, dtype=torch.int8), 4),
            TypeError,
            "indices must be uint8, got int8",
        ),
        ("unpack_24", (torch.ones(4, 2), [[4]], 4), TypeError, "indices must be a tensor"),
    ],
)
def test_errors(name, arguments, error, text):
    with pytest.raises(error, match=rf"^{name}: .*{re.escape(text)}"):
        getattr(ops, name)(*arguments)


def test_no_gradient():
    weight = sparse_24((4, 8), torch.float32).requires_grad_()
    values, indices = ops.pack_24(weight)
    outputs = ops.mask_24(weight), values, indices, ops.unpack_24(values, indices, 8)
    assert not any(output.requires_grad for output in outputs)


def test_compiles():
    def through(weight):
        values, indices = ops.pack_24(torch.where(ops.mask_24(weight), weight, 0.0))
        return ops.unpack_24(values, indices, weight.shape[1])

    compiled = torch.compile(through, fullgraph=True, backend="aot_eager")
    for shape in ((4, 8), (5, 12), (2, 8, 3, 3)):
        weight = torch.randn(shape)
        testing.assert_equal(compiled(weight), through(weight))
