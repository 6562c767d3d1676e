"""Observers of distributions: what they count, and the ranges that they fit to it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseq import Quant, ops, testing
from sparseq.quant import HistogramObserver, fitted_range, range_of_values, range_to_grid

SCHEMES = [{}, {"symmetric": False}, {"bits": 4}, {"bits": 4, "symmetric": False}]
KINDS = ["percentile", "histogram", "entropy"]


def seen(spec, *batches, shape=()):
    observer = HistogramObserver(spec, shape)
    for batch in batches:
        observer.update(batch)
    observer.settle()
    return observer.low, observer.high


def error(x, low, high, spec):
    scale, zero = range_to_grid(low, high, spec)
    y = ops.fake_quantize(
        x, scale, zero, spec.quant_min, spec.quant_max, spec.axis, spec.group_size
    )
    return float((y - x).double().square().mean())


def bell_with_outliers(count=20000):
    return torch.cat([torch.randn(count), 15 * torch.randn(max(1, count // 2000))])


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=15)
@given(st.lists(st.floats(-30, 30, width=32), min_size=3, max_size=3), st.integers(1, 400))
def test_law_order_and_cut_of_the_batches_do_not_matter(kind, powers, cut):
    spec = Quant(observer=kind, symmetric=False)
    generator = torch.Generator().manual_seed(cut)
    parts = [torch.randn(200, generator=generator) * 2.0**p for p in powers]
    whole = torch.cat(parts)
    wanted = seen(spec, whole)
    for batches in (parts, parts[::-1], whole.split(cut)):
        got = seen(spec, *batches)
        testing.assert_equal(got[0], wanted[0])
        testing.assert_equal(got[1], wanted[1])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_histogram_finds_the_least_squared_error(scheme):
    """Against a dense grid of all ranges, on the values themselves."""
    spec = Quant(observer="histogram", **scheme)
    for x in (bell_with_outliers(), bell_with_outliers().relu(), torch.rand(20000) ** 3):
        low, high = seen(spec, *x.split(5000))
        lowest, highest = x.min().clamp(max=0), x.max().clamp(min=0)
        shares = torch.linspace(0.02, 1, 50)
        if spec.symmetric:
            pairs = [(-r * x.abs().max(), r * x.abs().max()) for r in shares]
        else:
            pairs = [(a * lowest, b * highest) for a in shares[::2] for b in shares[::2]]
        best = min(error(x, a, b, spec) for a, b in pairs)
        assert error(x, low, high, spec) <= 1.02 * best
        assert low >= x.min().clamp(max=0) - (highest if spec.symmetric else 0) and high >= 0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_percentile_cuts_what_it_says(scheme):
    spec = Quant(observer="percentile", percentile=99.0, **scheme)
    x = torch.randn(100000) * 3 + (0 if spec.symmetric else 1)
    low, high = seen(spec, *x.split(9999))
    step = 2 * 16 / 4096  # a bin
    if spec.symmetric:
        assert float(high) == pytest.approx(np.quantile(x.abs().numpy(), 0.99), abs=step)
        assert low == -high
    else:
        assert float(low) == pytest.approx(np.quantile(x.numpy(), 0.005), abs=step)
        assert float(high) == pytest.approx(np.quantile(x.numpy(), 0.995), abs=step)
    above = x.relu()
    low, high = seen(Quant(observer="percentile", percentile=99.0, symmetric=False), above)
    assert low == 0
    assert float(high) == pytest.approx(np.quantile(above.numpy(), 0.99), abs=step)


@pytest.mark.parametrize("kind", KINDS)
def test_all_of_a_few_values_is_kept(kind):
    """Nothing is cut where cutting gains nothing."""
    x = torch.tensor([-1.0, 1.0]).repeat(500)
    low, high = seen(Quant(observer=kind, percentile=100), x)
    assert float(high) == pytest.approx(1.0, abs=0.01) and float(low) == pytest.approx(-1, abs=0.01)


def divergence_by_hand(x, high, levels=255, bins=4096):
    """Migacz's measure for a symmetric range, step by step."""
    limit = 2.0 ** np.ceil(np.log2(np.abs(x).max()))
    counts, edges = np.histogram(x, bins, (-limit, limit))
    counts = counts.astype(float)
    counts[bins // 2] = min(counts[bins // 2], counts[bins // 2 + 1])
    centres = (edges[:-1] + edges[1:]) / 2
    scale = high / (levels // 2)
    steps = np.round(centres / scale)
    inside = (np.abs(steps) <= levels // 2) & (counts > 0)
    p, q = np.where(inside, counts, 0), np.zeros(bins)
    index = np.flatnonzero(inside)
    for level in np.unique(steps[index]):
        here = index[steps[index] == level]
        q[here] = counts[here].mean()
    p[index[0]] += counts[: index[0]].sum()
    p[index[-1]] += counts[index[-1] + 1 :].sum()
    p, q = p / p.sum(), q / q.sum()
    return float((p[index] * np.log(p[index] / q[index])).sum())


def test_entropy_finds_the_least_divergence():
    x = bell_with_outliers(50000)
    spec = Quant(observer="entropy")
    _, high = seen(spec, x)
    most = float(x.abs().max())
    found = divergence_by_hand(x.double().numpy(), float(high))
    assert found <= 1.05 * min(
        divergence_by_hand(x.double().numpy(), r * most) for r in np.linspace(0.02, 1, 50)
    )
    assert float(high) < 0.7 * most


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("scheme", "shape"), [({"axis": 0}, (3,)), ({"axis": 1}, (8,)), ({"group_size": 4}, (3, 2))]
)
def test_channels_and_groups_are_fitted_apart(kind, scheme, shape):
    spec = Quant(observer=kind, bits=4, **scheme)
    x = torch.randn(50, 3, 8) * torch.tensor([1.0, 30.0, 0.01])[:, None]
    parts = [p[0] for p in x.split(1)]
    low, high = seen(spec, *parts, shape=shape)
    assert low.shape == high.shape == shape
    if scheme == {"axis": 0}:
        for i in range(3):
            alone = seen(Quant(observer=kind, bits=4), x[:, i].reshape(-1))
            testing.assert_equal(high[i], alone[1])
            testing.assert_equal(low[i], alone[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_values_and_counts_agree(kind, scheme):
    """A weight's fit is by its values, an input's by their histogram: about the same range."""
    spec = Quant(observer=kind, **scheme)
    x = bell_with_outliers()
    by_values = error(x, *range_of_values(x, spec, ()), spec)
    by_counts = error(x, *seen(spec, x), spec)
    slack = 1.02 if kind == "histogram" else 3
    assert by_counts <= slack * by_values and by_values <= slack * by_counts


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_fitted_per_channel_and_group(kind):
    weight = torch.randn(6, 4, 3, 3) * torch.logspace(-3, 3, 6)[:, None, None, None]
    for spec, shape in (
        (Quant(observer=kind, axis=0, bits=4), (6,)),
        (Quant(observer=kind, group_size=9, bits=4, symmetric=False), (6, 4)),
    ):
        low, high = range_of_values(weight, spec, shape)
        assert low.shape == high.shape == shape
        least, most = ops.minmax(weight, spec.axis, spec.group_size)
        assert bool((high <= torch.maximum(most, -least) * (1 + 1e-6)).all())
        if kind == "histogram":
            assert error(weight, low, high, spec) <= error(weight, least, most, spec)
    row = range_of_values(weight[4], Quant(observer=kind, bits=4), ())
    both = range_of_values(weight, Quant(observer=kind, axis=0, bits=4), (6,))
    testing.assert_equal(both[1][4], row[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0.0, 3.0, -3.0, 1e-45, 1.7e38, -1e30])
def test_one_value_and_the_ends_of_float32(kind, value):
    spec = Quant(observer=kind, symmetric=False)
    low, high = seen(spec, torch.full((5,), value))
    assert bool(low.isfinite()) and bool(high.isfinite()) and low <= 0 <= high
    x = torch.tensor([value])
    assert error(x, low, high, spec) <= (abs(value) / 200) ** 2 + 1e-30


@pytest.mark.parametrize("kind", KINDS)
def test_nan_and_nothing_are_refused_and_change_nothing(kind):
    observer = HistogramObserver(Quant(observer=kind), ())
    observer.update(torch.tensor([-1.0, 1.0]))
    before = observer.counts.clone()
    with pytest.raises(ValueError, match="observer: x must not hold NaN"):
        observer.update(torch.tensor([5.0, float("nan")]))
    with pytest.raises(ValueError, match="x must not be empty"):
        observer.update(torch.empty(0))
    testing.assert_equal(observer.counts, before)
    assert float(observer.high) == 1.0


def test_infinities_are_left_for_calibrate_to_name():
    low, high = seen(Quant(observer="histogram"), torch.tensor([1.0, float("inf")]))
    assert float(high) == float("inf") and float(low) == 1.0


def test_the_counts_are_given_back_and_forgotten():
    observer = HistogramObserver(Quant(observer="histogram"), ())
    observer.update(100 * torch.randn(100))
    observer.settle()
    assert observer.counts is None
    observer.reset()
    observer.update(torch.rand(100))
    observer.settle()
    assert float(observer.high) <= 1


def test_nothing_seen_leaves_no_range():
    low, high = seen(Quant(observer="histogram"))
    assert low > high


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_counted_in_float32(dtype):
    x = torch.randn(5000).to(dtype)
    for got, wanted in zip(
        seen(Quant(observer="histogram"), x),
        seen(Quant(observer="histogram"), x.float()),
        strict=True,
    ):
        testing.assert_equal(got, wanted)


def test_fitted_range_takes_counts_of_any_origin():
    counts = torch.zeros(2, 64, dtype=torch.int64)
    counts[:, 40:50] = 100
    low, high = fitted_range(
        counts,
        torch.tensor([1.0, 4.0]),
        torch.tensor([0.25, 1.0]),
        torch.tensor([0.56, 2.25]),
        Quant(observer="percentile", percentile=100),
    )
    testing.assert_equal(low, -high)
    assert high.tolist() == pytest.approx([0.546875, 2.1875])
