import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparseq import NM, Unstructured, testing
from sparseq.sparse import Mask, magnitude_masks, nm_mask, serves

values = st.sampled_from((-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0))  # few, so that many are equal


@st.composite
def grouped_weights(draw):
    m = draw(st.integers(2, 8))
    n = draw(st.integers(1, m - 1))
    shape = [draw(st.integers(1, 4)), m * draw(st.integers(1, 3))]
    shape += draw(st.sampled_from(([], [3, 3], [1, 2])))
    if draw(st.booleans()):
        generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
        return torch.randn(shape, generator=generator), n, m
    count = torch.Size(shape).numel()
    flat = draw(st.lists(values, min_size=count, max_size=count))
    return torch.tensor(flat).reshape(shape), n, m


@given(grouped_weights())
def test_exactly_n_of_m_and_none_smaller_than_a_dropped_one(case):
    weight, n, m = case
    mask = nm_mask(weight, n, m)
    assert mask.shape == weight.shape and mask.dtype == torch.bool and mask.is_contiguous()
    groups = mask.movedim(1, -1).reshape(-1, m)
    magnitudes = weight.movedim(1, -1).reshape(-1, m).abs()
    assert bool((groups.sum(1) == n).all())
    least_kept = magnitudes.masked_fill(~groups, float("inf")).amin(1)
    greatest_dropped = magnitudes.masked_fill(groups, -1.0).amax(1)
    assert bool((least_kept >= greatest_dropped).all())


def test_ties_go_to_the_first():
    assert nm_mask(torch.ones(1, 8)).tolist() == [[True, True, False, False] * 2]


def test_groups_run_along_the_input_of_each_tap():
    weight = torch.zeros(1, 4, 1, 2)
    weight[0, :, 0, 0] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    weight[0, :, 0, 1] = torch.tensor([4.0, 3.0, 2.0, 1.0])
    mask = nm_mask(weight)
    assert mask[0, :, 0, 0].tolist() == [False, False, True, True]
    assert mask[0, :, 0, 1].tolist() == [True, True, False, False]


@pytest.mark.parametrize("shape", [(4, 6), (4,), (4, 3, 4, 4)])
def test_what_does_not_divide_is_refused(shape):
    with pytest.raises(ValueError, match="m must divide weight's dimension 1, got m = 4 and shape"):
        nm_mask(torch.randn(shape))


@given(
    st.lists(st.lists(values, min_size=1, max_size=30), min_size=1, max_size=4),
    st.floats(0, 1, exclude_max=True),
)
def test_exactly_the_share_of_least_magnitude(lists, sparsity):
    weights = [torch.tensor(v) for v in lists]
    masks = magnitude_masks(weights, sparsity)
    assert [m.shape for m in masks] == [w.shape for w in weights]
    kept, magnitudes = torch.cat(masks), torch.cat(weights).abs()
    assert int((~kept).sum()) == round(sparsity * kept.numel())
    if bool(kept.any()) and not bool(kept.all()):
        assert magnitudes[kept].min() >= magnitudes[~kept].max()


@given(st.integers(0, 2**31), st.floats(0, 0.98), st.floats(0, 0.98))
def test_what_was_dropped_ranks_last(seed, first, second):
    first, second = sorted((first, second))
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(7, 5, generator=generator), torch.randn(20, generator=generator)]
    before = magnitude_masks(weights, first)
    moved = [torch.randn(w.shape, generator=generator) for w in weights]  # trained since
    after = magnitude_masks(moved, second, before)
    for old, new in zip(before, after, strict=True):
        assert not bool((new & ~old).any())  # nothing comes back
    assert sum(int((~m).sum()) for m in after) == round(second * 55)


def test_mask_zeroes_even_what_is_not_finite():
    weight = torch.tensor([[1.0, float("inf"), float("nan"), -2.0]])
    mask = Mask(Unstructured(0.5), weight)
    testing.assert_equal(mask(weight), weight)  # starts with everything kept
    mask.mask.copy_(torch.tensor([[True, False, False, True]]))
    testing.assert_equal(mask(weight), torch.tensor([[1.0, 0.0, 0.0, -2.0]]))


def test_masked_elements_get_no_gradient():
    weight = torch.tensor([[1.0, float("inf"), 3.0]], requires_grad=True)
    mask = Mask(Unstructured(0.5), weight)
    mask.mask[0, 1] = False
    (mask(weight) * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert weight.grad.tolist() == [[1.0, 0.0, 3.0]]


def test_serves():
    assert serves(NM(2, 4), torch.empty(8, 4)) and serves(NM(2, 4), torch.empty(8, 8, 3, 3))
    assert not serves(NM(2, 4), torch.empty(8, 3, 3, 3))
    assert serves(Unstructured(), torch.empty(8, 3, 3, 3))


def test_masks_do_not_follow_gradients_and_are_state():
    mask = Mask(NM(), torch.randn(4, 4))
    assert list(mask.state_dict()) == ["mask"] and not list(mask.parameters())
    assert "NM(n=2, m=4)" in repr(mask)


def test_a_mask_that_is_switched_off():
    weight = torch.randn(4, 8)
    mask = Mask(NM(2, 4), weight)
    mask.mask.copy_(nm_mask(weight))
    assert int((mask(weight) == 0).sum()) == 16
    mask.enabled = False
    assert mask(weight) is weight
