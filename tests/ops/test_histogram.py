"""histogram against its definition: every bin exact, on every ISA, in every layout."""

import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseq import ops, reference, testing
from sparseq.reference import scale_shape

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@st.composite
def cases(draw):
    """X in some layout, and the arguments after it."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtype = draw(st.sampled_from(DTYPES))
    dim = draw(st.integers(0, 4))
    shape = [draw(st.integers(0, 9)) for _ in range(dim)]
    if dim and draw(st.booleans()):
        shape[-1] = draw(st.integers(1, 67))
    axis = group_size = None
    kind = draw(st.sampled_from(("tensor", "axis", "group")))
    if dim and kind == "axis":
        axis = draw(st.integers(-dim, dim - 1))
    elif dim and kind == "group":
        axis = draw(st.sampled_from((None, 0, -1)))
        group_size = draw(st.integers(1, 20))
        shape[-1] = group_size * draw(st.integers(1, 4))
    grid = scale_shape(tuple(shape), axis, group_size)
    limit = 2.0 ** torch.randint(-4, 5, grid, generator=generator)
    most = max(1, min(13, (2**18 // max(limit.numel(), 1)).bit_length() - 1))
    bins = 2 ** draw(st.integers(1, most))  # at most 2 MiB of counts, or two bins each
    x = torch.randn(shape, generator=generator) * draw(st.sampled_from((0.1, 1.0, 100.0)))
    if draw(st.booleans()) and x.numel():  # edge values, and those of bins, at random places
        edges = testing.edge_values(torch.float32, 4 * float(limit.flatten()[0]) / bins)
        where = torch.randint(x.numel(), (min(x.numel(), 12),), generator=generator)
        x.view(-1)[where] = edges[torch.randint(len(edges), where.shape, generator=generator)]
    arranged = list(testing.layouts(x.to(dtype)))
    layout, x = arranged[draw(st.integers(0, len(arranged) - 1))]
    return layout, x, (limit, bins, axis, group_size)


@given(cases())
@settings(max_examples=300)
def test_equals_reference(case):
    layout, x, arguments = case
    wanted = reference.histogram(x, *arguments)
    for name in testing.every_isa():
        got = ops.histogram(x, *arguments)
        message = f"{name} {layout} {x.dtype} {tuple(x.shape)} {arguments[1:]}"
        testing.assert_equal(got, wanted, message=message)


@given(st.integers(0, 2**31), st.integers(1, 10), st.integers(-3, 3))
@settings(max_examples=100)
def test_laws(seed, bits, exponent):
    """What is no NaN is counted once; twice the limit joins bins in pairs; parts add up."""
    x = torch.randn(5, 37, generator=torch.Generator().manual_seed(seed)) * 4
    x[0, :3] = torch.tensor([math.nan, math.inf, -math.inf])
    bins, limit = 2**bits, 2.0**exponent
    counts = ops.histogram(x, limit, bins)
    assert int(counts.sum()) == x.numel() - 1
    wide = ops.histogram(x, 2 * limit, bins)
    inner = counts.reshape(-1, 2).sum(1)
    if bins > 2:
        # the ends of the narrower one also hold what lies beyond it
        testing.assert_equal(wide[bins // 4 + 1 : -bins // 4 - 1], inner[1:-1])
    parts = ops.histogram(x[:2], limit, bins) + ops.histogram(x[2:], limit, bins)
    testing.assert_equal(parts, counts)
    testing.assert_equal(ops.histogram(x, torch.full((5,), limit), bins, 0).sum(0), counts)


def test_where_values_fall(isa):
    """[-1, -1/2) [-1/2, 0) [0, 1/2) [1/2, 1); the ends are open."""
    least = 2.0**-149
    below = [-math.inf, -3e38, -7.0, -1.0, -0.75]
    values = [*below, -0.5, -least, -0.0, 0.0, least, 0.25, 0.5, 0.99, 1.0, 3e38, math.inf]
    assert ops.histogram(torch.tensor([*values, math.nan]), 1.0, 4).tolist() == [5, 2, 4, 5]


@pytest.mark.parametrize("bins", [2, 256, 65536])
def test_the_least_and_the_greatest_limits(isa, bins):
    """x / limit leaves float32 at both ends: what falls where does not change with it."""
    limit = torch.tensor([2.0**-126, 2.0**-100, 1.0, 2.0**100, 2.0**127])
    x = torch.cat(
        [testing.edge_values().expand(5, -1), limit[:, None] * torch.linspace(-2, 2, 99)], 1
    )
    testing.assert_equal(ops.histogram(x, limit, bins, 0), reference.histogram(x, limit, bins, 0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_length(isa, dtype):
    edges = testing.edge_values(dtype, 0.25)
    for length in range(1, 68):
        x = edges.repeat(4)[length % 7 :][:length]
        for limit, axis in ((torch.tensor(8.0), None), (torch.full((length,), 8.0), 0)):
            wanted = reference.histogram(x, limit, 128, axis)
            testing.assert_equal(ops.histogram(x, limit, 128, axis), wanted, message=f"{length}")


# runs and columns; channels enough for the threads, and few; tiles that lack channels; all of the
# counters in a cache, and written down first; numbers of rows that joined rows do not divide
LARGE = [
    ((3, 70001), None, None, 2048),
    ((300001,), None, None, 65536),
    ((70, 4013), 0, None, 256),
    ((4, 19, 41, 43), 1, None, 256),
    ((50021, 5), 1, None, 64),
    ((50021, 5), 1, None, 16384),
    ((9001, 3), 1, None, 2048),
    ((2003, 150), 1, None, 2048),
    ((1100, 70), 1, None, 65536),
    ((37, 210, 3), 1, None, 1024),
    ((50021, 5), 0, None, 2),
    ((64, 1024), 0, 128, 512),
    ((2048, 24), -1, 8, 64),
]


@pytest.mark.parametrize(("shape", "axis", "group_size", "bins"), LARGE, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_tensors_on_any_number_of_threads(shape, axis, group_size, bins, dtype):
    x = torch.randn(shape).to(dtype)
    if len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    limit = 2.0 ** torch.randint(-1, 4, scale_shape(shape, axis, group_size))
    wanted = reference.histogram(x, limit, bins, axis, group_size)
    for name in testing.every_isa():
        for count in (1, 2, 7):
            with testing.threads(count):
                got = ops.histogram(x, limit, bins, axis, group_size)
                testing.assert_equal(got, wanted, message=f"{name}, {count} threads")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="zeros must take no memory")
def test_counts_beyond_32_bits():
    """Zeros of numpy, unlike torch's, are pages that nobody wrote: they take no memory to read."""
    count = 2**32 + 2**20 + 5
    x = torch.from_numpy(np.zeros(count, np.uint16)).view(torch.bfloat16)
    with testing.threads(1):
        assert ops.histogram(x, 1.0, 4).tolist() == [0, 0, count, 0]


def test_equals_numpy_where_bins_are_exact(isa):
    x = torch.randn(100_003)
    wanted, _ = np.histogram(x.numpy(), 1024, (-8, 8))
    assert int((x.abs() >= 8).sum()) == 0
    testing.assert_equal(ops.histogram(x, 8.0, 1024), torch.from_numpy(wanted))


def test_operands_may_be_of_any_kind():
    x, limit = torch.randn(6, 10), torch.full((20,), 2.0)[::2]
    wanted = reference.histogram(x, limit, 16, 1)
    testing.assert_equal(ops.histogram(x, limit, 16, 1), wanted)
    testing.assert_equal(ops.histogram(x, limit, 16, -1), wanted)
    one = ops.histogram(x, torch.tensor([2.0]), 16)
    testing.assert_equal(one[0], ops.histogram(x, 2, 16))
    assert one.shape == (1, 16) and one.dtype == torch.int64


@pytest.mark.parametrize(
    ("shape", "axis", "group_size"),
    [((0,), None, None), ((3, 0), 0, None), ((0, 3), 1, None), ((0, 3), 0, None), ((0, 8), -1, 4)],
)
def test_empty(shape, axis, group_size):
    limit = torch.ones(scale_shape(shape, axis, group_size))
    counts = ops.histogram(torch.empty(shape), limit, 8, axis, group_size)
    assert counts.shape == (*limit.shape, 8) and int(counts.sum()) == 0


def test_gives_no_gradient_and_leaves_inputs_alone():
    x, limit = torch.randn(4, 9, requires_grad=True), torch.ones(4, requires_grad=True)
    before = x.detach().clone()
    assert not ops.histogram(x, limit, 8, 0).requires_grad
    testing.assert_equal(x, before)
