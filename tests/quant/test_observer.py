import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparseq import Quant, ops, testing
from sparseq.quant import Observer, range_to_grid


def grid(low, high, **scheme):
    scale, zero_point = range_to_grid(torch.tensor(low), torch.tensor(high), Quant(**scheme))
    return float(scale), int(zero_point)


@pytest.mark.parametrize(
    ("low", "high", "scheme", "scale", "zero"),
    [
        # symmetric: max(|low|, |high|) / quant_max
        (-1.0, 2.54, {}, 2.54 / 127, 0),
        (-3.0, 1.0, {"bits": 4}, 3.0 / 7, 0),
        (-3.0, 5.1, {"signed": False}, 5.1 / 255, 0),
        # asymmetric: (high - low) / (quant_max - quant_min), rne(quant_min - low / scale)
        (-1.0, 1.55, {"symmetric": False}, 0.01, -28),
        (0.0, 2.55, {"symmetric": False}, 0.01, -128),
        (-2.55, 0.0, {"symmetric": False}, 0.01, 127),
        (-0.5, 1.0, {"symmetric": False, "signed": False, "bits": 4}, 0.1, 5),
        # 0 is always in the range
        (1.0, 2.55, {"symmetric": False}, 0.01, -128),
        (-5.1, -2.0, {"symmetric": False, "signed": False}, 0.02, 255),
        # halves to even: 2.5 -> 2, 3.5 -> 4
        (-2.5, 12.5, {"symmetric": False, "signed": False, "bits": 4}, 1.0, 2),
        (-3.5, 11.5, {"symmetric": False, "signed": False, "bits": 4}, 1.0, 4),
        # nothing to cover
        (0.0, 0.0, {}, 1.0, 0),
        (0.0, 0.0, {"symmetric": False}, 1.0, -128),
        (-4.0, 0.0, {"signed": False}, 1.0, 0),
        (1e-45, 1e-45, {}, 1.0, 0),
    ],
)
def test_grids_by_hand(low, high, scheme, scale, zero):
    got = grid(low, high, **scheme)
    assert got[0] == pytest.approx(scale, rel=1e-6)
    assert got[1] == zero


@given(
    st.floats(-1e6, 1e6, width=32),
    st.floats(0, 1e6, width=32),
    st.integers(2, 8),
    st.booleans(),
)
def test_law_the_range_is_covered_and_zero_is_exact(low, extent, bits, signed):
    spec = Quant(bits=bits, signed=signed, symmetric=False)
    ends = torch.tensor([low, low + extent])
    scale, zero_point = range_to_grid(ends[0], ends[1], spec)
    assert float(scale) > 0 and spec.quant_min <= int(zero_point) <= spec.quant_max
    y = ops.fake_quantize(ends, scale, zero_point, spec.quant_min, spec.quant_max)
    slack = float(scale) * (0.5 + 0.5 + 1e-4)  # the rounding of the value and of the zero point
    assert bool(((y - ends).abs() <= slack).all())
    zero = ops.fake_quantize(torch.zeros(1), scale, zero_point, spec.quant_min, spec.quant_max)
    assert zero.item() == 0.0


def test_grids_keep_their_shape():
    low, high = torch.tensor([[-1.0, 0.0], [-3.0, -1.0]]), torch.tensor([[2.0, 0.0], [1.0, 5.0]])
    scale, zero_point = range_to_grid(low, high, Quant(axis=0))
    assert scale.shape == zero_point.shape == (2, 2) and zero_point.dtype == torch.int32
    testing.assert_equal(scale, torch.tensor([[2 / 127, 1.0], [3 / 127, 5 / 127]]))


def test_minmax_keeps_the_extremes():
    observer = Observer(Quant(), ())
    for batch in ([1.0, 2.0], [-3.0, 0.5], [0.0, 1.0]):
        observer.update(torch.tensor(batch))
    assert (float(observer.low), float(observer.high)) == (-3.0, 2.0)
    observer.reset()
    observer.update(torch.tensor([0.25]))
    assert (float(observer.low), float(observer.high)) == (0.25, 0.25)


def test_moving_average_follows_by_a_tenth():
    observer = Observer(Quant(observer="moving_average"), ())
    observer.update(torch.tensor([-1.0, 2.0]))
    assert (float(observer.low), float(observer.high)) == (-1.0, 2.0)
    observer.update(torch.tensor([-3.0, 4.0]))
    assert float(observer.low) == pytest.approx(-1.2) and float(observer.high) == pytest.approx(2.2)
    observer.update(torch.tensor([-1.2, 12.2]))
    assert float(observer.low) == pytest.approx(-1.2) and float(observer.high) == pytest.approx(3.2)


def test_channels_and_groups_are_watched_apart():
    x = torch.tensor([[1.0, -2.0, 3.0, 4.0], [-5.0, 6.0, 7.0, -8.0]])
    rows = Observer(Quant(axis=0), (2,))
    rows.update(x)
    assert rows.low.tolist() == [-2.0, -8.0] and rows.high.tolist() == [4.0, 7.0]
    groups = Observer(Quant(group_size=2), (2, 2))
    groups.update(x)
    assert groups.low.tolist() == [[-2.0, 3.0], [-5.0, -8.0]]
    assert groups.high.tolist() == [[1.0, 4.0], [6.0, 7.0]]


@pytest.mark.parametrize("kind", ["minmax", "moving_average"])
def test_nan_and_nothing_are_refused_and_change_nothing(kind):
    observer = Observer(Quant(observer=kind), ())
    observer.update(torch.tensor([-1.0, 1.0]))
    with pytest.raises(ValueError, match="observer: x must not hold NaN"):
        observer.update(torch.tensor([5.0, float("nan")]))
    with pytest.raises(ValueError, match="x must not be empty"):
        observer.update(torch.empty(0))
    assert (float(observer.low), float(observer.high)) == (-1.0, 1.0)


def test_observers_are_part_of_the_state():
    observer, again = Observer(Quant(), ()), Observer(Quant(), ())
    observer.update(torch.tensor([-1.0, 2.0]))
    again.load_state_dict(observer.state_dict())
    again.update(torch.tensor([3.0]))
    assert (float(again.low), float(again.high)) == (-1.0, 3.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_watched_in_float32(dtype):
    observer = Observer(Quant(), ())
    observer.update(torch.tensor([-1.0, 2.0], dtype=dtype))
    assert observer.low.dtype == torch.float32 and float(observer.high) == 2.0
